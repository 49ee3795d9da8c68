"""`python -m mnist_ddpm status`, and the validation of `train --validate`."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from mnist_ddpm.commands.flags import StatusFlags
from mnist_ddpm.commands.training_flags import TrainFlags
from mnist_ddpm.data import loading
from mnist_ddpm.ddpm import check
from mnist_ddpm.evaluation import extractors
from mnist_ddpm.formats import checkpoints
from mnist_ddpm.machine.process import is_first_process
from mnist_ddpm.machine.text import printable
from mnist_ddpm.recipe import Recipe
from mnist_ddpm.training.run import Run
from mnist_ddpm.training.session import Log
from mnist_ddpm.training.tracking import TrackerLog
from mnist_ddpm.watch.progress import PROGRESS, read_progress
from mnist_ddpm.watch.validation import RealSet, Validator, check_share
from mnist_ddpm.watch.verdict import status_lines


def run_status(flags: StatusFlags) -> None:
    """Prints the verdict on a run and its figures."""
    folder = flags.folder
    if not (folder / PROGRESS).is_file():
        is_run = any((folder / name).is_file() for name in (checkpoints.STATE, checkpoints.CONFIG))
        check(is_run, f"there is no run in {folder}: name the --out of a train --validate")
        advice = f"train --resume --validate --out {folder} measures it from now on"
        raise ValueError(f"the run in {folder} was trained without --validate: {advice}")
    print_status(folder)


def print_status(folder: Path) -> None:
    """Prints the verdict on a run from its progress.json. Raises as read_progress."""
    print("\n".join(map(printable, status_lines(read_progress(folder), folder))))


def check_validation(flags: TrainFlags) -> None:
    """Raises ValueError for flags and files with which --validate could not begin."""
    check_share(flags.validate_share)
    if flags.validate and (flags.out / PROGRESS).is_file():
        read_progress(flags.out)


@contextmanager
def validation_log(
    flags: TrainFlags,
    run: Run,
    *,
    images: Tensor,
    labels: Tensor | None,
    device: torch.device,
    log: TrackerLog | None,
) -> Iterator[Log | None]:
    """The log of a training, which with --validate also validates it; in the end the verdict.

    images, labels: of training. log: the tracker's. Only the first of several processes validates.
    """
    if not (flags.validate and is_first_process()):
        yield log
        return
    recipe = run.settings
    held_out = loading.held_out(recipe, flags.data)
    judge = pick_judge_if_any(recipe, device)
    real = RealSet(images, held_out, labels, judge, flags.data / "cache")
    validator = Validator(
        flags.out,
        recipe,
        real,
        few_steps=run.method.sampling_defaults,
        device=device,
        share=flags.validate_share,
        log=log,
        log_values=None if log is None else log.log_values,
    )
    try:
        yield validator
    except FloatingPointError:
        validator.record_divergence()
        raise
    else:
        validator.finish()
    finally:
        if (flags.out / PROGRESS).is_file():
            print_status(flags.out)


def pick_judge_if_any(recipe: Recipe, device: torch.device) -> extractors.Judge | None:
    """The extractor of the data set, or None with a printed line: then there is no distance."""
    try:
        return extractors.pick_judge("auto", recipe.dataset, device, max(recipe.shape[1:]))
    except (ValueError, FileNotFoundError) as error:
        print(f"validation without a distance: {printable(error)}")
        return None
