"""A report as text: the answer first, then what is wrong, and all checks only where asked for."""

import textwrap

from diffusion_doctor.bugs import BUGS, Bug

WIDTH = 100
LONG = 1000  # characters that are shown of the beginning, or the end, of a text
NAME_WIDTH = 30
INDENT = " " * 10
CAUSES = 3  # that are shown
SYMBOLS = {  # that a report may use, in the order of its legend
    "x0_hat": "the image in x_t by the network's answer",
    "eps_hat": "the noise in x_t by that answer",
    "x_s": "what a step returns",
    "ab_t": "alpha_bar at t",
    "ab_s": "alpha_bar at the next time",
}
MARKS = {"ok": "ok", "wrong": "WRONG", "undecided": "unsure", "not checked": "-"}


def printable(text: object) -> str:
    """The text in one line, with escapes such as \\x1b for all that a terminal obeys or hides.

    Of a text that would fill screens only the beginning and the end.
    """
    text = str(text)
    if len(text) > 2 * LONG:
        text = f"{text[:LONG]} … {text[-LONG:]}"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def report_lines(report: dict, picture: str | None = None, shows_all: bool = False) -> list[str]:
    """The lines in which a report, as Report.as_dict returns it, is printed.

    First the likeliest cause and its place, then the checks that are wrong; shows_all: all of them.
    """
    checks = report["checks"]
    wrong = [each for each in checks if each["verdict"] == "wrong"]
    lines = answer_lines(report, wrong)
    group = ""
    for check in checks if shows_all else wrong:
        subject, _, name = check["name"].rpartition(": ")
        if check["verdict"] == "not checked":
            continue
        if subject != group:
            group = subject
            lines += [group] if group else []
        lines += check_lines(check, name)
    if len(report["causes"]) > 1:
        lines += ["", "other causes that fit less well:"]
        for number, cause in enumerate(report["causes"][1:CAUSES], 2):
            lines += cause_lines(number, BUGS[cause["bug"]])
    lines += (
        ["", count_line(checks, shows_all)] if wrong or shows_all else [count_line(checks, False)]
    )
    if shows_all:
        for check in [each for each in checks if each["verdict"] == "not checked"]:
            lines += wrapped(f"not judged: {check['name']} ({check['meaning']})", "    ")
    lines += legend_lines(lines)
    lines += found_lines(report, shows_all)
    if picture is not None:
        lines.append(f"written: {picture}")
    return lines


def legend_lines(lines: list[str]) -> list[str]:
    """What the symbols in these lines mean, or []."""
    text = "\n".join(lines)
    used = [f"{symbol}: {meaning}" for symbol, meaning in SYMBOLS.items() if symbol in text]
    return wrapped("; ".join(used), "    ") if used else []


def answer_lines(report: dict, wrong: list[dict]) -> list[str]:
    """The answer: the likeliest cause in one sentence, with its place, and the correction."""
    verdicts = {check["verdict"] for check in report["checks"]}
    if not verdicts & {"ok", "wrong", "undecided"}:
        return ["Nothing could be judged: name more of the code.", ""]
    if not wrong:
        unsure = sum(check["verdict"] == "undecided" for check in report["checks"])
        return [f"Nothing wrong was found{f'; unsure: {unsure}' if unsure else ''}.", ""]
    if not report["causes"]:
        first = wrong[0]
        text = f"{first['where']}: {first['meaning'].splitlines()[0]}. No cause that is known fits."
        return [*wrapped(text, "   "), ""]
    bug = report["causes"][0]["bug"]
    named = [check for check in wrong if bug in check["evidence"]]
    place = max(named, key=lambda check: check["evidence"][bug])["where"]
    return [*wrapped(f"{place}: {BUGS[bug].title}.", "   "), *cause_lines(None, BUGS[bug]), ""]


def cause_lines(number: int | None, bug: Bug) -> list[str]:
    """A cause, its correction and where it is described; number: None for that of the answer."""
    lines = [] if number is None else wrapped(f"{number}. {bug.title}", "   ")
    lines += wrapped(f"   correction: {bug.correction}", "   ")
    lines += wrapped(f"   it shows as: {bug.symptom}", "   ") if number is None else []
    return lines + (wrapped(f"   see: {bug.source}", "   ") if bug.source else [])


def count_line(checks: list[dict], shows_all: bool) -> str:
    """How many checks came to which verdict."""
    counts = {mark: 0 for mark in MARKS}
    for check in checks:
        counts[check["verdict"]] += 1
    parts = [f"{counts['ok']} ok", f"{counts['undecided']} unsure"]
    parts.append(f"{counts['not checked']} not judged")
    return f"checks: {', '.join(parts)}{'' if shows_all else ' (--all shows them)'}"


def found_lines(report: dict, shows_all: bool) -> list[str]:
    """What was found out about the code, and the command that says the same."""
    lines = []
    if report["conventions"]:
        lines += wrapped(f"conventions: {'; '.join(report['conventions'].values())}", "    ")
    if report.get("assumed"):
        lines += ["", "assumed:", *(f"    {line}" for line in report["assumed"])]
        lines += ["to correct a name:", f"    {report['command']}"]
    for line in report.get("failed", ()) if shows_all else ():
        lines += wrapped(f"not executed: {line}", "    ")
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
