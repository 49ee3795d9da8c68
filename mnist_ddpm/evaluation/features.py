"""Features of real images: computed for a data set's first card, read from files for later ones."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mnist_ddpm.ddpm import check
from mnist_ddpm.evaluation.extractors import Judge, digest
from mnist_ddpm.machine import devices
from mnist_ddpm.machine.files import first_line, replacing
from mnist_ddpm.machine.progress import is_first_process

COMPUTING = 1  # to be raised when the same extractor gives the same images other features


class RealFeatures(NamedTuple):
    """Features, float64 (N, D), of the real images that others are compared with."""

    training: Tensor
    mirrored: Tensor | None  # of the training images' mirror images, if training saw them, too
    held_out: Tensor | None


@dataclass(frozen=True)
class RealImages:
    """Real images, uint8 (N, C, H, W), whose features a judge reads from files, or computes."""

    judge: Judge
    training: Tensor
    held_out: Tensor | None = None
    mirrored: bool = False  # whether training saw each image from both sides
    folder: Path | None = None  # for the features' files; None: there are no files

    @cached_property
    def digests(self) -> list[str]:
        """Digests of the images: of training, and of those held out."""
        parts = self.training, self.held_out
        return [digest(part) for part in parts if part is not None]

    @property
    def kinds(self) -> dict[str, tuple[Tensor, str]]:
        """By the names of RealFeatures: the images, and what a progress bar calls them."""
        n = f"{len(self.training):,}"
        kinds = {"training": (self.training, f"{n} training images")}
        if self.mirrored:
            kinds["mirrored"] = self.training, f"{n} mirrored training images"
        if self.held_out is not None:
            kinds["held_out"] = self.held_out, f"{len(self.held_out):,} held-out images"
        return kinds

    def path(self, kind: str) -> Path:
        """The file of features, named for all that they depend on, to the last bit."""
        judge = self.judge
        device = torch.device(judge.device)
        machine = {"device": device.type, "hardware": devices.hardware(device)}
        machine |= {"processes": judge.world.size, **devices.versions()}
        shape = list(self.kinds[kind][0].shape)
        images = self.digests[kind == "held_out"]
        facts = json.dumps([COMPUTING, judge.name, machine, images, shape, kind])
        return self.folder / f"features-{kind}-{digest(facts.encode())}.npz"

    def announce_missing(self) -> None:
        """Prints beforehand which features have to be computed, since that takes long."""
        titles = [title for kind, (_, title) in self.kinds.items() if not self.path(kind).is_file()]
        if titles and is_first_process():
            features = f"the features of {' and '.join(titles)}"
            work = f"{features} are computed, and kept in {self.folder}"
            print(f"the first card takes longer: {work}", flush=True)

    def features(self) -> RealFeatures:
        """The features, from files as far as they are there. Each of several processes calls it."""
        features = dict.fromkeys(RealFeatures._fields)
        for kind, (images, title) in self.kinds.items():
            features[kind] = self.folder and read_features(self.path(kind), len(images))
            is_missing = features[kind] is None
            if self.judge.world.any(is_missing):  # then each has its part to compute
                features[kind] = self.judge.features(images, title, kind == "mirrored")
                if self.folder and is_missing:
                    write_features(self.path(kind), features[kind])
        return RealFeatures(**features)


def read_features(path: Path, n: int) -> Tensor | None:
    """The features (n, D) in a file; None where there is none, or a damaged one."""
    if not path.is_file():
        return None
    try:
        with path.open("rb") as opened, np.load(opened) as file:  # which compares checksums
            features = file["features"]
            name = file["name"].item()
        check(name == path.name and features.dtype == np.float32, f"it holds {name}")
        check(features.ndim == 2 and len(features) == n, f"it holds {features.shape}")
        return torch.from_numpy(features).double()
    except Exception as error:  # NumPy's are of many kinds
        if is_first_process():
            reason = f"{path} is damaged or of other images ({first_line(error)})"
            print(f"{reason}: the features are computed again", flush=True)
        return None


def write_features(path: Path, features: Tensor) -> None:
    """Writes features to a file; prints a line where that fails: they are computed again, then."""
    try:
        with replacing(path) as temporary, temporary.open("wb") as file:
            # extractors give float32: nothing is lost
            np.savez(file, features=features.float().numpy(), name=path.name)
    except OSError as error:
        if is_first_process():
            reason = f"the features cannot be kept ({first_line(error)})"
            print(f"{reason}: the next card computes them again", flush=True)
