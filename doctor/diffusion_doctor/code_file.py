"""A script or notebook as a module: its definitions are executed, its trainings are not.

Executed are imports, functions, classes and assignments, each within a time limit. Left out are
loops, bare calls, and what stands below if __name__ == "__main__". cuda becomes cpu.
"""

import ast
import builtins
import importlib.machinery
import json
import linecache
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from diffusion_doctor.foreign_code import NamingError

SUFFIXES = ".py", ".ipynb"
OPEN = open
SECONDS = 6.0  # for each assignment
IMPORT_SECONDS = 60.0
FOLDERS_ABOVE = 4  # a file's, in which its imports are looked for
# Bare calls that only prepare something: paths, flags, lists
PREPARING = re.compile(r"^(append|insert|extend|update|setdefault|add_argument|DEFINE_\w+)$")
# Functions whose result is not worth the time
COSTLY = re.compile(r"^_?(train|fit|plot|show|draw|save|download|evaluate|test|imshow)(_|$)")
DEVICE = re.compile(r"^(cuda(:\d+)?|mps)$")


class TooLong(BaseException):
    """An assignment took longer than its limit. No `except Exception` of the code catches it."""


class Missing:
    """Stands for whatever a library that is not installed would give."""

    def __init__(self, name: str = "missing"):
        self.__name__ = name

    def __getattr__(self, name: str) -> "Missing":
        if name.startswith("__"):
            raise AttributeError(name)
        return Missing(name)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        is_decorator = len(arguments) == 1 and not named and callable(arguments[0])
        return arguments[0] if is_decorator else self

    def __mro_entries__(self, bases: tuple) -> tuple:
        return (torch.nn.Module,) if self.__name__.endswith("Module") else (MissingBase,)


class MissingBase:
    """In the place of a base class of a library that is not installed."""

    def __init__(self, *arguments: Any, **named: Any):
        pass


class MissingModule(ModuleType):
    """A module that is not installed: each of its names is Missing."""

    __all__ = ()
    __path__ = ()

    def __getattr__(self, name: str) -> Missing:
        if name.startswith("__"):
            raise AttributeError(name)
        return Missing(name)


class MissingLoader:
    """Makes a MissingModule."""

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        """The module."""
        return MissingModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing is executed."""


class UsersLoader(importlib.machinery.SourceFileLoader):
    """Loads a module beside the user's file as that file itself is loaded."""

    def exec_module(self, module: ModuleType) -> None:
        """Executes its definitions."""
        run_definitions(module, read_cells(Path(self.path)))


class UsersFinder:
    """Finds modules below a folder, and stands in for those that the code lacks."""

    def __init__(self, folder: Path):
        self.folder = folder

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """The specification of a module, as Python's import asks for it."""
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is None:
            is_known = name.split(".")[0] in sys.stdlib_module_names or name in sys.modules
            if is_known or not self.is_asked_by_user():
                return None
            return importlib.machinery.ModuleSpec(name, MissingLoader(), is_package=True)
        if isinstance(spec.loader, importlib.machinery.SourceFileLoader) and self.holds(
            spec.origin
        ):
            spec.loader = UsersLoader(name, spec.origin)
            return spec
        return None

    def holds(self, file: str | None) -> bool:
        """Whether a file is the user's own."""
        if file is None or "site-packages" in file:
            return False
        return Path(file).resolve().is_relative_to(self.folder)

    def is_asked_by_user(self) -> bool:
        """Whether the import under way stands in the user's own code."""
        frame = sys._getframe(1)
        while frame is not None:
            name = frame.f_code.co_filename
            if "importlib" not in name and name != __file__:
                return bool(frame.f_globals.get("__is_users__"))
            frame = frame.f_back
        return False


class ToProcessor(ast.NodeTransformer):
    """Writes cpu where a device is named."""

    def visit_Constant(self, node: ast.Constant) -> ast.Constant:
        """A string that names a device, or any other constant."""
        if isinstance(node.value, str) and DEVICE.match(node.value):
            return ast.copy_location(ast.Constant("cpu"), node)
        return node


def read_cells(path: Path) -> list[tuple[str, str]]:
    """The name and the text of each cell of a notebook; of a script its only one."""
    text = path.read_text(encoding="utf-8", errors="replace")
    if path.suffix != ".ipynb":
        return [(str(path), text)]
    try:
        cells = json.loads(text)["cells"]
    except (ValueError, KeyError, TypeError) as error:
        raise NamingError(f"{path} is no notebook that can be read: {error}") from error
    sources = ["".join(each["source"]) for each in cells if each.get("cell_type") == "code"]
    named = []
    for number, source in enumerate(sources, 1):
        name = f"{path.name} cell {number}"
        text = re.sub(r"^([ \t]*)[%!].*$", r"\1pass", source, flags=re.MULTILINE)
        linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
        named.append((name, text))
    return named


def load_file(path: Path) -> tuple[ModuleType, list[str]]:
    """The module of a script or notebook, and what was left out or failed, in words.

    Raises NamingError where there is no such file, and where none of it is Python.
    """
    if not path.is_file():
        raise NamingError(f"there is no file {path}")
    path = path.resolve()
    cells = read_cells(path)
    imports = imports_of(cells)
    levels = max((each.level for each in imports if isinstance(each, ast.ImportFrom)), default=0)
    root = path.parent
    package: list[str] = []
    while (root / "__init__.py").is_file() or len(package) < levels:
        package.insert(0, root.name)
        root = root.parent
    roots = [root, *folders_of(imports, path)]
    folders = [*roots, path.parent] if levels else [path.parent, *roots]
    sys.path[:0] = [str(folder) for folder in dict.fromkeys(folders)]
    sys.meta_path.insert(0, UsersFinder(min(roots, key=lambda folder: len(folder.parts))))
    sys.dont_write_bytecode = True
    builtins.open = open_in_folder
    sys.argv = [str(path)]
    torch.Tensor.cuda = torch.nn.Module.cuda = lambda self, *others, **named: self
    name = ".".join([*package, re.sub(r"\W", "_", path.stem)])
    module = ModuleType(name)
    module.__file__ = str(path)
    module.__package__ = ".".join(package)
    sys.modules[name] = module
    notes = run_definitions(module, cells)
    return module, notes


def open_in_folder(file: Any, mode: str = "r", *others: Any, **named: Any) -> Any:
    """Opens a file; where it is written, its folder is made first if its path is relative."""
    is_written = isinstance(file, (str, Path)) and not {"w", "x", "a"}.isdisjoint(mode)
    if is_written and not Path(file).is_absolute():
        Path(file).parent.mkdir(parents=True, exist_ok=True)
    return OPEN(file, mode, *others, **named)


def imports_of(cells: list[tuple[str, str]]) -> list[ast.Import | ast.ImportFrom]:
    """The import statements of cells, as far as they are Python."""
    found = []
    for name, text in cells:
        with suppress(SyntaxError, ValueError):
            nodes = ast.walk(ast.parse(text, name))
            found += [each for each in nodes if isinstance(each, (ast.Import, ast.ImportFrom))]
    return found


def folders_of(imports: list[ast.Import | ast.ImportFrom], path: Path) -> list[Path]:
    """The folders above a file that hold what it imports, the nearest first."""
    tops = set()
    for each in imports:
        if isinstance(each, ast.Import):
            tops |= {alias.name.split(".")[0] for alias in each.names}
        elif not each.level:
            tops.add(each.module.split(".")[0])
    files = [name for top in tops for name in (top, f"{top}.py")]
    above = path.parents[1 : 1 + FOLDERS_ABOVE]
    return [folder for folder in above if any((folder / name).exists() for name in files)]


def run_definitions(module: ModuleType, cells: list[tuple[str, str]]) -> list[str]:
    """Executes the definitions of cells in a module. Returns what failed, a line each."""
    notes: list[str] = []
    is_parsed = False
    module.__is_users__ = True
    for name, text in cells:
        try:
            tree = ToProcessor().visit(ast.parse(text, name))
        except (SyntaxError, ValueError) as error:
            notes.append(f"{Path(name).name} is no Python: {error}")
            continue
        is_parsed = True
        for statement in tree.body:
            run_statement(module, statement, name, notes)
    if not is_parsed:
        raise NamingError("; ".join(notes) or f"{module.__name__} holds no code")
    return notes


def run_statement(module: ModuleType, statement: ast.stmt, source: str, notes: list[str]) -> None:
    """Executes one statement of a module's own level if it defines something."""
    if isinstance(statement, ast.If):
        for each in statement.body if is_true(module, statement.test) else statement.orelse:
            run_statement(module, each, source, notes)
        return
    if isinstance(statement, ast.With):
        for each in statement.body:
            run_statement(module, each, source, notes)
        return
    if not is_definition(statement):
        return
    seconds = IMPORT_SECONDS if isinstance(statement, (ast.Import, ast.ImportFrom)) else SECONDS
    code = compile(ast.Module([statement], []), source, "exec")
    try:
        with time_limit(seconds):
            exec(code, vars(module))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # of any kind, in code that others wrote
        place = f"{Path(source).name}:{statement.lineno}"
        line = ast.unparse(statement).splitlines()[0][:80]
        notes.append(f"{place}: {line} ({type(error).__name__}: {str(error)[:100]})")


def is_definition(statement: ast.stmt) -> bool:
    """Whether a statement defines a name without much work."""
    definitions = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Try)
    if isinstance(statement, definitions):
        return True
    if isinstance(statement, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
        calls = [each for each in ast.walk(statement) if isinstance(each, ast.Call)]
        return not any(COSTLY.match(called_name(each)) for each in calls)
    is_call = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call)
    return is_call and bool(PREPARING.match(called_name(statement.value)))


def called_name(call: ast.Call) -> str:
    """The last name of what a call calls."""
    return getattr(call.func, "attr", getattr(call.func, "id", ""))


def is_true(module: ModuleType, test: ast.expr) -> bool:
    """Whether a condition on a module's own level holds; one that fails does not."""
    code = compile(ast.Expression(test), "condition", "eval")
    try:
        with time_limit(SECONDS):
            return bool(eval(code, vars(module)))
    except Exception:  # of any kind, in code that others wrote
        return False
    except TooLong:
        return False


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises TooLong inside after so many seconds, where the system has such an alarm."""
    if not hasattr(signal, "setitimer"):
        yield
        return

    def stop(signum: int, frame: object) -> None:
        raise TooLong(f"took longer than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
