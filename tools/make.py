"""What `make run`, `make test` and `make lint` do, where there is no make, as on Windows.

python tools/make.py run     set up .venv, then run the notebook; results in images&samples/latest/
python tools/make.py test    set up, then run every test
python tools/make.py lint    set up, then check the style
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHON = Path(".venv", *(("Scripts", "python.exe") if os.name == "nt" else ("bin", "python")))
NOTEBOOK, LATEST = "MNIST_DDPM.ipynb", Path("images&samples", "latest")


def call(python: str | Path, *arguments: str | Path) -> None:
    """Runs Python in the project's folder, and exits as it does where it fails."""
    status = subprocess.run([str(python), *map(str, arguments)], cwd=ROOT).returncode
    if status:
        sys.exit(status)


def set_up(requirements: str) -> None:
    """Makes .venv where it is missing, and installs what is."""
    if sys.version_info < (3, 11):  # noqa: UP036
        sys.exit("Python 3.11 or newer is needed")
    if not (ROOT / PYTHON).exists():
        call(sys.executable, "-m", "venv", ".venv")
    call(ROOT / PYTHON, "-m", "pip", "install", "--quiet", "-r", requirements)


def main(arguments: list[str]) -> None:
    """Runs one command."""
    if arguments == ["run"]:
        set_up("requirements/run.txt")
        (ROOT / LATEST).mkdir(parents=True, exist_ok=True)
        call(ROOT / PYTHON, "-m", "papermill", NOTEBOOK, LATEST / NOTEBOOK)
        print(f"Pictures and the executed notebook are in {LATEST}")
    elif arguments == ["test"]:
        set_up("requirements-dev.txt")
        call(ROOT / PYTHON, "-m", "pytest")
    elif arguments == ["lint"]:
        set_up("requirements-dev.txt")
        call(ROOT / PYTHON, "-m", "ruff", "check")
        call(ROOT / PYTHON, "-m", "ruff", "format", "--check")
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
