"""How many files of public repositories does `diffusion-doctor FILE` judge, nothing else typed?

python benchmarks/doctor_files.py CLONES

CLONES holds a checkout of each repository below at its commit, in a folder named owner+name. The
files were chosen by their names, before the doctor ran on any of them. A sampler counts as judged
if its steps' formula is ok or wrong.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from time import perf_counter

DOCTOR = Path(__file__).parents[1] / "doctor"
FILES = {  # repository: commit, file
    "dome272/Diffusion-Models-pytorch": ("be352208d0576039fec061238c0e4385a562a2d4", "ddpm.py"),
    "cloneofsimo/minDiffusion": ("00a3c8066d25a34d3d472ef6c87c7b6b238ea444", "superminddpm.py"),
    "TeaPearce/Conditional_Diffusion_MNIST": (
        "657b49854bbf844caa5580177243ae607c79339f",
        "script.py",
    ),
    "w86763777/pytorch-ddpm": ("f804ccbd58a758b07f79a3b9ecdfb1beb67258f6", "diffusion.py"),
    "tanelp/tiny-diffusion": ("726b6bbbf2c9e3d23dff9eaea2fda10d0af6a78c", "ddpm.py"),
    "openai/improved-diffusion": (
        "1bc7bbbdc414d83d4abf2ad8cc1446dc36c4e4d5",
        "improved_diffusion/gaussian_diffusion.py",
    ),
    "explainingai-code/DDPM-Pytorch": (
        "b524321c101af13f28a5d1f4fbcca1a847c19924",
        "scheduler/linear_noise_scheduler.py",
    ),
    "BrianPulfer/PapersReimplementations": (
        "ce70cab23f7157d911fa541b387797d9d64c65fc",
        "src/cv/ddpm/ddpm.py",
    ),
    "bot66/MNISTDiffusion": ("c7ba8e09174cbb88b9cc314db3bf2e514668681c", "model.py"),
    "rajgarg021/diffusion-from-scratch": ("16b42bf84a79cb6959887b8af4ee872062ca331b", "ddpm.ipynb"),
    "faisalqureshi/ddpm-mnist": (
        "3a9653096cd14d7a26c3328521c745b1936de529",
        "mnist_single_digit/model.py",
    ),
    "Rohith04MVK/mnist-diffusion": ("2b31c996cf2dd7c11791b72f72aea31f291197cf", "ddpm.py"),
}


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
    flags = parser.parse_args()
    judged = 0
    chosen = [name for name in FILES if flags.only in name]
    for name in chosen:
        path = flags.clones / name.replace("/", "+") / FILES[name][1]
        row = judge(path)
        judged += row.get("formula") in ("ok", "wrong")
        print(name, json.dumps(row | {"seconds": round(row["seconds"], 1)}), flush=True)
    print(f"sampler judged: {judged} of {len(chosen)}")


if __name__ == "__main__":
    main()
