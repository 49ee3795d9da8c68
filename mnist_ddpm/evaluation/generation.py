"""Drawing images: in batches that are kept when work is stopped, by one process or several."""

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
from torch import Tensor
from tqdm import tqdm

from mnist_ddpm import catalogue, ddpm
from mnist_ddpm.ddpm import Denoiser, Film, Network, Schedule, States, check
from mnist_ddpm.evaluation.sharing import collect
from mnist_ddpm.machine import prefetch
from mnist_ddpm.machine.partial_results import PartialResults
from mnist_ddpm.machine.processes import World
from mnist_ddpm.machine.progress import progress_bar
from mnist_ddpm.methods import guidance, shortcuts
from mnist_ddpm.methods.learned_variance import keeping_exponent
from mnist_ddpm.training.recipe import Recipe

Source = Callable[[range], Denoiser]  # for the images of a batch, which are numbered from 0
Part = dict[str, Tensor]  # of the work, as it is kept


def autocast(network: Network, precision: str, device: torch.device | str) -> Network:
    """A network that computes in "bfloat16" or "float16" where that is safe; its output is float32.

    "float32" gives the network itself.
    """
    if precision == "float32":
        return network
    kind, dtype = torch.device(device).type, getattr(torch, precision)

    def lowered(xt: Tensor, t: Tensor, *labels: Tensor, **told: Tensor) -> Tensor:
        with torch.autocast(kind, dtype):
            return network(xt, t, *labels, **told).float()

    return lowered


def denoisers(
    network: Network,
    schedule: Schedule,
    recipe: Recipe,
    *,
    labels: Tensor | None = None,
    scale: float = 1.0,
    guide: tuple[Network, Recipe] | None = None,
    interval: tuple[int, int] | None = None,
    clip: Callable[[Denoiser, Schedule], Denoiser] | None = ddpm.clipped,
    pictures: Tensor | None = None,
    path: Schedule | None = None,
    heading: list[int] | None = None,
    with_exponent: bool = False,
) -> Source:
    """What draws each batch: a network under guidance, its x0_hat clipped.

    labels (n,): image k is told labels[k]. scale: of guidance, away from a guide (a smaller network
    and its recipe) or else from the network without labels; without either it has no effect.
    interval: guidance acts at times low < t <= high only. pictures (M, C, H, W), uint8: image k is
    given the condition of pictures[k % M], where the recipe has one. path: the one to sample along,
    where it is not the network's own schedule. heading: the sampler's times, for a network that is
    told where each step goes. with_exponent: for a sampler that asks for the variance which a
    network has learned.
    """
    if heading is not None:
        network = shortcuts.heading(network, heading, schedule.T)

    def denoiser_of(batch: range) -> Denoiser:
        own = None if labels is None else labels[batch.start : batch.stop]
        c = catalogue.conditions(recipe, pictures, batch)

        def made(network: Network, recipe: Recipe, own: Tensor | None) -> Denoiser:
            asked = guidance.with_labels(network, own)
            return catalogue.make_denoiser(asked, schedule, recipe, c, path, with_exponent)

        denoise = strong = made(network, recipe, own)
        if guide is not None:
            denoise = guidance.guided(made(*guide, own), strong, scale)
        elif own is not None:
            denoise = guidance.guided(made(network, recipe, None), strong, scale)
        if interval is not None:
            denoise = guidance.within_interval(interval, denoise, strong)
        if clip is None:
            return denoise
        kept = with_exponent and catalogue.learns_variance(recipe)
        return (keeping_exponent(clip) if kept else clip)(denoise, path or schedule)

    return denoiser_of


def generate(
    denoiser_of: Source,
    schedule: Schedule,
    n: int,
    shape: tuple[int, int, int],
    *,
    times: list[int],
    sampler: Callable = ddpm.ddim_sampler,
    seed: int = 0,
    batch_size: int = 256,
    film_images: int = 0,
    device: torch.device | str = "cpu",
    kept: PartialResults | None = None,
    world: World | None = None,
    progress: bool = True,
) -> tuple[Tensor, Film]:
    """n images, uint8 (n, C, H, W), and a film of the first few of the first batch.

    Image k depends on seed and k alone, not on batches or processes. Each process draws
    its share, all get all images, and the first one has the film. Raises ValueError for what
    cannot be drawn so, FloatingPointError for images that are NaN, and OSError where a part
    cannot be kept.
    """
    world = world or World()
    check(batch_size >= 1, f"batch_size is {batch_size}: it must be at least 1")
    check(0 <= seed < 2**32, f"seed is {seed}: it must be from 0 to 2^32 - 1")  # else streams meet
    few = f"{n} images cannot be shared by {world.size} process(es)"
    check(n >= world.size, f"{few}: ask for more, or launch fewer")
    mine = world.share(n)
    starts = range(0, len(mine), batch_size)
    total = len(starts) * len(times)
    images, film = [], []
    keep = kept.compute if kept else lambda name, work: work()
    title, quiet = f"drawing {n} images", not progress

    def drawn(batch: range) -> Part:
        draw_noise = noise_source(seed, batch, shape, torch.device(device))
        states = sampler(denoiser_of(batch), schedule, times, draw_noise(), draw_noise)
        return develop(states, schedule.T, 0 if batch.start else film_images, bar)

    with progress_bar(total=total, desc=title, unit="step", leave=False, disable=quiet) as bar:
        for batch in (mine[start : start + batch_size] for start in starts):
            before = bar.n
            part = keep(f"images-{batch.start}-{batch.stop}", partial(drawn, batch))
            if bar.n == before:  # it was there
                bar.total -= len(times)
            images.append(part["images"])
            if "t" in part:
                film = [*zip(part["t"].tolist(), part["xt"], part["x0_hat"])]
    return collect(world, torch.cat(images), n), film


def noise_source(
    seed: int, batch: range, shape: tuple[int, int, int], device: torch.device
) -> Callable[[], Tensor]:
    """As ddpm.noise_source. A GPU does not wait: threads draw what its next step will ask for."""
    if not prefetch.is_asynchronous(device):
        return ddpm.noise_source(seed, batch, shape, device)
    size = math.ceil(len(batch) / torch.get_num_threads())
    parts = (batch[first : first + size] for first in range(0, len(batch), size))
    sources = [ddpm.noise_source(seed, part, shape) for part in parts]

    def draws() -> Iterator[Tensor]:
        with ThreadPoolExecutor(len(sources)) as pool:
            while True:
                yield torch.cat([*pool.map(lambda source: source(), sources)])

    return partial(next, prefetch.to_device(draws(), device))


@torch.no_grad()
def develop(states: States, T: int, film_images: int, bar: tqdm) -> Part:
    """The images that a sampler ends with, and the first few of them at some 40 moments."""
    film = {}
    t = None
    for t, xt, x0_hat in states:
        moment = round(40 * math.sqrt(t / T))  # closer together towards the end
        if film_images and (t == 0 or moment not in film):
            film[moment] = t, *(ddpm.to_uint8(x[:film_images]).cpu() for x in (xt, x0_hat))
        bar.update(t > 0)
    check(t == 0, f"the sampler ended at t = {t}: at last it must yield x_0, with t = 0")
    if xt.isnan().any():
        causes = "precision float16, a huge guidance, and damaged checkpoints"
        raise FloatingPointError(f"the images are NaN: avoid {causes}")
    part = {"images": ddpm.to_uint8(xt).cpu()}
    if film:
        times, xt, x0_hat = zip(*film.values())
        part |= {"t": torch.tensor(times), "xt": torch.stack(xt), "x0_hat": torch.stack(x0_hat)}
    return part


def cost(kept: PartialResults, n: int, world: World | None = None) -> dict[str, float]:
    """For a card: what n images took, in evaluations of the network and in seconds."""
    world = world or World()
    seconds = torch.tensor([kept.seconds], dtype=torch.float32, device=world.device)
    slowest = world.gather(seconds).max().item()
    evaluations = kept.evaluations / len(world.share(n))
    return {"evaluations_per_image": evaluations, "seconds_per_image": round(slowest / n, 5)}
