"""Networks whose answers are known: exact denoisers, and probes that record what they are asked."""

from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from io import StringIO

import torch
from torch import Tensor, nn

from diffusion_doctor import mathematics
from diffusion_doctor.mathematics import Schedule
from diffusion_doctor.plain_functions import images_and_times
from diffusion_doctor.subject import Subject

LEAST_CALLS = 10  # of a sampler that fails afterwards, for its steps to be judged
RECORDED = 2048  # pixels of a batch that a record holds, at most


@dataclass
class Call:
    """What a network was shown, and its output: some pixels of each (N, D)."""

    code_time: float
    x: Tensor
    output: Tensor
    has_one_time: bool  # all images of the batch were shown with the same time


class Output(Tensor):
    """A network's output, which some libraries ask for as output.sample or output["sample"].

    What is computed with it is a plain tensor.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl

    @property
    def sample(self) -> Tensor:
        """The output itself."""
        return self.as_subclass(Tensor)

    def __getitem__(self, key: object) -> Tensor:
        return self.sample if isinstance(key, str) else self.sample[key]


class StandIn(nn.Module):
    """A network that predicts exactly what `x0_hat` says, in the code's conventions.

    x0_hat: a function of (schedule, x, t) with one entry of the schedule for each image. Times may
    be a number, () or (N,) or (N, 1, 1, 1). What comes after them is not used.
    """

    def __init__(self, subject: Subject, x0_hat: Callable[[Schedule, Tensor, Tensor], Tensor]):
        super().__init__()
        self.subject = subject
        self.x0_hat = x0_hat
        self.calls: list[Call] = []
        self.asked: tuple[Tensor, Tensor] | None = None  # in the last call
        self.answered: Tensor | None = None
        self.batch: int | None = None  # of a batch that is twice as large, as for guidance, half
        self.device_of_tensors = nn.Parameter(torch.zeros(()), requires_grad=False)
        channels, *sides = (1, *subject.shape) if len(subject.shape) < 3 else subject.shape
        self.channels = self.in_channels = self.out_channels = self.out_dim = channels
        self.image_size = self.sample_size = self.img_size = sides[-1]
        self.self_condition = False
        self.random_or_learned_sinusoidal_cond = False

    @property
    def device(self) -> torch.device:
        """Of the tensors; networks of some libraries say it."""
        return self.device_of_tensors.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.device_of_tensors.dtype

    @property
    def input_dims(self) -> tuple[int, ...]:
        """The shape of one image, as smalldiffusion asks for it."""
        return tuple(self.subject.shape)

    def rand_input(self, batchsize: int) -> Tensor:
        """Normal noise, as smalldiffusion asks for it."""
        return torch.randn(batchsize, *self.subject.shape)

    def predict_eps(self, x: Tensor, sigma: Tensor, cond: object = None) -> Tensor:
        """The network, as smalldiffusion calls it."""
        return self(x, sigma)

    def predict_eps_cfg(self, x: Tensor, sigma: Tensor, cond: object, cfg_scale: float) -> Tensor:
        """The network, as smalldiffusion calls it where there are no labels."""
        return self(x, sigma)

    def forward(self, *arguments, **named) -> Tensor | tuple[Tensor]:
        output = self.answer(*images_and_times(arguments, named)).as_subclass(Output)
        return (output,) if named.get("return_dict") is False else output

    def answer(self, x: Tensor, t: Tensor | float) -> Tensor:
        """The prediction for images x (N, …) at the code's times t."""
        code_times = torch.as_tensor(t).detach().cpu().double().flatten()
        a_t, b_t = (level.expand(len(x)) for level in self.subject.levels(code_times))
        levels = Schedule(a_t, b_t.clamp(min=1e-4))  # for a time that has no noise
        images = x.detach().cpu().double().view(len(x), 1, 1, -1)
        asked = code_times, images
        if self.asked is not None and all(map(torch.equal, asked, self.asked)):
            return self.answered  # once without labels, as guidance asks
        self.asked = asked
        t = torch.arange(len(x))
        x0 = self.x0_hat(levels, images, t)
        output = self.subject.conversion.from_x0(levels, images, t, x0)
        self.record(code_times, images, output)
        self.answered = output.view(x.shape).to(x)
        if self.subject.width == 2:
            self.answered = torch.cat([self.answered, torch.zeros_like(self.answered)], 1)
        return self.answered

    def record(self, code_times: Tensor, x: Tensor, output: Tensor) -> None:
        """Adds a call."""
        has_one_time = bool((code_times == code_times[0]).all())
        if len(x) == 2 * (self.batch or 0):
            x, output = x[: self.batch], output[: self.batch]
        shown, answer = map(some_pixels, (x, output))
        self.calls.append(Call(code_times[0].item(), shown, answer, has_one_time))


def some_pixels(images: Tensor) -> Tensor:
    """Of each image (N, …) the same few pixels, evenly chosen: float64 (N, D), N D <= RECORDED."""
    pixels = images.detach().cpu().double().flatten(1)
    return pixels[:, :: -(-pixels.numel() // RECORDED)].clone()


def probe(subject: Subject, size: float = 0.9, seed: int = 0) -> StandIn:
    """A network whose x0_hat is white noise, uniform in [-size, size], independent of x_t.

    So the coefficients of x_t and x0_hat in each step of a sampler show, one by one.
    """
    generator = mathematics.random_generator(seed, 1)

    def x0_hat(schedule: Schedule, x: Tensor, t: Tensor) -> Tensor:
        return size * (2 * torch.rand(x.shape, generator=generator, dtype=x.dtype) - 1)

    return StandIn(subject, x0_hat)


def normal_x0_hat(x: Tensor, a_t: Tensor, b_t: Tensor, mean: float, deviation: float) -> Tensor:
    """E[x_0 | x_t] of independent normal pixels: m + a c² (x_t - a m) / (a² c² + b²)."""
    gain = a_t * deviation**2 / ((a_t * deviation) ** 2 + b_t**2)
    return mean + gain * (x - a_t * mean)


def gaussian_oracle(subject: Subject, mean: float, deviation: float) -> StandIn:
    """The exact network for data whose pixels are independent and normal."""

    def x0_hat(schedule: Schedule, x: Tensor, t: Tensor) -> Tensor:
        a_t, b_t = (mathematics.per_image(level, x) for level in schedule.at(t))
        return normal_x0_hat(x, a_t, b_t, mean, deviation)

    return StandIn(subject, x0_hat)


def points_oracle(subject: Subject, points: Tensor) -> StandIn:
    """The exact network for data that are these equally likely points (K, C, H, W)."""
    flat = points.view(len(points), 1, 1, -1)

    def x0_hat(schedule: Schedule, x: Tensor, t: Tensor) -> Tensor:
        return mathematics.ideal_denoiser(schedule, flat)(x, t)[0]

    return StandIn(subject, x0_hat)


@dataclass
class SamplerRun:
    """What one run of a sampler asked a network, and what it returned.

    x, output: float64 (K, N, D), some pixels in K calls; end: (N, D), the same of the result, NaN
    where there is none: some samplers only draw, and some fail when they draw.
    """

    code_times: Tensor  # (K,)
    x: Tensor
    output: Tensor
    end: Tensor
    images: Tensor | None  # the result as it was returned; None where that is no images
    has_one_time: bool = True
    failure: Exception | None = None  # of the sampler after its last call


def run_sampler(subject: Subject, network: StandIn, n: int, seed: int) -> SamplerRun:
    """Draws n images with the subject's sampler and records it. Raises what the sampler raises."""
    network.batch = n
    torch.manual_seed(seed)
    calls = network.calls
    images = None
    failure: Exception | None = None
    try:
        with torch.no_grad(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            result = subject.sampler(network, (n, *subject.shape))
        images = None if result is None else as_tensor(result)
        if images is not None and images.numel() != n * torch.Size(subject.shape).numel():
            images = None  # a grid, or a film side by side
    except Exception as error:  # of any kind, in code that others wrote
        if len(calls) < min(LEAST_CALLS, subject.T):
            raise
        failure = error
    mathematics.check(bool(calls), "the sampler never called the network")
    shapes = {call.x.shape for call in calls}
    mathematics.check(
        len(shapes) == 1, "the sampler called the network with batches of several sizes"
    )
    return SamplerRun(
        code_times=torch.tensor([call.code_time for call in calls], dtype=torch.float64),
        x=torch.stack([call.x for call in calls]),
        output=torch.stack([call.output for call in calls]),
        end=calls[-1].x * torch.nan if images is None else some_pixels(images),
        images=images,
        failure=failure,
        has_one_time=all(call.has_one_time for call in calls),
    )


def probe_run(subject: Subject, seed: int, size: float = 0.9) -> SamplerRun:
    """A run of the sampler with the probe; the subject's cache keeps it for later checks.

    It does not depend on the range in which the sampler returns images.
    """
    conventions = replace(subject.conventions, output_range=(-1.0, 1.0))
    key = "probe", size, seed, conventions
    if key not in subject.cache:
        network = probe(subject, size, seed)
        subject.cache[key] = run_sampler(subject, network, subject.batch, seed)
    return subject.cache[key]


def as_tensor(images: object) -> Tensor:
    """A sampler's result as one tensor on the CPU: the last of a list, an iterator or a film."""
    for name in ("images", "prev_sample", "samples"):
        images = getattr(images, name, images)
    if isinstance(images, tuple) and images and isinstance(images[0], Tensor):
        images = images[0]  # the images, then a film or x0_hat
    if isinstance(images, dict):
        images = images[min(images)] if all(isinstance(k, int) for k in images) else images
    if hasattr(images, "__next__"):
        *_, images = images
        images = images[1] if isinstance(images, tuple) else images  # (t, x_t, x0_hat)
    if isinstance(images, list):
        images = images[-1] if torch.as_tensor(images[-1]).ndim > 2 else images
    return torch.as_tensor(images).detach().cpu()
