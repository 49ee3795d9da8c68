"""Code in the forms in which people write it is found and judged, with nothing named."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT
from diffusion_doctor.examination import examine

START = """
import torch
from torch import nn
T = 40
"""
LABELS_FIRST = """
class DDPM(nn.Module):
    def __init__(self, nn_model, betas, device, drop_prob=0.1):
        super().__init__()
        self.nn_model = nn_model.to(device)
        beta = torch.linspace(1e-4, 0.2, T + 1)
        self.register_buffer("beta_t", beta)
        self.register_buffer("alphabar_t", (1 - beta).cumprod(0))

    def forward(self, x, c):
        ts = torch.randint(1, T + 1, (len(x),))
        noise = torch.randn_like(x)
        ab = self.alphabar_t[ts, None, None, None]
        mask = torch.zeros_like(c)
        guess = self.nn_model(ab.sqrt() * x + (1 - ab).sqrt() * noise, c, ts / T, mask)
        return (guess - noise).square().mean()

    def sample(self, n_sample, size, device, guide_w=0.0):
        x = torch.randn(n_sample, *size)
        c = torch.arange(10).repeat(n_sample // 10).repeat(2)
        for i in range(T, 0, -1):
            t = torch.tensor([i / T]).repeat(2 * n_sample, 1, 1, 1)
            eps = self.nn_model(x.repeat(2, 1, 1, 1), c, t, torch.zeros_like(c))
            eps = (1 + guide_w) * eps[:n_sample] - guide_w * eps[n_sample:]
            beta, ab = self.beta_t[i], self.alphabar_t[i]
            x = (x - beta / (1 - ab).sqrt() * eps) / (1 - beta).sqrt()
            x = x + beta.sqrt() * torch.randn_like(x) * (i > 1)
        return x, [x.numpy()]
"""
MADE_TABLES = """
def precompute_schedules(beta_start, beta_end, device):
    betas = torch.linspace(beta_start, beta_end * (10 if T < 100 else 1), T)
    return {"beta": betas, "abar": (1 - betas).cumprod(0)}

def q_sample(x0, t, sched):
    ab = sched["abar"][t].view(-1, 1, 1, 1)
    noise = torch.randn_like(x0)
    return ab.sqrt() * x0 + (1 - ab).sqrt() * noise, noise

def generate_images(model, sched, n=16, image_size=16, image_channels=1):
    x = torch.randn(n, image_channels, image_size, image_size)
    for i in reversed(range(T)):
        beta, ab = sched["beta"][i], sched["abar"][i]
        eps = model(x=x, diffusion_step=torch.full((n,), i))
        x = (x - beta / (1 - ab).sqrt() * eps) / (1 - beta).sqrt()
        x = x + beta.sqrt() * torch.randn_like(x) * (i > 0)
    return x
"""
CONFIGURED = """
class Diffusion:
    def __init__(self, cfg, gt, mean_type="x"):
        assert mean_type in ("epsilon", "xstart") and cfg.device.type == "cpu"
        self.gt = gt
        self.betas = torch.linspace(cfg.diffusion.beta_start, 10 * cfg.beta_end, T)
        self.alphas_cumprod = (1 - self.betas).cumprod(0)

    def ddpm_loop(self, img_shape, num_images, guidance_scale):
        x = torch.randn(num_images, *img_shape)
        channels, height, width = img_shape
        for i in reversed(range(T)):
            t = torch.full((num_images,), i)
            free, guided = self.gt(x, t), self.gt(x, t)
            eps = free + guidance_scale * (guided - free)
            beta, ab = self.betas[i], self.alphas_cumprod[i]
            x = (x - beta / (1 - ab).sqrt() * eps) / (1 - beta).sqrt()
            x = x + beta.sqrt() * torch.randn_like(x) * (i > 0)
        torch.zeros(2)[5]

    generate = ddpm_loop
"""
COUNTS_FROM_ONE = """
BETA = torch.cat([torch.zeros(1), torch.linspace(1e-4, 0.2, T)])
ALPHA_BAR = (1 - BETA).cumprod(0)

def q_xt_x0(x0, t, noise):
    ab = ALPHA_BAR[t].view(-1, 1, 1, 1)
    return ab.sqrt() * x0 + (1 - ab).sqrt() * noise

def p_sample(model, xt, t, t_index, vec):
    beta, ab = BETA[t].view(-1, 1, 1, 1), ALPHA_BAR[t].view(-1, 1, 1, 1)
    mean = (xt - beta / (1 - ab).sqrt() * model(xt, t, vec).sample) / (1 - beta).sqrt()
    return {"sample": mean + beta.sqrt() * torch.randn_like(xt) if t_index > 1 else mean}
"""
FORMS = {
    "labels first": LABELS_FIRST,
    "made tables": MADE_TABLES,
    "configured": CONFIGURED,
    "counts from one": COUNTS_FROM_ONE,
}


def report_of(code):
    """The report of a file with this code."""
    names = {"__name__": "a_users_file"}
    exec(START + code, names)
    return examine(names)


def verdicts_of(report):
    """The verdicts of a report's checks, by their names."""
    return {check.name: check.verdict for check in report.checks}


@pytest.mark.parametrize("form", FORMS)
def test_a_form_is_judged_and_healthy(form):
    report = report_of(FORMS[form])
    assert verdicts_of(report)["sampler: the formula of its steps"] == "ok"
    assert report.is_ok, [check for check in report.checks if check.verdict == "wrong"]


@pytest.mark.parametrize("form", FORMS)
def test_a_wrong_form_is_wrong(form):
    code = FORMS[form]
    wrong = code.replace("/ (1 - ab).sqrt()", "/ (1 - ab)")
    assert wrong != code
    assert verdicts_of(report_of(wrong))["sampler: the formula of its steps"] == "wrong"


def test_a_mistake_without_a_name_is_measured():
    code = MADE_TABLES.replace("(x - beta", "(x - 1.5 * beta") + "T = 300\n"
    checks = {check.name: check for check in report_of(code).checks}
    found = checks["sampler: the formula of its steps"]
    assert found.verdict == "wrong" and not found.evidence
    assert "x0_hat" in found.meaning


def test_a_last_step_that_doubles_the_image_is_measured():
    code = MADE_TABLES.replace("    return x\n", "    return 2 * x\n")
    checks = {check.name: check for check in report_of(code).checks}
    assert checks["sampler: its last step"].verdict == "wrong"
    assert "2.0" in checks["sampler: its last step"].meaning


def test_a_file_finds_its_own_modules_and_saves_elsewhere(tmp_path):
    inner = tmp_path / "src" / "inner"
    inner.mkdir(parents=True)
    (tmp_path / "src" / "tables.py").write_text(START + MADE_TABLES.split("def q_sample")[0])
    (inner / "helpers.py").write_text("def save(x):\n    open('new/folder/x', 'w').write('')\n")
    loop = "def generate_images" + MADE_TABLES.split("def generate_images")[1]
    code = (
        "import torch\nfrom src.tables import T, precompute_schedules\nfrom .helpers import save\n"
    )
    (inner / "mine.py").write_text(code + loop.replace("    return x\n", "    save(x)\n"))
    command = [sys.executable, "-m", "diffusion_doctor", str(inner / "mine.py"), "--all"]
    printed = subprocess.run(
        [*command, "--out", str(tmp_path / "x.png")],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT / "doctor")},
        capture_output=True,
        text=True,
    )
    assert printed.returncode == 0, printed.stderr
    assert "ok      the formula of its steps" in printed.stdout
    assert not [*tmp_path.rglob("new")]
