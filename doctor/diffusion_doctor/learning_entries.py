"""The checks of networks and of training as entries of an examination: what each needs."""

from collections.abc import Callable
from dataclasses import replace
from time import perf_counter

import torch
from torch import Tensor

from diffusion_doctor import fit_checks, mathematics, module_checks, network_checks, training_checks
from diffusion_doctor.mathematics import Denoiser, seeded
from diffusion_doctor.modules import find_module, output_of
from diffusion_doctor.oracles import SamplerRun, StandIn, as_tensor
from diffusion_doctor.report import Check
from diffusion_doctor.subject import CheckEntry, Subject
from diffusion_doctor.training_record import (
    Recorder,
    Recording,
    in_layout,
    known_images,
    range_of_data,
    record,
    recorded_call,
    recorded_loss,
    recorded_step,
)

LEAST_PIXELS = 16  # of an image for which a loss is recorded
STEP_BATCH = 64  # images in a step of training that is recorded
SAMPLES = 32
SAMPLING_SECONDS = 20.0


def our_network(subject: Subject, network: Callable) -> network_checks.Network:
    """The code's network as one of images (N, C, H, W) and our times 1 … T."""

    def call(x: Tensor, t: Tensor) -> Tensor:
        shown = x.flatten(1) if subject.conventions.is_flat else x
        return network(shown, subject.code_times(t)).reshape(len(x), -1, *x.shape[2:])

    return call


def our_denoiser(subject: Subject, network: Callable) -> Denoiser:
    """The code's network as a denoiser along the path of the images that it is shown."""
    return mathematics.denoiser(our_network(subject, network), subject.path, subject.conversion)


def network_entry(subject: Subject, seed: int) -> list[Check]:
    """Checks that need no data and no training."""
    network = our_network(subject, subject.network)
    arguments = network, subject.T, subject.shape
    checks = []
    module = find_module(subject.network)
    if module is not None:  # first, since a channel alone in its group loses what t adds to it
        x = torch.randn(2, *subject.shape)
        t = torch.tensor([1, subject.T])
        checks.append(module_checks.check_channel_groups(module))
        checks.append(module_checks.check_attention(module, lambda: output_of(network, x, t)))
    return [
        *checks,
        network_checks.check_batch_leak(*arguments, seed),
        network_checks.check_time_use(*arguments, seed),
        network_checks.check_time_unit(*arguments),
    ]


def buffers_entry(subject: Subject, seed: int) -> list[Check]:
    """The check of both networks' buffers."""
    modules = [find_module(each) for each in (subject.network, subject.averaged_network)]
    if None in modules:
        meaning = "needs: two networks that are torch.nn.Modules"
        return [Check(module_checks.BUFFER_CHECK, "not checked", meaning)]
    return [module_checks.check_averaged_buffers(*modules)]


def fit_entry(subject: Subject, seed: int) -> list[Check]:
    """What the network has learned of the data."""
    denoise = our_denoiser(subject, subject.network)
    return [fit_checks.check_fit(denoise, subject.path, subject.data[:256], seed)]


def average_entry(subject: Subject, seed: int) -> list[Check]:
    """What the network's average has learned of the data, beside the network."""
    networks = subject.network, subject.averaged_network
    denoisers = [our_denoiser(subject, each) for each in networks]
    return [fit_checks.check_average(*denoisers, subject.path, subject.data[:256], seed)]


class TimeIsUp(Exception):
    """A sampler takes too long."""


def samples_entry(subject: Subject, seed: int) -> list[Check]:
    """The channels' means of samples of the network, if they are drawn in time."""
    name = "samples: means of the channels"
    network = subject.averaged_network or subject.network
    if "output_range" not in subject.known:
        return [Check(name, "not checked", "the range of the samples is not known")]
    data = subject.data.float()
    fit = fit_checks.check_fit(our_denoiser(subject, network), subject.path, data[:256], seed)
    if fit.verdict != "ok":
        return [Check(name, "not checked", "needs: a network that has learned from the data")]
    end = perf_counter() + SAMPLING_SECONDS

    class Timed(StandIn):
        """The network itself, until time is up."""

        def answer(self, x: Tensor, t: Tensor | float) -> Tensor:
            if perf_counter() > end:
                raise TimeIsUp
            return network(x, torch.as_tensor(t).flatten().expand(len(x)))

    torch.manual_seed(seed)
    try:
        with torch.no_grad():
            stand_in = Timed(subject, lambda *_: None)
            samples = as_tensor(subject.sampler(stand_in, (SAMPLES, *subject.shape)))
    except TimeIsUp:
        meaning = f"{SAMPLES} samples take more than {SAMPLING_SECONDS:g} s"
        return [Check(name, "not checked", meaning)]
    samples = samples.float().reshape(-1, *data.shape[1:])
    low, high = subject.conventions.output_range
    samples = (samples - low) / (high - low) * (data.max() - data.min()) + data.min()
    return [fit_checks.check_tint(samples, data)]


def training_entry(subject: Subject, seed: int) -> list[Check]:
    """The checks of a loss, by what it shows its network."""
    if len(subject.shape) < 2 or torch.Size(subject.shape).numel() < LEAST_PIXELS:
        return [Check("training", "not checked", "needs: images of 16 pixels or more")]
    return recorded_checks(subject, recorded_loss(subject, seed))


def step_entry(subject: Subject, seed: int) -> list[Check]:
    """The checks of a step of training, by what it shows the network."""
    module = find_module(subject.network)
    if subject.loss is not None or module is None:
        return []
    images = known_images(subject.shape, STEP_BATCH, *range_of_data(subject))
    if images.ndim < 3 or images[0].numel() < LEAST_PIXELS:
        return [Check("training", "not checked", "needs: images of 16 pixels or more")]
    with recorded_step(subject.training_step, module) as train:
        recording = record(in_layout(subject, train), images, subject.T, seed)
    return recorded_checks(subject, recording)


def recorded_checks(subject: Subject, recording: Recording | None) -> list[Check]:
    """The checks of what a loss, or a step, shows its network."""
    if recording is None:
        return [Check("training", "undecided", "the network was called with no batch of images")]
    subject = with_times_of(subject, recording)
    halves = training_checks.Halves(recording, subject.entries, subject.schedule)
    noising = training_checks.check_noising(halves, subject.schedule)
    checks = [
        training_checks.check_times_of_batch(recording),
        training_checks.check_ends(recording, subject.entries, subject.T, asked_entries(subject)),
        training_checks.check_noise(recording),
        training_checks.check_shared_noise(recording),
        noising,
    ]
    if noising.verdict == "ok" and subject.data is not None:
        checks.append(training_checks.check_data_range(*halves.range()))
    return checks


def asked_entries(subject: Subject) -> tuple[float, float] | None:
    """The least and the greatest entry at which a sampler of all steps asks; None of another."""
    runs = [each for each in subject.cache.values() if isinstance(each, SamplerRun)]
    if not runs or len(runs[-1].code_times) < subject.T - 1:
        return None
    entries = subject.entries(runs[-1].code_times)
    return entries.min().item(), entries.max().item()


def with_times_of(subject: Subject, recording: Recording) -> Subject:
    """The subject, with the unit of t and its first value as the recording shows them."""
    times = recording.times
    changes: dict = {}
    is_whole = bool((times == times.round()).all())
    if "time" not in subject.known and not is_whole:
        changes["time"] = "fraction" if times.max() <= 1 else "sigma"
    if "first_time" not in subject.known and is_whole:
        changes["first_time"] = 0 if times.min() < 1 else 1
    elif not is_whole and changes:
        changes["first_time"] = 1
    return replace(subject, conventions=replace(subject.conventions, **changes))


def target_entry(subject: Subject, seed: int) -> list[Check]:
    """The check of what a loss wants of the network, for 64 known images."""
    images = known_images(subject.shape, STEP_BATCH, *range_of_data(subject))
    value, recorder = loss_of_zeros(subject, images, seed)
    gradient = None
    if value.requires_grad and recorder.outputs:
        [gradient] = torch.autograd.grad(value, recorder.outputs[:1], allow_unused=True)
    x = recorder.seen[0][0] if recorder.seen else images[:0]
    if gradient is None or x.numel() != images.numel():
        meaning = "the loss does not use the network's output for a batch of images"
        return [Check("training: target of the loss", "undecided", meaning)]
    gradient = gradient[:, : x.shape[1]].reshape(images.shape)
    return [training_checks.check_target(x.reshape(images.shape), gradient)]


def loss_of_zeros(subject: Subject, x0: Tensor, seed: int) -> tuple[Tensor, Recorder]:
    """The mean loss of an output of zeros, with its graph, and what the loss showed."""
    values = []

    def call(network: Callable, x0: Tensor) -> None:
        x0 = x0.flatten(1) if subject.conventions.is_flat else x0
        values.append(torch.as_tensor(subject.loss(network, x0)).mean())

    with seeded(seed), torch.enable_grad():
        recorder = recorded_call(call, x0)
    return values[-1], recorder


def heart_entry(subject: Subject, seed: int) -> list[Check]:
    """The trial of learning sixteen images by heart."""
    images = subject.data[:16]
    values = [loss_of_zeros(subject, images, seed + k)[0].item() for k in range(8)]
    ignorant = sum(values) / len(values)
    images = images.flatten(1) if subject.conventions.is_flat else images
    return [fit_checks.check_learning(subject.loss, subject.network, images, ignorant)]


def likelihood_entry(subject: Subject, seed: int) -> list[Check]:
    """The check of the times at which a likelihood asks the network."""
    x0 = known_images(subject.shape, 8, *range_of_data(subject))
    recorder = Recorder(subject.shape)
    torch.manual_seed(seed)
    with torch.no_grad():
        subject.likelihood(recorder, x0)
    return [training_checks.check_likelihood_times([times for _, times in recorder.seen])]


LEARNING_ENTRIES = [
    CheckEntry("network", ("network", "schedule"), network_entry),
    CheckEntry(module_checks.BUFFER_CHECK, ("averaged_network", "network"), buffers_entry),
    CheckEntry("network: fit to the data", ("network", "schedule", "data"), fit_entry),
    CheckEntry(
        "network: its average", ("averaged_network", "network", "schedule", "data"), average_entry
    ),
    CheckEntry("samples", ("sampler", "network", "schedule", "data"), samples_entry),
    CheckEntry("training", ("loss", "schedule"), training_entry),
    CheckEntry("training: target of the loss", ("loss",), target_entry),
    CheckEntry("training: images by heart", ("loss", "network", "data"), heart_entry),
    CheckEntry("training step", ("training_step", "network", "schedule"), step_entry),
    CheckEntry("likelihood", ("likelihood",), likelihood_entry),
]
