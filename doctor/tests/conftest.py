"""All machines alike: on the processor, a thread for each of the processes that share the tests."""

import os
from pathlib import Path

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch looks
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parents[2]
