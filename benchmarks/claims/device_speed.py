"""How fast the device is, and what for: matrices, precisions, compiling, memory, noise, batches."""

import gc
import time
from dataclasses import replace
from functools import partial
from itertools import islice
from statistics import fmean
from unittest.mock import patch

import torch

from claims.bench import Bench
from mnist_ddpm import catalogue, ddpm, generation
from mnist_ddpm.machine import devices
from mnist_ddpm.methods.solvers import dpmpp_2m_sampler
from mnist_ddpm.recipe import Recipe
from mnist_ddpm.training import loop
from mnist_ddpm.training.cost import network_cost


def allow_tf32(matrices: bool, convolutions: bool) -> None:
    """Lets the products of float32 matrices or convolutions be rounded, to the end of the part."""
    torch.backends.cuda.matmul.allow_tf32 = matrices
    torch.backends.cudnn.allow_tf32 = convolutions


def rates(b: Bench) -> None:
    """The rate of the products of large matrices."""
    for precision in b.precisions():
        b.add(f"matrices in {precision}", tflops=b.matrix_rate(precision) / 1e12)
    if b.is_gpu:
        allow_tf32(True, True)
        b.add("matrices in TF32", tflops=b.matrix_rate("float32") / 1e12)


def training(b: Bench) -> None:
    """Each precision: digits are learned, pace, and the share of the matrix rate."""
    for precision in b.precisions():
        rate, recipe = b.matrix_rate(precision), b.recipe(precision=precision)
        run, steps = b.start(recipe, loop.on_device_if_it_fits(b.digits(), b.device))
        losses = [*islice(steps, b.size(20, 2))]
        began, before = time.perf_counter(), run.step
        for _ in steps:
            if time.perf_counter() - began > b.size(6, 0):
                break
        pace = (run.step - before) * recipe.batch_size / (time.perf_counter() - began)
        figures = {"first_loss": losses[0], "last_loss": fmean(run.losses[-10:]), "steps": run.step}
        add_share(b, recipe, "mnist", pace, rate, **figures)
        large = b.recipe("faces-64", precision=precision, accumulation=1)
        add_share(b, large, "faces-64", b.pace(large), rate)


def add_share(b: Bench, recipe: Recipe, name: str, pace: float, rate: float, **figures) -> None:
    """Adds a row with images trained a second, and the share of the matrix rate that they use."""
    operations = 3 * b.measuring.flops(replace(recipe, precision="float32"))
    share = operations * pace / rate
    what = f"{name} in {recipe.precision}"
    b.add(what, images_a_second=pace, share_of_matrix_rate=share, **figures)


def optimizers(b: Bench) -> None:
    """What Muon's products of matrices cost beside Adam, in float32 and TF32."""
    for name in ("adam", "muon"):
        recipe = b.recipe(optimizer=name, precision=b.default_precision)
        b.add(f"mnist with {name}", images_a_second=b.pace(recipe))
    if b.is_gpu:
        allow_tf32(True, True)
        b.add("mnist with muon in TF32", images_a_second=b.pace(recipe))


def tf32(b: Bench) -> None:
    """What float32 convolutions gain and lose by TF32, which PyTorch lets them use."""
    network, recipe = b.load_mnist_network()
    x = ddpm.noise_source(0, range(16), recipe.shape, b.device)()
    t, exact = torch.full((16,), recipe.T // 2, device=b.device), None
    for name in ("exact", "in TF32")[: 2 if b.is_gpu else 1]:
        if b.is_gpu:
            allow_tf32(False, name == "in TF32")
        with torch.no_grad():
            output = network(x, t)
        exact = output if exact is None else exact
        error = ((output - exact).abs().max() / exact.std()).item()
        pace = b.pace(b.recipe())
        what = f"float32, convolutions {name}"
        b.add(what, images_a_second=pace, farthest_in_deviations=error)


def compiled(b: Bench) -> None:
    """Whether the network compiles, what that takes and what it gains."""
    for precision in reversed(b.two_precisions):
        if not devices.compiles(b.device, precision):
            raise RuntimeError("torch.compile does not work: see what it printed")
        recipe = b.recipe(precision=precision)
        figures = {"not_compiled": b.pace(recipe)}
        step = b.make_step(replace(recipe, compile=True))
        figures["seconds_of_the_first_step"] = b.timed(step)
        steps = b.size(100, 1)
        seconds = b.timed(lambda: [step() for _ in range(steps)])  # noqa: B023
        pace = recipe.batch_size * steps / seconds
        b.add(f"mnist in {precision}", images_a_second=pace, **figures)


def memory(b: Bench) -> None:
    """The peak of a training step, and what cost.py computes, which is for float32."""
    for name in ("mnist", "faces-64", "ddpm-celebahq")[: b.size(3, 1)]:
        for precision in b.two_precisions:
            recipe = b.recipe(name, precision=precision)
            gib = network_cost(recipe, catalogue.make_network).memory / 2**30
            figures = {"computed_gib": gib}
            if b.is_gpu:
                figures["peak_gib"] = peak(b, recipe) / 2**30
                figures["peak_over_computed"] = figures["peak_gib"] / gib
            b.add(f"{name} in {precision}", **figures)


def peak(b: Bench, recipe: Recipe) -> int:
    """Bytes that two training steps hold at most on a GPU."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(b.device)
    step = b.make_step(recipe)
    step()
    step()
    return torch.cuda.max_memory_allocated(b.device)


def noise(b: Bench) -> None:
    """The time of a step's noise and of an evaluation; chains with noise of either device."""
    faces = b.recipe("faces-64-small")
    network = catalogue.make_network(faces).to(b.device).eval()
    n, kinds = b.size(256, 8), [b.load_mnist_network(), (network, faces)]
    for network, recipe in kinds[: b.size(2, 1)]:
        draw = generation.noise_source(0, range(n), recipe.shape, torch.device(b.device))
        drawing_ms = 1e3 * b.mean_seconds(draw)
        x, t = draw(), torch.ones(n, dtype=torch.long, device=b.device)
        schedule, times = catalogue.make_schedule(recipe), ddpm.timesteps(recipe.T, b.size(50, 3))
        for precision in b.two_precisions:
            lowered = generation.autocast(network, precision, b.device)
            with torch.no_grad():
                evaluation_ms = 1e3 * b.mean_seconds(partial(lowered, x, t))
            what = f"{n} of {recipe.shape} in {precision}"
            b.add(what, noise_ms=drawing_ms, evaluation_ms=evaluation_ms)
            options = {"times": times, "progress": False, "batch_size": n, "device": b.device}
            options["sampler"] = partial(dpmpp_2m_sampler, eta=1.0)
            denoiser_for_batch = generation.make_denoiser_for_batch(lowered, schedule, recipe)
            chain = partial(
                generation.generate, denoiser_for_batch, schedule, n, recipe.shape, **options
            )
            figures = {"steps": len(times)}
            places = {"seconds_noise_of_processor": False, "seconds_noise_of_device": b.is_gpu}
            for name, is_there in places.items():
                with patch.object(devices, "is_asynchronous", lambda device: is_there):  # noqa: B023
                    figures[name] = b.timed(chain)
            b.add(f"{what}, a chain", **figures)


def batches(b: Bench) -> None:
    """The pace where images lie on the device, or outside, read on demand or ahead."""
    recipe, images = b.recipe(precision=b.default_precision), b.digits()
    places = {"on the device": (images.to(b.device), b.is_gpu), "outside": (images, False)}
    places["outside, read ahead"] = images, b.is_gpu
    for name, (dataset, ahead) in places.items():
        with patch.object(devices, "is_asynchronous", lambda device: ahead):  # noqa: B023
            _, steps = b.start(recipe, dataset)
            list(islice(steps, b.size(20, 1)))
            count = b.size(200, 2)
            seconds = b.timed(lambda: [*islice(steps, count)])  # noqa: B023
        b.add(f"images {name}", images_a_second=count * recipe.batch_size / seconds)
