"""Tables from command-line names to functions, and the factories that use them.

The factories build a recipe's network, schedule, method and denoiser. An objective is a loss
function; a method is an objective plus its extra networks.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mnist_ddpm import ddpm, networks
from mnist_ddpm.ddpm import Denoiser, Network, Objective, Schedule, check
from mnist_ddpm.method import Method, as_method
from mnist_ddpm.methods import (
    conditioning,
    consistency,
    edm,
    flow,
    learned_variance,
    paths,
    predictions,
    schedules,
    shortcuts,
    solvers,
)
from mnist_ddpm.methods.adversarial import Adversarial
from mnist_ddpm.methods.augmentation import AUGMENTATIONS, Augmented
from mnist_ddpm.methods.conditioning import Conditioned, ConditionFunction
from mnist_ddpm.methods.distillation import Distilled
from mnist_ddpm.methods.distribution_matching import DistributionMatching
from mnist_ddpm.methods.guidance import Teacher, check_takes_labels
from mnist_ddpm.methods.learned_variance import LearnedDenoiser
from mnist_ddpm.methods.muon import Muon
from mnist_ddpm.methods.predictions import EPS, MU, X0, Conversion, V, weighted
from mnist_ddpm.methods.times import NormalTimes, TimeSampler
from mnist_ddpm.recipe import Recipe
from mnist_ddpm.training.cost import check_network

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
PREDICTIONS: dict[str, Conversion] = {"eps": EPS, "x0": X0, "v": V, "mu": MU}
PREDICTIONS |= {"velocity": flow.VELOCITY, "edm": edm.EDM}

# a schedule to what draws t, for objectives without a time sampler of their own; None: uniform
TIMES: dict[str, Callable[[Schedule], TimeSampler | None]] = {
    "uniform": lambda schedule: None,
    "logit-normal": partial(NormalTimes, mean=0.0, std=1.0),
    "log-normal": partial(NormalTimes, mean=-1.2, std=1.2),
    "noisy": partial(NormalTimes, mean=1.0, std=1.6),  # where large images lose their brightness
}
# a network and the recipe to its optimiser; all parameter groups get the same learning rate
OPTIMIZERS: dict[str, Callable[[nn.Module, Recipe], torch.optim.Optimizer]] = {
    "adam": lambda network, recipe: torch.optim.Adam(network.parameters(), recipe.learning_rate),
    "muon": lambda network, recipe: Muon(network, recipe.learning_rate),
}
# their keyword options are read from their signatures
SAMPLERS: dict[str, Callable[..., ddpm.States]] = {
    "ddpm": learned_variance.ancestral_sampler,
    "ddim": ddpm.ddim_sampler,
    "dpmpp": solvers.dpmpp_2m_sampler,
    "heun": solvers.heun_sampler,
    "consistency": consistency.consistency_sampler,
    "shortcut": shortcuts.shortcut_sampler,
}
# a schedule and a number of steps to falling times
SPACINGS: dict[str, Callable[[Schedule, int], list[int]]] = {
    "trailing": schedules.by_length(ddpm.timesteps),
    "leading": schedules.by_length(schedules.leading),
    "linspace": schedules.by_length(schedules.linspace),
    "quadratic": schedules.by_length(schedules.quadratic_times),
    "edm": edm.karras_times,
    "signal": schedules.even_signal,
}
# of the steps of ancestral_sampler, which calls it with (schedule, t, s) and maybe an exponent
VARIANCES: dict[str, Callable[..., Tensor]] = {
    "posterior": ddpm.posterior_variance,
    "beta": ddpm.step_variance,
    "learned": learned_variance.learned_step_variance,
}
# from x_0 to the network's additional input
CONDITIONS: dict[str, ConditionFunction] = {"grey": conditioning.grey, "small": conditioning.small}
# the recipe, input channels and output channels to a network
NETWORKS: dict[str, Callable[[Recipe, int, int], nn.Module]] = {
    "unet": networks.unet,
    "dit": networks.dit,
    "jit": networks.jit,
    "shortcut": networks.shortcut_unet,
    "fourier": networks.fourier_unet,
}


class MethodEntry(NamedTuple):
    """How --objective makes a method, and what that method needs."""

    make_method: Callable[[Recipe, Teacher | None], Method]
    learns_variance: bool = False  # whether the network also returns the variance of its steps
    # called with T, makes what draws t; None: the recipe says what draws t
    make_times: Callable[[int], TimeSampler] | None = None


def plain_entry(
    make: Callable[[Conversion], Objective | Method],
    learns_variance: bool = False,
    make_times: Callable[[int], TimeSampler] | None = None,
) -> MethodEntry:
    """The entry of an objective without extra networks.

    make: called with the recipe's conversion, returns the objective. One of your own is added as
    "mine": plain_entry(predictions.for_any_prediction(l_mine)).
    """

    def make_method(recipe: Recipe, teacher: Teacher | None) -> Method:
        conversion = conversion_of(recipe)
        condition = condition_function(recipe)
        method = as_method(make(conversion))
        is_supported = not takes_next_time(recipe)
        advice = "python -m experiments.methods train, in a clone, has objectives for it"
        check(is_supported, f"network {recipe.network} learns no {recipe.objective}: {advice}")
        method = method if teacher is None else Distilled(method, teacher)
        return Conditioned(method, condition) if condition else method

    return MethodEntry(make_method, learns_variance, make_times)


def distribution_matching(recipe: Recipe, teacher: Teacher | None) -> DistributionMatching:
    """The method of distribution matching. Raises ValueError where the recipe does not fit."""
    name = f"objective {recipe.objective}"
    has_both = bool(recipe.teacher and recipe.init_from)
    check(has_both, f"{name} needs a teacher and a trained network: name teacher and init_from")
    is_supported = not recipe.conditional and recipe.network == "unet"
    check(is_supported, f"{name} takes no condition, and no network but unet")
    check(recipe.optimizer == "adam", f"{name} takes no optimizer {recipe.optimizer}: take adam")
    times = recipe.student_timesteps
    falls = [*times, 0] == sorted({*times, 0}, reverse=True) and times[:1] == (recipe.T,)
    message = f"student_timesteps are {times}: they must fall, from {recipe.T} to at least 1"
    check(falls or not times, message)
    fake = networks.shortcut_unet(recipe, recipe.channels, recipe.channels)
    return DistributionMatching(conversion_of(recipe), fake, teacher, recipe.learning_rate, times)


OBJECTIVES: dict[str, MethodEntry] = {
    "simple": plain_entry(predictions.unweighted),
    "hybrid": plain_entry(learned_variance.l_hybrid, learns_variance=True),
    "vlb": plain_entry(learned_variance.l_vlb, True, learned_variance.ImportanceTimes),
    "bound": plain_entry(partial(weighted, weight=predictions.bound_weight)),
    "truncated-snr": plain_entry(partial(weighted, weight=predictions.truncated_snr)),
    "min-snr": plain_entry(partial(weighted, weight=predictions.min_snr)),
    "p2": plain_entry(partial(weighted, weight=predictions.p2)),
    "edm": plain_entry(partial(weighted, weight=edm.edm_weight)),
    "consistency": plain_entry(consistency.Consistency),
    "velocity": plain_entry(partial(weighted, weight=flow.velocity_weight)),
    "distribution-matching": MethodEntry(distribution_matching),
}
MOVED = "mean-flow", "drifting"  # objectives of earlier versions


def look_up(setting: str, name: str, table: dict):
    """The entry of that name in a setting's table. Raises ValueError for an unknown name."""
    if setting == "objective" and name in MOVED and name not in table:
        where = "python -m experiments.methods train, in a clone, knows it"
        raise ValueError(f'objective "{name}" has left the package: {where}')
    check(name in table, f'{setting} "{name}" is unknown: take one of {", ".join(table)}')
    return table[name]


def condition_function(recipe: Recipe) -> ConditionFunction | None:
    """The function from x_0 to the condition, or None. Raises ValueError for an unknown name."""
    return look_up("condition", recipe.condition, CONDITIONS) if recipe.conditional else None


def condition_channels(recipe: Recipe) -> int:
    """The number of channels of the condition. Raises ValueError for images that it is not for."""
    compute_condition = condition_function(recipe)
    x0 = torch.zeros(1, *recipe.shape, device="meta")
    return compute_condition(x0).shape[1] if compute_condition else 0


def condition_batch(recipe: Recipe, condition_images: Tensor | None, batch: range) -> Tensor | None:
    """The condition (N, K, H, W) of a batch, of uint8 images (M, C, H, W) in turn; or None."""
    compute_condition = condition_function(recipe)
    if compute_condition is None or condition_images is None:
        return None
    indices = torch.arange(batch.start, batch.stop) % len(condition_images)
    return compute_condition(ddpm.to_float(condition_images[indices]))


def make_schedule(recipe: Recipe) -> Schedule:
    """The recipe's schedule.

    Raises ValueError for an unknown name, for tables that are no schedule's or have another T, and
    for one that ends in pure noise where eps is predicted.
    """
    name = recipe.schedule
    schedule = look_up("schedule", name, SCHEDULES)(recipe.T, recipe.beta_1, recipe.beta_T)
    schedules.check_tables(name, schedule, recipe.T)
    determines_x0 = recipe.prediction != "eps" or schedule.a[-1].item() > 0
    check(determines_x0, f'schedule "{name}" ends in pure noise: take prediction "v" or "x0"')
    return schedule


def uses_betas(recipe: Recipe) -> bool:
    """Whether beta_1 and beta_T change the recipe's schedule. Raises ValueError as look_up."""
    make = look_up("schedule", recipe.schedule, SCHEDULES)
    first, second = (make(recipe.T, *betas).a for betas in ((1e-4, 0.02), (2e-4, 0.04)))
    return not torch.equal(first, second)


def make_network(recipe: Recipe) -> nn.Module:
    """As ddpm.make_network, for any recipe: weights depend on recipe.seed and the sizes alone.

    Its input channels are those of x_t, then those of the condition. Its output has twice the
    channels of x_t where it learns the variance. Raises ValueError for an unknown name, for a
    network that memory cannot hold, and for one that takes no labels where there are classes.
    """
    check_network(recipe)
    in_channels = recipe.channels + condition_channels(recipe)
    out_channels = recipe.channels * (2 if learns_variance(recipe) else 1)
    with networks.seeded(recipe.seed):
        network = look_up("network", recipe.network, NETWORKS)(recipe, in_channels, out_channels)
    check_takes_labels(network, recipe.classes)
    return network


def conversion_of(recipe: Recipe) -> Conversion:
    """What the network predicts. Raises ValueError for an unknown name."""
    return look_up("prediction", recipe.prediction, PREDICTIONS)


def learns_variance(recipe: Recipe) -> bool:
    """Whether the network also returns the variance of its steps; not for an unknown objective."""
    entry = OBJECTIVES.get(recipe.objective)
    return entry is not None and entry.learns_variance


def takes_next_time(recipe: Recipe) -> bool:
    """Whether the network is also given the time to which a step goes."""
    return getattr(NETWORKS.get(recipe.network), "takes_next_time", False)


def make_method(recipe: Recipe, teacher: Teacher | None = None) -> Method:
    """The recipe's method. Raises ValueError for an unknown name, and for what does not fit.

    teacher: what to learn from, such as that of formats.teachers. The weights of the method's
    networks depend on recipe.seed.
    """
    entry = look_up("objective", recipe.objective, OBJECTIVES)
    with networks.seeded(recipe.seed):
        method = entry.make_method(recipe, teacher)
    if recipe.critic:
        name = f"objective {recipe.objective}"
        check(not entry.learns_variance, f"{name} takes no critic: set it to 0")
        critic = networks.make_critic(recipe)
        method = Adversarial(method, conversion_of(recipe), critic, recipe.critic)
    augmentations = [look_up("augment", name, AUGMENTATIONS) for name in recipe.augment]
    return Augmented(method, augmentations) if augmentations else method


def make_optimizer(network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimiser of a network. Raises ValueError for an unknown name."""
    return look_up("optimizer", recipe.optimizer, OPTIMIZERS)(network, recipe)


def make_times(recipe: Recipe) -> TimeSampler | None:
    """What draws t in training; None: t is uniform.

    Raises ValueError for an unknown name, or one beside an objective that draws its own times.
    """
    make = look_up("times", recipe.times, TIMES)
    name = recipe.objective
    entry = OBJECTIVES.get(name)
    if entry is None or entry.make_times is None:
        return make(make_schedule(recipe))
    check(recipe.times == "uniform", f"objective {name} draws its own times: leave it uniform")
    return entry.make_times(recipe.T)


def make_sampling_schedule(recipe: Recipe, name: str) -> Schedule:
    """The schedule of that name, to sample along instead of the recipe's. Raises as make_schedule.

    For any prediction: x_0 is found on the recipe's schedule.
    """
    is_possible = recipe.prediction != "mu"  # the mean of a step of the schedule
    check(is_possible, "prediction is mu, which cannot be sampled along another path")
    return make_schedule(replace(recipe, schedule=name, prediction="x0"))


def make_denoiser(
    network: Network,
    schedule: Schedule,
    recipe: Recipe,
    condition: Tensor | None = None,
    sampling_schedule: Schedule | None = None,
    with_exponent: bool = False,
) -> Denoiser | LearnedDenoiser:
    """A network as a denoiser, not clipped; with_exponent: a LearnedDenoiser, where it can be one.

    condition (N, K, H, W): of the images to sample. sampling_schedule: the one to sample along, if
    it may differ from the schedule, which is that of training. Raises ValueError if the condition
    is missing, or if the network takes none.
    """
    if recipe.conditional:
        check(condition is not None, f"condition is {recipe.condition}: pass its tensor")
    check(condition is None or recipe.conditional, "condition is none: the network takes none")
    network = network if condition is None else conditioning.with_condition(network, condition)
    has_exponent = learns_variance(recipe)
    make = learned_variance.learned_denoiser if has_exponent else predictions.denoiser
    make = partial(make, conversion=conversion_of(recipe))
    if sampling_schedule is None:
        denoise = make(network, schedule)
    else:
        denoise = paths.denoiser_along(sampling_schedule, network, schedule, make)
    if has_exponent and not with_exponent:
        return learned_variance.without_exponent(denoise)
    return denoise


def bound_denoiser(
    network: Network, schedule: Schedule, recipe: Recipe, with_exponent: bool
) -> Denoiser | LearnedDenoiser:
    """A denoiser as of make_denoiser, but clipped: for likelihood.bits_per_dim."""
    denoise = make_denoiser(network, schedule, recipe, with_exponent=with_exponent)
    has_exponent = with_exponent and learns_variance(recipe)
    clip = learned_variance.keeping_exponent(ddpm.clipped) if has_exponent else ddpm.clipped
    return clip(denoise, schedule)


def next_times(sampler: str, times: list[int], recipe: Recipe) -> list[int] | None:
    """The times, if a sampler of that name gives the network the one to which a step goes.

    Else None. Raises ValueError for a network that does not take it.
    """
    if not needs_next_time(sampler):
        return None
    check(takes_next_time(recipe), f"sampler {sampler} needs a network of --network shortcut")
    return times


def needs_next_time(sampler: str) -> bool:
    """Whether a sampler of that name is for networks that take the time to which a step goes."""
    return getattr(SAMPLERS.get(sampler), "needs_next_time", False)


def sampling_times(schedule: Schedule, steps: int, spacing: str = "trailing") -> list[int]:
    """Times to sample at, falling; 0 would follow. Raises ValueError unless 1 <= steps <= T."""
    return look_up("spacing", spacing, SPACINGS)(schedule, steps)
