"""The command doctor: a beginner's script from the shell, errors inside it, and what is written."""

import ast
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT
from diffusion_doctor import foreign_code
from diffusion_doctor.__main__ import main

SCRIPT = """
import torch
from torch import nn

T = 20
betas = torch.linspace(0.005, 0.7, T)
alphas_cumprod = torch.cumprod(1 - betas, dim=0)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x, t):
        return self.layer(x)


model = Net()


@torch.no_grad()
def sample(n, image_size, channels=1):
    x = torch.randn(n, channels, image_size, image_size)
    for t in reversed(range(T)):
        ab = alphas_cumprod[t]
        ab_s = alphas_cumprod[t - 1] if t > 0 else torch.tensor(1.0)
        eps = model(x, torch.full((n,), t))
        x0 = ((x - (1 - ab).sqrt() * eps) / ab.sqrt()).clamp(-1, 1)
        beta = 1 - ab / ab_s
        mean = beta * ab_s.sqrt() / (1 - ab) * x0 + (1 - ab_s) * (1 - beta).sqrt() / (1 - ab) * x
        x = mean + beta.sqrt() * (torch.randn_like(x) if t > 0 else 0)
    return x


def broken(n, image_size):
    return sample(n, image_size)[:, :, :, :, 0, 0]

"""


def error_of(capsys, *arguments) -> str:
    """The one line that the command ends in."""
    assert main([*arguments]) == 1
    *_, line = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    return line


@pytest.fixture
def script(tmp_path, monkeypatch):
    """The folder of a script whose network is a name of its module."""
    (tmp_path / "mine.py").write_text(SCRIPT)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_right_script_is_ok_and_its_network_is_as_before(script, capsys):
    assert main(["--sampler", "mine.py:sample", "--all", "--out", "seen/doctor.png"]) == 0
    printed = capsys.readouterr().out
    assert "DDPM, variance beta" in printed and "WRONG" not in printed
    assert "not judged: forward" in printed
    assert (script / "seen" / "doctor.png").stat().st_size > 1000


def test_a_wrong_script_has_a_cause_and_a_status(script, capsys):
    wrong = SCRIPT.replace("(torch.randn_like(x) if t > 0 else 0)", "torch.randn_like(x)")
    (script / "mine.py").write_text(wrong)
    assert main(["--sampler", "mine.py:sample", "--json"]) == 1
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert report["causes"][0]["bug"] == "last-noise" and not report["is_ok"]


def test_an_error_inside_is_shown_with_the_user_s_lines_alone(script, capsys):
    assert main(["--sampler", "mine.py:broken", "--all", "--out", "x.png"]) == 0
    printed = capsys.readouterr().out
    assert "IndexError" in printed and "[:, :, :, :, 0, 0]" in printed
    assert "diffusion_doctor" not in printed and "site-packages" not in printed
    assert {*re.findall(r"(\w+\.py):\d", printed)} == {"mine.py"}


@pytest.mark.parametrize(
    ("name", "named"),
    [("sample", "file.py:name"), ("nowhere.py:sample", "nowhere.py"), ("mine.py:smaple", "sample")],
)
def test_names_that_name_nothing_are_refused(script, name, named):
    with pytest.raises(ValueError, match=named):
        foreign_code.load_object(name)


def test_a_file_that_is_no_python_is_one_sentence(tmp_path, capsys):
    path = tmp_path / "damaged.py"
    path.write_text("def sample(:")
    assert main([str(path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "damaged.py" in line


def test_an_error_at_import_is_shown_with_its_lines(script, capsys):
    (script / "mine.py").write_text("half = 1\nhalf = half / 0\n")
    assert main(["--sampler", "mine.py:sample"]) == 1
    printed = capsys.readouterr().err
    assert "mine.py:2: half = half / 0" in printed and "ZeroDivisionError" in printed


def test_code_that_takes_too_long_is_ended(script, capsys):
    (script / "mine.py").write_text("while True:\n    pass\n")
    line = error_of(capsys, "--sampler", "mine.py:sample", "--seconds", "1.5")
    assert "1.5 s" in line


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_a_signal_ends_the_user_s_process_too(script):
    (script / "mine.py").write_text(
        "import os, time\nopen('part', 'w').write(str(os.getpid()))\nos.rename('part', 'pid')\n"
        "time.sleep(60)\n"
    )
    command = [sys.executable, "-m", "diffusion_doctor", "--sampler", "mine.py:sample"]
    path = {"PYTHONPATH": str(ROOT / "doctor")}
    process = subprocess.Popen(command, env=os.environ | path, stderr=subprocess.PIPE)
    for _ in range(300):
        if (script / "pid").exists():
            break
        time.sleep(0.1)
    examined = int((script / "pid").read_text())
    process.terminate()
    process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(examined, signal.SIGKILL)


def test_names_that_a_module_imports_when_asked_are_found(script):
    (script / "lazy.py").write_text(
        "early = 4\n"
        "def __getattr__(name):\n"
        "    if name == 'late':\n"
        "        return [3]\n"
        "    raise AttributeError(name)\n"
    )
    assert foreign_code.load_object("lazy.py:late[0]") == 3
    assert foreign_code.load_object("lazy.py:len(late)") == 1
    assert foreign_code.load_object("lazy.py:[early for _ in late][0]") == 4
    with pytest.raises(ValueError, match="has no absent"):
        foreign_code.load_object("lazy.py:absent")


def test_a_script_that_ends_the_process_is_reported(script, capsys):
    (script / "mine.py").write_text("import os\nprint('bye', flush=True)\nos._exit(3)\n")
    line = error_of(capsys, "--sampler", "mine.py:sample")
    assert "status 3" in line and "bye" in line


def test_nothing_to_examine_is_one_sentence(capsys):
    assert "--sampler" in error_of(capsys)


def test_help_needs_no_pytorch():
    code = "import sys; from diffusion_doctor.__main__ import make_parser; make_parser()"
    code += "; assert 'torch' not in sys.modules"
    path = {"PYTHONPATH": str(ROOT / "doctor")}
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | path)


def test_it_imports_nothing_of_those_whom_it_judges():
    for path in (ROOT / "doctor" / "diffusion_doctor").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [each.name for each in getattr(node, "names", ()) if hasattr(each, "name")]
            names.append(getattr(node, "module", None) or "")
            assert not any(name.split(".")[0] == "mnist_ddpm" for name in names), path.name
