"""The architecture stays easy to see: layers, and sizes."""

import ast

import pytest
from conftest import ROOT

PACKAGE = ROOT / "mnist_ddpm"
LAYERS = [
    {"ddpm", "__version__"},
    {"machine", "datasets", "method"},
    {"methods", "training"},
    {"data", "networks"},
    {"special_methods"},
    {"catalogue"},
    {"trainer"},
    {"formats"},
    {"evaluation", "doctor"},
    {"commands", "experiments"},
    {"__main__", "__init__"},
]
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "ddpm.py")


def folder(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def layer(name):
    return next(k for k, names in enumerate(LAYERS) if name in names)


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
    own = folder(path)
    for name in imported(path):
        other = name.split(".")[0]
        assert other == own or layer(other) < layer(own), f"{own} imports {name}"


def test_the_notebook_s_module_imports_no_other():
    assert imported(PACKAGE / "ddpm.py") == set()


def test_modules_and_functions_are_short():
    long = {}
    folders = "benchmarks", "speedrun", "tools", "playground"
    others = [path for name in folders for path in (ROOT / name).rglob("*.py")]
    for path in [*MODULES, *others]:
        text = path.read_text(encoding="utf-8")
        if len(text.splitlines()) > 350:
            long[path.name] = len(text.splitlines())
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= 60:
                long[f"{path.name}:{node.name}"] = node.end_lineno - node.lineno + 1
    assert long == {}


def test_only_one_module_is_generated():
    generated = [p.name for p in PACKAGE.rglob("*.py") if p.read_text().startswith("# Written by")]
    assert generated == ["ddpm.py"]
