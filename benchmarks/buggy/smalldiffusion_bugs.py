"""Bugs of smalldiffusion: changed schedules, models and its sampler."""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from buggy.case import Case, Proxy, as_cases, changed_function, uniform

NAME = "smalldiffusion"


def package():
    """The package's module of schedules and samplers."""
    from smalldiffusion import diffusion

    return diffusion


def model_of(network: Callable, shape: tuple) -> nn.Module:
    """A function of (x, sigma) as a model of the package."""
    from smalldiffusion import ModelMixin

    class Model(nn.Module, ModelMixin):
        input_dims = tuple(shape[1:])

        def forward(self, x, sigma, cond=None):
            return network(x, sigma.flatten().expand(len(x)))

    return Model()


def draw(made, samples: Callable, network, shape, is_uniform=False, **options):
    """Draws images as the package's examples do."""
    from accelerate import Accelerator

    model = model_of(network, shape)
    if is_uniform:
        model.rand_input = lambda n: torch.rand(n, *model.input_dims)
    options |= {"batchsize": shape[0], "accelerator": Accelerator(cpu=True)}
    with torch.no_grad():
        *_, x = samples(model, made.sample_sigmas(50), **options)
    return x


def loss(made, generate: Callable, network, x0):
    """The package's loss of a batch: the mean squared error of eps."""
    x0, sigma, eps, _ = generate(x0, made)
    return model_of(network, x0.shape).get_loss(x0, sigma, eps)


def noised(x0, sigma, noise):
    """The package's noised image."""
    return x0 + torch.as_tensor(sigma).view(-1, 1, 1, 1) * noise


def given(made=None, samples: Callable | None = None, generate=None, **options) -> dict:
    """What an examination is given: schedule, forward process, sampler and loss."""
    made = made or package().ScheduleDDPM()
    sampler = partial(draw, made, samples or package().samples, **options)
    own_loss = partial(loss, made, generate or package().generate_train_sample)
    return {"schedule": made, "forward": noised, "sampler": sampler, "loss": own_loss}


def changed(old: str, new: str, **options) -> dict:
    """A piece of the sampler's text replaced; options: of the sampler."""
    return given(samples=changed_function(package().samples, (old, new)), **options)


def of_betas(sigma: Callable) -> dict:
    """Another formula from beta to sigma."""
    return given(package().Schedule(sigma(torch.linspace(1e-4, 0.02, 1000))))


def squared_sigma(beta: torch.Tensor) -> torch.Tensor:
    """sigma without its root."""
    return 1 / (1 - beta).cumprod(0) - 1


def sigma_of_alpha(beta: torch.Tensor) -> torch.Tensor:
    """sigma of alpha, not of alpha_bar."""
    return (1 / (1 - beta) - 1).sqrt()


def half_sigma(beta: torch.Tensor) -> torch.Tensor:
    """sigma of a product in float16."""
    return (1 / (1 - beta).half().cumprod(0).float() - 1).sqrt()


def with_draws(pick: Callable) -> dict:
    """Training with other sigmas: pick of (schedule, number of images)."""
    made = package().ScheduleDDPM()
    made.sample_batch = lambda x0: pick(made, len(x0))
    return given(made)


def uniform_training() -> dict:
    """Training with uniform noise."""
    generate = changed_function(package().generate_train_sample)
    generate.__globals__["torch"] = Proxy(torch, randn_like=uniform)
    return given(generate=generate)


def next_in_table(sigmas):
    """Each sigma of a sampler, with its neighbour in the whole table."""
    table = package().ScheduleDDPM().sigmas
    k = torch.searchsorted(table, sigmas[:-1].contiguous())
    return list(zip(sigmas, table[(k - 1).clamp(min=0)]))


def respaced() -> dict:
    """A sampler that takes the neighbour in the whole table as the next time."""
    samples = changed_function(package().samples, ("pairwise", "next_in_table"))
    samples.__globals__["next_in_table"] = next_in_table
    return given(samples=samples)


ROOT = "(sig_prev**2 - sig_p**2).sqrt()"
BUGS = [
    ("missing-sqrt", "σ²", lambda: of_betas(squared_sigma)),
    ("alpha-for-alpha-bar", "σ of alpha", lambda: of_betas(sigma_of_alpha)),
    ("half-schedule", "cumprod in float16", lambda: of_betas(half_sigma)),
    ("cosine-end", "last beta of 1", lambda: given(package().ScheduleCosine(max_beta=1.0))),
    ("respacing", "the neighbour in the table", respaced),
    ("network-time", "told σ of the next time", lambda: changed("sig.to(xt)", "sig_prev.to(xt)")),
    ("network-time", "told the step", lambda: changed("sig.to(xt)", "torch.tensor(i + 1.0)")),
    ("missing-sqrt", "variance times noise", lambda: changed(ROOT, ROOT[:-7], mu=0.5)),
    (
        "early-end",
        "last two steps left out",
        lambda: changed("pairwise(sigmas)", "pairwise(sigmas[:-2])"),
    ),
    ("uniform-noise", "rand_input", lambda: given(mu=0.5, is_uniform=True)),
    ("uniform-noise", "rand in training", uniform_training),
    (
        "one-time",
        "one σ a batch",
        lambda: with_draws(lambda made, n: made[torch.randint(1000, (1,))].repeat(n)),
    ),
    (
        "unseen-end",
        "randint(0, 900)",
        lambda: with_draws(lambda made, n: made[torch.randint(900, (n,))]),
    ),
]
HEALTHY = [
    *(
        (
            "",
            f"Schedule{name}",
            lambda name=name: given(getattr(package(), f"Schedule{name}")(N=1000)),
        )
        for name in ("DDPM", "LDM", "LogLinear", "Cosine", "Sigmoid")
    ),
    ("", "mu 0.5", lambda: given(mu=0.5)),
    ("", "gam 2", lambda: given(gam=2.0)),
    ("", "by itself", lambda: package().ScheduleDDPM()),
]


def healthy() -> list[Case]:
    """Schedules, and the three settings of its sampler."""
    return as_cases(NAME, HEALTHY)


def ill() -> list[Case]:
    """One case for each bug."""
    return as_cases(NAME, BUGS)
