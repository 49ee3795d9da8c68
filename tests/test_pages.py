"""The pages: what they name exists, and every command in them has flags that there are."""

import re
import shlex

import pytest
from conftest import ROOT

from mnist_ddpm.commands.command_line import parse_arguments
from mnist_ddpm.experiments.experiment_flags import NAMES

PATTERNS = "README.md", "CONTRIBUTING.md", "docs/*.md", "[!.]*/README.md", "experiments/*/*.md"
PAGES = sorted({path for pattern in PATTERNS for path in ROOT.glob(pattern)})


def commands_in(path, before):
    """The arguments of each command that follows a pattern, but for those with placeholders."""
    text = path.read_text(encoding="utf-8")
    lines = re.findall(rf"{before}([^`\n|]+)", text)
    commands = [shlex.split(line.split("  #")[0]) for line in lines if "…" not in line]
    return [words for words in commands if words and words[0].islower()]


COMMANDS = [words for path in PAGES for words in commands_in(path, r"-m (?:-- )?mnist_ddpm ")]
HOW_TRAINED = commands_in(ROOT / "checkpoints" / "README.md", "`(?=(?:train|extractor) )")


def test_pages_name_all_commands():
    named = {words[0] for words in COMMANDS}
    drawing = {"sample", "likelihood", "evaluate", "compare"}
    assert named == drawing | {"train", "plan", "extractor", "push", "export"}


@pytest.mark.parametrize("words", COMMANDS + HOW_TRAINED, ids=lambda words: " ".join(words)[:60])
def test_a_command_in_the_pages_can_be_parsed(words):
    if "--help" not in words:
        parse_arguments([word for word in words if not re.fullmatch(r"[A-Z]+", word)])


def test_every_experiment_is_named():
    text = (ROOT / "experiments" / "README.md").read_text(encoding="utf-8")
    assert all(name in text for name in NAMES)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_page_is_short_and_its_links_lead_somewhere(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.split()) <= 1500
    links = re.findall(r"(?:\]\(|src=\")(?!https?:|#|mailto:)([^)#\"]+)", text)
    assert [link for link in links if not (path.parent / link.replace("%26", "&")).exists()] == []
