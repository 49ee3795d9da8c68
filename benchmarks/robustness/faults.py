"""Signals, kills, cases and a soak: is any work lost?"""

import json
import os
import random
import tempfile
import time
from pathlib import Path

from harness import CORES, circumstances

from robustness.cases import try_cases
from robustness.interruptions import kills, signals
from robustness.reference import Reference
from robustness.soak import soak


def main(flags) -> int:
    """Runs what is asked for, and writes or replaces its part of the results."""
    began, results = time.monotonic(), {}
    with tempfile.TemporaryDirectory(prefix="faults-") as name:
        os.chmod(name, 0o755)  # another user reads it
        reference = Reference(Path(name).resolve())
        for part in flags.only:
            rng = random.Random(f"{flags.seed} {part}")
            if part == "signals":
                results[part] = signals(reference, flags.signals, rng)
            elif part == "starts":
                results[part] = signals(reference, flags.starts, rng, is_new=True)
            elif part == "kills":
                results[part] = kills(reference, flags.kills, rng)
            elif part == "cases":
                results[part] = try_cases(reference, flags.pairs, rng)
            else:
                results[part] = soak(reference, flags.minutes)
    about = circumstances() | {"seed": flags.seed, "cores": CORES}
    about["minutes"] = round((time.monotonic() - began) / 60, 1)
    record = json.loads(flags.out.read_text(encoding="utf-8")) if flags.out.exists() else {}
    record |= {part: {**result, "about": about} for part, result in results.items()}
    flags.out.parent.mkdir(parents=True, exist_ok=True)
    flags.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    wrong = [each for result in results.values() for each in result["wrong"]]
    print(json.dumps(results, indent=1))
    print(f"written to {flags.out}; wrong: {len(wrong)}")
    return min(1, len(wrong))
