"""For developers: the notebook without the package, in whatever environment runs this.

python tools/alone.py [--python VERSION] [PARAMETER=VALUE …]   such as --python 3.13 epochs=1

It runs in an empty folder that holds MNIST's archives: there is no checkpoint, so it trains.
--python: the version that this must be run by.
"""

import argparse
import platform
import shutil
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent


def check_python(expected: str | None) -> None:
    """Prints the Python in use; exits with a message if it is not the expected version."""
    print(f"Python {platform.python_version()} ({sys.executable})", flush=True)
    major_minor = ".".join(platform.python_version_tuple()[:2])
    if expected and expected != major_minor:
        sys.exit(
            f"error: this is Python {major_minor}, not {expected}: remove .venv-colab and install "
            f"Python {expected}, or name another one with COLAB_PYTHON=..."
        )


def run(parameters: list[str]) -> None:
    """Executes the notebook from top to bottom, then prints the files that it has written.

    Raises CellExecutionError where a cell fails.
    """
    notebook = nbformat.read(ROOT / "MNIST_DDPM.ipynb", as_version=4)
    (form,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    form.source = "\n".join([form.source, *parameters])
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(ROOT / "data" / "MNIST", Path(folder, "data", "MNIST"))
        resources = {"metadata": {"path": folder}}
        NotebookClient(notebook, timeout=None, kernel_name="python3", resources=resources).execute()
        print(*written_files(Path(folder)), sep="\n")


def written_files(folder: Path) -> list[Path]:
    """The files in a folder, relative to it and sorted, without those of the data set."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in paths if path.parts[0] != "data")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", metavar="VERSION", help="the Python that must run this")
    parser.add_argument("parameters", nargs="*", metavar="PARAMETER=VALUE")
    flags = parser.parse_args()
    check_python(flags.python)
    run(flags.parameters)
    print("the notebook alone ran to its end")
