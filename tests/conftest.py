"""All machines alike: on the processor, a thread for each of the processes that share the tests."""

import os

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch looks
os.environ["HF_HUB_OFFLINE"] = "1"  # nor is the hub asked, but for a stand-in
os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
