"""Networks trained and measured, each once; rows of results go to a file as they come."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property, partial
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from experiments.experiment_flags import Scale
from experiments.results import Row, read_record, read_rows, select_rows, write_rows
from mnist_ddpm import catalogue, ddpm, generation
from mnist_ddpm.data import loading
from mnist_ddpm.evaluation import cards, extractors
from mnist_ddpm.evaluation.distances import frechet_distance, shuffled
from mnist_ddpm.evaluation.extractors import RealImages
from mnist_ddpm.formats import checkpoints
from mnist_ddpm.machine import devices
from mnist_ddpm.machine.process import progress_bar
from mnist_ddpm.machine.processes import adapt_threads
from mnist_ddpm.method import Method
from mnist_ddpm.methods.learned_variance import LearnedDenoiser, ancestral_sampler
from mnist_ddpm.recipe import Recipe
from mnist_ddpm.training import loop, saving
from mnist_ddpm.training.run import Run

QUICK = Scale(seeds=2, epochs=0.2, n=100, bits=20, long=50)
LONG_TRAINING = {  # for networks whose samplers are compared
    "epochs": 6.0,
    "batch_size": 128,
    "optimizer": "muon",
    "learning_rate": 5e-3,
    "warmup_steps": 500,
    "precision": "float32",
}
NO_TRAINING = {}
SHORT_TRAINING = {**LONG_TRAINING, "epochs": 3.0}  # where networks are compared


@dataclass(frozen=True)
class TrainedNetwork:
    """A network that is trained, or read, when it is first needed."""

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
    """DDPM's sampler with this variance; "learned" needs images drawn with with_exponent."""
    return partial(ancestral_sampler, variance=catalogue.VARIANCES[variance])


@dataclass
class ExperimentRun:
    """An experiment at work: its folder, rows and networks, and what it measures with."""

    out: Path
    scale: Scale
    data: Path
    device: torch.device
    training: dict  # settings of all networks, {} if none is trained
    command: str = ""

    def __post_init__(self):
        """Raises ValueError as check_record."""
        if self.scale.epochs is None:
            self.scale = replace(self.scale, epochs=self.training.get("epochs"))
        sizes = {"base_channels": self.scale.width, "epochs": self.scale.epochs}
        self.common_settings = self.training | sizes if self.training else {}
        # experiments share their networks
        self.networks_folder = self.out.parent / ("runs-quick" if self.scale == QUICK else "runs")
        self.rows = read_rows(self.out / "results.csv")
        self.previous_record = read_record(self.out / "record.json")  # before this run
        # by name, what each network changes in the common settings
        self.networks = dict(self.previous_record.get("networks", {}))
        self.check_record()

    @cached_property
    def training_images(self) -> Tensor:
        return loading.load_images(Recipe(), self.data, "train")

    @cached_property
    def test_images(self) -> Tensor:
        return loading.load_images(Recipe(), self.data, "test")

    @cached_property
    def judge(self) -> extractors.Judge:
        return extractors.pick_judge("auto", "mnist", self.device)

    @cached_property
    def training_features(self) -> Tensor:
        real = RealImages(self.judge, self.training_images, folder=self.data / "cache")
        return real.features().training

    @cached_property
    def test_features(self) -> Tensor:
        return self.judge.features(self.test_images)

    def recipe(self, seed: int, **changes) -> Recipe:
        return Recipe(**{**self.common_settings, "seed": seed, **changes})

    def network_folder(self, name: str, seed: int) -> Path:
        """Where a network is saved."""
        return self.networks_folder / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"

    def network(
        self,
        name: str,
        seed: int,
        images: Tensor | None = None,
        make_method: Callable[[Recipe], Method] | None = None,
        **changes,
    ) -> TrainedNetwork:
        """The network of this name and seed, trained to its end from where it was stopped.

        images: to train on, instead of all training images. make_method: its method, instead of
        the recipe's.
        """
        recipe = self.recipe(seed, **changes)
        images = self.training_images if images is None else images
        folder = self.network_folder(name, seed)
        self.networks[name] = changes

        @cache
        def trained() -> nn.Module:
            run = self.open_run(folder, recipe, make_method)
            total = ddpm.total_steps(recipe, len(images))
            if run.step < total or not saving.is_saved(folder, run):
                print(f"{name}, seed {seed}", flush=True)
                self.train_to_end(run, folder, images)
            return checkpoints.load(folder, self.device).network

        return TrainedNetwork(recipe, trained)

    def shipped_network(self, name: str) -> TrainedNetwork | None:
        """The shipped checkpoint of that name, or None if there is none.

        Raises ValueError if the rows are of other weights.
        """
        try:
            folder = checkpoints.find(f"{checkpoints.FOLDER}/{name}")
        except FileNotFoundError:
            return None
        weights = {"sha256": checkpoints.recorded_digest(folder)}
        differs = f"{self.out} holds results of other weights of {name}: choose another --out"
        ddpm.check(self.networks.setdefault(name, weights) == weights, differs)
        checkpoint = checkpoints.load(folder, self.device)
        return TrainedNetwork(checkpoint.recipe, lambda: checkpoint.network)

    def open_run(
        self, folder: Path, recipe: Recipe, make_method: Callable[[Recipe], Method] | None = None
    ) -> Run:
        """The run in folder, or a new one. Raises ValueError if it has other settings."""

        def start(recipe: Recipe) -> Run:
            method = make_method and make_method(recipe)
            return loop.start_run(recipe, self.device, method=method)

        if not (folder / checkpoints.STATE).is_file():
            return start(recipe)
        run = saving.resume_run(folder, start)
        differs = f"{folder} was trained with other settings: remove it, or choose another --out"
        ddpm.check(run.settings == recipe, differs)
        return run

    def train_to_end(self, run: Run, folder: Path, images: Tensor) -> None:
        """Trains a run to its end and saves it."""
        recipe = run.settings
        labels = None
        if recipe.classes:
            labels = loading.load_labels(recipe, self.data, "train")[: len(images)]
        loop.fit(run, images, folder, labels=labels)

    def train_until(self, name: str, seed: int, end: int, **changes) -> Run:
        """The run of this name and seed after so many steps, saved.

        Raises ValueError if it is past them.
        """
        recipe = self.recipe(seed, **changes)
        folder = self.network_folder(name, seed)
        self.networks[name] = changes
        run = self.open_run(folder, recipe)
        remaining = end - run.step
        past = f"{folder} is past step {end}, which was not measured: remove it to train it again"
        ddpm.check(remaining >= 0, past)
        schedule = catalogue.make_schedule(recipe)
        steps = loop.training_loop(run, self.training_images, schedule)
        for _ in progress_bar(islice(steps, remaining), total=remaining, unit="step"):
            adapt_threads()
        saving.save_run(folder, run)
        return run

    def measure_once(self, key: Row, measure: Callable[[], Row]) -> Row:
        """The row that begins with key: from the file if it is there, else measured now."""
        measured = select_rows(self.rows, key)
        if measured:
            return measured[0]
        self.rows.append({**key, **measure()})
        cards.write_card(self.out / "record.json", self.record())
        write_rows(self.out / "results.csv", self.rows)
        return self.rows[-1]

    def draw(
        self,
        trained: TrainedNetwork,
        times: int | list[int],
        seed: int,
        sampler: Callable,
        **options,
    ) -> Tensor:
        """Images of a network, as many as the scale says.

        times: or how many, evenly spaced. options: of generation.make_denoiser_for_batch.
        """
        recipe = trained.recipe
        schedule = trained.schedule
        times = ddpm.timesteps(schedule.T, times) if isinstance(times, int) else times
        network = generation.autocast(trained.network(), recipe.precision, self.device)
        denoisers = generation.make_denoiser_for_batch(network, schedule, recipe, **options)
        how = {"times": times, "sampler": sampler, "seed": seed, "device": self.device}
        return generation.generate(denoisers, schedule, self.scale.n, recipe.shape, **how)[0]

    def measure_images(
        self,
        key: Row,
        trained: TrainedNetwork,
        times: int | list[int],
        sampler: Callable = ddpm.ddpm_sampler,
        figures: Callable[[Tensor], Row] = lambda features: {},
        **options,
    ) -> Row:
        """The row of the Fréchet distance of what a sampler draws with the seed in key.

        figures: further columns, computed from the images' features. times, options: as for draw.
        """

        def measure() -> Row:
            images = self.draw(trained, times, key["seed"], sampler, **options)
            features = self.judge.features(images)
            return self.distance(features) | figures(features)

        return self.measure_once(key, measure)

    def distance(self, features: Tensor) -> Row:
        """The number of images with these features, and their Fréchet distance to real digits."""
        return {"n": len(features), "frechet": frechet_distance(self.training_features, features)}

    def measure_real_images(self) -> None:
        """Measures the row of real images, if the experiment has not measured it itself."""
        features = self.judge.features
        self.measure_once({"arm": "real"}, lambda: self.distance(features(self.real_images())))

    def real_images(self) -> Tensor:
        """As many unseen images as are drawn, chosen at random."""
        return shuffled(self.test_images, 0, self.scale.n)

    def check_record(self) -> None:
        """Raises ValueError if the folder holds results of other settings.

        Another number of seeds is allowed.
        """
        if not self.previous_record:
            return
        record = self.record()
        for name in ("scale", "training", "extractor"):
            now = record[name]
            before = self.previous_record.get(name, now)
            if name == "scale":
                before = before | {"seeds": now["seeds"]}
            differs = f"{self.out} holds results of another {name}, {before}, not {now}"
            ddpm.check(before == now, f"{differs}: choose another --out")

    def record(self) -> dict:
        """How the results come about, including those of earlier runs on another machine."""
        here = {
            "device": str(self.device),
            "hardware": devices.hardware(self.device),
            "threads": torch.get_num_threads(),
            "versions": devices.versions(),
        }
        previous = {name: x for name, x in self.previous_record.items() if name in here}
        machines = [*self.previous_record.get("earlier", []), previous]
        earlier = [machine for machine in machines if machine not in ({}, here)]
        record = {
            "command": self.command,
            "scale": asdict(self.scale),
            "seeds": list(range(self.scale.seeds)),
            "training": self.common_settings,
            "networks": self.networks,
            "extractor": self.judge.name,
            "reference": "60,000 training images",
            **here,
        }
        return record | {"earlier": earlier} if earlier else record
