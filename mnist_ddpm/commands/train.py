"""`python -m mnist_ddpm train`."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, fields, replace
from pathlib import Path

import torch

from mnist_ddpm import catalogue, trainer
from mnist_ddpm.commands import training_flags
from mnist_ddpm.commands.common import apart, moved, tell_written
from mnist_ddpm.data import sets
from mnist_ddpm.formats import checkpoints, teachers
from mnist_ddpm.formats.pretrained import initial_weights
from mnist_ddpm.machine import devices, files, folder_lock, processes
from mnist_ddpm.machine.processes import World
from mnist_ddpm.machine.progress import is_first_process
from mnist_ddpm.training import cost, presets, saving, tracking
from mnist_ddpm.training.options import PRESETS
from mnist_ddpm.training.recipe import Recipe, fitted
from mnist_ddpm.training.run import ALONE


class Train(training_flags.Train):
    """A training, begun or resumed."""

    fits = False  # whether its batch becomes smaller where there are fewer images

    def settle(self, typed: set[str]) -> None:
        """Completes the flags that were typed by those of --preset, --init-from or --resume.

        Raises ValueError for flags of no use to a new run, or that a resumed one cannot change.
        """
        self.fits = not self.resume and "batch_size" not in typed
        names = [each.name for each in fields(Recipe) if each.name in typed]
        given = {name: getattr(self.flags, name) for name in names}
        self.typed_precision = "precision" in given
        if self.resume:
            if "preset" in typed:
                raise ValueError("a resumed run has settings of its own: leave out --preset")
            saved = saving.load_state(self.out)[1]
            recipe = presets.resolve(given, asdict(saved))
            saving.check_changes(saved, recipe, self.out)
        else:
            recipe = presets.resolve(given, self.base(given))
            check_of_use(given, recipe)
        self.flags = training_flags.Flags(**asdict(recipe))

    def base(self, given: dict) -> dict:
        """Settings of the preset, and of the network to start from."""
        preset, source = PRESETS[self.preset], self.flags.init_from
        if not source:
            return preset
        dataset = given.get("dataset", preset.get("dataset", Recipe.dataset))
        return preset | initial_weights(source, dataset in sets.LABELS)[0]

    def run(self) -> None:
        """Trains to the end of its epochs. What cannot be done is told before images are read."""
        recipe = Recipe(**asdict(self.flags))
        if self.log != "none":
            tracking.check_tracker(self.log)
        if self.resume:
            moved(recipe, None)
        else:
            saving.must_be_free(self.out)
            apart(self.out, recipe.dataset)
        world = processes.connect(self.processes, self.device == "cpu")
        device = devices.pick_device(self.device, world)
        processes.check_batch_size(recipe.batch_size, world)
        with processes.main_process_first(world):
            sets.check_labelled(recipe, self.data)
        network = check_names(recipe)
        if device.type == "cpu":  # a GPU has errors of its own
            cost.check_training(recipe)
        recipe = self.precise(recipe, device)
        devices.check_precision(recipe.precision, device)
        with folder_lock.locked_folder(files.writable_folder(self.out), world):
            pass  # said before images are read
        weights = None
        if recipe.init_from and not self.resume:
            weights = initial_weights(
                recipe.init_from, recipe.classes > 0, recipe.condition, recipe.classes,
                catalogue.tells_steps(recipe),
            )[1]  # fmt: skip
            checkpoints.load_weights(network.state_dict(), weights, recipe.init_from)
            if recipe.objective in catalogue.MATCHING:
                weights |= as_second(recipe)
        taught_by = teachers.teacher(recipe, device) if recipe.teacher else None
        with processes.main_process_first(world):
            images = sets.load_images(recipe, self.data)
            labels = sets.load_labels(recipe, self.data) if recipe.classes else None
        if self.fits:
            before, recipe = recipe, fitted(recipe, len(images), world.size)
            tell_fitted(before, recipe, len(images))
        step = saving.saved_step(self.out) or 0 if self.resume else 0
        with opened_log(self, recipe, step, world) as log:
            options = {"device": device, "world": world, "log": log, "teacher": taught_by}
            run = trainer.train(recipe, images, self.out, labels, self.resume, weights, **options)
        pace = run.step * recipe.batch_size / max(run.seconds, 1e-9)
        if world.rank == 0:
            took = f"{run.step} steps in {run.seconds / 60:.1f} min"
            print(f"{self.out}: {took}, {pace:.0f} images/s")
            tell_checkpoint(self.out)

    def precise(self, recipe: Recipe, device: torch.device) -> Recipe:
        """The recipe in the precision that suits a device, unless one was typed.

        A run that goes on keeps its own where the device has it.
        """
        lost = devices.emulates(recipe.precision, device)
        if self.typed_precision or (self.resume and not lost):
            return recipe
        own = devices.default_precision(device)
        if own != recipe.precision and is_first_process():
            reason = "this GPU has no bfloat16 arithmetic" if lost else "this GPU computes in it"
            print(f"training in {own}, since {reason} (a --precision that you type wins)")
        return replace(recipe, precision=own)


def as_second(recipe: Recipe) -> dict[str, torch.Tensor]:
    """Weights that a second network begins with.

    Those of a teacher, the unlabelled one last, if it is such a network and says the same; else
    those that the first begins with.
    """
    meaning = "schedule", "T", "beta_1", "beta_T", "prediction"
    network = catalogue.make_network(replace(recipe, network="shortcut"))
    shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    for source in filter(None, (recipe.teacher, recipe.teacher_unlabelled, recipe.init_from)):
        labels, classes = recipe.classes > 0, recipe.classes
        decided, weights = initial_weights(source, labels, classes=classes, shortcut=True)
        alike = all(decided[name] == getattr(recipe, name) for name in meaning)
        if alike and shapes == {name: value.shape for name, value in weights.items()}:
            break
    return {f"fake.{name}": value for name, value in weights.items()}


def check_of_use(given: dict, recipe: Recipe) -> None:
    """Raises ValueError for flags that a new run would ignore."""
    if "label_dropout" in given and not (recipe.classes or recipe.attributes):
        problem = "--label-dropout hides labels, and there are none"
        raise ValueError(f"{problem}: leave it out, or see --classes")
    if given.keys() & {"beta_1", "beta_T"} and not catalogue.heeds_betas(recipe):
        problem = f"schedule {recipe.schedule} has betas of its own"
        raise ValueError(f"{problem}: leave out --beta-1 and --beta-T")


def check_names(recipe: Recipe) -> torch.nn.Module:
    """The network without its weights. Raises ValueError for what the catalogue does not know."""
    catalogue.make_schedule(recipe)
    catalogue.make_objective(recipe)
    catalogue.make_times(recipe)
    catalogue.look_up("optimizer", recipe.optimizer, catalogue.OPTIMIZERS)
    with torch.device("meta"):
        return catalogue.make_network(recipe)


def tell_checkpoint(folder: Path) -> None:
    """The last lines of a training."""
    names = saving.WEIGHTS, saving.CONFIG, saving.STATE
    tell_written(*(folder / name for name in names if (folder / name).is_file()))


def opened_log(
    command, recipe: Recipe, step: int = 0, world: World = ALONE
) -> AbstractContextManager:
    """What --log asks for of a run that goes on after step, of the first process.

    None inside where that is nothing.
    """
    if command.log == "none" or world.rank > 0:
        return nullcontext()
    return tracking.tracker_log(command.log, command.out, recipe, step)


def tell_fitted(before: Recipe, recipe: Recipe, n: int) -> None:
    """Says where a batch has become smaller to fit n images."""
    if n < before.batch_size and is_first_process():
        told = f"{n} images are fewer than a batch of {before.batch_size}"
        print(f"{told}: batches have {recipe.batch_size}")


def places(command) -> list[str]:
    """The flags of train for the folders, device and log of a command, train or plan."""
    given = {name: getattr(command, name) for name in ("out", "data", "device", "log")}
    differ = {name: value for name, value in given.items() if value != getattr(Train, name)}
    return [part for name, value in differ.items() for part in (f"--{name}", str(value))]
