"""The pages: what they name exists, and every command in them has flags that there are."""

import re
import shlex

import pytest
from conftest import ROOT

from mnist_ddpm.commands.command_line import parse_arguments
from mnist_ddpm.experiments.experiment_flags import NAMES

PAGES = [
    ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")),
    *sorted(ROOT.glob("[!.]*/README.md")), *sorted((ROOT / "experiments").glob("*/*.md")),
]  # fmt: skip
PAGES = list(dict.fromkeys(PAGES))


def name(path):
    return str(path.relative_to(ROOT))


def commands_in(path, program):
    """The arguments of each command in a page, without comments, and those with placeholders."""
    text = path.read_text(encoding="utf-8")
    found = re.findall(rf"{program} ([^`\n|]+)", text)
    commands = [shlex.split(line.split("  #")[0]) for line in found if "…" not in line]
    return [words for words in commands if words and words[0].islower()]


COMMANDS = [words for path in PAGES for words in commands_in(path, r"-m (?:-- )?mnist_ddpm")]


def test_pages_name_all_commands():
    named = {words[0] for words in COMMANDS}
    assert named == {
        "train", "plan", "sample", "likelihood", "evaluate", "compare", "extractor", "push",
        "export",
    }  # fmt: skip


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(words)[:60])
def test_a_command_in_the_pages_can_be_parsed(words):
    if "--help" not in words:
        parse_arguments([word for word in words if not re.fullmatch(r"[A-Z]+", word)])


def test_every_experiment_is_named():
    text = (ROOT / "experiments" / "README.md").read_text(encoding="utf-8")
    assert [each for each in NAMES if each not in text] == []


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_a_page_is_short_and_its_links_lead_somewhere(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.split()) <= 1500
    links = re.findall(r"(?:\]\(|src=\")(?!https?:|#|mailto:)([^)#\"]+)", text)
    assert [link for link in links if not (path.parent / link.replace("%26", "&")).exists()] == []
