"""How many files of public repositories does `diffusion-doctor FILE` judge, nothing else typed?

python benchmarks/doctor_files.py CLONES

CLONES holds a checkout of each repository of doctor_files.txt at its commit, in a folder named
owner+name. The files were chosen by their names, before the doctor ran on any of them. A set's
first run is the one that proves something, since its failures are mended afterwards. A sampler
counts as judged if its steps' formula is ok or wrong. The repositories import einops, lightning,
torch_ema, torchmetrics and jaxtyping, which must be installed.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from time import perf_counter

DOCTOR = Path(__file__).parents[1] / "doctor"
LIST = Path(__file__).with_suffix(".txt")  # set, commit, repository, file


def judge(path: Path) -> dict:
    """The verdicts on one file: of the sampler's formula, of all checks that are wrong; seconds."""
    command = [sys.executable, "-m", "diffusion_doctor", str(path), "--json"]
    start = perf_counter()
    process = subprocess.run(
        command,
        env=os.environ | {"PYTHONPATH": str(DOCTOR)},
        capture_output=True,
        text=True,
        cwd=path.parent,
    )
    seconds = perf_counter() - start
    try:
        report = json.loads(process.stdout)
    except json.JSONDecodeError:
        lines = process.stderr.strip().splitlines() or ["nothing printed"]
        return {"seconds": seconds, "error": lines[-1]}
    checks = {check["name"]: check["verdict"] for check in report["checks"]}
    return {
        "seconds": seconds,
        "formula": checks.get("sampler: the formula of its steps", "not checked"),
        "wrong": [name for name, verdict in checks.items() if verdict == "wrong"],
        "judged": sum(verdict in ("ok", "wrong") for verdict in checks.values()),
    }


def main() -> None:
    """Prints a row for each file, and the share whose sampler was judged."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clones", type=Path)
    parser.add_argument("--only", default="", help="part of a repository's name")
    parser.add_argument("--set", default="", help="a, b, c or d")
    flags = parser.parse_args()
    rows = [line.split() for line in LIST.read_text().splitlines()]
    rows = [row for row in rows if flags.only in row[2] and flags.set in row[0]]
    judged = 0
    for _, _, name, file in rows:
        row = judge(flags.clones / name.replace("/", "+") / file)
        judged += row.get("formula") in ("ok", "wrong")
        print(name, json.dumps(row | {"seconds": round(row["seconds"], 1)}), flush=True)
    print(f"sampler judged: {judged} of {len(rows)}")


if __name__ == "__main__":
    main()
