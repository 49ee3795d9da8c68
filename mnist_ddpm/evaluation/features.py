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
    """Real images, uint8 (N, C, H, W), whose features a judge knows, or computes and keeps."""

    judge: Judge
    training: Tensor
    held_out: Tensor | None = None
    mirrored: bool = False  # whether training saw each image from both sides
    folder: Path | None = None  # for the features' files; None: none are kept

    @cached_property
    def signed(self) -> list[str]:
        """Digests of the images: of training, and of those held out."""
        return [digest(part) for part in (self.training, self.held_out) if part is not None]

    @property
    def kinds(self) -> dict[str, tuple[Tensor, str]]:
        """By the names of RealFeatures, what there is: images, and whose features they give."""
        n = f"{len(self.training):,}"
        found = {"training": (self.training, f"{n} training images")}
        if self.mirrored:
            found["mirrored"] = self.training, f"{n} mirrored training images"
        if self.held_out is not None:
            found["held_out"] = self.held_out, f"{len(self.held_out):,} held-out images"
        return found

    def path(self, kind: str) -> Path:
        """Where features belong. A digest of all that they depend on, to the last bit, names it."""
        judge, signed = self.judge, self.signed[kind == "held_out"]
        device = torch.device(judge.device)
        here = {"device": device.type, "hardware": devices.hardware(device)}
        here |= {"processes": judge.world.size, **devices.versions()}
        shape = list(self.kinds[kind][0].shape)
        facts = json.dumps([COMPUTING, judge.name, here, signed, shape, kind])
        return self.folder / f"features-{kind}-{digest(facts.encode())}.npz"

    def tell_missing(self) -> None:
        """Says beforehand what takes long."""
        kinds = self.kinds.items()
        missing = [whose for kind, (_, whose) in kinds if not self.path(kind).is_file()]
        if missing and is_first_process():
            what = f"the features of {' and '.join(missing)} are computed"
            print(f"the first card takes longer: {what}, and kept in {self.folder}", flush=True)

    def features(self) -> RealFeatures:
        """From files, as far as they are there. Of several processes each calls it."""
        found = dict.fromkeys(RealFeatures._fields)
        for kind, (images, whose) in self.kinds.items():
            found[kind] = self.folder and read(self.path(kind), len(images))
            missing = found[kind] is None
            if self.judge.world.any(missing):  # then each has its part to compute
                found[kind] = self.judge.features(images, whose, kind == "mirrored")
                if self.folder and missing:
                    write(self.path(kind), found[kind])
        return RealFeatures(**found)


def read(path: Path, n: int) -> Tensor | None:
    """The features (n, D) in a file; None where there is none, or a damaged one."""
    if not path.is_file():
        return None
    try:
        with path.open("rb") as opened, np.load(opened) as file:  # which compares checksums
            features, name = file["features"], file["name"].item()
        check(name == path.name and features.dtype == np.float32, f"it holds {name}")
        check(features.ndim == 2 and len(features) == n, f"it holds {features.shape}")
        return torch.from_numpy(features).double()
    except Exception as error:  # NumPy's are of many kinds
        if is_first_process():
            told = f"{path} is damaged or of other images ({first_line(error)})"
            print(f"{told}: the features are computed anew", flush=True)
        return None


def write(path: Path, features: Tensor) -> None:
    """Keeps features in a file. Prints a line where it cannot: they are computed again, then."""
    try:
        with replacing(path) as temporary, temporary.open("wb") as file:
            # extractors give float32: nothing is lost
            np.savez(file, features=features.float().numpy(), name=path.name)
    except OSError as error:
        if is_first_process():
            told = f"the features cannot be kept ({first_line(error)})"
            print(f"{told}: the next card computes them again", flush=True)
