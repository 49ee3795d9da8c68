"""Networks trained and measured, each once; rows of results go to a file as they come."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property, partial
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from mnist_ddpm import catalogue, ddpm, trainer
from mnist_ddpm.data import sets
from mnist_ddpm.evaluation import cards, extractors, generation
from mnist_ddpm.evaluation.distances import frechet_distance, shuffled
from mnist_ddpm.evaluation.features import RealImages
from mnist_ddpm.experiments.experiment_flags import Scale
from mnist_ddpm.experiments.rows import Row, matching, read_rows, write_rows
from mnist_ddpm.formats import checkpoints, teachers
from mnist_ddpm.machine import devices
from mnist_ddpm.machine.progress import progress_bar
from mnist_ddpm.machine.threads import adapt_threads
from mnist_ddpm.methods.learned_variance import LearnedDenoiser, ancestral_sampler
from mnist_ddpm.training import loop, saving
from mnist_ddpm.training.recipe import Recipe
from mnist_ddpm.training.run import Run

QUICK = Scale(seeds=2, epochs=0.2, n=100, bits=20, long=50)
LONGER = {  # settings of the networks whose samplers are compared
    "epochs": 6.0, "batch_size": 128, "optimizer": "muon", "learning_rate": 5e-3,
    "warmup_steps": 500, "precision": "float32",
}  # fmt: skip
BRIEFLY = {**LONGER, "epochs": 3.0}  # where networks are compared


@dataclass(frozen=True)
class Trained:
    """A network that is trained, or read, when it is first asked for."""

    recipe: Recipe
    network: Callable[[], nn.Module]

    @cached_property
    def schedule(self) -> ddpm.Schedule:
        return catalogue.make_schedule(self.recipe)

    @property
    def learns_variance(self) -> bool:
        return catalogue.learns_variance(self.recipe)

    def denoiser(self, with_exponent: bool = False) -> ddpm.Denoiser | LearnedDenoiser:
        """Without labels, x0_hat clipped."""
        return catalogue.bound_denoiser(self.network(), self.schedule, self.recipe, with_exponent)


def ancestral(variance: str) -> Callable:
    """DDPM's sampler with a variance of its steps: posterior, beta; learned, with_exponent."""
    return partial(ancestral_sampler, variance=catalogue.VARIANCES[variance])


class Lab:
    """An experiment's folder, its scale, and what it measures with."""

    def __init__(
        self, out: Path, scale: Scale, data: Path, device: torch.device, training: dict,
        command: str = "",
    ):  # fmt: skip
        """training: settings of all networks, {} where none is trained.

        Raises ValueError as check_record.
        """
        if scale.epochs is None:
            scale = replace(scale, epochs=training.get("epochs"))
        self.out, self.scale, self.data, self.device = out, scale, data, device
        self.command = command
        chosen = {"base_channels": scale.width, "epochs": scale.epochs} if training else {}
        self.common = {**training, **chosen}
        # experiments share their networks
        self.runs = out.parent / ("runs-quick" if scale == QUICK else "runs")
        self.path, self.rows = out / "results.csv", read_rows(out / "results.csv")
        record = out / "record.json"  # what it says when the work begins
        there = record.is_file()
        self.before = json.loads(record.read_text(encoding="utf-8")) if there else {}
        # by name, what each network changes in the common settings
        self.networks = dict(self.before.get("networks", {}))
        self.check_record()

    @cached_property
    def training(self) -> Tensor:
        return sets.load_images(Recipe(), self.data, "train")

    @cached_property
    def unseen(self) -> Tensor:
        return sets.load_images(Recipe(), self.data, "test")

    @cached_property
    def judge(self) -> extractors.Judge:
        return extractors.pick_judge("auto", "mnist", self.device)

    @cached_property
    def known(self) -> Tensor:
        """Features of all training images."""
        real = RealImages(self.judge, self.training, folder=self.data / "cache")
        return real.features().training

    def recipe(self, seed: int, **changes) -> Recipe:
        return Recipe(**{**self.common, "seed": seed, **changes})

    def folder(self, name: str, seed: int) -> Path:
        """Where a network is kept."""
        return self.runs / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"

    def network(self, name: str, seed: int, **changes) -> Trained:
        """The network of this name and seed, trained to its end from where it was stopped."""
        recipe, folder = self.recipe(seed, **changes), self.folder(name, seed)
        self.networks[name] = changes

        @cache
        def trained() -> nn.Module:
            run, total = self.open_run(folder, recipe), ddpm.total_steps(recipe, len(self.training))
            if run.step < total or not saving.saved_whole(folder, run):
                print(f"{name}, seed {seed}", flush=True)
                self.finish(run, folder)
            return checkpoints.load(folder, self.device).network

        return Trained(recipe, trained)

    def shipped(self, name: str) -> Trained | None:
        """The shipped checkpoint of that name; None where there is none.

        Raises ValueError where rows are of other weights.
        """
        try:
            folder = checkpoints.find(f"{checkpoints.FOLDER}/{name}")
        except FileNotFoundError:
            return None
        weights = {"sha256": saving.told_digest(folder)}
        problem = f"{self.out} holds results of other weights of {name}"
        alike = self.networks.setdefault(name, weights) == weights
        ddpm.check(alike, f"{problem}: choose another --out")
        found = checkpoints.load(folder, self.device)
        return Trained(found.recipe, lambda: found.network)

    def open_run(self, folder: Path, recipe: Recipe) -> Run:
        """The run in folder, or a new one. Raises ValueError if it has other settings."""
        start = partial(trainer.start_run, device=self.device)
        if not (folder / saving.STATE).is_file():
            return start(recipe)
        run = saving.resume_run(folder, start)
        problem = f"{folder} was trained with other settings"
        ddpm.check(run.settings == recipe, f"{problem}: remove it, or choose another --out")
        return run

    def objective(self, run: Run) -> ddpm.Objective:
        """What a run minimises, by its teacher if its recipe names one."""
        recipe = run.settings
        teacher = teachers.teacher(recipe, self.device) if recipe.teacher else None
        return catalogue.make_objective(recipe, run.done, teacher)

    def finish(self, run: Run, folder: Path) -> None:
        """Trains a run to its end and saves it."""
        recipe, labels = run.settings, None
        if recipe.classes:
            labels = sets.load_labels(recipe, self.data, "train")[: len(self.training)]
        schedule, objective = catalogue.make_schedule(recipe), self.objective(run)
        options = {"save_checkpoint": trainer.save_checkpoint, "labels": labels}
        loop.fit(run, self.training, schedule, objective, folder, **options)

    def trained_until(self, name: str, seed: int, end: int, **changes) -> Run:
        """The run of this name and seed after so many steps, saved.

        Raises ValueError where it is past them.
        """
        recipe, folder = self.recipe(seed, **changes), self.folder(name, seed)
        self.networks[name] = changes
        run = self.open_run(folder, recipe)
        problem = f"{folder} is past step {end}, which was not measured"
        ddpm.check(run.step <= end, f"{problem}: remove it to start anew")
        left = end - run.step
        schedule, objective = catalogue.make_schedule(recipe), self.objective(run)
        steps = islice(loop.training_loop(run, self.training, schedule, objective), left)
        for _ in progress_bar(steps, total=left, unit="step"):
            adapt_threads()
        saving.save_run(folder, run, trainer.save_checkpoint)
        return run

    def measured(self, key: Row, measure: Callable[[], Row]) -> Row:
        """The row that begins with key: from the file if it is there, else measured now."""
        if found := matching(self.rows, key):
            return found[0]
        self.rows.append({**key, **measure()})
        cards.write_card(self.out / "record.json", self.record())
        write_rows(self.path, self.rows)
        return self.rows[-1]

    def draw(
        self, trained: Trained, times: list[int], seed: int, sampler: Callable = ddpm.ddpm_sampler,
        labels: Tensor | None = None, guidance: float = 1.0, with_exponent: bool = False,
    ) -> Tensor:  # fmt: skip
        """Images of a network, as many as the scale says. with_exponent: see drawing.denoisers."""
        recipe, schedule = trained.recipe, trained.schedule
        network = generation.autocast(trained.network(), recipe.precision, self.device)
        source = generation.denoisers(
            network, schedule, recipe, labels=labels, scale=guidance,
            with_exponent=with_exponent,
        )  # fmt: skip
        options = {"times": times, "sampler": sampler, "seed": seed, "device": self.device}
        return generation.generate(source, schedule, self.scale.n, recipe.shape, **options)[0]

    def quality(
        self, key: Row, trained: Trained, times: list[int],
        sampler: Callable = ddpm.ddpm_sampler, with_exponent: bool = False,
    ) -> Row:  # fmt: skip
        """The row of what a sampler draws with the seed in key."""

        def measure() -> Row:
            seed = key["seed"]
            images = self.draw(trained, times, seed, sampler, with_exponent=with_exponent)
            return self.distance(self.judge.features(images))

        return self.measured(key, measure)

    def distance(self, features: Tensor) -> Row:
        """What a row says of images with these features."""
        return {"n": len(features), "frechet": frechet_distance(self.known, features)}

    def real(self) -> None:
        """The row of what real images score: as many unseen ones, chosen at random."""
        chosen = shuffled(self.unseen, 0, self.scale.n)
        self.measured({"arm": "real"}, lambda: self.distance(self.judge.features(chosen)))

    def check_record(self) -> None:
        """Raises ValueError where the folder holds other results: of another scale, for example.

        Other seeds are no problem.
        """
        if not self.before:
            return
        record = self.record()
        for name in ("scale", "training", "extractor"):
            had, now = self.before.get(name, record[name]), record[name]
            alike = had == now
            if name == "scale":
                alike = had | {"seeds": 0} == now | {"seeds": 0}
            problem = f"{self.out} holds results of another {name}, {had}, not {now}"
            ddpm.check(alike, f"{problem}: choose another --out")

    def record(self) -> dict:
        """How the results come about, those of earlier runs on another machine among them."""
        here = {
            "device": str(self.device), "hardware": devices.hardware(self.device),
            "threads": torch.get_num_threads(), "versions": devices.versions(),
        }  # fmt: skip
        there = {name: self.before[name] for name in here if name in self.before}
        earlier = [each for each in self.before.get("earlier", []) if each not in (here, there)]
        earlier += [there] if there and there != here else []
        return {
            "command": self.command, "scale": asdict(self.scale),
            "seeds": list(range(self.scale.seeds)), "training": self.common,
            "networks": self.networks, "extractor": self.judge.name,
            "reference": "60,000 training images", **here,
        } | ({"earlier": earlier} if earlier else {})  # fmt: skip
