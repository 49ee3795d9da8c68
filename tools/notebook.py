"""For developers: keep the notebook, its outputs and the module generated from it together.

python tools/notebook.py export    write mnist_ddpm/ddpm.py from the notebook's `#| export` cells
python tools/notebook.py run       execute the notebook in place, put the gallery's grid at its head, clean, export
"""

import base64
import io
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbdev.clean import nbdev_clean
from nbdev.export import nb_export
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "MNIST_DDPM.ipynb"


def export(root: Path = ROOT) -> None:
    """Writes the module of the notebook in this project folder."""
    nb_export(root / NOTEBOOK.name, lib_path=root / "mnist_ddpm")


def smaller(png: bytes) -> bytes:
    """The same pixels in fewer bytes: without an alpha channel, and grey where all is grey."""
    image = Image.open(io.BytesIO(png))
    if image.convert("RGBA").getextrema()[3] != (255, 255):
        return png
    image = image.convert("RGB")
    red, green, blue = image.split()
    if red.tobytes() == green.tobytes() == blue.tobytes():
        image = red
    buffer = io.BytesIO()
    image.save(buffer, "png", optimize=True)
    return min(buffer.getvalue(), png, key=len)


def run() -> None:
    """Executes the notebook from top to bottom with its own parameters, and saves it with what came out."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=None, coalesce_streams=True, resources={"metadata": {"path": str(ROOT)}}).execute()
    picture = base64.b64encode((ROOT / "images&samples" / "samples.png").read_bytes()).decode()
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and "attachment:samples.png" in cell.source:
            cell.attachments = {"samples.png": {"image/png": picture}}
        if cell.cell_type == "code":  # a finished progress bar leaves blank lines
            cell.outputs = [o for o in cell.outputs if o.output_type != "stream" or o.text.strip()]
            for data in (output.get("data", {}) for output in cell.outputs):
                if "image/png" in data:
                    data["image/png"] = base64.b64encode(smaller(base64.b64decode(data["image/png"]))).decode()
    notebook.metadata.pop("jupytext", None)
    nbformat.write(notebook, NOTEBOOK)
    nbdev_clean(str(NOTEBOOK))


if __name__ == "__main__":
    if sys.argv[1:] not in (["export"], ["run"]):
        sys.exit(__doc__)
    if sys.argv[1] == "run":
        run()
    export()
