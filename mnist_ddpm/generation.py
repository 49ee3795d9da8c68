"""Drawing images: in batches that are saved when work is stopped, by one process or several."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor
from tqdm import tqdm

from mnist_ddpm import catalogue, ddpm
from mnist_ddpm.ddpm import Denoiser, Film, Network, Schedule, States, check
from mnist_ddpm.formats.checkpoints import Checkpoint
from mnist_ddpm.machine import devices
from mnist_ddpm.machine.partial_results import CountedNetwork, PartialResults
from mnist_ddpm.machine.process import progress_bar
from mnist_ddpm.machine.processes import ProcessGroup
from mnist_ddpm.methods import guidance, paths, shortcuts
from mnist_ddpm.methods.learned_variance import keeping_exponent
from mnist_ddpm.recipe import Recipe
from mnist_ddpm.sampling import CLIPS, SamplerChoice, Sampling

# from the numbers of the images in a batch, counted from 0, to their denoiser
DenoiserForBatch = Callable[[range], Denoiser]
Part = dict[str, Tensor]  # of the work, as it is saved


def autocast(network: Network, precision: str, device: torch.device | str) -> Network:
    """A network that computes in "bfloat16" or "float16" where that is safe; its output is float32.

    "float32" gives the network itself.
    """
    if precision == "float32":
        return network
    kind = torch.device(device).type
    dtype = getattr(torch, precision)

    def in_lower_precision(xt: Tensor, t: Tensor, *labels: Tensor, **times: Tensor) -> Tensor:
        with torch.autocast(kind, dtype):
            return network(xt, t, *labels, **times).float()

    return in_lower_precision


def make_denoiser_for_batch(
    network: Network,
    schedule: Schedule,
    recipe: Recipe,
    *,
    labels: Tensor | None = None,
    scale: float = 1.0,
    guide: tuple[Network, Recipe] | None = None,
    interval: tuple[int, int] | None = None,
    clip: Callable[[Denoiser, Schedule], Denoiser] | None = ddpm.clipped,
    condition_images: Tensor | None = None,
    sampling_schedule: Schedule | None = None,
    next_times: list[int] | None = None,
    with_exponent: bool = False,
) -> DenoiserForBatch:
    """A function from a batch to its denoiser: a network under guidance, its x0_hat clipped.

    labels (L,): image k has labels[k % L]. scale: the guidance scale; the weaker model is the guide
    (a network and its recipe) if given, else the network without labels; unused without both.
    interval: guidance acts at times low < t <= high of the network's schedule alone.
    condition_images (M, C, H, W), uint8: image k has the condition of condition_images[k % M],
    where the recipe has one. sampling_schedule: the schedule to sample along, if it may differ.
    next_times: the sampler's times, for a network whose input includes where each step goes.
    with_exponent: for a sampler that uses the learned variance.
    """
    if next_times is not None:
        network = shortcuts.with_next_times(network, next_times, schedule.T)

    def denoiser_for_batch(batch: range) -> Denoiser:
        batch_labels = None if labels is None else labels[torch.tensor(batch) % len(labels)]
        condition = catalogue.condition_batch(recipe, condition_images, batch)

        def make(network: Network, recipe: Recipe, labels: Tensor | None) -> Denoiser:
            labelled = guidance.with_labels(network, labels)
            return catalogue.make_denoiser(
                labelled, schedule, recipe, condition, sampling_schedule, with_exponent
            )

        denoise = unguided = make(network, recipe, batch_labels)
        if guide is not None:
            denoise = guidance.guided(make(*guide, batch_labels), unguided, scale)
        elif labels is not None:
            denoise = guidance.guided(make(network, recipe, None), unguided, scale)
        if interval is not None:
            own_times = paths.own_times(schedule, sampling_schedule or schedule)
            denoise = guidance.within_interval(interval, denoise, unguided, own_times)
        if clip is None:
            return denoise
        has_exponent = with_exponent and catalogue.learns_variance(recipe)
        clip_denoiser = keeping_exponent(clip) if has_exponent else clip
        return clip_denoiser(denoise, sampling_schedule or schedule)

    return denoiser_for_batch


@dataclass(frozen=True)
class Drawing:
    """A checkpoint and how it draws images, each of its own number and a seed.

    labels (L,): image k has labels[k % L]. condition_images (M, C, H, W), uint8: image k has the
    condition of condition_images[k % M]. guide: of autoguidance.
    """

    checkpoint: Checkpoint
    sampling: Sampling
    choice: SamplerChoice
    precision: str = "float32"
    labels: Tensor | None = None
    condition_images: Tensor | None = None
    guide: Checkpoint | None = None

    @cached_property
    def networks(self) -> list[CountedNetwork]:
        """The network, and the guide's if there is one, whose evaluations are counted."""
        both = self.checkpoint, self.guide
        return [CountedNetwork(each.network) for each in both if each is not None]

    def denoiser_for_batch(self, device: torch.device) -> DenoiserForBatch:
        """The function from a batch to its denoiser, guided and clipped."""
        own, *others = (autocast(each, self.precision, device) for each in self.networks)
        recipe = self.checkpoint.recipe
        condition = self.condition_images
        return make_denoiser_for_batch(
            own,
            self.checkpoint.schedule,
            recipe,
            labels=self.labels,
            scale=self.sampling.scale,
            guide=(others[0], self.guide.recipe) if self.guide else None,
            interval=self.sampling.guidance_interval,
            clip=CLIPS[self.sampling.clip],
            condition_images=None if condition is None else condition.to(device),
            sampling_schedule=self.choice.schedule,
            next_times=catalogue.next_times(self.sampling.sampler, self.choice.times, recipe),
            with_exponent=self.choice.needs_exponent,
        )

    def images(self, n: int, *, device: torch.device, **options) -> tuple[Tensor, Film]:
        """n images, and a film of the first ones. options: of generate."""
        return generate(
            self.denoiser_for_batch(device),
            self.choice.schedule,
            n,
            self.checkpoint.recipe.shape,
            times=self.choice.times,
            sampler=self.choice.sampler,
            device=device,
            **options,
        )


def generate(
    denoiser_for_batch: DenoiserForBatch,
    schedule: Schedule,
    n: int,
    shape: tuple[int, int, int],
    *,
    times: list[int],
    sampler: Callable = ddpm.ddim_sampler,
    seed: int = 0,
    batch_size: int = 256,
    film_images: int = 0,
    first: int = 0,
    device: torch.device | str = "cpu",
    partial_results: PartialResults | None = None,
    world: ProcessGroup | None = None,
    progress: bool = True,
) -> tuple[Tensor, Film]:
    """As ddpm.generate, but stoppable, in batches, on several processes, and from any image on.

    Returns images first … first + n - 1, uint8 (n, C, H, W), and a film of a few of the first
    batch. Image k depends on seed and k alone, not on batches or processes. Each process draws its
    share, all get all images, and the first one has the film. partial_results: where finished
    batches are saved. Raises ValueError for arguments out of range,
    FloatingPointError for images that are NaN, and OSError where a batch cannot be saved.
    """
    world = world or ProcessGroup()
    check(batch_size >= 1, f"batch_size is {batch_size}: it must be at least 1")
    check(0 <= seed < 2**32, f"seed is {seed}: it must be from 0 to 2^32 - 1")  # else streams meet
    enough = n >= world.size
    check(enough, f"{n} images for {world.size} process(es): ask for more, or launch fewer")
    share = range(first, first + n)[world.share(n).start : world.share(n).stop]
    starts = range(0, len(share), batch_size)
    images = []
    film = []
    compute = partial_results.compute if partial_results else lambda name, work: work()

    def draw(batch: range) -> Part:
        draw_noise = noise_source(seed, batch, shape, torch.device(device))
        states = sampler(denoiser_for_batch(batch), schedule, times, draw_noise(), draw_noise)
        n_in_film = film_images if batch.start == first else 0
        return collect_images_and_film(states, schedule.T, n_in_film, bar)

    total = len(starts) * len(times)
    bar = progress_bar(
        total=total, disable=not progress, desc=f"drawing {n} images", unit="step", leave=False
    )
    with bar:
        for batch in (share[start : start + batch_size] for start in starts):
            before = bar.n
            part = compute(f"images-{batch.start}-{batch.stop}", partial(draw, batch))
            if bar.n == before:  # it was saved already
                bar.total -= len(times)
            images.append(part["images"])
            if "t" in part:
                film = [*zip(part["t"].tolist(), part["xt"], part["x0_hat"])]
    return world.gather_shares(torch.cat(images), n), film


def noise_source(
    seed: int, batch: range, shape: tuple[int, int, int], device: torch.device
) -> Callable[[], Tensor]:
    """As ddpm.noise_source; on a GPU image k's noise comes from a generator there, of (seed, k)."""
    if not devices.is_asynchronous(device):
        return ddpm.noise_source(seed, batch, shape, device)
    generators = [ddpm.random_generator(seed, k, device=device) for k in batch]

    def draw_noise() -> Tensor:
        noise = [torch.randn(shape, generator=each, device=device) for each in generators]
        return torch.stack(noise)

    return draw_noise


@torch.no_grad()
def collect_images_and_film(states: States, T: int, film_images: int, bar: tqdm) -> Part:
    """The images that a sampler ends with, and a film: the first film_images at some 40 moments."""
    film = {}
    t = None
    for t, xt, x0_hat in states:
        moment = round(40 * math.sqrt(t / T))  # closer together towards the end
        if film_images and (t == 0 or moment not in film):
            film[moment] = t, *(ddpm.to_uint8(x[:film_images]).cpu() for x in (xt, x0_hat))
        bar.update(t > 0)
    check(t == 0, f"the sampler ended at t = {t}: its last state must be x_0, with t = 0")
    if xt.isnan().any():
        causes = "precision float16, a huge guidance, and damaged checkpoints"
        raise FloatingPointError(f"the images are NaN: avoid {causes}")
    part = {"images": ddpm.to_uint8(xt).cpu()}
    if film:
        times, xt, x0_hat = zip(*film.values())
        part |= {"t": torch.tensor(times), "xt": torch.stack(xt), "x0_hat": torch.stack(x0_hat)}
    return part


def cost_per_image(
    results: PartialResults, n: int, world: ProcessGroup | None = None
) -> dict[str, float]:
    """The network evaluations and seconds for each of n images, as a card records them."""
    world = world or ProcessGroup()
    seconds = torch.tensor([results.seconds], dtype=torch.float32, device=world.device)
    slowest = world.gather(seconds).max().item()
    evaluations = results.evaluations / len(world.share(n))
    return {"evaluations_per_image": evaluations, "seconds_per_image": round(slowest / n, 5)}
