"""`python -m mnist_ddpm doctor`."""

import json
import sys

from mnist_ddpm.commands.flags import DoctorFlags
from mnist_ddpm.ddpm import check
from mnist_ddpm.doctor.foreign_code import OBJECTS, examine_foreign_code
from mnist_ddpm.doctor.report_text import report_lines
from mnist_ddpm.machine.text import printable


def run_doctor(flags: DoctorFlags) -> None:
    """Prints the report. Raises ValueError where something is wrong, so that the status is 1."""
    names = {name: getattr(flags, name) for name in OBJECTS if getattr(flags, name) is not None}
    check(
        bool(names), "name what to examine, such as --schedule my.py:betas --sampler my.py:sample"
    )
    options = {"shape": list(flags.shape), "steps": flags.steps, "seed": flags.seed}
    fixed = {name: getattr(flags, name) for name in ("clips", "first_time", "time", "prediction")}
    options |= {name: value for name, value in fixed.items() if value is not None}
    if sys.stderr.isatty():
        print(f"examining, for {flags.seconds:g} s at most …", file=sys.stderr)
    try:
        answer = examine_foreign_code(names, options, flags.out, flags.seconds)
    except ValueError as error:
        for line in getattr(error, "__notes__", ()):
            print(f"  {printable(line)}", file=sys.stderr)
        raise
    if flags.json:
        print(json.dumps(answer.report | {"picture": answer.picture}, indent=2))
    else:
        for line in report_lines(answer.report, answer.picture):
            print(printable(line))
    wrong = sum(each["verdict"] == "wrong" for each in answer.report["checks"])
    done = sum(each["verdict"] != "not checked" for each in answer.report["checks"])
    check(not wrong, f"{wrong} of {done} checks are wrong")
