"""A report as text: what is wrong first, its likeliest causes, then all checks."""

import textwrap

from diffusion_doctor.bugs import BUGS

WIDTH = 100
LONG = 1000  # characters that are shown of the beginning, or the end, of a text
NAME_WIDTH = 30
INDENT = " " * 10
CAUSES = 3  # that are shown
MARKS = {"ok": "ok", "wrong": "WRONG", "undecided": "unsure", "not checked": "-"}


def printable(text: object) -> str:
    """The text in one line, with escapes such as \\x1b for all that a terminal obeys or hides.

    Of a text that would fill screens only the beginning and the end.
    """
    text = str(text)
    if len(text) > 2 * LONG:
        text = f"{text[:LONG]} … {text[-LONG:]}"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def report_lines(report: dict, picture: str | None = None) -> list[str]:
    """The lines in which a report, as Report.as_dict returns it, is printed."""
    checks = report["checks"]
    lines = []
    group = ""
    for check in [each for each in checks if each["verdict"] != "not checked"]:
        subject, _, name = check["name"].rpartition(": ")
        if subject != group:
            group = subject
            lines += [group] if group else []
        lines += check_lines(check, name)
    for check in [each for each in checks if each["verdict"] == "not checked"]:
        lines += wrapped(f"not checked: {check['name']} ({check['meaning']})", "    ")
    if report["conventions"]:
        lines += ["", *wrapped(f"conventions: {'; '.join(report['conventions'].values())}", "    ")]
    lines += ["", *cause_lines(report)]
    if picture is not None:
        lines.append(f"written: {picture}")
    return lines


def wrapped(text: str, indent: str) -> list[str]:
    """The text in lines, all but the first indented."""
    return textwrap.wrap(text, WIDTH, subsequent_indent=indent)


def check_lines(check: dict, name: str) -> list[str]:
    """One check: verdict, name, figure, and what it means, below where the line is full."""
    mark = MARKS[check["verdict"]]
    head = f"  {mark:<7} {name:<{NAME_WIDTH}} {figure(check):<20} "
    first, *others = check["meaning"].splitlines()
    if check["verdict"] == "ok" and len(head) + len(first) <= WIDTH:
        return [head + first]
    place = f" ({check['where']})" if check["where"] else ""
    meaning = [*textwrap.wrap(first + place, WIDTH - len(INDENT)), *others]
    return [head.rstrip(), *(INDENT + line for line in meaning)]


def figure(check: dict) -> str:
    """The value of a check beside its tolerance."""
    value = check["value"]
    tolerance = check["tolerance"]
    if value is None:
        return ""
    if tolerance is None:
        return f"{value:.3g}"
    return f"{value:.3g} (to {tolerance:.3g})"


def cause_lines(report: dict) -> list[str]:
    """The verdict, and the likeliest causes with their corrections."""
    verdicts = {check["verdict"] for check in report["checks"]}
    if verdicts <= {"not checked"}:
        return ["nothing could be checked: name more of the code"]
    if "wrong" not in verdicts:
        unsure = sum(check["verdict"] == "undecided" for check in report["checks"])
        more = f"; not decided: {unsure}" if unsure else ""
        return [f"nothing wrong was found{more}"]
    lines = ["likeliest causes:"]
    for number, cause in enumerate(report["causes"][:CAUSES], 1):
        bug = BUGS[cause["bug"]]
        lines += wrapped(f"{number}. {bug.title} (it shows as: {bug.symptom})", "   ")
        lines += wrapped(f"   correction: {bug.correction}", "   ")
        lines += wrapped(f"   see: {bug.source}", "   ") if bug.source else []
    if not report["causes"]:
        lines.append("   none that this program knows")
    return lines
