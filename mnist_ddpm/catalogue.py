"""The names of the command line, each with its function: a new method needs that and one line here.

What the names of a recipe mean together is decided here too, and nowhere else.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from mnist_ddpm import ddpm
from mnist_ddpm.ddpm import Denoiser, Network, Objective, Schedule, check
from mnist_ddpm.methods import (
    conditioning,
    consistency,
    distribution_matching,
    edm,
    flow,
    learned_variance,
    paths,
    predictions,
    schedules,
    shortcuts,
    solvers,
)
from mnist_ddpm.methods.conditioning import Condition
from mnist_ddpm.methods.distillation import Teacher, distilled
from mnist_ddpm.methods.fourier import FourierUNet
from mnist_ddpm.methods.guidance import LabelledUNet, check_takes_labels
from mnist_ddpm.methods.learned_variance import LearnedDenoiser
from mnist_ddpm.methods.muon import Muon
from mnist_ddpm.methods.predictions import EPS, MU, X0, Conversion, V, unweighted, weighted
from mnist_ddpm.methods.times import NormalTimes
from mnist_ddpm.methods.transformer import DiT
from mnist_ddpm.training.cost import check_network
from mnist_ddpm.training.recipe import Recipe
from mnist_ddpm.training.run import TimeSampler

# (T, beta_1, beta_T) to a schedule
SCHEDULES: dict[str, Callable[[int, float, float], Schedule]] = {
    "linear": schedules.linear,
    "cosine": schedules.cosine,
    "quadratic": schedules.quadratic,
    "sigmoid": schedules.sigmoid,
}
SCHEDULES |= {f"{name}-zero-snr": schedules.with_zero_snr(make) for name, make in SCHEDULES.items()}
SCHEDULES |= {"log-snr": schedules.log_snr, "flow": flow.flow}

# what the network predicts
PREDICTIONS: dict[str, Conversion] = {
    "eps": EPS, "x0": X0, "v": V, "mu": MU, "velocity": flow.VELOCITY, "edm": edm.EDM,
}  # fmt: skip

# what is predicted to an objective; one of your own: "mine": predictions.for_any_prediction(l_mine)
OBJECTIVES: dict[str, Callable[[Conversion], Objective]] = {
    "simple": unweighted,
    "hybrid": learned_variance.l_hybrid,
    "vlb": learned_variance.l_vlb,
    "bound": partial(weighted, weight=predictions.bound_weight),
    "truncated-snr": partial(weighted, weight=predictions.truncated_snr),
    "min-snr": partial(weighted, weight=predictions.min_snr),
    "p2": partial(weighted, weight=predictions.p2),
    "edm": partial(weighted, weight=edm.edm_weight),
    "consistency": consistency.consistency,
    "matching": distribution_matching.matching,
}
CHANGING = {"consistency"}  # objectives that are also told how much of training is done
MATCHING = {"matching"}  # objectives with a teacher and a second network
BESIDE = "critic", "fake"  # parts of a network that only training needs
LEARNED_VARIANCE = {"hybrid", "vlb"}  # objectives of a network that also says its steps' variance
# by objective, what draws t, unless each of 1 … T alike; called with T
TIME_SAMPLERS: dict[str, Callable[[int], TimeSampler]] = {"vlb": learned_variance.ImportanceTimes}
# a schedule to what draws t, for objectives that have nothing of their own; None: each alike
TIMES: dict[str, Callable[[Schedule], TimeSampler | None]] = {
    "uniform": lambda schedule: None,
    "logit-normal": partial(NormalTimes, mean=0.0, std=1.0),
    "log-normal": partial(NormalTimes, mean=-1.2, std=1.2),
    "noisy": partial(NormalTimes, mean=1.0, std=1.6),  # where large images lose their brightness
}
# all groups of parameters get the same learning rate
OPTIMIZERS: dict[str, Callable[[nn.Module, Recipe], torch.optim.Optimizer]] = {
    "adam": lambda network, recipe: torch.optim.Adam(network.parameters(), recipe.learning_rate),
    "muon": lambda network, recipe: Muon(network, recipe.learning_rate),
}
# their keyword options are found by their signatures
SAMPLERS: dict[str, Callable[..., ddpm.States]] = {
    "ddpm": learned_variance.ancestral_sampler,
    "ddim": ddpm.ddim_sampler,
    "dpmpp": solvers.dpmpp_2m_sampler,
    "heun": solvers.heun_sampler,
    "consistency": consistency.consistency_sampler,
    "shortcut": shortcuts.shortcut_sampler,
}
TELLING = {"shortcut"}  # samplers that tell the network where each step goes
# a schedule and a number of steps to falling times
SPACINGS: dict[str, Callable[[Schedule, int], list[int]]] = {
    "trailing": schedules.by_length(ddpm.timesteps),
    "leading": schedules.by_length(schedules.leading),
    "linspace": schedules.by_length(schedules.linspace),
    "quadratic": schedules.by_length(schedules.quadratic_times),
    "edm": edm.karras_times,
    "signal": schedules.even_signal,
}
# of the steps of ancestral_sampler
VARIANCES: dict[str, Callable[..., Tensor]] = {
    "posterior": ddpm.posterior_variance,
    "beta": ddpm.step_variance,
    "learned": learned_variance.learned_step_variance,
}
# x_0 to what the network is given of it
CONDITIONS: dict[str, Condition] = {"grey": conditioning.grey, "small": conditioning.small}


def unet(recipe: Recipe) -> nn.Module:
    """The U-Net of a recipe, which takes labels where there are classes.

    Its input is x_t, and the condition's channels after those of x_t. Raises ValueError for one
    that memory cannot hold.
    """
    check_network(recipe)
    options = {
        "channels": recipe.channels + condition_channels(recipe),
        "base_channels": recipe.base_channels, "channel_mults": recipe.channel_mults,
        "patch_size": recipe.patch_size, "blocks": recipe.blocks_per_level,
        "attention": recipe.attention, "dropout": recipe.dropout,
        "out_channels": recipe.channels * (2 if learns_variance(recipe) else 1),
    }  # fmt: skip
    if recipe.network == "fourier":
        network = FourierUNet(**options)
    elif tells_steps(recipe):
        network = shortcuts.ShortcutUNet(**options, classes=recipe.classes)
    elif recipe.classes:
        network = LabelledUNet(**options, classes=recipe.classes)
    else:
        network = ddpm.UNet(**options)
    for layer in network.modules():
        if recipe.norm_groups and isinstance(layer, nn.GroupNorm):
            layer.num_groups = recipe.norm_groups
    return network


def dit(recipe: Recipe) -> nn.Module:
    """The transformer of a recipe: as wide as the U-Net's widest level, with as many blocks.

    They are those of its ways down and up. Raises ValueError for one that memory cannot hold.
    """
    check_network(recipe)
    return DiT(
        recipe.channels + condition_channels(recipe),
        recipe.base_channels * max(recipe.channel_mults),
        (2 * recipe.blocks_per_level + 1) * len(recipe.channel_mults), recipe.patch_size,
        recipe.dropout, recipe.classes, recipe.channels * (2 if learns_variance(recipe) else 1),
    )  # fmt: skip


# a class of your own is called with the recipe
NETWORKS: dict[str, Callable[[Recipe], nn.Module]] = {
    "unet": unet, "dit": dit, "shortcut": unet, "fourier": unet,
}  # fmt: skip
STEPPING = {"shortcut"}  # networks that are told where a step goes


def look_up(what: str, name: str, table: dict):
    """The entry of that name. Raises ValueError for an unknown one."""
    check(name in table, f'{what} "{name}" is unknown: take one of {", ".join(table)}')
    return table[name]


def condition_of(recipe: Recipe) -> Condition | None:
    """What the network is given of x_0; None: nothing. Raises ValueError for an unknown name."""
    return look_up("condition", recipe.condition, CONDITIONS) if recipe.conditional else None


def condition_channels(recipe: Recipe) -> int:
    """The condition's channels. Raises ValueError for images that it is not for."""
    condition = condition_of(recipe)
    return condition(torch.zeros(1, *recipe.shape, device="meta")).shape[1] if condition else 0


def conditions(recipe: Recipe, pictures: Tensor | None, batch: range) -> Tensor | None:
    """What these images are given, by uint8 pictures (M, C, H, W) in turn; None: nothing."""
    condition = condition_of(recipe)
    if condition is None or pictures is None:
        return None
    own = torch.arange(batch.start, batch.stop) % len(pictures)
    return condition(ddpm.to_float(pictures[own]))


def make_schedule(recipe: Recipe) -> Schedule:
    """The recipe's schedule.

    Raises ValueError for an unknown name, for tables that are no schedule's or have another T, and
    for one that ends in pure noise where eps is predicted.
    """
    name, T = recipe.schedule, recipe.T
    schedule = look_up("schedule", name, SCHEDULES)(T, recipe.beta_1, recipe.beta_T)
    schedules.check_tables(name, schedule, T)
    problem = f'schedule "{name}" ends in pure noise, where eps does not determine x_0'
    determined = recipe.prediction != "eps" or schedule.a[-1] > 0
    check(bool(determined), f'{problem}: take prediction "v" or "x0"')
    return schedule


def heeds_betas(recipe: Recipe) -> bool:
    """Whether beta_1 and beta_T change the recipe's schedule. Raises ValueError as look_up."""
    make = look_up("schedule", recipe.schedule, SCHEDULES)
    first, second = (make(recipe.T, *betas).a for betas in ((1e-4, 0.02), (2e-4, 0.04)))
    return not torch.equal(first, second)


def make_network(recipe: Recipe) -> nn.Module:
    """A fresh network, whose weights depend on recipe.seed and the sizes alone.

    Raises ValueError for an unknown name, and for labels that it does not take.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(recipe.seed)  # the processor's alone
        network = look_up("network", recipe.network, NETWORKS)(recipe)
    check_takes_labels(network, recipe.classes)
    return network


def conversion_of(recipe: Recipe) -> Conversion:
    """What the network predicts. Raises ValueError for an unknown name."""
    return look_up("prediction", recipe.prediction, PREDICTIONS)


def learns_variance(recipe: Recipe) -> bool:
    """Whether the network also says the variance of its steps."""
    return recipe.objective in LEARNED_VARIANCE


def tells_steps(recipe: Recipe) -> bool:
    """Whether the network is told where a step goes."""
    return recipe.network in STEPPING


def make_objective(
    recipe: Recipe, done: Callable[[], float] = lambda: 1.0, teacher: Teacher | None = None,
    fake: nn.Module | None = None,
) -> Objective:  # fmt: skip
    """The recipe's objective. Raises ValueError for an unknown name, and for what does not fit.

    done: returns the part of training that is done, from 0 to 1, such as Run.done. teacher: what to
    learn from, such as that of formats.teachers. fake: the second network, for objectives that
    have one.
    """
    name, condition = recipe.objective, condition_of(recipe)
    make, conversion = look_up("objective", name, OBJECTIVES), conversion_of(recipe)
    if name in MATCHING:
        problem = f"objective {name} learns from a teacher alone, and begins with a trained network"
        check(bool(recipe.teacher and recipe.init_from), f"{problem}: name teacher and init_from")
        alone = not condition and recipe.network == "unet"
        check(alone, f"{problem}: it takes no condition, and no network but unet")
        problem = f"optimizer {recipe.optimizer} would give both networks of {name} one rate"
        check(recipe.optimizer == "adam", f"{problem}: take adam")
        return make(conversion, fake, teacher)
    problem = f"prediction is {recipe.prediction}, which at t = 0 need not be the image itself"
    bounded = name not in CHANGING or recipe.prediction not in ("x0", "mu")
    check(bounded, f"{problem}: for objective {name} take another, such as v")
    objective = make(conversion, **({"done": done} if name in CHANGING else {}))
    if tells_steps(recipe):
        problem = f"network {recipe.network} learns where steps end"
        fits = not condition and name not in CHANGING | LEARNED_VARIANCE
        check(fits, f"{problem}: it takes no condition, and no objective {name}")
        return shortcuts.shortcut(objective, conversion, teacher)
    objective = objective if teacher is None else distilled(objective, teacher)
    return conditioning.conditioned(objective, condition) if condition else objective


def make_optimizer(network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimiser of a network. Raises ValueError for an unknown name."""
    if recipe.objective in MATCHING:
        critic = getattr(network, "critic", None)
        return distribution_matching.optimizer(network, network.fake, recipe.learning_rate, critic)
    return look_up("optimizer", recipe.optimizer, OPTIMIZERS)(network, recipe)


def make_times(recipe: Recipe) -> TimeSampler | None:
    """What draws t in training; None: each alike.

    Raises ValueError for an unknown name, and for one beside an objective that draws its own.
    """
    own, make = TIME_SAMPLERS.get(recipe.objective), look_up("times", recipe.times, TIMES)
    problem = f'objective "{recipe.objective}" draws times of its own'
    check(own is None or recipe.times == "uniform", f"{problem}: leave times at uniform")
    return make(make_schedule(recipe)) if own is None else own(recipe.T)


def make_path(recipe: Recipe, name: str) -> Schedule:
    """The schedule of that name, to sample along instead of the recipe's. Raises as make_schedule.

    For any prediction: x_0 is found on the recipe's schedule.
    """
    problem = "prediction is mu, the mean of a step of the schedule"
    check(recipe.prediction != "mu", f"{problem}: it cannot be sampled along another path")
    return make_schedule(replace(recipe, schedule=name, prediction="x0"))


def make_denoiser(
    network: Network, schedule: Schedule, recipe: Recipe, c: Tensor | None = None,
    path: Schedule | None = None, with_exponent: bool = False,
) -> Denoiser | LearnedDenoiser:  # fmt: skip
    """A network as a denoiser, not clipped; with_exponent: a LearnedDenoiser, where it can be one.

    c (N, K, H, W): the condition of what is drawn. path: one to sample along in place of the
    schedule, which is that of training. Raises ValueError where c is missing, or of no use to this
    network.
    """
    needed = "needs" if recipe.conditional else "takes no"
    problem = f"condition is {recipe.condition}: the network {needed} c, an image of each draw"
    check((c is not None) == recipe.conditional, problem)
    network = network if c is None else conditioning.with_condition(network, c)
    learned = learns_variance(recipe)
    make = learned_variance.learned_denoiser if learned else predictions.denoiser
    make = partial(make, conversion=conversion_of(recipe))
    if path is None:
        denoise = make(network, schedule)
    else:
        denoise = paths.denoiser_along(path, network, schedule, make)
    return learned_variance.without_exponent(denoise) if learned and not with_exponent else denoise


def bound_denoiser(
    network: Network, schedule: Schedule, recipe: Recipe, with_exponent: bool
) -> Denoiser | LearnedDenoiser:
    """As make_denoiser, clipped: for likelihood.bits_per_dim."""
    denoise = make_denoiser(network, schedule, recipe, with_exponent=with_exponent)
    learned = with_exponent and learns_variance(recipe)
    clip = learned_variance.keeping_exponent(ddpm.clipped) if learned else ddpm.clipped
    return clip(denoise, schedule)


def heading(sampler: str, times: list[int], recipe: Recipe) -> list[int] | None:
    """The times that the network is to be told by a sampler of that name; None: none.

    Raises ValueError where the network cannot be told.
    """
    if sampler not in TELLING:
        return None
    problem = f"sampler {sampler} tells the network where each step goes, and this one is not told"
    check(tells_steps(recipe), f"{problem}: take another, or train --network shortcut")
    return times


def sampling_times(schedule: Schedule, steps: int, spacing: str = "trailing") -> list[int]:
    """Times to sample at, falling; 0 would follow. Raises ValueError unless 1 <= steps <= T."""
    return look_up("spacing", spacing, SPACINGS)(schedule, steps)
