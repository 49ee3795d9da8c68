"""Tiny commands, and what each comes to when nothing disturbs it."""

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mnist_ddpm.evaluation.extractors import Extractor, save_extractor
from robustness.processes import Process
from robustness.tiny_data import save_pictures

SIZES = "--image-size 16 --base-channels 4 --channel-mults 1 2 --T 20 --batch-size 16".split()
COMMANDS = "train", "sample", "evaluate", "likelihood"
# What differs each time, and on another user's Python
TIMES = {"seconds", "seconds_per_image", "command", "checkpoint", "versions"}


class Reference:
    """A folder with pictures, a checkpoint and an extractor, and the results of the commands."""

    def __init__(self, folder: Path):
        torch.set_num_threads(1)  # a fork has none of OpenMP's threads
        self.folder, self.data = folder, ["--data", folder / "data"]
        self.pictures = folder / "bildér"
        save_pictures(self.pictures, 48)
        save_extractor(folder / "judge.safetensors", Extractor("celeba", 40, (8, 8)), {})
        self.seconds, self.results = {}, {}
        for name in COMMANDS:
            ended = Process(self.command(name), self.new_folder(name)).wait()
            assert ended.status == 0, ended
            self.seconds[name], self.results[name] = ended.seconds, read_result(folder / name)

    def new_folder(self, name: str) -> Path:
        (self.folder / name).mkdir()
        return self.folder / name

    def command(self, name: str, out: str | Path = "out", epochs: int = 14) -> list:
        """Its arguments, for results in out."""
        if name == "train":
            options = ["--dataset", self.pictures, *SIZES, "--epochs", epochs]
            return ["train", *options, "--warmup-steps", 2, "--out", out, *self.data]
        options = ["--checkpoint", self.folder / "train" / "out", "--n", 12, "--batch-size", 3]
        if name == "sample":
            return ["sample", *options, "--steps", 12, "--out", out]
        options += [*self.data, "--out", Path(out, "card.json")]
        if name == "likelihood":
            return ["likelihood", *options, "--split", "train"]
        judge = self.folder / "judge.safetensors"
        return ["evaluate", *options, "--steps", 12, "--extractor", judge]

    def resumed(self, name: str, folder: Path) -> list:
        """The arguments that continue a command in a folder."""
        if name == "train" and (folder / "out" / "training_state.pt").exists():
            return ["train", "--resume", "--out", "out", *self.data]
        return self.command(name)

    def agrees(self, name: str, folder: Path) -> bool:
        """Whether a folder has the result of an undisturbed command, bit for bit."""
        try:
            return read_result(folder) == self.results[name]
        except (OSError, ValueError, KeyError):
            return False

    def problems_resuming(self, name: str, folder: Path) -> list[str]:
        """What is wrong when a command that was stopped is run again. It leaves no other files."""
        ended = Process(self.resumed(name, folder), folder).wait()
        if ended.status or ended.is_noisy:
            return [f"resuming: status {ended.status}, {ended.last_line}"]
        problems = [] if self.agrees(name, folder) else ["resuming, it has another result"]
        remains = [path.name for path in folder.rglob("*") if path.suffix in (".partial", ".kept")]
        return problems + ([f"left behind: {remains}"] if remains else [])


def read_result(folder: Path) -> object:
    """What a command has written to out in a folder, for comparing."""
    out = folder / "out"
    if (out / "training_state.pt").exists():
        state = torch.load(out / "training_state.pt", weights_only=True)
        names = "model", "ema", "losses"
        return saved_step(out), comparable({name: state[name] for name in names})
    if (out / "samples.npz").exists():
        return np.load(out / "samples.npz")["images"].tobytes()
    return without_times(json.loads((out / "card.json").read_text()))


def saved_step(folder: Path) -> int:
    """The step of the checkpoint in a folder, 0 if there is none."""
    path = folder / "config.json"
    return json.loads(path.read_text())["training"]["steps"] if path.exists() else 0


def comparable(value: object) -> object:
    """A state as what == compares bit by bit."""
    if isinstance(value, nn.Module | torch.optim.Optimizer):
        value = value.state_dict()
    if isinstance(value, Tensor):
        return str(value.dtype), tuple(value.shape), value.numpy().tobytes()
    if isinstance(value, dict):
        return {key: comparable(inner) for key, inner in value.items()}
    return [*map(comparable, value)] if isinstance(value, list | tuple) else value


def without_times(card: dict) -> dict:
    """A card without what differs each time."""
    inner = {k: without_times(v) if isinstance(v, dict) else v for k, v in card.items()}
    return {name: value for name, value in inner.items() if name not in TIMES}
