"""The pages: what they name exists, commands in them can be parsed, and examples run."""

import re
import shlex
from pkgutil import resolve_name

import pytest
from conftest import ROOT

from experiments.experiment_flags import EXPERIMENTS
from mnist_ddpm import catalogue
from mnist_ddpm.commands.command_line import parse_arguments
from mnist_ddpm.datasets import DATASETS
from tools import results_page

PATTERNS = (
    "README.md",
    "CONTRIBUTING.md",
    "docs/*.md",
    "[!.]*/README.md",
    "doctor/docs/*.md",
    "experiments/*/*.md",
)
PAGES = sorted({path for pattern in PATTERNS for path in ROOT.glob(pattern)})


def commands_in(path, before):
    """The arguments of each command that follows a pattern, but for those with placeholders."""
    text = path.read_text(encoding="utf-8")
    lines = re.findall(rf"{before}([^`\n|]+)", text)
    commands = [shlex.split(line.split("  #")[0]) for line in lines if "…" not in line]
    return [words for words in commands if words and words[0].islower()]


COMMANDS = [words for path in PAGES for words in commands_in(path, r"-m (?:-- )?mnist_ddpm ")]
HOW_TRAINED = commands_in(ROOT / "checkpoints" / "README.md", "`(?=train )")


def test_pages_name_all_commands():
    named = {words[0] for words in COMMANDS}
    drawing = {"sample", "likelihood", "evaluate", "compare"}
    assert named == drawing | {"train", "status", "plan", "push", "export"}


@pytest.mark.parametrize("words", COMMANDS + HOW_TRAINED, ids=lambda words: " ".join(words)[:60])
def test_a_command_in_the_pages_can_be_parsed(words):
    if "--help" not in words:
        parse_arguments([word for word in words if not re.fullmatch(r"[A-Z]+", word)])


def test_every_experiment_is_named():
    text = (ROOT / "experiments" / "README.md").read_text(encoding="utf-8")
    assert all(name in text for name in EXPERIMENTS)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_of_a_page_lead_somewhere(path):
    text = path.read_text(encoding="utf-8")
    links = re.findall(r"(?:\]\(|src=\")(?!https?:|#|mailto:)([^)#\"]+)", text)
    assert [link for link in links if not (path.parent / link.replace("%26", "&")).exists()] == []


MODULES = {
    path.stem: ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for folder in ("mnist_ddpm", "doctor/diffusion_doctor")
    for path in (ROOT / folder).rglob("*.py")
    if path.stem.isidentifier()
}
FILES = [["gif"], ["js"], ["json"], ["npz"], ["png"], ["py"], ["safetensors"]]
FOLDERS = {path.parent.name for path in (ROOT / "mnist_ddpm").rglob("__init__.py")}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_functions_and_scripts_named_in_a_page_exist(path):
    text = path.read_text(encoding="utf-8")
    for name in re.findall(r"`((?:\w+\.)+\w+)[`(]", text):
        module, *attributes = name.removeprefix("mnist_ddpm.").split(".")
        if module in FOLDERS and attributes[0] in MODULES:
            folder, (module, *attributes) = module, attributes
            assert f".{folder}." in MODULES[module], name
        if module in MODULES and attributes[-1:] not in FILES:
            resolve_name(f"{MODULES[module]}:{'.'.join(attributes)}")
    for script in re.findall(r"[`\s]((?:\w+/)+\w+\.(?:py|ipynb))[`\s,:;]", text):
        places = ROOT, ROOT / "mnist_ddpm", path.parent
        assert any((place / script).is_file() for place in places), script


def test_the_examples_of_adding_a_method_run(monkeypatch):
    """In the page's order and in one namespace, with fewer steps of training."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setitem(DATASETS, "stripes", None)  # so that it is removed afterwards
    page = (ROOT / "docs" / "extend.md").read_text(encoding="utf-8")
    names = {}
    for example in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(example.replace("epochs=0.02", "epochs=0.003"), names)
    assert names["run"].step == names["own_run"].step == 1
    assert names["stripes"].shape == (1000, 1, 32, 32)
    entries = re.findall(r"`(?:\"\w+\": )?([A-Za-z]\w+)\(", page)
    tables = re.findall(r"\| `([A-Z]+)`", page)
    assert entries and tables and {*entries, *tables} <= {*vars(catalogue), *names}


def test_the_tables_of_results_are_those_of_cards_and_logs():
    page = results_page.PAGE.read_text(encoding="utf-8")
    assert results_page.with_tables(page) == page
