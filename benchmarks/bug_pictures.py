"""What bugs look like: digits of the shipped networks with each bug, above the same without.

python benchmarks/bug_pictures.py            writes doctor/docs/bugs.png; a few minutes
python benchmarks/bug_pictures.py --table    prints the table of doctor/docs/bugs.md instead

Both are drawn from the same noise. Nothing is trained: where a bug is one of training, the shipped
network is changed so that it has the bug's effect. PICTURES has all changes.
"""

import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import ModuleType

import matplotlib.pyplot as plt
import torch
from buggy.case import changed_module, cosine_betas, text_pairs
from diffusion_doctor.bugs import BUGS, markdown_rows
from harness import ROOT, make_parser, run
from PIL import Image

from mnist_ddpm import catalogue, ddpm
from mnist_ddpm.formats import checkpoints
from mnist_ddpm.methods import guidance

COLUMNS = 5  # bugs in a row of the picture
DIGITS = 5  # of each bug
LABELS = torch.tensor([3, 5, 7, 8, 2])
SCALE = 2.0  # of guidance


def same(value):
    """The value."""
    return value


def guided(weak: torch.Tensor, strong: torch.Tensor) -> torch.Tensor:
    """Outputs with guidance."""
    return weak + SCALE * (strong - weak)


@dataclass(frozen=True)
class Picture:
    """How the symptom of a bug is drawn."""

    changes: str = ""  # of the notebook's module, "old => new | …"
    sampler: str = "ddpm"
    steps: int = 50
    variance: Callable = ddpm.posterior_variance  # of DDPM's steps
    network: Callable = same  # to a changed network
    schedule: Callable = same  # to a changed schedule
    noise: Callable = same  # to changed noise
    guidance: Callable | None = None  # of (weak, strong) outputs, for a network with labels

    @property
    def healthy(self) -> "Picture":
        """The picture without its bug."""
        guidance = None if self.guidance is None else guided
        return Picture(sampler=self.sampler, steps=self.steps, guidance=guidance)


def with_time(change: Callable) -> Callable:
    """A network that is told another t."""
    return lambda network: lambda x, t: network(x, change(t))


def young(network):
    """An average that is still too small, since it began at 0."""
    for weight in network.parameters():
        weight.mul_(0.87)
    return network


def uniform(noise: torch.Tensor) -> torch.Tensor:
    """Uniform numbers in the place of normal ones."""
    return torch.special.ndtr(noise)


def half(schedule: ddpm.Schedule) -> ddpm.Schedule:
    """A schedule computed in float16."""
    return ddpm.beta_schedule(ddpm.linear_beta().half())


def with_last_beta(schedule: ddpm.Schedule) -> ddpm.Schedule:
    """The cosine schedule with a last beta of 1."""
    return ddpm.beta_schedule(torch.nn.functional.pad(cosine_betas(schedule.T), (1, 0)))


def later_variance(schedule: ddpm.Schedule, t: int, s: int) -> torch.Tensor:
    """The posterior variance of the step before."""
    return ddpm.posterior_variance(schedule, min(2 * t - s, schedule.T), t)


POSTERIOR = "posterior_mean(schedule, x0_hat, x, t, s)"
LAST = "if s > 0:\\n            x = x +"
BOTH = "x0_hat, _ = denoise(xt, t)\\n        x0_hat ="
RECOMPUTED = "predict_eps(schedule, xt, t, x0_hat)\\n\\n    return denoise_"
ROWS = ".flatten(2).mT.contiguous() => .reshape(len(x), -1, 3 * x.shape[1])"
NORM = "type('Norm', (nn.GroupNorm,), {'forward': lambda self, x: F.batch_norm("
NORM += "x, None, None, self.weight, self.bias, True)})"
PICTURES = {
    "neighbour-padding": Picture(f"{POSTERIOR} => {POSTERIOR.replace('s)', 'max(1, s - 19))')}"),
    "last-noise": Picture(
        f"{LAST} => {LAST.replace('s > 0', 'True')}", variance=ddpm.step_variance
    ),
    "ddim-alpha": Picture("max(0, b_s**2 - sigma**2) => schedule.b[t].item() ** 2", "ddim"),
    "respacing": Picture("in schedule.at(s)) => in schedule.at(t - 1))", "ddim"),
    "network-time": Picture(network=with_time(lambda t: (t - 60).clamp(min=1))),
    "early-end": Picture("[*times[1:], 0])) => [*times[1:], 19]))[:-1]", "ddim"),
    "no-clipping": Picture(".clamp(-1, 1)\\n        return x0 => \\n        return x0", steps=10),
    "stale-eps": Picture(
        f"{BOTH} => {BOTH.replace(', _', ', e')} | {RECOMPUTED} => e\\n\\n    return denoise_",
        "ddim",
        steps=10,
    ),
    "missing-sqrt": Picture("variance(schedule, t, s).sqrt().to => variance(schedule, t, s).to"),
    "alpha-for-alpha-bar": Picture("(1 - beta).cumprod(dim=0) => 1 - beta", "ddim"),
    "uniform-noise": Picture(noise=uniform),
    "data-range": Picture("x0_hat.clamp(-1, 1) => x0_hat.clamp(0, 1)"),
    "posterior-variance": Picture(variance=later_variance),
    "half-schedule": Picture(schedule=half),
    "cosine-end": Picture(schedule=with_last_beta, guidance=guided),
    "unseen-end": Picture(network=with_time(lambda t: t.clamp(max=700))),
    "time-ignored": Picture(network=with_time(lambda t: t * 0 + 300)),
    "unit-time": Picture(network=with_time(lambda t: 1 + t / 1000)),
    "attention-reshape": Picture(f"{ROWS} | h.mT.reshape => h.reshape"),
    "channel-groups": Picture("math.gcd(32, channels, max(1, channels // 4)) => channels"),
    "batch-leak": Picture(f"return nn.GroupNorm( => return {NORM}("),
    "young-average": Picture(network=young),
    "guidance-sign": Picture(guidance=lambda weak, strong: guided(strong, weak)),
    "guidance-scale": Picture(guidance=lambda weak, strong: weak + SCALE * strong),
}


def denoiser(picture: Picture, code: ModuleType) -> tuple[ddpm.Denoiser, ddpm.Schedule]:
    """The denoiser of a picture, and its schedule."""
    if picture.guidance is None:
        network, schedule, _ = code.load_checkpoint(checkpoints.find("mnist-unlabelled"))
        schedule = picture.schedule(schedule)
        return code.eps_denoiser(picture.network(network), schedule), schedule
    network, schedule, recipe = checkpoints.load(checkpoints.find("checkpoints/mnist-conditional"))
    schedule = picture.schedule(schedule)
    strong, weak = (
        catalogue.make_denoiser(guidance.with_labels(network, labels), schedule, recipe)
        for labels in (LABELS, torch.full_like(LABELS, 10))
    )

    def denoise(x: torch.Tensor, t: ddpm.Time) -> list[torch.Tensor]:
        return [picture.guidance(*pair) for pair in zip(weak(x, t), strong(x, t))]

    return denoise, schedule


@cache
@torch.no_grad()
def images_of(picture: Picture) -> torch.Tensor:
    """Digits drawn as a picture says: uint8 (DIGITS, 1, 32, 32)."""
    code = changed_module(ddpm, *text_pairs(picture.changes)) if picture.changes else ddpm
    denoise, schedule = denoiser(picture, code)
    draw_normal = ddpm.noise_source(0, range(DIGITS), (1, 32, 32))

    def draw_noise() -> torch.Tensor:
        return picture.noise(draw_normal())

    options = {"variance": picture.variance} if picture.sampler == "ddpm" else {}
    sampler = {"ddpm": code.ddpm_sampler, "ddim": code.ddim_sampler}[picture.sampler]
    times = code.timesteps(schedule.T, picture.steps)
    denoise = code.clipped(denoise, schedule)
    states = sampler(denoise, schedule, times, draw_noise(), draw_noise, **options)
    *_, (_, x, _) = states
    return ddpm.to_uint8(x.nan_to_num(0))


def main() -> None:
    parser = make_parser(__doc__, ROOT / "doctor" / "docs" / "bugs.png")
    parser.add_argument("--table", action="store_true", help="print the table of bugs")
    flags = parser.parse_args()
    if flags.table:
        print(*markdown_rows(), sep="\n")
        return
    rows = -(-len(PICTURES) // COLUMNS)
    size = 2.3 * COLUMNS, 1.35 * rows + 0.3
    figure, axes = plt.subplots(rows, COLUMNS, figsize=size, layout="constrained")
    figure.suptitle("Above: with the bug. Below: without it, from the same noise.", fontsize=10)
    for ax in axes.flat:
        ax.axis("off")
    for ax, (name, picture) in zip(axes.flat, PICTURES.items()):
        both = torch.cat([images_of(picture), images_of(picture.healthy)])
        ax.imshow(ddpm.tile(both, DIGITS, 2))
        ax.set_title(textwrap.fill(BUGS[name].title, 40), fontsize=7)
    figure.savefig(flags.out, dpi=90)
    with Image.open(flags.out) as image:
        image.convert("L").quantize(16).save(flags.out, optimize=True)
    print(f"written to {flags.out}")


if __name__ == "__main__":
    run(main)
