"""What a few trainings bear out: intervals over seeds, and verdicts on a paper's claims."""

import math
from typing import NamedTuple

import numpy as np

from mnist_ddpm.evaluation.distances import Estimate
from mnist_ddpm.experiments.rows import Row, by_seed

# 97.5 % quantiles of Student's t, by seeds
STUDENT = {
    2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262,
}  # fmt: skip


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half of the 95 % interval (Student's t). nan without any values, or with one."""
    if not values:
        return math.nan, math.nan
    mean, n = float(np.mean(values)), len(values)
    if n == 1:
        return mean, math.nan
    quantile = STUDENT.get(n, 1.96 + 2.6 / (n - 1))  # within 0.01 for more
    return mean, float(quantile * np.std(values, ddof=1) / math.sqrt(n))


def spread(columns: list[list[float]], log: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Means of columns (K,), and how far their intervals reach below and above (2, K).

    log: of logarithms, so that the means are geometric.
    """
    to, back = (np.log, np.exp) if log else (np.asarray, np.asarray)
    middle, half = np.array([interval(list(to(values))) for values in columns]).T
    return back(middle), np.abs(back([middle - half, middle + half]) - back(middle))


class Claim(NamedTuple):
    """A paper's claim that one figure is less than another, and both figures here, by seed."""

    text: str
    less: dict[int, float]
    more: dict[int, float]

    @property
    def differences(self) -> list[float]:
        """For each seed that both have: below 0 where the claim holds."""
        return [self.less[seed] - self.more[seed] for seed in self.less if seed in self.more]

    @property
    def verdict(self) -> str:
        """Whether the differences bear it out."""
        mean, half = interval(self.differences)
        if mean + half < 0:
            return "holds here"
        if mean - half > 0:
            return "the other way round here"
        seen = "seen here" if mean < 0 else "not seen here"
        n = len(self.differences)
        return f"{seen}, within the noise of {n} seed{'s' * (n != 1)}"


def claim(rows: list[Row], name: str, text: str, less: Row, more: Row) -> Claim:
    """The claim that a column is less in the first kind of rows than in the second."""
    return Claim(text, by_seed(rows, name, less), by_seed(rows, name, more))


def claims_table(claims: list[Claim]) -> list[str]:
    """Lines of a Markdown table: each claim, its verdict, both means, and their difference."""
    titles = "claim", "verdict", "should be less", "should be more", "difference"
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for each in claims:
        less, more = (np.mean(list(values.values())) for values in (each.less, each.more))
        mean, half = interval(each.differences)
        known = math.isfinite(half)  # not of one seed
        difference = Estimate(mean, mean - half, mean + half) if known else f"{mean:.3g}"
        lines.append(f"| {each.text} | {each.verdict} | {less:.3g} | {more:.3g} | {difference} |")
    return lines
