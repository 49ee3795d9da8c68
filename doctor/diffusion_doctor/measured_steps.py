"""What the steps of a sampler do, measured from a run: x_s = A x0_hat + B eps_hat + C z."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from diffusion_doctor.sampler_formulas import Steps, ddpm_step

SIGNAL = 0.005  # deviation of A beyond which a step leaves the schedule
DEPENDENT = 6.0  # deviations that a mean correlation may have by chance
NOISE = 0.05  # the same of the noise's deviation, as a share


@dataclass(frozen=True)
class MeasuredStep:
    """The factors of one step, and what they must be for an image at the next time.

    Where x0_hat and eps_hat are exact, x_s is an image at time s if A = a_s, B² + C² = b_s².
    """

    number: int
    x0_factor: float  # A
    eps_factor: float  # B
    noise: float  # C
    a_s: float
    b_s: float
    ddpm: tuple[float, float]  # A and B of DDPM's step

    @property
    def is_right(self) -> bool:
        """Whether it leads to an image at the next time."""
        spread = math.hypot(self.eps_factor, self.noise)
        has_signal = abs(self.x0_factor - self.a_s) < SIGNAL
        return has_signal and abs(spread - self.b_s) < NOISE * self.b_s + SIGNAL

    def __str__(self) -> str:
        made = f"{self.x0_factor:.3f} x0_hat + {self.eps_factor:.3f} eps_hat + {self.noise:.3f} z"
        ddpm = f"{self.ddpm[0]:.3f} x0_hat + {self.ddpm[1]:.3f} eps_hat"
        return (
            f"x_s = {made}, where DDPM has {ddpm} and noise z, "
            f"DDIM {self.a_s:.3f} x0_hat + {self.b_s:.3f} eps_hat"
        )


def factors_of(x0: Tensor, eps: Tensor, y: Tensor) -> tuple[float, float, float]:
    """The A and B that fit y best in all pixels, and the deviation of what is left."""
    columns = torch.stack([x0.flatten(), eps.flatten()], dim=1)
    fit = torch.linalg.lstsq(columns, y.flatten().unsqueeze(1)).solution
    left = y.flatten() - (columns @ fit).flatten()
    return fit[0].item(), fit[1].item(), left.square().mean().sqrt().item()


def measure_steps(steps: Steps) -> list[MeasuredStep]:
    """The factors of all these steps. Those that are not finite are left out."""
    measured = []
    (a_t, b_t), (a_s, b_s) = steps.now, steps.next
    zeros = torch.zeros_like(steps.x)
    of_x, _ = ddpm_step(replace(steps, x=torch.ones_like(zeros), x0=zeros))
    of_x0, _ = ddpm_step(replace(steps, x=zeros, x0=torch.ones_like(zeros)))
    for k in range(len(steps.t)):
        if not steps.y[k].isfinite().all() or not steps.x0[k].isfinite().all():
            continue
        x_weight, x0_weight = of_x[k].mean().item(), of_x0[k].mean().item()
        ddpm = x0_weight + x_weight * a_t[k].item(), x_weight * b_t[k].item()
        factors = factors_of(steps.x0[k], steps.eps[k], steps.y[k])
        measured.append(MeasuredStep(k, *factors, a_s[k].item(), b_s[k].item(), ddpm))
    return measured


def uses_predictions_before(steps: Steps) -> bool:
    """Whether x_s depends on the prediction of the call before, as in methods of several steps."""
    correlations = []
    for k in (~steps.is_first.flatten()).nonzero().flatten().tolist():
        A, B, _ = factors_of(steps.x0[k], steps.eps[k], steps.y[k])
        left = steps.y[k] - A * steps.x0[k] - B * steps.eps[k]
        before = steps.x0_before[k]
        size = (left.norm() * before.norm()).clamp(min=1e-30)
        correlations.append((left * before).sum() / size)
    if not correlations:
        return False
    chance = 1 / math.sqrt(len(correlations) * steps.x[0].numel())
    return abs(torch.stack(correlations).mean().item()) > DEPENDENT * chance
