"""Bugs of denoising-diffusion-pytorch: changed tables, methods and layers of its objects."""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from buggy.case import Case, Proxy, as_cases, cosine_betas, uniform, with_changed

NAME = "denoising-diffusion-pytorch"
T = 250
BATCH_NORM = partial(nn.BatchNorm2d, track_running_stats=False)  # leaks in evaluation mode, too


def diffusion(steps: int | None = 50, **options):
    """A GaussianDiffusion with a small network of its package; steps: None for DDPM's sampler."""
    from denoising_diffusion_pytorch import GaussianDiffusion, Unet

    torch.manual_seed(0)
    network = Unet(dim=16, dim_mults=(1, 2), channels=1, attn_heads=2, attn_dim_head=8)
    return GaussianDiffusion(
        network, image_size=8, timesteps=T, sampling_timesteps=steps, **options
    )


DDPM = partial(diffusion, None)
EPS = partial(diffusion, objective="pred_noise")
NOISY = partial(diffusion, ddim_sampling_eta=1.0)


def with_tables(made, **tables: torch.Tensor):
    """The object with other values in its tables."""
    for name, values in tables.items():
        getattr(made, name).copy_(values)
    return made


def with_posterior(made, before: torch.Tensor):
    """Posterior tables with this alpha_bar of the neighbour."""
    beta, bar = made.betas, made.alphas_cumprod
    variance = beta * (1 - before) / (1 - bar)
    return with_tables(
        made,
        posterior_variance=variance,
        posterior_log_variance_clipped=variance.clamp(min=1e-20).log(),
        posterior_mean_coef1=beta * before.sqrt() / (1 - bar),
        posterior_mean_coef2=(1 - before) * (1 - beta).sqrt() / (1 - bar),
    )


def with_bar(change: Callable, **options):
    """All tables from another alpha_bar: change of beta."""
    made = EPS(beta_schedule="linear", **options)
    bar = change(made.betas)
    with_tables(
        made,
        alphas_cumprod=bar,
        sqrt_alphas_cumprod=bar.sqrt(),
        sqrt_one_minus_alphas_cumprod=(1 - bar).sqrt(),
        sqrt_recip_alphas_cumprod=(1 / bar).sqrt(),
        sqrt_recipm1_alphas_cumprod=(1 / bar - 1).sqrt(),
    )
    return with_posterior(made, torch.cat([bar.new_ones(1), bar[:-1]]))


def neighbour(*padded: float):
    """The neighbour's alpha_bar from a table padded on the wrong side."""
    made = DDPM()
    bar = made.alphas_cumprod
    return with_posterior(made, torch.cat([bar, bar.new_tensor(padded)])[-T:])


def last(value: float):
    """The neighbour's alpha_bar is that of t, and a value at the end."""
    made = DDPM()
    return with_posterior(made, torch.cat([made.alphas_cumprod[:-1], torch.tensor([value])]))


def with_table(make: Callable, name: str, change: Callable):
    """One table changed: change of the table and beta."""
    made = make()
    return with_tables(made, **{name: change(getattr(made, name), made.betas)})


def squared(table: torch.Tensor, beta: torch.Tensor) -> torch.Tensor:
    """A table without its root."""
    return table**2


def doubled(table: torch.Tensor, beta: torch.Tensor) -> torch.Tensor:
    """The logarithm of the squares."""
    return 2 * table


def rolled(table: torch.Tensor, beta: torch.Tensor) -> torch.Tensor:
    """A table shifted by one."""
    return table.roll(-1)


def root_alpha(table: torch.Tensor, beta: torch.Tensor) -> torch.Tensor:
    """The root of alpha."""
    return (1 - beta).sqrt()


def cosine_bar(beta: torch.Tensor) -> torch.Tensor:
    """alpha_bar of a cosine schedule whose last beta is 1; beta becomes that schedule's."""
    beta.copy_(cosine_betas(len(beta)))
    return (1 - beta.double()).cumprod(0).float()


def half_bar(beta: torch.Tensor) -> torch.Tensor:
    """alpha_bar by a product in float16."""
    return (1 - beta).half().cumprod(0).float()


def unnormalised(images: torch.Tensor) -> dict:
    """An object that takes images in [0, 1] as they are."""
    return {"code": diffusion(auto_normalize=False), "data": images}


def with_times(draw: Callable):
    """Training with other times: draw of the batch's size."""
    made = diffusion()
    made.random_times = draw
    return made


def with_network(change: Callable) -> dict:
    """An object whose network is changed."""
    made = diffusion()
    change(made.model)
    return {"code": made, "network": made.model}


def layers(network: nn.Module, kind: str) -> list:
    """The layers of a class of this name, each with its parent and its name there."""
    parents = [
        (parent, *child) for parent in network.modules() for child in parent.named_children()
    ]
    return [row for row in parents if type(row[2]).__name__ == kind]


def normalised_by(make: Callable) -> Callable:
    """Replaces every normalisation by another: make of the number of channels."""

    def change(network: nn.Module) -> None:
        for parent, name, layer in layers(network, "RMSNorm"):
            setattr(parent, name, make(layer.g.shape[1]))

    return change


def without_time(network: nn.Module) -> None:
    """Blocks that are told no time."""
    for _, _, layer in layers(network, "ResnetBlock"):
        layer.mlp[1].weight.data.zero_()


def in_unit_time(network: nn.Module) -> None:
    """Frequencies of t / T."""
    embedding = network.time_mlp[0]
    forward = embedding.forward
    embedding.forward = lambda t: forward(t / T)


def reshaped(network: nn.Module) -> None:
    """Attention whose output is reshaped where its axes should be moved."""
    for _, _, layer in layers(network, "Attention"):
        rows = lambda out, _, x, y: out.reshape(len(out), -1, x, y)  # noqa: E731
        with_changed(layer, "forward", ("rearrange(out,", "rows(out,"), rows=rows)


def ddim(*changes: tuple[str, str], make: Callable = diffusion):
    """An object with pieces of its DDIM sampler replaced."""
    return with_changed(make(), "ddim_sample", *changes)


def with_uniform(make: Callable, name: str):
    """An object one of whose methods draws uniform noise."""
    torch_with_rand = Proxy(torch, randn=uniform, randn_like=uniform)
    return with_changed(make(), name, torch=torch_with_rand)


def flag_off(make: Callable, name: str, flag: str):
    """An object one of whose methods passes False for a flag."""
    return with_changed(make(), name, (f"{flag} = True", f"{flag} = False"))


AT_ONE = ("time_next < 0", "False"), ("cumprod[time_next]", "cumprod[max(time_next, 0)]")
TOLD = "model(x, t,", "model(x, (t - 1).relu(),"
LOG, DEVIATION = "posterior_log_variance_clipped", "sqrt_one_minus_alphas_cumprod"
BUGS = [
    ("neighbour-padding", "ᾱ of t + 1", lambda: neighbour(0.0)),
    ("neighbour-padding", "ᾱ of t", lambda: last(1.0)),
    ("ddim-alpha", "ᾱ_t before eps_hat", lambda: ddim(("alpha_next - sigma", "alpha - sigma"))),
    ("ddim-alpha", "σ² not subtracted", lambda: ddim(("- sigma ** 2", ""), make=NOISY)),
    ("respacing", "neighbour t - 1", lambda: ddim(("cumprod[time_next]", "cumprod[time - 1]"))),
    ("network-time", "model(x, t - 1)", lambda: with_changed(EPS(), "model_predictions", TOLD)),
    ("early-end", "x at ᾱ_1", lambda: with_changed(DDPM(), "p_sample_loop", ("(0, ", "(1, "))),
    ("early-end", "x at ᾱ_1, DDIM", lambda: ddim(*AT_ONE)),
    ("no-clipping", "clip_denoised", lambda: flag_off(DDPM, "p_sample", "clip_denoised")),
    ("no-clipping", "clip_x_start", lambda: flag_off(diffusion, "ddim_sample", "clip_x_start")),
    ("stale-eps", "kept", lambda: flag_off(EPS, "ddim_sample", "rederive_pred_noise")),
    ("missing-sqrt", "q_sample: 1 - ᾱ", lambda: with_table(EPS, DEVIATION, squared)),
    ("missing-sqrt", "variance times noise", lambda: with_table(DDPM, LOG, doubled)),
    ("missing-sqrt", "ᾱ_s before x0_hat", lambda: ddim(("alpha_next.sqrt()", "alpha_next"))),
    ("alpha-for-alpha-bar", "all tables", lambda: with_bar(lambda beta: 1 - beta)),
    ("alpha-for-alpha-bar", "q_sample", lambda: with_table(EPS, "sqrt_alphas_cumprod", root_alpha)),
    ("uniform-noise", "rand in DDIM", lambda: with_uniform(diffusion, "ddim_sample")),
    ("uniform-noise", "rand at DDPM's start", lambda: with_uniform(DDPM, "p_sample_loop")),
    ("uniform-noise", "rand in DDPM's steps", lambda: with_uniform(DDPM, "p_sample")),
    ("uniform-noise", "rand in training", lambda: with_uniform(EPS, "p_losses")),
    ("posterior-variance", "of t + 1", lambda: with_table(DDPM, LOG, rolled)),
    ("cosine-end", "last beta of 1", lambda: with_bar(cosine_bar)),
    ("half-schedule", "cumprod in float16", lambda: with_bar(half_bar)),
    ("one-time", "one t a batch", lambda: with_times(lambda n: torch.randint(T, (1,)).repeat(n))),
    ("unseen-end", "the last tenth", lambda: with_times(lambda n: torch.randint(T - 25, (n,)))),
    ("unseen-end", "the first", lambda: with_times(lambda n: torch.randint(1, T, (n,)))),
    ("data-range", "auto_normalize=False", lambda: unnormalised(torch.rand(64, 1, 8, 8))),
    ("time-ignored", "blocks without time", lambda: with_network(without_time)),
    ("unit-time", "t / T", lambda: with_network(in_unit_time)),
    ("attention-reshape", "reshape for rearrange", lambda: with_network(reshaped)),
    ("channel-groups", "InstanceNorm", lambda: with_network(normalised_by(nn.InstanceNorm2d))),
    ("batch-leak", "BatchNorm", lambda: with_network(normalised_by(BATCH_NORM))),
]
HEALTHY = [
    ("", "DDIM", diffusion),
    ("", "DDPM", DDPM),
    ("", "eps", EPS),
    ("", "x0", partial(diffusion, objective="pred_x0")),
    ("", "cosine", partial(diffusion, beta_schedule="cosine")),
    ("", "linear", partial(diffusion, beta_schedule="linear")),
    ("", "eta 1", NOISY),
    ("", "with its network", lambda: with_network(lambda network: None)),
]


def healthy() -> list[Case]:
    """Objectives, schedules and both samplers."""
    return as_cases(NAME, HEALTHY)


def ill() -> list[Case]:
    """One case for each bug."""
    return as_cases(NAME, BUGS)
