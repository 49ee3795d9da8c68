"""What an examination found: checks with their verdicts, and the bugs that would explain them."""

from dataclasses import asdict, dataclass, field
from typing import Literal

Verdict = Literal["ok", "wrong", "undecided", "not checked"]


@dataclass(frozen=True)
class Check:
    """One check: what was measured, beside what correct code may show.

    evidence: for names in bugs.BUGS, how well each would explain what was measured, 0 to 1.
    """

    name: str
    verdict: Verdict
    meaning: str  # one sentence: what the value says of the code
    value: float | None = None
    tolerance: float | None = None  # the value is wrong beyond it
    evidence: dict[str, float] = field(default_factory=dict)
    where: str = ""  # the layer or table to look at; a report has the user's function before it


@dataclass(frozen=True)
class Report:
    """All checks of one examination, and what was found out about the code's conventions."""

    checks: list[Check]
    conventions: dict[str, str] = field(default_factory=dict)  # such as {"first time": "0"}

    @property
    def is_ok(self) -> bool:
        """Whether no check is wrong. What was not checked, or undecided, does not count."""
        return all(check.verdict != "wrong" for check in self.checks)

    def causes(self) -> list[tuple[str, float]]:
        """Names in bugs.BUGS, the likeliest first, with their evidence from all wrong checks."""
        totals: dict[str, float] = {}
        for check in self.checks:
            if check.verdict == "wrong":
                for bug, weight in check.evidence.items():
                    totals[bug] = totals.get(bug, 0) + weight
        return sorted(totals.items(), key=lambda item: -item[1])

    def as_dict(self) -> dict:
        """The report as JSON can hold it."""
        return {
            "is_ok": self.is_ok,
            "conventions": self.conventions,
            "checks": [asdict(check) for check in self.checks],
            "causes": [{"bug": bug, "evidence": weight} for bug, weight in self.causes()],
        }
