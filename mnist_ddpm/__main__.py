"""The command line: `python -m mnist_ddpm train` and `python -m mnist_ddpm sample`, each with `--help`."""

import math
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import imageio.v3 as imageio
import matplotlib
import numpy as np
import torch
import tyro

from mnist_ddpm import ddpm, guidance


@dataclass(frozen=True)
class TrainingFlags(ddpm.Settings):
    """What to train, and how."""

    def __post_init__(self):
        pass  # checked in Train.run, where an error is one line


@dataclass
class Train:
    """Train a noise predictor and save it as a checkpoint.

    Progress shows the time left. The checkpoint is saved after every epoch, every five minutes, and on Ctrl-C.

    Example: python -m mnist_ddpm train --dataset mnist --epochs 48 --out checkpoints/mine
    """

    flags: tyro.conf.OmitArgPrefixes[TrainingFlags] = field(default_factory=TrainingFlags)
    out: Path = Path("checkpoints/mine")  # folder for the checkpoint and its preview grids
    resume: bool = False  # go on with the run in --out; its settings become the defaults of all other flags
    data: Path = Path("data")  # folder that holds the data sets known by name
    device: str = "auto"  # cpu, cuda, cuda:1, mps; auto takes the best there is

    def run(self) -> None:
        settings, device = ddpm.Settings(**asdict(self.flags)), pick_device(self.device)
        images, schedule = ddpm.load_images(settings, self.data), ddpm.make_schedule(settings)
        labels = guidance.load_labels(settings, self.data) if settings.classes else None
        start = ddpm.resume_run(self.out, settings, device) if self.resume else ddpm.start_run(settings, device)
        count = ddpm.count_parameters(start.model)
        print(f"{len(images):,} images of {tuple(images.shape[1:])}, {count:,} parameters, on {device}")
        run = ddpm.fit(start, images.to(device), schedule, self.out, labels=labels)
        pace = run.step * settings.batch_size / run.seconds
        print(f"{self.out}: {run.step} steps in {run.seconds / 60:.1f} min, {pace:.0f} images/s")


@dataclass
class Sample:
    """Draw images with a checkpoint and save them as pictures and as an array.

    Writes samples.png (a grid, of the first 400 at most), steps.png (from noise to image), generation.gif,
    predicted_x0.gif, and samples.npz (array "images", uint8, N x H x W x C).

    Example: python -m mnist_ddpm sample --checkpoint checkpoints/mnist --n 64 --steps 50 --out out
    """

    checkpoint: Path = Path("checkpoints/mnist")  # folder that training wrote
    out: Path = Path("images&samples/latest")  # folder for the results
    n: int = 64  # number of images
    sampler: Literal["ddim", "ddpm"] = "ddim"  # ddpm is ancestral sampling
    steps: int = 50  # network evaluations for each image, 1 to T
    eta: float = 0.0  # noise of ddim: 0 none, 1 as much as ddpm
    variance: Literal["posterior", "beta"] = "posterior"  # of ddpm's steps
    seed: int = 0  # image k depends on seed and k alone
    batch_size: int = 256  # images made at once; lower it if memory runs out
    device: str = "auto"  # cpu, cuda, cuda:1, mps; auto takes the best there is

    def run(self) -> None:
        device = pick_device(self.device)
        model, schedule, settings = ddpm.load_checkpoint(self.checkpoint, device)
        out = ddpm.writable_folder(self.out)
        options = {"eta": self.eta} if self.sampler == "ddim" else {"variance": self.variance}
        began = time.monotonic()
        images, film = ddpm.generate(
            model, schedule, self.n, (settings.channels, settings.image_size, settings.image_size),
            sampler=ddpm.SAMPLERS[self.sampler], steps=self.steps, seed=self.seed, batch_size=self.batch_size,
            film=36, device=device, **options,
        )  # fmt: skip
        took = time.monotonic() - began
        shown = images[:400]
        imageio.imwrite(out / "samples.png", ddpm.enlarge(ddpm.tile(shown, math.ceil(math.sqrt(len(shown)))), 2))
        ddpm.draw_strip(film).savefig(out / "steps.png", dpi=110)
        ddpm.save_gif(out / "generation.gif", film)
        ddpm.save_gif(out / "predicted_x0.gif", film, predicted=True)
        with ddpm.replacing(out / "samples.npz") as path, path.open("wb") as file:
            np.savez_compressed(file, images=images.permute(0, 2, 3, 1).numpy())
        print(f"{out}: {self.n} images x {self.steps} network evaluations in {took:.1f} s on {device}")


def pick_device(name: str) -> torch.device:
    """The device of that name. Raises ValueError where PyTorch has none."""
    try:
        device = ddpm.best_device() if name == "auto" else torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f'device "{name}" is not to be had here ({str(error).splitlines()[0]})') from error
    return device


Command = (
    Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Sample, tyro.conf.subcommand("sample")]
)  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns the exit status: 0, 1 for an error told in one line, 130 after Ctrl-C."""
    matplotlib.use("Agg")
    arguments = sys.argv[1:] if arguments is None else arguments
    command = tyro.cli(Command, args=arguments, prog="python -m mnist_ddpm")
    try:
        if isinstance(command, Train) and command.resume:
            saved = TrainingFlags(**asdict(ddpm.load_config(command.out)[0]))
            command = tyro.cli(Train, default=Train(flags=saved), args=arguments[1:], prog="python -m mnist_ddpm train")
        command.run()
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        print(f"\n{error or 'interrupted'}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
