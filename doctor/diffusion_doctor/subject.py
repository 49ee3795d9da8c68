"""What is examined, whoever wrote it, in one form: a schedule and plain functions of tensors."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from diffusion_doctor.mathematics import CONVERSIONS, Conversion, Schedule, check
from diffusion_doctor.report import Check

TimeUnit = Literal["index", "fraction", "sigma"]
Prediction = Literal["eps", "x0", "v", "score", "velocity", "other"]  # other: none that is known


# Arguments of examine that name something in the user's code
OBJECTS = (
    "code",
    "schedule",
    "forward",
    "sampler",
    "step",
    "network",
    "averaged_network",
    "guidance",
    "loss",
    "training_step",
    "data",
    "likelihood",
    "times",
)


@dataclass(frozen=True)
class Conventions:
    """How the code counts and scales. A convention is never wrong, but must be the same throughout.

    first_time: what the code calls the schedule's entry 1, the least noisy one; 0 or 1.
    time: the network gets an index, the fraction index / T, or sigma = b_t / a_t of an image
    x_0 + sigma eps.
    forward_first_time, forward_time: the same of the forward process; None: as the network's.
    divisor: what the index is divided by for a fraction; None: T.
    """

    first_time: int = 0
    time: TimeUnit = "index"
    forward_first_time: int | None = None
    forward_time: TimeUnit | None = None
    divisor: int | None = None
    prediction: Prediction = "eps"
    data_range: tuple[float, float] = (-1.0, 1.0)
    output_range: tuple[float, float] = (-1.0, 1.0)  # of what the sampler returns
    is_flat: bool = False  # vectors (N, D) instead of images (N, C, H, W)


@dataclass(frozen=True)
class Subject:
    """What is examined. What was not given is None, and is not judged.

    Times in calls of the functions are as the code counts: `code_times` converts to them.
    """

    schedule: Schedule | None = None  # entry 0 is the clean image
    forward: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None  # (x0, t, noise) to x_t
    sampler: Callable[[Callable, tuple], Tensor] | None = None  # (network, shape) to images
    network: Callable[[Tensor, Tensor], Tensor] | None = None  # (x_t, t) to its prediction
    averaged_network: Callable[[Tensor, Tensor], Tensor] | None = None
    guidance: Callable[..., Tensor] | None = None  # (network, x, t, labels, scale) to a prediction
    loss: Callable[[Callable, Tensor], Tensor] | None = None  # (network, x0) to a number or (N,)
    training_step: Callable[[Tensor], Any] | None = None  # one step of the network on a batch x0
    data: Tensor | None = None  # images (N, C, H, W) as the network is trained on them
    likelihood: Callable[[Callable, Tensor], Any] | None = None  # (network, x0) to bits/dim
    times: Callable[[int], Tensor] | None = None  # of n to the times of n images in training
    tables: dict[str, Tensor] | None = None  # the code's own, such as posterior_variance (T,)
    clips: bool | None = None  # whether its sampler is meant to clip x0_hat
    shape: tuple[int, ...] = (1, 16, 16)  # of one image
    batch: int = 32  # images that its sampler is asked for
    width: int = 1  # channels of its network's output over those of x_t; 2: a variance is learned
    conventions: Conventions = field(default_factory=Conventions)
    known: frozenset[str] = frozenset()  # conventions that were found out or fixed
    places: dict[str, str] = field(default_factory=dict)  # "forward": "my.py:q_sample", for reports
    cache: dict = field(default_factory=dict)  # of runs that several checks use

    @property
    def T(self) -> int:
        """The last time of the schedule. Raises ValueError where there is none."""
        check(self.schedule is not None, "the schedule is not known")
        return self.schedule.T

    @property
    def path(self) -> Schedule:
        """The levels of the network's images: x_0 + sigma eps where it gets sigma."""
        if self.conventions.time != "sigma":
            return self.schedule
        return Schedule(torch.ones_like(self.schedule.a), self.schedule.b / self.schedule.a)

    @property
    def conversion(self) -> Conversion:
        """Between the network's prediction and x_0."""
        return CONVERSIONS[self.conventions.prediction]

    def code_times(self, t: Tensor) -> Tensor:
        """Our times 1 … T (N,) as the code's networks and functions get them (N,)."""
        if self.conventions.time == "sigma":
            a_t, b_t = self.schedule.at(t)
            return (b_t / a_t).float()
        index = t - 1 + self.conventions.first_time
        return index / self.divisor if self.conventions.time == "fraction" else index

    @property
    def divisor(self) -> int:
        """What an index is divided by for a fraction."""
        return self.conventions.divisor or self.T

    def forward_times(self, t: Tensor) -> Tensor:
        """Our times 1 … T (N,) as the code's forward process gets them (N,)."""
        conventions = self.conventions
        if conventions.forward_time is not None:
            own = {"time": conventions.forward_time, "first_time": conventions.forward_first_time}
            self = replace(self, conventions=replace(conventions, **own))
        return self.code_times(t)

    def entries(self, code_times: Tensor) -> Tensor:
        """The code's times (N,) as ours, float64; between two entries for continuous times."""
        code_times = torch.as_tensor(code_times).detach().cpu().double()
        if self.conventions.time == "fraction":
            code_times = code_times * self.divisor
        if self.conventions.time != "sigma":
            return code_times + 1 - self.conventions.first_time
        sigma = self.schedule.b / self.schedule.a
        after = torch.searchsorted(sigma, code_times).clamp(1, self.T)
        before = sigma[after - 1]
        return after - 1 + ((code_times - before) / (sigma[after] - before)).clamp(0, 1)

    def levels(self, code_times: Tensor) -> tuple[Tensor, Tensor]:
        """a_t and b_t of the image that the network is shown at the code's times, float64."""
        if self.conventions.time == "sigma":
            sigma = torch.as_tensor(code_times).detach().cpu().double()
            return torch.ones_like(sigma), sigma
        return levels_at(self.schedule, self.entries(code_times))


def levels_at(schedule: Schedule, entries: Tensor) -> tuple[Tensor, Tensor]:
    """a and b at entries 0 … T of a schedule, which may lie between two; float64, as the entries.

    Between them b / a is linear where a² + b² = 1, else a and b are.
    """
    entries = entries.double().clamp(0, schedule.T)
    before = entries.floor().long()
    after = entries.ceil().long()
    share = entries - before
    a, b = (torch.lerp(table[before], table[after], share) for table in (schedule.a, schedule.b))
    if share.any() and is_variance_preserving(schedule):
        sigma = schedule.b / schedule.a
        between = torch.lerp(sigma[before], sigma[after], share)
        is_between = (share > 0) & between.isfinite()
        a = torch.where(is_between, (1 + between**2).rsqrt(), a)
        b = torch.where(is_between, a * between, b)
    return a, b


def is_variance_preserving(schedule: Schedule) -> bool:
    """Whether a² + b² = 1, as in DDPM."""
    return bool(((schedule.a**2 + schedule.b**2 - 1).abs() < 1e-3).all())


class CheckEntry(NamedTuple):
    """One group of checks: what it is called, what it needs of a subject, and the function.

    The function takes (subject, seed) and returns its checks. It may raise what the code raises.
    """

    name: str
    needs: tuple[str, ...]  # fields of Subject, the one that is judged first
    function: Callable[[Subject, int], list[Check]]
