"""This project and its peers on MNIST, each with its own network, training step, averaged weights and sampler.

pip install -r benchmarks/requirements-peers.txt
python benchmarks/peers.py              speed, memory, and how soon there is a first image; half an hour
python benchmarks/peers.py --race 10    ten minutes of training for each, then the distances of 2,000 images
    … --evaluations 50 10               with fifty evaluations of the network an image, and again with ten

The first prints tables with ratios and writes peers.json. Each contestant has a process of its own, one works at a
time, rounds rotate, the first is discarded. A race trains in the faster precision; race-MINUTES.json holds a contestant
as soon as it is judged, a grid of its images lies beside it, and the same command goes on where it was stopped, and
races again with whoever has other settings now.
Network evaluations are counted where the network is called, not taken from the settings.
"""

import argparse
import json
import multiprocessing
import os
import platform
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from copy import deepcopy
from dataclasses import dataclass, replace
from importlib import import_module, metadata
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from statistics import median
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # contestants' packages are imported by their own processes: each pays for its own only
PRECISIONS = "float32", "bfloat16"
PART = 250  # images that a race draws at a time
FEW = 10  # evaluations, at most, with which a contestant draws by a sampler made for few
SPARE = 0.97  # of the measured pace is what a decaying learning rate counts on


@dataclass(frozen=True)
class Task:
    """What a contestant is told."""

    name: str  # in CONTESTANTS
    precision: str
    batch: int
    seed: int
    rate: float | None  # learning rate of a peer; None: its own below
    steps: int = 1_000_000  # where a learning rate that decays ends

    @property
    def warmup(self) -> int:
        """Steps in which the learning rate rises: 500 in this project as in diffusers, fewer in a short race."""
        return min(500, self.steps // 10)

    def batches(self, images: Tensor) -> Iterator[Tensor]:
        """Whole ones, shuffled, without end."""
        generator = torch.Generator().manual_seed(self.seed)
        while True:
            order = torch.randperm(len(images), generator=generator)
            for i in range(len(images) // self.batch):
                yield images[order[i * self.batch : (i + 1) * self.batch]]


class Contestant:
    """To add one: training(images) trains on uint8 (N, 1, 32, 32) and yields after each step; sample(n, evaluations,
    seed) gives uint8 (n, 1, 32, 32), before training from random weights. The docstring says how, for people."""

    package, names = "", ()  # what it imports
    FEWER = "By the same sampler."  # how it draws with few evaluations
    NETWORK: ClassVar[dict] = {}  # its network's arguments
    BATCH = 128  # in a race
    network: nn.Module  # that samples

    def __init__(self, task: Task):
        self.task = task

    @classmethod
    def imported(cls) -> list:
        return [getattr(import_module(cls.package), name) for name in cls.names]

    def in_precision(self, network: nn.Module) -> nn.Module:
        """For bfloat16 as Accelerate does it, with which all three peers train: weights and outputs stay float32."""
        if self.task.precision == "float32":
            return network
        from accelerate import Accelerator

        return Accelerator(cpu=True, mixed_precision="bf16").prepare_model(network)

    @classmethod
    def described(cls) -> dict:
        """What a result says of where it comes from."""
        from mnist_ddpm.machine import hardware

        command = shlex.join(["python", "benchmarks/peers.py", *sys.argv[1:]])
        how = " ".join(cls.__doc__.split())
        return {"command": command, "processor": hardware("cpu"), "how": how, "network": cls.NETWORK}

    def networks(self) -> list[nn.Module]:
        """All that sampling evaluates."""
        return [self.network]

    def parameters(self) -> int:
        return sum(p.numel() for network in self.networks() for p in network.parameters())

    def memory(self) -> float:
        return peak_memory()

    def load(self, images: np.ndarray) -> None:
        self.steps = self.training(torch.from_numpy(images))

    def train(self, seconds: float) -> tuple[int, float]:
        """Steps done in about so many seconds, and how long they took; none where training has come to its end."""
        began, steps, end = time.perf_counter(), 0, object()
        while time.perf_counter() - began < seconds and next(self.steps, end) is not end:
            steps += 1
        return steps, time.perf_counter() - began

    def draw(self, n: int, evaluations: int, seed: int) -> tuple[np.ndarray, int, float]:
        """Images, the evaluations of the network that they took, and the seconds."""
        sizes, began = [], time.perf_counter()
        count = lambda _, inputs: sizes.append(len(inputs[0]))  # noqa: E731
        hooks = [network.register_forward_pre_hook(count) for network in self.networks()]
        with torch.no_grad():
            images = self.sample(n, evaluations, seed)
        for hook in hooks:
            hook.remove()
        return images.numpy(), sum(sizes), time.perf_counter() - began


class Ours(Contestant):
    """The preset mnist-fast: patches of 4×4, predicts x_0, Muon, P2's weights. Its training_loop; DPM-Solver++ with
    η = 1."""

    package = "mnist_ddpm"
    NETWORK: ClassVar[dict] = {"preset": "mnist-fast"}

    def __init__(self, task: Task):
        super().__init__(task)
        (self.ddpm, self.presets), changes = self.imported(), dict(self.NETWORK)
        self.settings = replace(self.presets.preset(changes.pop("preset")), **changes)
        self.schedule = self.ddpm.make_schedule(self.settings)
        self.network = self.denoiser(self.ddpm.make_model(self.settings).eval())

    @classmethod
    def imported(cls) -> list:
        return [import_module(f"{cls.package}.{name}") for name in ("ddpm", "presets")]

    def denoiser(self, network: nn.Module) -> nn.Module:
        return self.ddpm.make_denoiser(network, self.schedule, self.settings)

    def training(self, images: Tensor) -> Iterator:
        run = self.started(self.settings, self.task, images)
        self.network = self.denoiser(run.ema)
        yield from self.ddpm.training_loop(run, images, self.schedule)

    def started(self, settings, task: Task, images: Tensor):
        """A run with these settings, but for what the task says."""
        return self.ddpm.start_run(replace(
            settings, precision=task.precision, batch_size=task.batch, seed=task.seed,
            warmup_steps=task.warmup, epochs=task.steps / (len(images) // task.batch),
        ))  # fmt: skip

    def sample(self, n: int, evaluations: int, seed: int) -> Tensor:
        return self.drawn(self.network, n, evaluations, seed)

    def drawn(self, model, n: int, steps: int, seed: int) -> Tensor:
        return self.ddpm.generate(
            model, self.schedule, n, (1, 32, 32), sampler=self.ddpm.SAMPLERS["dpmpp"], eta=1.0, steps=steps,
            seed=seed, precision=self.task.precision, progress=False,
        )[0]  # fmt: skip


class OursIn2x2(Ours):
    """The preset mnist with P2's weights: patches of 2×2, predicts the noise, Muon. Its training_loop; DPM-Solver++
    with η = 1."""

    NETWORK: ClassVar[dict] = {"preset": "mnist", "objective": "p2"}


class OursGuided(OursIn2x2):
    """The preset mnist with P2's weights, and a guide, the preset mnist-small, which takes one step for ten of the
    other's (not counted as images trained). DPM-Solver++ with η = 1 and autoguidance, 1.5: half as many steps, since
    each evaluates both networks."""

    FEWER = "Without the guide."
    EVERY = 10  # steps of the network that is guided

    def __init__(self, task: Task):
        super().__init__(task)
        self.guide = self.presets.preset("mnist-small")
        self.weak = self.ddpm.make_model(self.guide).eval()

    def networks(self) -> list[nn.Module]:
        return [self.network, self.weak]

    def training(self, images: Tensor) -> Iterator:
        run = self.started(self.guide, replace(self.task, steps=max(1, self.task.steps // self.EVERY)), images)
        self.weak, steps = run.ema, self.ddpm.training_loop(run, images, self.schedule)
        for step in super().training(images):
            if step.step % self.EVERY == 0:
                next(steps, None)
            yield step

    def sample(self, n: int, evaluations: int, seed: int) -> Tensor:
        from mnist_ddpm.guidance import autoguided

        if evaluations <= FEW:
            return super().sample(n, evaluations, seed)
        return self.drawn(autoguided(self.network, self.weak, self.schedule, 1.5), n, evaluations // 2, seed)


class Lucidrains(Contestant):
    """Step as its Trainer's: Adam, clipped, EMA 0.995; predicts v. Rate 1e-3, and EMA in every step: with 8e-5 and EMA
    in every tenth, made for larger networks and days, little is learned in minutes. Its DDIM sampler with η = 1, and
    batches of 32, which in trials did better than its own η = 0, and than 128."""

    package, names = "denoising_diffusion_pytorch", ("GaussianDiffusion", "Unet")
    NETWORK: ClassVar[dict] = {"dim": 32, "dim_mults": (1, 1, 2, 4), "channels": 1, "flash_attn": True}
    BATCH = 32

    def __init__(self, task: Task):
        super().__init__(task)
        GaussianDiffusion, Unet = self.imported()
        self.network = self.in_precision(Unet(**self.NETWORK))
        self.diffusion = GaussianDiffusion(
            self.network, image_size=32, timesteps=1000, sampling_timesteps=250, ddim_sampling_eta=1.0
        )

    def training(self, images: Tensor) -> Iterator:
        from ema_pytorch import EMA

        diffusion = self.diffusion
        optimizer = torch.optim.Adam(diffusion.parameters(), lr=self.task.rate or 1e-3, betas=(0.9, 0.99))
        average = EMA(diffusion, beta=0.995, update_every=1)
        self.diffusion, self.network = average.ema_model, average.ema_model.model
        diffusion.train()
        for batch in self.task.batches(images):
            diffusion(batch.float() / 255).backward()
            nn.utils.clip_grad_norm_(diffusion.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            average.update()
            yield

    def sample(self, n: int, evaluations: int, seed: int) -> Tensor:
        torch.manual_seed(seed)
        self.diffusion.eval().sampling_timesteps = evaluations
        return (self.diffusion.sample(batch_size=n) * 255).clamp(0, 255).round().byte()


class Diffusers(Contestant):
    """As its train_unconditional.py --use_ema: AdamW, cosine, clipped. Learning rate 1e-3, as its course takes for
    MNIST; the script's 1e-4 is for a network forty times as large. 8 groups in a normalisation: its own 32 leave one
    channel to each, which hides from the network how bright an image is, and its digits are lost on white and grey."""

    package = "diffusers"
    names = "UNet2DModel", "DDPMScheduler", "DDPMPipeline"
    FEWER = "By its DPMSolverMultistepScheduler, sde-dpmsolver++, thresholding: as this project draws."
    NETWORK: ClassVar[dict] = {
        "sample_size": 32, "in_channels": 1, "out_channels": 1, "layers_per_block": 1, "norm_num_groups": 8,
        "block_out_channels": (32, 32, 64, 128),
        "down_block_types": ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    }  # fmt: skip

    def __init__(self, task: Task):
        super().__init__(task)
        UNet2DModel, DDPMScheduler, DDPMPipeline = self.imported()
        self.network = self.in_precision(UNet2DModel(**self.NETWORK)).eval()
        self.noise, self.average = DDPMScheduler(num_train_timesteps=1000), None
        self.pipeline = DDPMPipeline(self.network, self.noise)
        self.pipeline.set_progress_bar_config(disable=True)

    def training(self, images: Tensor) -> Iterator:
        from diffusers.optimization import get_scheduler
        from diffusers.training_utils import EMAModel

        task, network, rate = self.task, deepcopy(self.network).train(), self.task.rate or 1e-3
        optimizer = torch.optim.AdamW(network.parameters(), lr=rate, betas=(0.95, 0.999), weight_decay=1e-6)
        plan = get_scheduler("cosine", optimizer, num_warmup_steps=task.warmup, num_training_steps=task.steps)
        self.average = EMAModel(network.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
        for batch in islice(task.batches(images), task.steps):
            x0 = batch.float() / 127.5 - 1
            eps, t = torch.randn_like(x0), torch.randint(0, 1000, (len(x0),))
            F.mse_loss(network(self.noise.add_noise(x0, eps, t), t).sample, eps).backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            plan.step()
            optimizer.zero_grad()
            self.average.step(network.parameters())
            yield

    def few(self):
        """The scheduler for few evaluations, which a cold start does not import."""
        from diffusers import DPMSolverMultistepScheduler

        options = {"algorithm_type": "sde-dpmsolver++", "thresholding": True, "sample_max_value": 1.0}
        return DPMSolverMultistepScheduler.from_config(self.noise.config, **options)

    def sample(self, n: int, evaluations: int, seed: int) -> Tensor:
        if self.average:
            self.average.copy_to(self.network.parameters())
        self.pipeline.scheduler = self.few() if evaluations <= FEW else self.noise
        generator = torch.Generator().manual_seed(seed)
        images = self.pipeline(n, generator, num_inference_steps=evaluations, output_type="pt").images
        return (images * 255).round().byte()


class SmallDiffusion(Contestant):
    """As its example for FashionMNIST: its training_loop, AdamW, 7e-4, EMA 0.999. Its DDPM sampler, gam 1 and mu 0.5,
    which in a trial did better than the accelerated one."""

    package = "smalldiffusion"
    FEWER = "By its accelerated sampler, gam 2 and mu 0."
    names = "Unet", "Scaled", "ScheduleLogLinear", "training_loop", "samples", "img_normalize"
    NETWORK: ClassVar[dict] = {
        "in_dim": 32, "in_ch": 1, "out_ch": 1, "ch": 32, "ch_mult": (1, 1, 2, 4), "num_res_blocks": 1,
        "attn_resolutions": (16,),
    }  # fmt: skip

    def __init__(self, task: Task):
        super().__init__(task)
        from accelerate import Accelerator

        Unet, Scaled, ScheduleLogLinear, self.loop, self.samples, self.normalize = self.imported()
        self.accelerator = Accelerator(cpu=True, mixed_precision="no" if task.precision == "float32" else "bf16")
        self.network = self.in_precision(Scaled(Unet)(**self.NETWORK))
        self.schedule = ScheduleLogLinear(sigma_min=0.01, sigma_max=20, N=800)

    def training(self, images: Tensor) -> Iterator:
        model, task = self.network, self.task
        average = torch.optim.swa_utils.AveragedModel(  # with the decay of torch-ema, which the example uses
            model, avg_fn=lambda old, new, n: old.lerp(new, 1 - min(0.999, (1 + n.item()) / (10 + n.item())))
        )
        self.network = average.module
        loader = (batch.float() / 127.5 - 1 for batch in task.batches(images))
        for _ in self.loop(loader, model, self.schedule, self.accelerator, lr=task.rate or 7e-4):
            average.update_parameters(model)
            yield

    def sample(self, n: int, evaluations: int, seed: int) -> Tensor:
        torch.manual_seed(seed)
        sigmas = self.schedule.sample_sigmas(evaluations)
        gam, mu = (2.0, 0.0) if evaluations <= FEW else (1.0, 0.5)
        *_, x0 = self.samples(self.network, sigmas, gam=gam, mu=mu, batchsize=n, accelerator=self.accelerator)
        return (self.normalize(x0) * 255).round().byte()


CONTESTANTS: dict[str, type[Contestant]] = {
    "mnist-ddpm": Ours, "denoising-diffusion-pytorch": Lucidrains, "diffusers": Diffusers,
    "smalldiffusion": SmallDiffusion, "mnist-ddpm-2x2": OursIn2x2, "mnist-ddpm-guided": OursGuided,
}  # fmt: skip
PEERS = [name for name, contestant in CONTESTANTS.items() if contestant.package != Ours.package]
PACKAGES = "torch", "numpy", "torchmetrics", "accelerate"  # and those of the contestants at work
SPAWN = multiprocessing.get_context("spawn")


def leave_with_parent() -> None:
    """Ends this process when the one that started it is gone, even killed."""
    multiprocessing.parent_process().join()
    os._exit(1)


def begin(task: Task, threads: int) -> None:
    """In a new process, which leaves Ctrl-C to the one that started it."""
    global contestant
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=leave_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    torch.manual_seed(task.seed)
    contestant = CONTESTANTS[task.name](task)


def answer(question: str, *values: object) -> object:
    return getattr(contestant, question)(*values)


def ask(worker: ProcessPoolExecutor, question: str, *values: object):
    """Has the contestant in a process do something, and waits for what it returns."""
    return worker.submit(answer, question, *values).result()


def hire(task: Task, threads: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, SPAWN, begin, (task, threads))


def first_image(task: Task, threads: int, evaluations: int, began: float) -> list[float]:
    """Seconds from the start of a fresh process: of the import, PyTorch's included, of building, of drawing one."""
    CONTESTANTS[task.name].imported()
    imported = time.time()
    begin(task, threads)
    built = time.time()
    contestant.sample(1, evaluations, task.seed)
    return [imported - began, built - imported, time.time() - built]


def table(titles: list[str], rows: Iterable[Iterable[object]]) -> None:
    for cells in (titles, ["---"] * len(titles), *rows):
        print(f"| {' | '.join(map(str, cells))} |")


def cell(values: list[float]) -> str:
    """The median and, of several, the range."""
    return f"{median(values):.4g}" + (f" ({min(values):.4g}–{max(values):.4g})" if len(values) > 1 else "")


def mnist(split: str = "train") -> np.ndarray:
    from mnist_ddpm import ddpm

    return ddpm.load_images(ddpm.Settings(), ROOT / "data", split).numpy()


SPEEDS = TRAINING, SAMPLING = "training, images/s", "sampling, network evaluations/s"
COSTS = TRAINING_MEMORY, SAMPLING_MEMORY, FIRST = "training, MB", "sampling, MB", "first image, s"
FIGURES = *SPEEDS, *COSTS


def ratio(ours: dict[str, float], theirs: dict[str, float]) -> dict[str, float]:
    """How many times faster or smaller."""
    return {name: (ours[name] / theirs[name]) ** (1 if name in SPEEDS else -1) for name in FIGURES}


def measure(a: argparse.Namespace, card: dict) -> None:
    """Speed, memory and the time to a first image, of each contestant in both precisions."""
    rows = {f"{name}, {p}": Task(name, p, a.batch, a.seed, a.rate) for name in a.only for p in PRECISIONS}
    workers = {row: hire(task, a.threads) for row, task in rows.items()}
    # all start before this process imports more: Linux counts a parent's peak memory as its child's
    parameters = {row: ask(worker, "parameters") for row, worker in workers.items()}
    found = {
        row: CONTESTANTS[rows[row].name].described() | {"parameters": parameters[row], "starts": []} for row in rows
    }
    from mnist_ddpm import ddpm, evaluation

    images, order, values = mnist(), list(rows), {row: {name: [] for name in FIGURES} for row in rows}
    with ddpm.progress_bar(total=(1 + a.rounds + a.starts) * len(rows), desc="measuring", unit="turn") as bar:
        for turn in range(1 + a.rounds):
            for row in order[turn % len(rows) :] + order[: turn % len(rows)]:
                worker = workers[row]
                _, evaluations, drawing = ask(worker, "draw", a.n, a.evaluations[0], a.seed + turn)
                if turn == 0:
                    values[row][SAMPLING_MEMORY].append(ask(worker, "memory"))
                    ask(worker, "load", images)
                steps, training = ask(worker, "train", a.seconds)
                if turn > 0:
                    values[row][TRAINING].append(steps * a.batch / training)
                    values[row][SAMPLING].append(evaluations / drawing)
                    found[row]["evaluations per image"] = evaluations / a.n
                bar.update()
        for row, worker in workers.items():
            values[row][TRAINING_MEMORY].append(ask(worker, "memory"))
            worker.shutdown()
        for row in order * a.starts:
            with ProcessPoolExecutor(1, SPAWN) as worker:
                parts = worker.submit(first_image, rows[row], a.threads, a.evaluations[0], time.time()).result()
            found[row]["starts"].append(dict(zip(("import", "build", "draw"), parts)))
            values[row][FIRST].append(sum(parts))
            bar.update()
    medians = {row: {name: median(values[row][name]) for name in FIGURES} for row in rows}
    lines = []
    for row in rows:
        found[row] |= {"medians": medians[row], "values": values[row]}
        parts = zip(*(start.values() for start in found[row]["starts"]))
        cells = [f"{found[row]['parameters']:,}", *(cell(values[row][name]) for name in FIGURES)]
        lines.append([row, *cells, " + ".join(f"{median(part):.2f}" for part in parts)])
    table(["contestant", "parameters", *FIGURES, "of it import + build + draw"], lines)
    peers, ratios = [row for row in rows if rows[row].name in PEERS], {}
    for ours in [row for row in rows if peers and row not in peers]:
        each = {peer: ratio(medians[ours], medians[peer]) for peer in peers}
        ratios[ours] = {"the best peer": {name: min(r[name] for r in each.values()) for name in FIGURES}} | each
        print(f"\nHow many times faster or smaller {ours} is:")
        table(["than", *FIGURES], [[row, *(f"{x:.2f}" for x in r.values())] for row, r in ratios[ours].items()])
    evaluation.write_card(a.out, card | {"rows": found, "ratios": ratios})


def compete(name: str, images: np.ndarray, a: argparse.Namespace) -> tuple[dict, dict[int, tuple[float, Tensor]]]:
    """Trains a contestant for the time, and draws. Returns what it did, and by the number of evaluations that was
    asked for, how many an image took, and the images."""
    from mnist_ddpm import ddpm

    paces, batch = {}, a.batch or CONTESTANTS[name].BATCH
    for task in [Task(name, precision, batch, a.seed, a.rate) for precision in PRECISIONS]:
        with hire(task, a.threads) as worker:
            ask(worker, "load", images)
            ask(worker, "train", a.seconds / 4)  # warm-up
            steps, seconds = ask(worker, "train", a.seconds)
            paces[task] = steps / seconds
    task, limit, steps, spent = max(paces, key=paces.get), 60 * a.race, 0, 0.0
    task = replace(task, steps=max(1, round(SPARE * limit * paces[task])))
    drawn = {}
    with hire(task, a.threads) as worker:
        ask(worker, "load", images)
        with ddpm.progress_bar(total=round(limit), desc=f"{name}, training", unit="s") as bar:
            while spent < limit:
                done, seconds = ask(worker, "train", min(2.0, limit - spent))
                if not done:
                    break  # its learning rate has come to its end
                steps, spent = steps + done, spent + seconds
                bar.update(min(round(spent), bar.total) - bar.n)
        for evaluations in a.evaluations:
            parts, taken = [], 0
            for first in ddpm.progress_bar(range(0, a.n, PART), desc=f"{name}, drawing", unit="part"):
                part, counted, _ = ask(worker, "draw", min(PART, a.n - first), evaluations, 10_000 * a.seed + first)
                parts, taken = [*parts, part], taken + counted
            drawn[evaluations] = taken / a.n, torch.from_numpy(np.concatenate(parts))
    row = CONTESTANTS[name].described() | {
        "precision": task.precision, "batch": batch, "images trained": steps * batch, "seconds": round(spent, 1),
        "steps": steps, "steps planned": task.steps,
    }  # fmt: skip
    return row, drawn


def outdated(name: str, row: dict) -> bool:
    """Whether a race was run with other settings than the contestant has now."""
    now = CONTESTANTS[name].described() if name in CONTESTANTS else {}
    return any(row.get(key) != json.loads(json.dumps(now[key])) for key in ("how", "network") if key in now)


def race(a: argparse.Namespace, card: dict) -> None:
    """Equal time for all; then the distances of what they draw to all training images. Each further number of
    evaluations is a row of its own."""
    import imageio.v3 as imageio

    from mnist_ddpm import ddpm, evaluation, extractors

    torch.set_num_threads(a.threads)
    images, judge = mnist(), extractors.pick_judge(str(ROOT / extractors.FOLDER / "mnist.safetensors"), "mnist")
    rows = card.setdefault("rows", {})
    missing = [name for name in ("real, unseen", *a.only) if name not in rows or outdated(name, rows[name])]
    reference = judge.features(torch.from_numpy(images)) if missing else None
    card |= {"extractor": judge.name, "reference": f"{len(images)} training images"}

    def judged(drawn: Tensor) -> dict:
        metrics = evaluation.distances(reference, judge.features(drawn), a.seed)
        return {"metrics": {metric: estimate._asdict() for metric, estimate in metrics.items()}}

    for name in missing:
        if name not in CONTESTANTS:  # the best that one can hope for, with so many images
            rows[name] = judged(torch.from_numpy(np.random.default_rng(a.seed).permutation(mnist("test"))[: a.n]))
            continue
        row, drawn = compete(name, images, a)
        for evaluations, (taken, of_it) in drawn.items():
            again = evaluations != a.evaluations[0]
            few = {"drawn": CONTESTANTS[name].FEWER} if evaluations <= FEW else {}
            about = ({} if again else row) | few | {"evaluations per image": taken}
            rows[f"{name}, {evaluations} evaluations" if again else name] = about | judged(of_it)
            picture = f"{a.out.stem}-{name}" + (f"-{evaluations}" if again else "")
            imageio.imwrite(a.out.with_name(f"{picture}.png"), ddpm.tile(of_it[:100], 10))
        evaluation.write_card(a.out, card)
    scores = {row: [evaluation.Estimate(**e) for e in rows[row]["metrics"].values()] for row in rows}
    best = min((scores[row][0].value for row in scores if row in PEERS), default=float("nan"))
    did, metrics = ("precision", "images trained", "seconds"), rows["real, unseen"]["metrics"]
    table(["contestant", *did, *(m.replace("_", " ") for m in metrics), "the first / the best peer's"], [
        [row, *(rows[row].get(key, "") for key in did), *scores[row], f"{scores[row][0].value / best:.3f}"]
        for row in rows
    ])  # fmt: skip


def peak_memory() -> float:
    """The most that this process has held so far, in MB."""
    import resource  # here, since Windows has none, and other scripts use this one there

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--race", type=float, metavar="MINUTES", help="of training for each, instead of the speeds")
    parser.add_argument(
        "--only", nargs="+", choices=CONTESTANTS, default=["mnist-ddpm", *PEERS], metavar="NAME",
        help=f"of {', '.join(CONTESTANTS)}; all but the last two unless given",
    )  # fmt: skip
    parser.add_argument("--n", type=int, help="images drawn: 64 in each round, 2000 in a race")
    parser.add_argument(
        "--evaluations", type=int, nargs="+", default=[50], help="of the network, for each image; a race takes several"
    )
    parser.add_argument("--rounds", type=int, default=5, help="that count")
    parser.add_argument("--starts", type=int, default=3, help="of fresh processes, each to its first image")
    parser.add_argument("--seconds", type=float, default=20, help="of training in a round, or to learn a race's pace")
    parser.add_argument("--batch", type=int, help="of training: 128, but in a race each contestant's own")
    parser.add_argument("--rate", type=float, help="learning rate of every peer, instead of its own")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file, in benchmarks/results unless given")
    a = parser.parse_args()
    numbers = [value for key, value in vars(a).items() if key not in ("only", "seed", "out", "evaluations")]
    numbers += a.evaluations
    if len(a.evaluations) > 1 and not a.race:
        parser.error("several numbers of --evaluations are for a --race")
    if a.seed < 0 or any(value is not None and value <= 0 for value in numbers):
        parser.error("only --seed may be 0, and nothing below it")
    a.n = a.n or (2000 if a.race else 64)
    a.batch = a.batch or (None if a.race else Contestant.BATCH)
    a.out = a.out or ROOT / "benchmarks" / "results" / (f"race-{a.race:g}.json" if a.race else "peers.json")
    missing = [name for name in a.only if find_spec(CONTESTANTS[name].package) is None]
    if missing:
        sys.exit(f"not installed: {', '.join(missing)}; pip install -r benchmarks/requirements-peers.txt")
    os.environ["TQDM_DISABLE"] = "1"  # in the contestants' processes
    settings = {key: value for key, value in vars(a).items() if key not in ("only", "out")}
    settings["evaluations"] = a.evaluations if len(a.evaluations) > 1 else a.evaluations[0]
    try:
        a.out.parent.mkdir(parents=True, exist_ok=True)
        if a.out.is_dir() or not os.access(a.out.parent, os.W_OK):  # not by mnist_ddpm, which must not be imported yet
            sys.exit(f"{a.out} cannot be written: name a JSON file")
        card = json.loads(a.out.read_text(encoding="utf-8")) if a.race and a.out.exists() else {}
        if card.get("settings", settings) != settings:
            sys.exit(f"{a.out} holds a race with other settings: name another --out")
        names = [*PACKAGES, *(name for name in a.only if name in PEERS)]
        card |= {
            "settings": settings, "python": platform.python_version(),
            "versions": card.get("versions", {}) | {name: metadata.version(name) for name in names},
        }  # fmt: skip
        (race if a.race else measure)(a, card)
    except KeyboardInterrupt:
        sys.exit("stopped: the same command goes on with a race, and begins anew with anything else")
    except (OSError, ValueError, BrokenProcessPool) as error:
        sys.exit(str(error))
    print(f"written to {a.out}")


if __name__ == "__main__":
    main()
