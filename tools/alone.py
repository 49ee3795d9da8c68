"""For developers: the notebook without the package, in whatever environment runs this.

python tools/alone.py [PARAMETER=VALUE …]   such as epochs=1

It runs in an empty folder that holds MNIST's archives: there is no checkpoint, so it trains.
"""

import shutil
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent


def run(parameters: list[str]) -> None:
    """Executes it from top to bottom. Raises CellExecutionError where a cell fails."""
    notebook = nbformat.read(ROOT / "MNIST_DDPM.ipynb", as_version=4)
    (form,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    form.source = "\n".join([form.source, *parameters])
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(ROOT / "data" / "MNIST", Path(folder, "data", "MNIST"))
        place = {"metadata": {"path": folder}}
        options = {"timeout": None, "kernel_name": "python3", "resources": place}
        NotebookClient(notebook, **options).execute()
        print(*sorted(str(path.relative_to(folder)) for path in made(Path(folder))), sep="\n")


def made(folder: Path) -> list[Path]:
    """The files in a folder, but for the data set's."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return [path for path in paths if "data" not in path.relative_to(folder).parts]


if __name__ == "__main__":
    run(sys.argv[1:])
    print("the notebook alone ran to its end")
