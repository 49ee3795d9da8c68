"""The architecture stays easy to see: imports go down the layers."""

import ast

import pytest
from conftest import ROOT

PACKAGE = ROOT / "mnist_ddpm"
LAYERS = [  # a module or folder; where one folder stands on several, its modules
    {"ddpm", "__version__"},
    {"machine", "datasets", "method"},
    {"recipe"},
    {"methods", "data"},
    {"networks"},
    {"training.cost"},
    {"catalogue"},
    {"sampling"},
    {"formats"},
    {"generation"},
    {"training"},
    {"evaluation"},
    {"watch"},
    {"commands"},
    {"__main__", "__init__"},
]
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "ddpm.py")


def module(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def layer(name):
    parts = name.split(".")
    for known in (".".join(parts[:2]), parts[0]):
        for k, names in enumerate(LAYERS):
            if known in names:
                return known, k
    raise KeyError(name)


def imported(path):
    """The package's modules that a module imports, as dotted names below it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "mnist_ddpm":
            inside = node.module.split(".")[1:]
            found |= {".".join([*inside, each.name]) for each in node.names}
        elif isinstance(node, ast.Import):
            names = [each.name.split(".") for each in node.names]
            found |= {".".join(name[1:]) for name in names if name[0] == "mnist_ddpm"}
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path):
    own, height = layer(module(path))
    for name in imported(path):
        other, below = layer(name)
        assert other == own or below < height, f"{own} imports {name}"


def test_the_notebook_s_module_imports_no_other():
    assert imported(PACKAGE / "ddpm.py") == set()


def test_only_one_module_is_generated():
    generated = [p.name for p in PACKAGE.rglob("*.py") if p.read_text().startswith("# Written by")]
    assert generated == ["ddpm.py"]
