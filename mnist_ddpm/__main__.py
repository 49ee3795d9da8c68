"""The command line: `python -m mnist_ddpm train`, `sample`, `likelihood`, `evaluate` …, each with `--help`."""

import inspect
import io
import json
import math
import os
import shlex
import sys
import time
import zipfile
import zlib
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import imageio.v3 as imageio
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import torch
import tyro
from PIL import Image

from mnist_ddpm import (
    ddpm,
    evaluation,
    extractors,
    guidance,
    image_folder,
    inpainting,
    likelihood,
    machine,
    planning,
    presets,
    processes,
    resumable,
    runs,
    schedules,
    solvers,
)
from mnist_ddpm.diffusers_weights import pretrained

Spacing = Literal[tuple(ddpm.SPACINGS)]
Variance = Literal["auto", "posterior", "beta", "learned"]
# Flags on which neither the images that are drawn nor their bound depend (of --data, what it holds counts), and those
# that name files
ELSEWHERE = "out", "data", "bits", "extractor", "dataset", "command", "processes", "batch_size", "device"
FILES = "checkpoint", "guide", "init_image", "mask"


@dataclass(frozen=True)
class TrainingFlags(ddpm.Settings):
    """What to train, and how."""

    def __post_init__(self):
        pass  # checked in Train.run, where an error is one line


@dataclass
class Train:
    """Train a noise predictor and save it as a checkpoint.

    Progress shows the time left. The checkpoint is saved after every epoch (at least some 50 steps and a few seconds
    apart), every five minutes, and on Ctrl-C.

    Example: python -m mnist_ddpm train --dataset mnist --epochs 48 --out checkpoints/mine
    """

    flags: tyro.conf.OmitArgPrefixes[TrainingFlags] = field(
        default_factory=lambda: TrainingFlags(**presets.PRESETS[Train.preset])
    )
    preset: Literal[tuple(presets.PRESETS)] = "mnist"  # settings that belong together: a new run's defaults
    out: Path = Path("checkpoints/mine")  # folder for the checkpoint and its preview grids
    resume: bool = False  # go on with the run in --out; its settings become the defaults of all other flags
    data: Path = Path("data")  # folder that holds the data sets known by name
    device: str = "auto"  # cpu, cuda, cuda:1, mps; auto picks the best available
    processes: int = 0  # processes expected, each on its device, from torchrun or accelerate launch; 0: any number

    def defaults(self) -> TrainingFlags:
        """What --resume, or else --preset and --init-from, make the defaults of the other flags."""
        if self.resume:
            if self.preset != Train.preset:
                raise ValueError("a resumed run has settings of its own: leave out --preset")
            return TrainingFlags(**asdict(runs.load_state(self.out)[1]))
        labels = presets.dataset(self.preset, self.flags.dataset) in guidance.LABELS
        started = pretrained(self.flags.init_from, labels)[0] if self.flags.init_from else {}
        return TrainingFlags(**{**presets.PRESETS[self.preset], **started})

    def settle(self, start: TrainingFlags, told: set[str]) -> None:
        """Takes back the defaults that other flags have made void.

        Raises ValueError for flags of no use to a new run, or that a resumed one cannot change.

        start: what defaults() gave. told: names of the flags that were given.
        """
        self.flags = replace(self.flags, **presets.made_void(asdict(self.flags), asdict(start), told))
        if self.resume:
            runs.check_changes(ddpm.Settings(**asdict(start)), ddpm.Settings(**asdict(self.flags)), self.out)
            return
        if "label_dropout" in told and not (self.flags.classes or self.flags.attributes):
            raise ValueError("--label-dropout hides labels, and there are none: leave it out, or see --classes")
        if told & {"beta_1", "beta_T"} and self.flags.schedule in ("cosine", "cosine-zero-snr"):
            raise ValueError(f"schedule {self.flags.schedule} has betas of its own: leave out --beta-1 and --beta-T")

    def run(self) -> None:
        settings = ddpm.Settings(**asdict(self.flags))
        if self.resume:
            moved(settings, None)
        else:
            runs.must_be_free(self.out)
            apart(self.out, settings.dataset)
        world = processes.connect(self.processes, self.device == "cpu")
        device = machine.pick_device(self.device, world)
        processes.check_batch(settings.batch_size, world)
        with processes.one_first(world):
            guidance.check_labelled(settings, self.data)
        ddpm.make_schedule(settings)  # what is no method, network or place is told now, not after images are decoded
        ddpm.make_objective(settings)
        ddpm.look_up("optimizer", settings.optimizer, ddpm.OPTIMIZERS)
        with torch.device("meta"):
            network = ddpm.make_model(settings)
        machine.check_precision(settings.precision, device)
        resumable.writable_folder(self.out)
        weights = None
        if settings.init_from and not self.resume:
            weights = pretrained(settings.init_from, settings.classes > 0)[1]
            ddpm.load_weights(network.state_dict(), weights, settings.init_from)  # on meta: compares, and no more
        with processes.one_first(world):
            images = ddpm.load_images(settings, self.data)
            labels = guidance.load_labels(settings, self.data) if settings.classes else None
        run = processes.train(settings, images, self.out, labels, self.resume, weights, device=device, world=world)
        pace = run.step * settings.batch_size / max(run.seconds, 1e-9)
        if world.rank == 0:
            print(f"{self.out}: {run.step} steps in {run.seconds / 60:.1f} min, {pace:.0f} images/s")


def places(command: "Train | Plan") -> list[str]:
    """The flags of train for the same folders and device."""
    differ = [name for name in ("out", "data", "device") if getattr(command, name) != getattr(Train, name)]
    return [part for name in differ for part in (f"--{name}", str(getattr(command, name)))]


@dataclass
class Plan:
    """Train as well as this machine can in the time you have, after measuring it for a few seconds.

    Preset, precision, batch size and epochs are chosen and printed, with the time they should take. Digits are trained
    with P2's loss weights. With --guide a worse network is trained, too, in the same time: to keep away from it when
    sampling about halves the distance to real digits (benchmarks/README.md).

    Example: python -m mnist_ddpm plan --minutes 10 --dataset celeba --out checkpoints/faces
    """

    minutes: float = 10.0  # for measuring and training; decoding a data set, the first time, is not counted
    dataset: str = "mnist"  # mnist, celeba, ffhq, or a folder of images
    channels: int | None = None  # 1 grey, 3 colour; None: 1 for mnist, 3 for all else
    classes: int = 0  # 10 trains with MNIST's labels
    attributes: tuple[str, ...] = ()  # of celeba, as labels, such as Smiling Male
    seed: int = 0  # of weights, data order, times and noise
    guide: bool = False  # of digits: also train a guide for sample, in the folder guide of --out
    dry_run: bool = False  # only say what would be done
    out: Path = Path("checkpoints/mine")  # folder for the checkpoint and its preview grids
    data: Path = Path("data")  # folder that holds the data sets known by name
    device: str = "auto"  # cpu, cuda, cuda:1, mps; auto picks the best available

    def run(self) -> None:
        device = machine.pick_device(self.device)
        if self.guide:
            planning.check_guided(self.dataset)
        folders = [self.out, self.out / "guide"] if self.guide else [self.out]
        if not self.dry_run:
            for folder in folders:
                runs.must_be_free(folder)
            resumable.writable_folder(self.out)
        asked = ddpm.Settings(**{name: getattr(self, name) for name in planning.KEPT})
        ddpm.look_up_data_set(self.dataset)
        apart(self.out, self.dataset)
        guidance.check_labelled(asked, self.data)
        load = partial(ddpm.load_images, root=self.data)
        plan, images = planning.make_plan(asked, load, 60 * self.minutes, device)
        plans = planning.with_guide(plan, len(images), folders[1], device) if self.guide else [plan]
        labels = guidance.load_labels(plan.settings, self.data) if plan.settings.classes else None
        for self.out, each in zip(folders, plans):
            print("\n".join(each.lines(places(self))), flush=True)
        if self.dry_run:
            return
        for self.out, each in zip(folders, plans):  # the one to resume, where it is stopped
            began = time.monotonic()
            run = processes.train(each.settings, images, self.out, labels, deadline=each.deadline, device=device)
            took, expected = (time.monotonic() - began) / 60, each.seconds / 60
            print(f"{self.out}: {run.step} steps in {took:.1f} min ({expected:.1f} expected)")


@dataclass
class Drawing:
    """How to draw images with a checkpoint."""

    checkpoint: Path = Path("checkpoints/mnist")  # folder that training wrote
    n: int = 64  # number of images
    sampler: Literal[tuple(ddpm.SAMPLERS)] | None = None  # ddpm is ancestral sampling; None: ddim
    steps: int = 50  # sampling steps, 1 to T: one network evaluation each; heun doubles that, and so does guidance
    spacing: Spacing = "trailing"  # how the steps' times are spaced
    eta: float | None = None  # noise added by ddim and dpmpp: 0 none, 1 as much as ddpm; None: 0
    variance: Variance = "auto"  # of ddpm's steps; auto: learned where the network has learned it, else posterior
    clip: Literal["static", "dynamic", "none"] = "static"  # how the predicted image is clipped to the pixel range
    label: tuple[int, ...] = ()  # labels to draw, in turn; by default all (evaluate: drawn at random from training's)
    guidance: float | None = None  # 0 ignores labels, 1 follows them, more exaggerates them; None: 1, or 2 with --guide
    guidance_interval: tuple[int, int] | None = None  # guide only at times above the first, up to the second, at most T
    guide: Path | None = None  # a worse checkpoint to steer away from: not at --guidance 1, the more the higher it is
    seed: int = 0  # image k depends on seed and k alone
    batch_size: int = 256  # images made at once; lower it if memory runs out; films show some of the first batch
    precision: Literal["float32", "bfloat16", "float16"] = "float32"  # of the network
    compile: bool = False  # use torch.compile on the network: a minute or two, worth it for many images and steps
    device: str = "auto"  # cpu, cuda, cuda:1, mps; auto picks the best available
    processes: int = 0  # processes expected, each on its device, from torchrun or accelerate launch; 0: any number

    def connect(self) -> tuple[runs.World, torch.device]:
        """The processes that share the work, and this one's device. Raises ValueError if flags do not fit."""
        for name in ("n", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 1")
        if not abs(self.scale) <= 1e6:
            raise ValueError(f"guidance is {self.scale}: it must be a number up to a million")
        world = processes.connect(self.processes, self.device == "cpu")
        device = machine.pick_device(self.device, world)
        machine.check_precision(self.precision, device)
        return world, device

    @property
    def scale(self) -> float:
        """The guidance scale, for labels or a guide."""
        return self.guidance if self.guidance is not None else 2.0 if self.guide else 1.0

    def check_labels(self, settings: ddpm.Settings) -> None:
        """Raises ValueError for a label or a guidance that the network does not know."""
        classes = settings.classes
        if not classes and (self.label or (self.guidance is not None and not self.guide)):
            raise ValueError(
                f"{self.checkpoint} was trained without labels: --label needs a checkpoint with them (train --classes "
                "10), and --guidance needs one too, or a --guide"
            )
        wrong = [label for label in self.label if not 0 <= label < classes]
        if wrong:
            raise ValueError(f"label {wrong[0]} is not one of {self.checkpoint}'s 0 to {classes - 1}")
        if guidance.always_told(settings) and self.scale != 1 and not self.guide:
            raise ValueError(
                f"{self.checkpoint} was always told its label (label_dropout 0): use --guidance 1, or a --guide"
            )

    def check_interval(self, times: list[int], settings: ddpm.Settings) -> None:
        """Raises ValueError for an interval of guidance that is none, or in which nothing would be guided."""
        if not self.guidance_interval:
            return
        if self.scale == 1:
            able = self.guide or (settings.classes and not guidance.always_told(settings))
            advice = "set --guidance to other than 1" if able else "name a --guide, or a checkpoint with labels"
            raise ValueError(f"--guidance-interval is of no use where nothing guides: {advice}")
        (low, high), T = self.guidance_interval, settings.T
        if not 0 <= low < high <= T:
            raise ValueError(f"--guidance-interval {low} {high} must be two rising times from 0 to T = {T}")
        if not any(low < t <= high for t in times):
            raise ValueError(f"none of the {len(times)} times sampled is in --guidance-interval {low} {high}")

    def control(
        self, model: resumable.Counted, schedule: ddpm.Schedule, settings: ddpm.Settings, device: torch.device
    ) -> tuple[ddpm.Model, torch.Tensor | None]:
        """The model under guidance, and the labels (n,). Raises ValueError for a guide that does not fit."""
        labels = self.labels(settings) if settings.classes else None
        guided = guidance.guided(model, self.scale) if settings.classes else model
        if self.guide:
            weak = self.load_guide(model, device, schedule, settings)
            guided = guidance.autoguided(model, weak, schedule, self.scale)
        if self.guidance_interval:
            guided = guidance.within(self.guidance_interval, guided, model)
        return guided, labels

    def labels(self, settings: ddpm.Settings) -> torch.Tensor:
        """Those to draw, (n,): in turn."""
        turn = torch.tensor(self.label or range(settings.classes))
        return turn[torch.arange(self.n) % len(turn)]

    def load_guide(
        self, counted: resumable.Counted, device: torch.device, schedule: ddpm.Schedule, settings: ddpm.Settings
    ) -> ddpm.Model:
        """The guide, whose evaluations count too. Raises ValueError where it is for other images, or other noise."""
        model, its_schedule, about = load_model(self, self.guide, device)
        for name in ("image_size", "channels", "classes", "attributes", "T"):
            ours, theirs = getattr(settings, name), getattr(about, name)
            if ours != theirs:
                raise ValueError(
                    f"{self.guide} cannot guide {self.checkpoint}: its {name} is {theirs}, and should be {ours}"
                )
        if not torch.equal(its_schedule.alpha_bar, schedule.alpha_bar):
            raise ValueError(
                f"{self.guide} cannot guide {self.checkpoint}: train it with the same --schedule, --beta-1 and --beta-T"
            )

        def weak(xt: torch.Tensor, t: torch.Tensor, **labels) -> torch.Tensor | ddpm.Prediction:
            counted.evaluations += len(xt)
            return model(xt, t, **labels)

        return weak

    def sampling(self, settings: ddpm.Settings, unless_told: str = "ddim") -> dict:
        """The sampler, and what to tell it, for generate. Raises ValueError for flags that do not go together."""
        name, variance = self.sampler or unless_told, pick_variance(self.variance, settings)
        parameters = inspect.signature(ddpm.SAMPLERS[name]).parameters
        own = {key: it.default for key, it in parameters.items() if it.default is not it.empty}
        if self.variance == "auto" and own.get("variance", "posterior") != "posterior":  # a sampler's that is yours
            variance = own["variance"]
        eta = own.get("eta", 0.0) if self.eta is None else self.eta
        clip = {"static": own.get("clip", True), "none": False, "dynamic": solvers.dynamic_threshold()}[self.clip]
        taken = ddpm.options_of(ddpm.SAMPLERS[name], eta=eta, variance=variance, clip=clip)
        for flag in ("eta", "variance", "clip"):
            if flag not in taken and getattr(self, flag) != getattr(Drawing, flag):  # the class has the defaults
                raise ValueError(f"{name} takes no --{flag}: leave it out, or choose another --sampler")
        times = ddpm.timesteps(settings.T, self.steps, self.spacing)
        return {"sampler": ddpm.SAMPLERS[name], "precision": self.precision, "steps": times} | taken


@dataclass
class Sample(Drawing):
    """Draw images with a checkpoint and save them as pictures and as an array.

    Writes samples.png (a grid, of the first 400 at most), steps.png (from noise to image), generation.gif,
    predicted_x0.gif, and samples.npz (array "images", uint8, N x H x W x C).

    Example: python -m mnist_ddpm sample --checkpoint checkpoints/mnist --n 64 --steps 50 --out out
    """

    out: Path = Path("images&samples/latest")  # folder for the results
    init_image: Path | None = None  # start from this image, partly noised (or with --mask: fill it in)
    strength: float = 0.5  # how far --init-image is noised: near 0 hardly, 1 beyond recognition
    mask: Path | None = None  # of --init-image's size: white stays, black is filled in (RePaint)
    resamples: int = 10  # times that RePaint walks its steps; 1 is plain replacement

    def run(self) -> None:
        world, device = self.connect()
        network, schedule, settings = load_model(self, self.checkpoint, device)
        counted = resumable.Counted(network)
        kept = keeping(self, self.out / "samples.npz", counted, device)
        self.check_labels(settings)
        options = self.starting_image(settings, device) if self.init_image else self.sampling(settings)
        self.check_interval(options["steps"], settings)
        model, labels = self.control(counted, schedule, settings, device)
        if self.mask and not self.init_image:
            raise ValueError("--mask needs the image that it belongs to: give --init-image too")
        if self.strength != Sample.strength and (self.mask or not self.init_image):
            raise ValueError("--strength is for an --init-image without a --mask: leave it out")
        if self.resamples != Sample.resamples and not self.mask:
            raise ValueError("--resamples is for filling in what a --mask hides: leave it out, or give one")
        out = resumable.writable_folder(self.out)
        columns = 6 if settings.image_size <= 32 else 4  # of the films, and rows: noise makes large files
        with kept.stoppable():
            images, film = processes.generate(
                world, model, schedule, self.n, settings.shape, draw=partial(resumable.generate, kept),
                seed=self.seed, batch_size=self.batch_size, labels=labels, film=columns**2, device=device, **options,
            )  # fmt: skip
        if world.rank > 0:
            return
        with resumable.replacing(out / "samples.npz") as path, path.open("wb") as file:
            np.savez_compressed(file, images=images.permute(0, 2, 3, 1).numpy())
        shown = images[:400]
        imageio.imwrite(out / "samples.png", ddpm.tile(shown, math.ceil(math.sqrt(len(shown))), scale=2))
        strip = ddpm.draw_strip(film)
        strip.savefig(out / "steps.png", dpi=110)
        plt.close(strip)
        ddpm.save_gif(out / "generation.gif", film, columns=columns)
        ddpm.save_gif(out / "predicted_x0.gif", film, predicted=True, columns=columns)
        kept.discard()
        each = kept.evaluations / len(world.share(self.n))
        print(f"{out}: {self.n} images x {each:.0f} network evaluations in {kept.seconds:.1f} s on {device}")
        if settings.attributes:
            names = enumerate(guidance.label_names(settings))
            print("labels: " + ", ".join(f"{label} {name}" for label, name in names))

    def starting_image(self, settings: ddpm.Settings, device: torch.device) -> dict:
        """As sampling, with --init-image, and --mask if given."""
        options = self.sampling(settings, "ddpm" if self.mask else "ddim")
        image, mask = read_image(self.init_image, self.mask, settings)
        if mask is None:
            if not 0 < self.strength <= 1:
                raise ValueError(f"strength is {self.strength}: it must be above 0, and at most 1")
            last = max(1, round(self.strength * settings.T))
            times = ddpm.timesteps(last, min(self.steps, last), self.spacing)
            start = inpainting.started_from(image.to(device), options["sampler"])
            return options | {"sampler": start, "steps": times}
        if options["sampler"] is not ddpm.ddpm_sampler:
            raise ValueError(f"--mask is for ancestral sampling: leave out --sampler {self.sampler}")
        known = {"known": image.to(device), "mask": mask.to(device), "resamples": self.resamples}
        return options | known | {"sampler": inpainting.repaint_sampler}


@dataclass
class Evaluate(Drawing):
    """Judge images: print a card of figures, beside what real images would score, and write it as JSON.

    Beside it, …-closest.png shows the images nearest to training images, each above its nearest one.

    Without --images it draws them, rounded to 8 bits as in a file. The reference is the checkpoint's training images.
    Distances, precision and recall are computed from the features of a network in checkpoints/extractors.

    Example: python -m mnist_ddpm evaluate --checkpoint checkpoints/mnist --n 10000 --sampler dpmpp --steps 20
    """

    n: int = 10_000  # number of images
    images: Path | None = None  # judge these: a folder of pictures, or a samples.npz of the sample command
    bits: int = 0  # also measure the bound in bits/dim, on so many held-out images; 0: do not
    extractor: str = "auto"  # a file, or "inception" for comparisons with papers; auto: the data set's own
    out: Path = Path("images&samples/latest/card.json")  # file for the card
    dataset: str | None = None  # where the folder of training images is now, if it has moved
    data: Path = Path("data")  # folder that holds the data sets known by name
    command: tyro.conf.Suppress[str] = ""  # that was given, for the card

    def run(self) -> None:
        how = (
            "sampler", "steps", "spacing", "eta", *(() if self.bits else ("variance",)), "clip", "label", "guidance",
            "guidance_interval", "guide", "precision",
        )  # fmt: skip
        idle = [name for name in how if self.images and getattr(self, name) != getattr(Drawing, name)]
        if idle:
            flags = " and ".join(f"--{name.replace('_', '-')}" for name in idle)
            raise ValueError(f"the images in {self.images} are drawn already: leave out {flags}")
        world, device = self.connect()
        model, schedule, settings = load_model(self, self.checkpoint, device)
        settings = moved(settings, self.dataset)
        resumable.writable_file(self.out)
        apart(self.out, settings.dataset)
        if self.images and not holds_samples(self.images):
            apart(self.out, self.images)
        signed = extractors.digest((self.checkpoint / "model.safetensors").read_bytes())
        if self.bits and self.bits < 2:  # what cannot be done is told before images are read
            raise ValueError(f"--bits is {self.bits}: a standard error needs at least 2 images")
        if self.bits and guidance.always_told(settings):
            raise ValueError("--bits needs a network that can do without its labels: leave it out")
        if not self.images:
            self.check_labels(settings)
            self.check_interval(self.sampling(settings)["steps"], settings)
        judge = extractors.pick_judge(self.extractor, settings.dataset, device, settings.image_size)
        judge = replace(judge, share=partial(processes.shared, world))
        with processes.one_first(world):
            training, held_out = real_images(settings, self.data)
            given = read_images(self.images, settings, self.data) if self.images else None
        n, least = self.n if given is None else min(self.n, len(given)), evaluation.NEIGHBOURS + 1
        if min(n, len(training) // 2) < least:
            enough = f"{least} images and {2 * least} of the training set"
            raise ValueError(f"a card needs {enough} at least, and there are {n} and {len(training)}")
        if held_out is not None and len(held_out) < least:
            held_out = None  # too few to tell anything
        judge.features(training[: world.size])  # says now where it is not for such images
        if self.bits and held_out is None:
            raise ValueError("--bits needs held-out images, of which there are none: leave it out")
        real = [extractors.digest(images) for images in (training, held_out) if images is not None]
        kept = keeping(self, self.out, resumable.Counted(model), device, *real)
        with kept.stoppable():
            origin = {"images": str(self.images)}
            if given is None:
                given, origin = self.draw(world, kept, schedule, settings, device)
            chosen = torch.arange(len(given))
            if n < len(given):
                chosen = evaluation.shuffled(chosen, self.seed, n)
                print(f"judging {n:,} of {len(given):,} images, drawn at random: --n {len(given)} takes all")
            images = given[chosen]
            card = {
                "n": len(images), "seed": self.seed, "extractor": judge.name,
                "reference": f"{settings.dataset}, {len(training)} training images of {settings.image_size} pixels",
                "checkpoint": str(self.checkpoint), "checkpoint_sha256": signed, **origin, "command": self.command,
                "device": str(device), "hardware": machine.hardware(device), "threads": torch.get_num_threads(),
                "processes": world.size, "versions": machine.versions(),
            }  # fmt: skip
            flips = ddpm.AUGMENTATIONS.get(settings.dataset) is image_folder.mirrored
            card |= evaluation.judged(
                images, training, held_out, judge, seed=self.seed, mirrored=flips, dataset=settings.dataset
            )
            if world.rank > 0:
                return
            card["reference_sha256"] = real[0]
            options = {"batch_size": self.batch_size, "seed": self.seed, "device": device}
            if held_out is not None and not guidance.always_told(settings):
                card["L_simple"] = evaluation.loss_by_tenth(model, schedule, held_out[:1000], **options)
            if self.bits:
                margin = known_margin(settings)
                chain = {"variance": pick_variance(self.variance, settings), "times_per_image": min(50, schedule.T)}
                bound = likelihood.bits_per_dim(
                    model, schedule, held_out[: self.bits], margin=margin, part=kept.part, **chain, **options
                )
                value, error = bound.mean, bound.standard_error
                card["bits_per_dim"] = {"n": len(bound.bits), "value": value, "standard_error": error, **chain}
            for space in ("pixels", "features"):  # numbered as in the file of images
                found = card[f"nearest_training_image_in_{space}"]
                found["closest"] = [[chosen[i].item(), j] for i, j in found["closest"]]
            print("\n".join(evaluation.card_lines(card)))  # first, since no disk can be too full for that
            evaluation.write_card(self.out, card)
            picture = self.out.with_name(f"{self.out.stem}-closest.png")
            pairs = evaluation.closest_pairs(card, given, training)
            imageio.imwrite(picture, ddpm.tile(pairs, len(pairs) // 2, scale=2))
            kept.discard()
            print(f"written to {self.out}; the closest pairs to {picture}")

    def labels(self, settings: ddpm.Settings) -> torch.Tensor:
        """Those given, else training's at random, so that distances do not measure the labels' shares."""
        if self.label:
            return super().labels(settings)
        try:
            known = guidance.load_labels(settings, self.data)
        except ValueError as error:
            raise ValueError(f"{error}; or name those to draw, in turn, with --label") from error
        return guidance.typical_labels(known, self.n, self.seed)

    def draw(
        self, world: runs.World, kept: resumable.Kept, schedule: ddpm.Schedule, settings: ddpm.Settings,
        device: torch.device,
    ) -> tuple[torch.Tensor, dict]:  # fmt: skip
        """The images to judge, and how they were made and at what cost."""
        told, labels = self.control(kept.counted, schedule, settings, device)
        options = self.sampling(settings)
        images, _ = processes.generate(
            world, told, schedule, self.n, settings.shape, draw=partial(resumable.generate, kept),
            seed=self.seed, batch_size=self.batch_size, labels=labels, device=device, **options,
        )  # fmt: skip
        how = {name: options[name] for name in ("eta", "variance", "precision") if name in options}
        how |= {"steps": self.steps, "spacing": self.spacing}
        how |= {"clip": self.clip} if "clip" in options else {}
        how |= {"compile": True} if self.compile else {}
        if labels is not None:
            how |= {"labels": list(self.label) or "as in training"}
        if self.guide:
            how |= {"guide": str(self.guide)}
        if labels is not None or self.guide:
            how |= {"guidance": self.scale}
            how |= {"guidance_interval": list(self.guidance_interval)} if self.guidance_interval else {}
        evaluations = kept.evaluations / len(world.share(self.n))
        seconds = world.gather(torch.tensor([kept.seconds], device=device)).max().item()  # of the slowest process
        cost = {"evaluations_per_image": evaluations, "seconds_per_image": round(seconds / self.n, 5)}
        return images, {"sampler": {"name": self.sampler or "ddim", **how}, **cost}


@dataclass
class Compare:
    """Set two cards of `evaluate` side by side. Cards that differ in n, extractor or training images are refused.

    Example: python -m mnist_ddpm compare a.json b.json
    """

    first: tyro.conf.Positional[Path]
    second: tyro.conf.Positional[Path]

    def run(self) -> None:
        cards = [evaluation.read_card(path) for path in (self.first, self.second)]
        print("\n".join(evaluation.comparison(*cards)))
        print("(± covers other images from the same network; training it again may change more)")


@dataclass
class Likelihood:
    """Print the variational bound of images in bits/dim, with its standard error, and write it as JSON.

    MNIST is judged on its 28 x 28 pixels: the black margin around them is taken as known.

    Example: python -m mnist_ddpm likelihood --checkpoint checkpoints/mnist --split test --n 1000
    """

    checkpoint: Path = Path("checkpoints/mnist")  # folder that training wrote
    split: Literal["train", "valid", "test"] = "test"  # of the checkpoint's data set
    n: int = 10_000  # number of images, the first of the split; all if there are fewer
    times_per_image: int | None = None  # evaluate so many t per image instead of all: faster, but noisier
    steps: int | None = None  # judge the model as a chain of fewer steps, from 1 to T
    spacing: Spacing = "trailing"  # of those steps' times
    variance: Variance = "auto"  # of the steps; auto: learned where the network has learned it, else posterior
    out: Path = Path("images&samples/latest/likelihood.json")  # file for the result
    dataset: str | None = None  # where the folder of training images is now, if it has moved
    data: Path = Path("data")  # folder that holds the data sets known by name
    seed: int = 0  # of the noise
    batch_size: int = 250  # images judged at once
    compile: bool = False  # use torch.compile on the network: a minute or two, worth it for many images
    device: str = "auto"  # cpu, cuda, cuda:1, mps; auto picks the best available

    def run(self) -> None:
        device = machine.pick_device(self.device)
        model, schedule, settings = load_model(self, self.checkpoint, device)
        settings = moved(settings, self.dataset)
        model = counted = resumable.Counted(model)
        variance, T = pick_variance(self.variance, settings), schedule.T
        if self.steps is not None:
            times = ddpm.timesteps(T, self.steps, self.spacing)
            model, schedule = schedules.respaced(counted, times), schedules.respace(schedule, times)
        elif self.spacing != Likelihood.spacing:
            raise ValueError("--spacing is that of --steps: name them too, or leave it out")
        if guidance.always_told(settings):
            raise ValueError(
                f"{self.checkpoint} was always told its label (label_dropout 0): likelihood needs one that was not"
            )
        images = ddpm.load_images(settings, self.data, self.split)[: max(0, self.n)]
        if len(images) < 2:
            raise ValueError(
                f"a standard error needs at least 2 images, and there are {len(images)}: see --n and --split"
            )
        margin = known_margin(settings)
        resumable.writable_file(self.out)
        kept = keeping(self, self.out, counted, device, extractors.digest(images))
        with kept.stoppable():
            bound = likelihood.bits_per_dim(
                model, schedule, images, variance=variance, times_per_image=self.times_per_image, margin=margin,
                batch_size=self.batch_size, seed=self.seed, device=device, part=kept.part,
            )  # fmt: skip
        side, each = settings.image_size - 2 * margin, kept.evaluations / len(images)
        terms = [None if math.isnan(term) else term for term in bound.terms.tolist()]
        card = {
            "bits_per_dim": bound.mean, "standard_error": bound.standard_error, "n": len(images),
            "dataset": settings.dataset, "split": self.split, "pixels": [settings.channels, side, side],
            "L_T": bound.prior, "L_0_to_T_minus_1": terms,
            "evaluations_per_image": each, "seconds": round(kept.seconds, 1),
            "checkpoint": str(self.checkpoint), "schedule": settings.schedule, "T": T, "steps": schedule.T,
            "variance": variance, "seed": self.seed, "device": str(device), "hardware": machine.hardware(device),
            "versions": machine.versions(),
        }  # fmt: skip
        print(
            f"{bound.mean:.4f} ± {bound.standard_error:.4f} bits/dim, an upper bound ({variance} variance, "
            f"{schedule.T} steps), on {side} x {side} pixels of the first {len(images)} {self.split} images"
        )
        print(f"{each:.0f} network evaluations an image, {kept.seconds:.0f} s, seed {self.seed}, {device}")
        evaluation.write_card(self.out, card)
        kept.discard()
        print(f"written to {self.out}")


@dataclass
class Extractor:
    """Train the network whose features `evaluate` compares, and print its accuracy on images that it has not seen.

    Example: python -m mnist_ddpm extractor --dataset mnist --out out/mnist.safetensors
    """

    dataset: Literal["mnist", "celeba"] = "mnist"  # digits, or the 40 attributes of faces
    out: Path = Path("checkpoints/mine/extractor.safetensors")  # file for the network
    epochs: int = 12  # passes over the training images
    seed: int = 0  # of weights, data order and shifts
    data: Path = Path("data")  # folder that holds the data sets known by name
    device: str = "auto"  # cpu, cuda, cuda:1, mps; auto picks the best available

    def run(self) -> None:
        device = machine.pick_device(self.device)
        resumable.writable_file(self.out)
        if self.out.exists():
            raise FileExistsError(f"{self.out} exists already: name another file")
        began = time.monotonic()
        options = {"epochs": self.epochs, "seed": self.seed, "device": device}
        network, accuracy = extractors.train_extractor(self.dataset, self.data, **options)
        took = time.monotonic() - began
        record = {
            "accuracy": round(accuracy, 5), "epochs": self.epochs, "seed": self.seed, "seconds": round(took, 1),
            "device": str(device), "torch": torch.__version__,
        }  # fmt: skip
        extractors.save_extractor(self.out, network, record)
        count, of = ddpm.count_parameters(network), extractors.HELD_OUT[self.dataset]
        print(f"{self.out}: {count:,} parameters, {accuracy:.2%} right on {of}, {took / 60:.1f} min on {device}")


def keeping(
    command: Drawing | Likelihood, out: Path, counted: resumable.Counted, device: torch.device, *images: str
) -> resumable.Kept:
    """Where a command keeps its parts until all are done: a folder beside out, named for all that they depend on.

    images: digests of those that the work depends on.
    """
    told = {name: value for name, value in vars(command).items() if name not in ELSEWHERE}
    files = sorted(Path(ddpm.__file__).parent.glob("[!.]*.py"))
    for path in [told.pop(name) for name in FILES if told.get(name)]:
        files += [path / "config.json", path / "model.safetensors"] if path.is_dir() else [path]
    files = [path for path in files if path.is_file()]  # who needs one that is missing says so
    here = {"device": device.type, "hardware": machine.hardware(device), **machine.versions()}
    digest = extractors.digest(json.dumps([told, here, images], default=str).encode(), *map(Path.read_bytes, files))
    return resumable.Kept(out.with_name(f"{out.stem}-{digest}.kept"), counted)


def load_model(
    command: Drawing | Likelihood, checkpoint: Path, device: torch.device
) -> tuple[ddpm.Model, ddpm.Schedule, ddpm.Settings]:
    """As load_checkpoint, with the network compiled if asked; command.compile then says whether it is."""
    model, schedule, settings = ddpm.load_checkpoint(checkpoint, device)
    command.compile = command.compile and machine.compiles(device)
    if command.compile:
        model.compile()
    return model, schedule, settings


def moved(settings: ddpm.Settings, folder: str | None) -> ddpm.Settings:
    """The settings, with the folder of images where it is now. Raises ValueError where there is none."""
    if folder not in (None, settings.dataset) and {folder, settings.dataset} & {*ddpm.DATASETS}:
        raise ValueError(f"--dataset is for a folder that has moved: it cannot turn {settings.dataset} into {folder}")
    settings = replace(settings, dataset=folder or settings.dataset)
    if settings.dataset not in ddpm.DATASETS and not Path(settings.dataset).is_dir():
        raise ValueError(f"there is no folder {settings.dataset}: has it moved? --dataset names where it is now")
    return settings


def apart(out: Path, folder: ddpm.PathLike) -> None:
    """Raises ValueError where pictures written to out would count among a folder's images, not a known data set's."""
    if folder not in ddpm.DATASETS and Path(folder).is_dir() and out.resolve().is_relative_to(Path(folder).resolve()):
        raise ValueError(f"{out} is in the folder of images {folder}, and pictures there would count: name another")


def known_margin(settings: ddpm.Settings) -> int:
    """Pixels around MNIST's own 28 x 28, which are known to be black; none around other images."""
    return (settings.image_size - 28) // 2 if settings.dataset == "mnist" else 0


def pick_variance(variance: str, settings: ddpm.Settings) -> str:
    """What "auto" means for a checkpoint. Raises ValueError for a learned variance that it does not have."""
    if variance == "auto":
        return "learned" if settings.learned_variance else "posterior"
    if variance == "learned" and not settings.learned_variance:
        raise ValueError(
            "this checkpoint has learned no variance: choose another --variance, or train with --objective hybrid"
        )
    return variance


def read_image(path: Path, mask: Path | None, settings: ddpm.Settings) -> tuple[torch.Tensor, torch.Tensor | None]:
    """An image (1, C, H, W) in [-1, 1] as the model takes it, and its mask (1, 1, H, W) of ones and zeros.

    28 x 28 pixels are padded for a model of MNIST; all else is cropped to a centred square and resized.
    Raises ValueError for a file that is no image, and a mask of another size than the image's, or that hides nothing.
    """
    side = settings.image_size
    image = image_folder.open_image(path, "L" if settings.channels == 1 else "RGB")

    def pixels(image: Image.Image, fill: int, resample: Image.Resampling) -> torch.Tensor:
        square = np.array(image_folder.fitted(image_folder.padded(image, settings, fill), side, resample=resample))
        return torch.from_numpy(square).reshape(1, side, side, -1).permute(0, 3, 1, 2)

    x0 = ddpm.to_float(pixels(image, 0, Image.Resampling.LANCZOS))
    if mask is None:
        return x0, None
    stencil = image_folder.open_image(mask, "L")
    if stencil.size != image.size:
        sizes = ["{} x {}".format(*picture.size) for picture in (stencil, image)]
        raise ValueError(f"the mask is {sizes[0]} pixels and the image {sizes[1]}: they must be of the same size")
    known = pixels(stencil, 255, Image.Resampling.NEAREST) > 127
    if known.all():
        raise ValueError(f"{mask} hides nothing: paint black what is to be filled in (transparent is white)")
    return x0, known.float()


def real_images(settings: ddpm.Settings, data: Path) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The training images of a checkpoint's data set, and those held out, or None where it has none."""
    training = ddpm.load_images(settings, data)
    if settings.dataset not in ddpm.DATASETS:  # a folder
        return training, None
    try:
        return training, ddpm.load_images(settings, data, "valid" if settings.dataset == "celeba" else "test")
    except ValueError as error:
        print(f"no held-out images to compare with: {error}")
        return training, None


def holds_samples(folder: Path) -> bool:
    """Whether it is one of the sample command's, with an array beside pictures of them all."""
    return (folder / "samples.npz").is_file()


def read_images(path: Path, settings: ddpm.Settings, data: Path) -> torch.Tensor:
    """uint8 (N, C, H, W) from a samples.npz or a folder of pictures. Raises ValueError where they do not fit."""
    if holds_samples(path):
        path = path / "samples.npz"
        print(f"judging those in {path}")
    if path.is_dir():
        return image_folder.load_folder(settings, path, data / "cache")
    try:
        images = torch.from_numpy(np.load(path)["images"]).permute(0, 3, 1, 2)
    except (
        OSError, LookupError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, TypeError, RuntimeError,
    ) as error:  # fmt: skip
        raise ValueError(f"{path} is neither a folder nor a samples.npz of the sample command ({error})") from error
    expected = settings.shape
    if images.dtype != torch.uint8 or images.shape[1:] != expected:
        raise ValueError(f"{path} holds {images.dtype} {tuple(images.shape)}, not uint8 (n, {expected})")
    return images


Command = (
    Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Plan, tyro.conf.subcommand("plan")]
    | Annotated[Sample, tyro.conf.subcommand("sample")]
    | Annotated[Likelihood, tyro.conf.subcommand("likelihood")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Compare, tyro.conf.subcommand("compare")]
    | Annotated[Extractor, tyro.conf.subcommand("extractor")]
)  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns the exit status: 0, 1 for an error told in one line, 130 after Ctrl-C."""
    matplotlib.use("Agg")
    for stream in (sys.stdout, sys.stderr):  # a file's name may have letters that it cannot write
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    arguments = [machine.at_home(argument) for argument in (sys.argv[1:] if arguments is None else arguments)]
    asked = arguments
    if any(argument.startswith("--preset") for argument in arguments):  # --help then shows its defaults, below
        asked = [argument for argument in arguments if argument not in ("-h", "--help")]
    command = tyro.cli(Command, args=asked, prog="python -m mnist_ddpm")
    status, several = 0, int(os.environ.get("WORLD_SIZE", 1)) > 1  # processes, as the launcher says
    try:
        if isinstance(command, Train):
            untold, start = asdict(Train().flags), command.defaults()
            told = {name for name, value in asdict(command.flags).items() if value != untold[name]}
            command = tyro.cli(Train, default=Train(flags=start), args=arguments[1:], prog="python -m mnist_ddpm train")
            command.settle(start, told)
        if isinstance(command, Evaluate):
            command.command = shlex.join(["python", "-m", "mnist_ddpm", *arguments])
        if several and not isinstance(command, Train | Sample | Evaluate):
            raise ValueError("this command is for one process: start it without a launcher")
        command.run()
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (RuntimeError, MemoryError) as error:
        if not resumable.out_of_memory(error):
            raise
        advice = "take less at once (--batch-size; to train, a larger --accumulation, or --gradient-checkpointing)"
        if isinstance(command, Plan):
            advice = "use train, without a plan, and with a larger --accumulation, or --gradient-checkpointing"
        print(f"error: {resumable.first_line(error)}: {advice}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        print(f"\n{str(error) or 'interrupted'}", file=sys.stderr)
        saved = isinstance(command, Train | Plan) and "resume to go on" in str(error)
        if saved and not several:  # they go on by their launcher's command
            again = machine.own_command(["train", "--resume", *places(command)])
            print(f"that is: {again}", file=sys.stderr)
        status = 130
    processes.leave()
    return status


if __name__ == "__main__":
    sys.exit(main())
