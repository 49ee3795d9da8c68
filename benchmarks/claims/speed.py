"""How fast the device is, and what for: matrices, precisions, compiling, memory, noise, batches."""

import gc
import time
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import islice
from statistics import fmean

import torch

from claims.base import Bench, operations
from mnist_ddpm import catalogue, ddpm, trainer
from mnist_ddpm.evaluation import generation
from mnist_ddpm.machine import devices, prefetch
from mnist_ddpm.methods.solvers import dpmpp_2m_sampler
from mnist_ddpm.training import loop
from mnist_ddpm.training.cost import network_cost
from mnist_ddpm.training.run import training_step


@contextmanager
def tensor_cores(matrices: bool, convolutions: bool):
    """Inside, products of float32 may be rounded to TF32, those of matrices or convolutions."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = matrices
    torch.backends.cudnn.allow_tf32 = convolutions
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def rates(b: Bench) -> None:
    """The rate of the products of large matrices."""
    for precision in b.precisions():
        b.tell(f"matrices in {precision}", tflops=b.matrix_rate(precision) / 1e12)
    if b.device.type == "cuda":
        with tensor_cores(True, True):
            b.tell("matrices in TF32", tflops=b.matrix_rate("float32") / 1e12)


def training(b: Bench) -> None:
    """Each precision: digits are learned, pace, and the share of the matrix rate."""
    for precision in b.precisions():
        rate = b.matrix_rate(precision)
        recipe = b.recipe(precision=precision)
        run, images = trainer.start_run(recipe, b.device), loop.at_hand(b.digits(), b.device)
        given = images, catalogue.make_schedule(recipe), catalogue.make_objective(recipe)
        steps = loop.training_loop(run, *given)
        first = [*islice(steps, b.size(20, 2))]
        began, before = time.perf_counter(), run.step
        for _ in steps:
            if time.perf_counter() - began > b.size(6, 0):
                break
        pace = (run.step - before) * recipe.batch_size / (time.perf_counter() - began)
        share = operations(recipe) * pace / rate
        b.tell(
            f"mnist in {precision}", images_a_second=pace, share_of_matrix_rate=share,
            steps=run.step, first_loss=first[0], last_loss=fmean(run.losses[-10:]),
        )  # fmt: skip
        large = b.recipe("faces-64", precision=precision, accumulation=1)
        pace = b.pace(large)
        share = operations(large) * pace / rate
        b.tell(f"faces-64 in {precision}", images_a_second=pace, share_of_matrix_rate=share)


def optimizers(b: Bench) -> None:
    """What Muon's products of matrices cost beside Adam, in float32 and TF32."""
    for name in ("adam", "muon"):
        recipe = b.recipe(optimizer=name, precision=b.own)
        b.tell(f"mnist with {name}", images_a_second=b.pace(recipe))
    if b.device.type == "cuda":
        with tensor_cores(True, True):
            b.tell("mnist with muon in TF32", images_a_second=b.pace(recipe))


def tf32(b: Bench) -> None:
    """What float32 convolutions gain and lose by TF32, which PyTorch lets them use."""
    network, recipe = b.drawn_from()
    x = ddpm.noise_source(0, range(16), recipe.shape, b.device)()
    t, given = torch.full((16,), recipe.T // 2, device=b.device), {}
    for used in (False, True) if b.device.type == "cuda" else (False,):
        with tensor_cores(False, used):
            with torch.no_grad():
                given[used] = network(x, t)
            error = (given[used] - given[False]).abs().max() / given[False].std()
            b.tell(
                f"float32, convolutions {'in TF32' if used else 'exact'}",
                images_a_second=b.pace(b.recipe()), farthest_in_deviations=error.item(),
            )  # fmt: skip


def compiled(b: Bench) -> None:
    """Whether the network compiles, what that takes and what it gains."""
    for precision in dict.fromkeys((b.own, "float32")):
        if not devices.compiles(b.device, precision):
            raise RuntimeError("torch.compile does not work: see what it printed")
        recipe = b.recipe(precision=precision)
        plain = b.pace(recipe)
        run = trainer.start_run(replace(recipe, compile=True), b.device)
        given = catalogue.make_schedule(recipe), catalogue.make_objective(recipe)
        x0 = torch.zeros(recipe.batch_size, *recipe.shape, device=b.device)
        step = partial(training_step, run, x0, *given, ddpm.random_generator(0))
        seconds = b.timed(step)
        repeats = range(b.size(100, 1))
        each = b.timed(lambda: [step() for _ in repeats]) / len(repeats)  # noqa: B023
        b.tell(
            f"mnist in {precision}", seconds_of_the_first_step=seconds,
            images_a_second=recipe.batch_size / each, not_compiled=plain,
        )  # fmt: skip


def memory(b: Bench) -> None:
    """The peak of a training step, and what cost.py computes, which is for float32."""
    for name in ("mnist", "faces-64", "ddpm-celebahq")[: b.size(3, 1)]:
        for precision in dict.fromkeys(("float32", b.own)):
            recipe = b.recipe(name, precision=precision)
            gib = network_cost(recipe, catalogue.make_network).memory / 2**30
            told = {"computed_gib": gib}
            if b.device.type == "cuda":
                told["peak_gib"] = peak(b, recipe) / 2**30
                told["peak_over_computed"] = told["peak_gib"] / gib
            b.tell(f"{name} in {precision}", **told)


def peak(b: Bench, recipe) -> int:
    """Bytes that two training steps hold at most on a GPU."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(b.device)
    run = trainer.start_run(recipe, b.device)
    given = catalogue.make_schedule(recipe), catalogue.make_objective(recipe)
    x0 = torch.zeros(recipe.batch_size, *recipe.shape, device=b.device)
    for k in range(2):
        training_step(run, x0, *given, ddpm.random_generator(0, 1, k))
    return torch.cuda.max_memory_allocated(b.device)


def noise(b: Bench) -> None:
    """What the noise of a step takes beside an evaluation; whole chains, drawn in time or ahead."""
    small = b.recipe("faces-64-small")
    faces = catalogue.make_network(small).to(b.device).eval()
    n, waits, kinds = b.size(256, 8), b.device.type == "cuda", [b.drawn_from(), (faces, small)]
    for network, recipe in kinds[: b.size(2, 1)]:
        draw = ddpm.noise_source(0, range(n), recipe.shape, b.device)
        drawing_it = b.each(draw)
        x, t = draw(), torch.ones(n, dtype=torch.long, device=b.device)
        path, times = catalogue.make_schedule(recipe), ddpm.timesteps(recipe.T, b.size(50, 3))
        for precision in dict.fromkeys(("float32", b.own)):
            asked = generation.autocast(network, precision, b.device)
            with torch.no_grad():
                evaluating = b.each(partial(asked, x, t))
            what = f"{n} of {recipe.shape} in {precision}"
            b.tell(what, noise_ms=1e3 * drawing_it, evaluation_ms=1e3 * evaluating)
            source, seconds = generation.denoisers(asked, path, recipe), []
            options = {"times": times, "progress": False, "batch_size": n, "device": b.device}
            options["sampler"] = partial(dpmpp_2m_sampler, eta=1.0)
            chain = partial(generation.generate, source, path, n, recipe.shape, **options)
            for early in (False, waits):
                with waiting(early):
                    seconds.append(b.timed(chain))
            told = {"steps": len(times), "seconds_in_time": seconds[0], "seconds_ahead": seconds[1]}
            b.tell(f"{what}, a chain", **told)


@contextmanager
def waiting(waits: bool):
    """Inside, things are made ahead or not."""
    before, prefetch.is_asynchronous = prefetch.is_asynchronous, lambda device: waits
    try:
        yield
    finally:
        prefetch.is_asynchronous = before


def batches(b: Bench) -> None:
    """The pace where images lie on the device, or outside, read in time or ahead."""
    recipe, images = b.recipe(precision=b.own), b.digits()
    given = catalogue.make_schedule(recipe), catalogue.make_objective(recipe)
    gpu = b.device.type == "cuda"
    places = (("on the device", images.to(b.device), gpu), ("outside", images, False))
    for where, there, early in (*places, ("outside, read ahead", images, gpu)):
        run = trainer.start_run(recipe, b.device)
        with waiting(early):
            steps = loop.training_loop(run, there, *given)
            list(islice(steps, b.size(20, 1)))
            count = b.size(200, 2)
            seconds = b.timed(lambda: [*islice(steps, count)])  # noqa: B023
        b.tell(f"images {where}", images_a_second=count * recipe.batch_size / seconds)
