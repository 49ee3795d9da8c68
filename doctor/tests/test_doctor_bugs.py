"""The table of bugs and its page; bugs put into our code and a plain script are found by name."""

import sys

import pytest
from conftest import ROOT
from diffusion_doctor import bugs
from diffusion_doctor.examination import examine

sys.path.insert(1, str(ROOT / "benchmarks"))
from buggy import own_bugs, plain_bugs

ILL = [case for case in (*plain_bugs.ill(), *own_bugs.ill()) if "sample_beta" not in case.change]
# one of each kind of check, each a second or two; test_doctor_samplers has more of samplers
QUICK = {
    "plain script": ["stale-eps", "one-time", "guidance-scale"],
    "mnist-ddpm": ["neighbour-padding", "attention-reshape"],
}
FIRST = [
    next(case for case in ILL if (case.codebase, case.bug) == (codebase, bug))
    for codebase, names in QUICK.items()
    for bug in names
]
HEALTHY = [case for case in plain_bugs.healthy() if case.change in ("sample_ddim", "guided")]


def test_the_page_of_bugs_is_that_of_the_table():
    page = (ROOT / "doctor" / "docs" / "bugs.md").read_text(encoding="utf-8")
    assert "\n".join(bugs.markdown_rows()) in page


def test_every_bug_of_the_proof_is_in_the_table():
    assert {case.bug for case in ILL} <= {*bugs.BUGS}


@pytest.mark.parametrize("case", FIRST, ids=lambda case: case.bug)
def test_a_bug_is_noticed_and_named_among_the_first_two(case):
    report = examine(**case.given())
    assert not report.is_ok
    assert case.bug in [bug for bug, _ in report.causes()][:2]


@pytest.mark.parametrize("case", HEALTHY, ids=lambda case: case.change)
def test_a_healthy_script_is_called_healthy(case):
    assert examine(**case.given()).is_ok
