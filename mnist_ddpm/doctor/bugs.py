"""The bugs that an examination can name: symptom, place, correction and source of each."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Bug:
    """One bug that people really make."""

    title: str  # as a row of a table: "noise in the last step"
    symptom: str  # what the pictures or the loss show
    correction: str  # the right line, or what to do
    source: str = ""  # a thread, a paper or a pull request


BUGS: dict[str, Bug] = {
    "last-noise": Bug(
        "noise in the last step",
        "good images under an even grain",
        "add noise only while s > 0: the last step is the mean alone",
    )
}
