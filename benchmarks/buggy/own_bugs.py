"""Bugs of this project: each replaces a piece of the text of the notebook's module, or another."""

from collections.abc import Callable
from functools import cache, partial

import torch

from buggy.case import Case, as_cases, changed_module, digits, text_changes
from mnist_ddpm import catalogue, ddpm
from mnist_ddpm.formats import checkpoints
from mnist_ddpm.methods import guidance, likelihood, predictions, schedules
from mnist_ddpm.recipe import Recipe

NAME = "mnist-ddpm"
# bug | part | old text => new text | further changes
BUGS = r"""
neighbour-padding | ddpm | T, dtype=torch.float64), (1, 0)) => T, dtype=torch.float64), (0, 1))
last-noise | ddpm-beta | if s > 0:\n            x = x + var => if True:\n            x = x + var
ddim-alpha | ddim | max(0, b_s**2 - sigma**2) => schedule.b[t].item() ** 2
ddim-alpha | ddim-eta | max(0, b_s**2 - sigma**2) => b_s**2
respacing | ddim | in schedule.at(s)) => in schedule.at(t - 1))
respacing | ddpm | posterior_mean(schedule, x0_hat, x, t, s) => \
    posterior_mean(schedule, x0_hat, x, t, t - 1)
network-time | ddpm | network(xt, torch.as_tensor(t) => network(xt, torch.as_tensor(t - 1)
network-time | dpmpp | network(xt, torch.as_tensor(t) => network(xt, torch.as_tensor(1 + t // 2)
early-end | ddim | [*times[1:], 0])) => [*times[1:], 1]))
early-end | ddpm | zip(times, [*times[1:], 0]) => zip(times, times[1:])
no-clipping | ddpm | .clamp(-1, 1)\n        return x0_hat, => \n        return x0_hat,
no-clipping | ddim | .clamp(-1, 1)\n        return x0_hat, => \n        return x0_hat,
stale-eps | ddim | x0_hat, _ = denoise(xt, t)\n        x0_hat = => \
    x0_hat, e = denoise(xt, t)\n        x0_hat = | \
    predict_eps(schedule, xt, t, x0_hat)\n\n    return denoise_ => e\n\n    return denoise_
missing-sqrt | ddpm | (1 - alpha_bar).sqrt()) => 1 - alpha_bar)
missing-sqrt | ddpm | variance(schedule, t, s).sqrt().to => variance(schedule, t, s).to
missing-sqrt | ddim-eta | variance(schedule, t, s).sqrt().item => variance(schedule, t, s).item
alpha-for-alpha-bar | ddpm | (1 - beta).cumprod(dim=0) => 1 - beta
posterior-variance | ddpm | variance(schedule, t, s).sqrt => variance(schedule, t, s + 10).sqrt
posterior-variance | ddpm | t, s) * (b_s / b_t) ** 2 => t, s) * (b_t / b_s) ** 2
half-schedule | ddpm | (1 - beta).cumprod(dim=0) => (1 - beta.half()).double().cumprod(dim=0)
uniform-noise | ddpm-uniform | =>
uniform-noise | training | torch.randn(x0.shape, ** => torch.rand(x0.shape, **
one-time | training | schedule.T + 1, (len(x0),), **options) => \
    schedule.T + 1, (1,), **options).expand(len(x0))
unseen-end | training | (1, schedule.T + 1, => (1, schedule.T - 100,
unseen-end | training | (1, schedule.T + 1, => (2, schedule.T + 1,
guidance-sign | guidance | lerp(weak_eps, eps_hat, scale) => lerp(eps_hat, weak_eps, scale)
guidance-scale | guidance | torch.lerp(weak_eps, eps_hat, scale) => weak_eps + scale * eps_hat
frozen-likelihood | likelihood | = denoise(xt, t) => = denoise(xt, t.clamp(min=500, max=500))
cosine-end | cosine | .clamp(max=0.999) =>
time-ignored | network | + self.time(F.silu(time))[:, :, None, None] =>
unit-time | network | angle = (t - 1)[:, None] => angle = ((t - 1) / 1000)[:, None]
attention-reshape | network | .flatten(2).mT.contiguous() => .reshape(len(x), -1, 3 * x.shape[1]) \
    | h.mT.reshape => h.reshape
channel-groups | network | math.gcd(32, channels, max(1, channels // 4)) => channels
batch-leak | network | nn.GroupNorm(groups, channels, eps=1e-6) => \
    nn.BatchNorm2d(channels, track_running_stats=False)
"""
MODULES = {"guidance": guidance, "likelihood": likelihood, "cosine": schedules}


def changed(part: str, changes: tuple) -> dict:
    """The arguments for a part of a copy with a bug."""
    module = changed_module(MODULES.get(part, ddpm), *changes)
    return arguments(module, part)


def arguments(code, part: str) -> dict:
    """What an examination is given: a copy of the module of this part, and the right others."""
    if part == "cosine":
        return {"schedule": code.cosine(), "prediction": "eps"}
    base = ddpm if part in MODULES else code
    schedule = base.beta_schedule(base.linear_beta())
    given = along(base, schedule, part)
    if part == "training":
        run = base.start_run(base.Settings(base_channels=8))
        step = partial(train, base, run, schedule, base.l_simple)
        given |= {"loss": partial(loss, base, schedule), "training_step": step}
        given |= {"network": run.network, "shape": (1, 32, 32)}
    if part == "network":
        torch.manual_seed(0)
        network = base.make_network(base.Settings(base_channels=16))
        given |= {"network": network, "shape": (1, 32, 32)}
    if part == "guidance":
        given["guidance"] = partial(guided, code, schedule)
    if part == "likelihood":
        given["likelihood"] = partial(bits, code, schedule)
    return given


def along(code, schedule, part: str = "ddim", denoiser: Callable | None = None, **options) -> dict:
    """A schedule, its forward process and a sampler, which clips."""
    name, _, variant = part.partition("-")
    draw = torch.rand if variant == "uniform" else torch.randn
    options |= {"beta": {"variance": code.step_variance}, "eta": {"eta": 1.0}}.get(variant, {})
    samplers = catalogue.SAMPLERS | {"ddpm": code.ddpm_sampler, "ddim": code.ddim_sampler}
    sampler = samplers.get(name, code.ddim_sampler)

    def sample(network, shape):
        denoise = code.clipped((denoiser or code.eps_denoiser)(network, schedule), schedule)
        times = code.timesteps(schedule.T, 50)
        states = sampler(denoise, schedule, times, draw(shape), lambda: draw(shape), **options)
        *_, (_, x, _) = states
        return x

    def forward(x0, t, noise):
        return code.q_sample(schedule, x0, t, noise)

    return {"schedule": schedule, "forward": forward, "sampler": sample}


def train(code, run, schedule, objective: Callable, x0) -> float:
    """One step of the notebook's training."""
    seed = int(torch.randint(2**31, ()))
    return code.training_step(run, objective, schedule, x0, torch.Generator().manual_seed(seed))


@cache
def small_run(code):
    """A run whose network only has to be there."""
    return code.start_run(code.Settings(image_size=8, base_channels=8))


def loss(code, schedule, network, x0):
    """The loss of one batch, whose times and noise are drawn as in training."""
    run = small_run(code)
    losses = []

    def objective(own_network, schedule, x0, t, eps):
        losses.append(code.l_simple(network, schedule, x0, t, eps))
        return losses[0].detach() + 0 * sum(weight.sum() for weight in own_network.parameters())

    train(code, run, schedule, objective, x0)
    return losses[0].mean()


def guided(code, schedule, network, x, t, labels, scale):
    """Classifier-free guidance of the noise."""
    strong, weak = (
        ddpm.eps_denoiser(guidance.with_labels(network, each), schedule)
        for each in (labels, torch.full_like(labels, 10))
    )
    return code.guided(weak, strong, scale)(x, t)[1]


def bits(code, schedule, network, x0):
    """bits/dim of images in [-1, 1]."""
    denoise = ddpm.clipped(ddpm.eps_denoiser(network, schedule), schedule)
    return code.bits_per_dim(denoise, schedule, ddpm.to_uint8(x0)).bits


def checkpoint(name: str) -> dict:
    """A shipped network with its own schedule and prediction, and digits where it draws some."""
    network, schedule, recipe = checkpoints.load(checkpoints.find(f"checkpoints/{name}"))
    given = along(ddpm, schedule, "ddim", denoiser_of(recipe.prediction)) | {"network": network}
    given |= {"shape": recipe.shape}
    return given | ({"data": digits(32)} if recipe.dataset == "mnist" else {})


def denoiser_of(prediction: str) -> Callable:
    """eps_denoiser for another prediction."""
    conversion = catalogue.PREDICTIONS[prediction]
    return lambda network, schedule: predictions.denoiser(network, schedule, conversion)


def of_prediction(name: str, schedule_name: str = "linear") -> dict:
    """A training and a sampler of one prediction, on one schedule."""
    recipe = Recipe(prediction=name, schedule=schedule_name)
    schedule = catalogue.make_schedule(recipe)
    objective = predictions.unweighted(catalogue.PREDICTIONS[name])

    def own_loss(network, x0):
        t, eps = torch.randint(1, schedule.T + 1, (len(x0),)), torch.randn_like(x0)
        return objective(network, schedule, x0, t, eps).mean()

    given = along(ddpm, schedule, "ddim", denoiser_of(name)) | {"loss": own_loss}
    return given | ({"prediction": "other"} if name in ("mu", "edm") else {})


def healthy() -> list[Case]:
    """Each part, sampler, schedule, prediction and shipped checkpoint."""
    parts = "ddpm", "ddpm-beta", "ddim", "ddim-eta", "dpmpp", "dpmpp-eta", "heun"
    parts += "training", "network", "guidance", "likelihood"
    rows = [("", part, partial(arguments, MODULES.get(part, ddpm), part)) for part in parts]
    rows += [
        (
            "",
            f"schedule {name}",
            partial(of_prediction, "eps" if "zero" not in name and name != "flow" else "v", name),
        )
        for name in catalogue.SCHEDULES
    ]
    rows += [
        ("", f"prediction {name}", partial(of_prediction, name)) for name in catalogue.PREDICTIONS
    ]
    rows += [("", f"checkpoint {name}", partial(checkpoint, name)) for name in checkpoints.SHIPPED]
    return as_cases(NAME, rows)


def ill() -> list[Case]:
    """One case for each bug."""
    return as_cases(NAME, text_changes(BUGS, changed))
