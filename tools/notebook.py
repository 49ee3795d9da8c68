"""For developers: export, run and measure the notebooks.

python tools/notebook.py export              write mnist_ddpm/ddpm.py from the cells tagged `export`
python tools/notebook.py run [NOTEBOOK …]    execute in place; without a name, MNIST_DDPM.ipynb
python tools/notebook.py measure [NOTEBOOK …]   what reading asks for, one line of JSON each
"""

import ast
import base64
import io
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "MNIST_DDPM.ipynb"
PICTURES = ROOT / "images&samples"
OPENING = {"opening-picture": "samples.png", "opening-strip": "steps.png"}  # cells that show a file
FURTHER = sorted((ROOT / "further").glob("*.ipynb"))
WORDS_A_MINUTE, LINES_A_MINUTE = 200, 20


def export(root: Path = ROOT) -> None:
    """Writes the module of the notebook in this project folder."""
    cells = json.loads((root / NOTEBOOK.name).read_text(encoding="utf-8"))["cells"]
    parts = [f"# Written by tools/notebook.py from {NOTEBOOK.name}: edit that, not this file."]
    for cell in cells:
        if is_exported(cell):
            parts.append(f"# %% {cell['id']}\n{''.join(cell['source'])}")
    text = "\n\n\n".join(parts) + "\n"
    (root / "mnist_ddpm" / "ddpm.py").write_text(text, encoding="utf-8")


def is_exported(cell: dict) -> bool:
    """Whether a cell is tagged `export`."""
    return "export" in cell["metadata"].get("tags", [])


def smaller(png: bytes) -> bytes:
    """The same pixels in fewer bytes: without an alpha channel, and grey where all is grey."""
    from PIL import Image

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


def pictures_of(cell: dict) -> list[dict]:
    """The cell's outputs that are pictures."""
    return [output for output in cell.get("outputs", []) if "image/png" in output.get("data", {})]


def tidy(cell: dict) -> None:
    """Leaves out blank streams, and makes pictures smaller."""
    cell.outputs = [o for o in cell.outputs if o.output_type != "stream" or o.text.strip()]
    for output in pictures_of(cell):
        picture = smaller(base64.b64decode(output.data["image/png"]))
        output.data["image/png"] = base64.b64encode(picture).decode()


def describe(cell: dict) -> None:
    """Gives the cell's pictures the text `alt` of its metadata."""
    for output in pictures_of(cell):
        output.metadata["image/png"] = {"alt": cell.metadata["alt"]}


def clean(notebook) -> None:
    """Leaves out all that differs from run to run: times, counts, what the kernel calls itself."""
    kernel = {"display_name": "python3", "language": "python", "name": "python3"}
    notebook.metadata = {"kernelspec": kernel}
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        for part in [cell, *cell.get("outputs", [])]:
            if "execution_count" in part:
                part.execution_count = None


def illustrate(notebook) -> None:
    """Puts the pictures that the notebook has just drawn with its checkpoint at its head."""
    (PICTURES / "notebook").mkdir(exist_ok=True)
    cells = {cell.id: cell for cell in notebook.cells}
    for name, file in OPENING.items():
        picture = smaller((PICTURES / "latest" / file).read_bytes())
        (PICTURES / "notebook" / file).write_bytes(picture)
        for output in pictures_of(cells[name]):
            output.data["image/png"] = base64.b64encode(picture).decode()


def run(path: Path) -> None:
    """Executes a notebook from top to bottom with its own parameters, and saves what came out."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    place = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, timeout=None, coalesce_streams=True, resources=place).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            tidy(cell)
    if path == NOTEBOOK:
        illustrate(notebook)
    for cell in notebook.cells:
        describe(cell)
    clean(notebook)
    nbformat.write(notebook, path)


def code_lines(source: str) -> int:
    """Lines that are neither blank nor a comment."""
    stripped = (line.strip() for line in source.splitlines())
    return sum(bool(line) and not line.startswith("#") for line in stripped)


def docstring_lines(source: str) -> int:
    """Lines of the docstrings in Python source; 0 where it does not parse."""
    try:
        nodes = [*ast.walk(ast.parse(source))]
    except SyntaxError:
        return 0
    documented = ast.Module, ast.ClassDef, ast.FunctionDef
    first = [n.body[0] for n in nodes if isinstance(n, documented) and ast.get_docstring(n)]
    return sum(each.end_lineno - each.lineno + 1 for each in first)


def words_of(prose: str) -> int:
    """Words without formulas, code blocks and the targets of links."""
    no_prose = r"```.*?```|\$\$.*?\$\$|\$[^$\n]*\$|\]\([^)]*\)|<[^>]*>"
    return len(re.findall(r"\w[\w’'-]*", re.sub(no_prose, " ", prose, flags=re.S)))


def minutes_of(cell: dict) -> float:
    """How long it takes to read a cell: 200 words or 20 lines of code a minute."""
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return words_of(source) / WORDS_A_MINUTE
    return code_lines(source) / LINES_A_MINUTE


def walk(cells: list[dict]) -> dict:
    """Minutes to the first picture that code draws, between pictures, and to `# Part II`."""
    minutes, pictures, drawn, theory = 0.0, [0.0], [], None
    for cell in cells:
        source = "".join(cell["source"])
        if theory is None and re.search(r"^#{1,2} Part II\b", source, re.M):
            theory = minutes
        minutes += minutes_of(cell)
        kinds = [kind for output in cell.get("outputs", []) for kind in output.get("data", {})]
        if any(kind.startswith("image/") for kind in kinds):
            drawn.append(minutes)
        if cell["cell_type"] == "markdown" and re.search(r"!\[|<img|<svg", source):
            pictures.append(minutes)
    end = minutes if theory is None else theory
    seen = sorted(each for each in [*pictures, *drawn, end] if each <= end)
    return {
        "theory_minutes": round(end, 1),
        "first_drawn": round(drawn[0], 1) if drawn else None,
        "dry_minutes": round(max(b - a for a, b in zip(seen, seen[1:])), 1),
    }


def measure(path: Path) -> dict:
    """Minutes to read it, to its pictures and its second part, and what they are made of."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    prose = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
    exported = ["".join(cell["source"]) for cell in cells if is_exported(cell)]
    form = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    package = re.compile(r"^\s*(from|import) +mnist_ddpm", re.M)
    words = words_of("\n".join(prose))
    lines = sum(map(code_lines, code))
    return {
        "file": str(path),
        "minutes": round(words / WORDS_A_MINUTE + lines / LINES_A_MINUTE, 1),
        **walk(cells),
        "words": words,
        "code_cells": len(code),
        "lines": lines,
        "exported": sum(code_lines(source) - docstring_lines(source) for source in exported),
        "longest_cell": max(map(code_lines, code)),
        "widest_line": max(len(line) for source in code for line in source.splitlines()),
        "parameters": len(re.findall(r"^\w+ *=", "".join(form[0]["source"]), re.M)) if form else 0,
        "imports_package": sum(bool(package.search(source)) for source in code),
        "megabytes": round(path.stat().st_size / 1e6, 2),
    }


def main(arguments: list[str]) -> None:
    """Runs one command."""
    command, *names = arguments or [""]
    if command == "export" and not names:
        export()
    elif command == "run":
        for path in map(Path, names or [NOTEBOOK]):
            run(path.resolve())
        export()
    elif command == "measure":
        for path in map(Path, names or [NOTEBOOK, *FURTHER]):
            print(json.dumps(measure(path)))
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
