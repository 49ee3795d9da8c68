"""Does the doctor notice bugs, name them, and call healthy code healthy?

pip install -r benchmarks/requirements-peers.txt
python benchmarks/doctor.py                     every bug in every codebase, then healthy code
python benchmarks/doctor.py --only plain        … of the cases whose name has this text
python benchmarks/doctor.py --seeds 0           … without the healthy ones

Bugs are put into the installed packages at run time; benchmarks/buggy has them. doctor.json holds
each case as soon as it is judged, and the same command continues. A case is noticed if a check is
wrong; its rank is that of the right cause among the report's.
"""

import argparse
import json
import os
import warnings
from time import perf_counter

from harness import RESULTS, make_parser, run, write_result

COLUMNS = "noticed", "first", "among two", "of"


def parse_flags() -> argparse.Namespace:
    """The flags."""
    parser = make_parser(__doc__, RESULTS / "doctor.json")
    parser.add_argument("--only", nargs="+", default=[""], help="parts of the names of cases")
    parser.add_argument("--seeds", type=int, default=20, help="of every healthy case: 20")
    parser.add_argument("--again", action="store_true", help="judge cases that are in the file")
    return parser.parse_args()


def judge(case, seed: int) -> dict:
    """One examination: what was wrong, the causes, seconds. An error of the doctor is a miss."""
    import torch
    from diffusion_doctor.examination import examine

    torch.manual_seed(seed)
    given = case.given()
    start = perf_counter()
    try:
        report = examine(**given, seed=seed)
    except Exception as error:  # of any kind: a case must not end the proof
        return {"error": f"{type(error).__name__}: {error}"[:300], "noticed": False, "causes": []}
    wrong = [check.name for check in report.checks if check.verdict == "wrong"]
    causes = [bug for bug, _ in report.causes()]
    return {
        "noticed": bool(wrong),
        "rank": causes.index(case.bug) + 1 if case.bug in causes else None,
        "causes": causes[:3],
        "wrong": wrong,
        "seconds": round(perf_counter() - start, 1),
    }


def judge_all(flags: argparse.Namespace, record: dict) -> None:
    """Judges every case that the record lacks, and writes the record after each."""
    from buggy import diffusers_bugs, lucidrains_bugs, own_bugs, plain_bugs, smalldiffusion_bugs

    modules = own_bugs, diffusers_bugs, lucidrains_bugs, smalldiffusion_bugs, plain_bugs
    ill = [(case, 0) for module in modules for case in module.ill()]
    seeds = range(flags.seeds)
    ill += [(case, seed) for seed in seeds for module in modules for case in module.healthy()]
    for case, seed in ill:
        table = record["ill" if case.bug else "healthy"]
        key = case.name if case.bug else f"{case.name} · seed {seed}"
        is_asked = any(part in case.name for part in flags.only)
        if not is_asked or (key in table and not flags.again):
            continue
        result = {"codebase": case.codebase, "bug": case.bug} if case.bug else {}
        table[key] = result | judge(case, seed)
        is_right = table[key]["noticed"] == bool(case.bug)
        if not is_right or table[key].get("rank") not in (None, 1, 2):
            print(key, "|", json.dumps(table[key], ensure_ascii=False))
        flags.out.write_text(json.dumps(record), encoding="utf-8")


def summary(record: dict) -> list[str]:
    """A table of rates by codebase, and the false alarms."""
    rows = [("codebase", *COLUMNS)]
    cases = list(record["ill"].values())
    names = list(dict.fromkeys(case["codebase"] for case in cases))
    for name in [*names, "all"]:
        own = [case for case in cases if name in (case["codebase"], "all")]
        ranks = [case.get("rank") or 99 for case in own]
        noticed = sum(case["noticed"] for case in own)
        rows.append((name, noticed, ranks.count(1), sum(rank <= 2 for rank in ranks), len(own)))
    alarms = [key for key, case in record["healthy"].items() if case["noticed"]]
    lines = [f"{name:28}" + "".join(f"{value:>10}" for value in values) for name, *values in rows]
    return [*lines, f"{len(alarms)} false alarms in {len(record['healthy'])} examinations", *alarms]


def table(record: dict) -> list[str]:
    """Markdown: by bug and codebase, the rank of the right cause in each case; – for a miss."""
    cases = list(record["ill"].values())
    codebases = list(dict.fromkeys(case["codebase"] for case in cases))
    rows = ["| | " + " | ".join(codebases) + " |", "|---" * (len(codebases) + 1) + "|"]
    for bug in dict.fromkeys(case["bug"] for case in cases):
        cells = [
            ", ".join(
                str(case.get("rank") or "–")
                for case in cases
                if (case["bug"], case["codebase"]) == (bug, codebase)
            )
            for codebase in codebases
        ]
        rows.append(f"| `{bug}` | " + " | ".join(cells) + " |")
    return rows


def main() -> None:
    flags = parse_flags()
    os.environ["TQDM_DISABLE"] = "1"
    warnings.simplefilter("ignore")
    record = {"ill": {}, "healthy": {}}
    if flags.out.exists():
        stored = json.loads(flags.out.read_text(encoding="utf-8"))
        record = {name: stored.get(name, {}) for name in record}
    judge_all(flags, record)
    record["summary"] = summary(record)
    print(*record["summary"], *table(record), sep="\n")
    write_result(flags.out, record)


if __name__ == "__main__":
    run(main, "stopped: the same command continues")
