"""Training that saves as it goes, can be stopped, and goes on bit for bit: runs and their folders."""

import math
import pickle
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import torch
from torch import Tensor

from mnist_ddpm import ddpm
from mnist_ddpm.resumable import deferred_interrupt, first_line, out_of_memory, replacing, writable_folder

PREVIEW_EVERY = 50  # steps: shorter epochs have no preview each


class World:
    """The processes that share the work of a run: here just one. mnist_ddpm.processes has one of several."""

    rank, size, device = 0, 1, torch.device("cpu")  # where it gathers

    def share(self, n: int, rank: int | None = None) -> range:
        """This process's part of n things, or another rank's."""
        rank = self.rank if rank is None else rank
        return range(rank * n // self.size, (rank + 1) * n // self.size)

    def gather(self, x: Tensor) -> Tensor:
        """All processes' x, in their order: (size * N, …)."""
        return x

    def any(self, flag: bool) -> bool:
        """Whether any process has flag set."""
        return flag


def check_labels(labels: Tensor | None, n: int, classes: int) -> None:
    """Raises ValueError unless labels is int32 or int64 (n,), each 0 … classes - 1, or None where classes is 0."""
    if classes and labels is None:
        raise ValueError(f"the network takes one of {classes} labels with each image, and there are none: pass labels")
    if labels is not None and not classes:
        raise ValueError("labels are of no use to this network, made without them (classes = 0): leave them out")
    if labels is not None and labels.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"labels must be int32 or int64, not {labels.dtype}: labels.long() makes them so")
    if labels is not None and labels.shape != (n,):
        raise ValueError(f"there must be one label for each of {n} images, not labels {tuple(labels.shape)}")
    if labels is not None and not ((labels >= 0) & (labels < classes)).all():
        raise ValueError(f"labels must be from 0 to {classes - 1}: found {labels.min()} to {labels.max()}")


def save_run(folder: ddpm.PathLike, run: ddpm.Run) -> None:
    """A checkpoint of the averaged model, and training_state.pt beside it."""
    state = {
        "settings": asdict(run.settings), "model": run.model.state_dict(), "ema": run.ema.state_dict(),
        "optimizer": run.optimizer.state_dict(), "scaler": run.scaler.state_dict(),
        "times": {} if run.times is None else run.times.state_dict(),
        "generator": run.generator.get_state(), "device": run.device.type,
        "n": run.n, "step": run.step, "seconds": run.seconds, "losses": run.losses,
    }  # fmt: skip
    with replacing(Path(folder, "training_state.pt")) as path:
        torch.save(state, path)
    run.home = Path(folder).resolve()
    # last, so that a run that has one can be resumed
    ddpm.save_checkpoint(folder, run.ema, run.settings, run.record(), replacing)
    run.saved = run.step


def load_state(folder: ddpm.PathLike) -> tuple[dict, ddpm.Settings]:
    """The training state saved in folder, and its settings. Raises FileNotFoundError, or ValueError if damaged."""
    path = Path(folder, "training_state.pt")
    if not path.is_file():
        raise FileNotFoundError(f"nothing to resume: there is no {path}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        return state, ddpm.Settings(**state["settings"])
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, KeyError, TypeError, ValueError) as error:
        # the others say nothing of use: a key, or PyTorch's advice to run what code is in the file
        reason = f" ({first_line(error)})" if isinstance(error, (OSError, TypeError, ValueError)) else ""
        instead = "init_from can start a new run from the weights beside it"
        raise ValueError(f"{path} is damaged or no training state of this version{reason}: {instead}") from error


def check_changes(saved: ddpm.Settings, settings: ddpm.Settings, folder: ddpm.PathLike) -> None:
    """Raises ValueError where the run saved in folder cannot go on with these settings."""
    data = ["attributes", "init_from"]
    if {saved.dataset, settings.dataset} & {*ddpm.DATASETS}:  # a folder may have moved
        data.append("dataset")
    for name in (*data, *ddpm.NETWORK_SETTINGS, *ddpm.DIFFUSION_SETTINGS, "optimizer", "batch_size", "seed"):
        old, new = getattr(saved, name), getattr(settings, name)
        if old != new:
            where = f"in the run in {folder}"
            raise ValueError(f"{name} was {old!r} {where} and cannot become {new!r}: train a new run for that")


def resume_run(
    folder: ddpm.PathLike, settings: ddpm.Settings | None = None, device: ddpm.Device = "cpu",
    start: Callable[..., ddpm.Run] = ddpm.start_run,
) -> ddpm.Run:  # fmt: skip
    """The run saved in folder, with its own settings, or new ones that change epochs, rates, precision and the like.

    start: what makes a run of settings, the notebook's own perhaps.
    Raises as load_state and check_changes.
    """
    there = saved_step(folder)  # first, so that what another saves from now on is told from it
    (state, saved), path = load_state(folder), Path(folder, "training_state.pt")
    settings = settings or saved
    check_changes(saved, settings, folder)
    if settings.epochs != saved.epochs and ddpm.first_process():
        change = f"epochs were {saved.epochs:g} and are {settings.epochs:g} now"
        print(f"{change}: the learning rate goes on as in a run of that length")
    run = start(settings, device)
    ddpm.load_weights(run.model.state_dict(), state["model"], path)
    ddpm.load_weights(run.ema.state_dict(), state["ema"], path)
    for group, own in zip(state["optimizer"].get("param_groups", []), run.optimizer.param_groups):
        group["fused"] = own.get("fused")  # as suits this device, not the one that saved
    run.optimizer.load_state_dict(state["optimizer"])
    if run.times is not None:
        run.times.load_state_dict(state["times"])
    if state.get("scaler"):
        run.scaler.load_state_dict(state["scaler"])
    if run.device.type == state["device"]:  # the state of one device's generator means nothing to another's
        run.generator.set_state(state["generator"])
    run.n, run.step = state.get("n", 0), state["step"]
    run.seconds, run.losses, run.home, run.saved = state["seconds"], state["losses"], Path(folder).resolve(), there
    return run


def saved_step(folder: ddpm.PathLike) -> int | None:
    """That of the checkpoint in a folder; None where there is none, or a damaged one."""
    try:
        return ddpm.load_config(folder)[1].get("steps")
    except (FileNotFoundError, ValueError):
        return None


def must_be_free(folder: ddpm.PathLike, run: ddpm.Run | None = None) -> None:
    """Raises FileExistsError where a run would overwrite another: a new one, or one away from home.

    At home it is what another training of the same run has saved there since this one last saved, or was loaded.
    """
    if run is not None and run.home == Path(folder).resolve():
        found = saved_step(folder)
        if found not in (None, run.saved):
            another = f"another training has saved step {found} in {folder} meanwhile"
            raise FileExistsError(f"{another}: this would overwrite it")
        return
    config, state = (Path(folder, name).exists() for name in ("config.json", "training_state.pt"))
    if config or state:
        way = "resume it, or" if state else "init_from can start from it, but"
        raise FileExistsError(f"{folder} holds a checkpoint already: {way} train into another folder")


def left_there(folder: Path, run: ddpm.Run) -> str:
    """What a save that was cut short, or never came, has left in a folder."""
    return f"the run in {folder} can be resumed" if run.home == folder.resolve() else "nothing was saved"


def saved_whole(folder: Path, run: ddpm.Run) -> bool:
    """Whether the checkpoint in a folder is of the run's last step."""
    return saved_step(folder) == run.step and (folder / "model.safetensors").is_file()


def fit(
    run: ddpm.Run, images: Tensor, schedule: ddpm.Schedule, folder: ddpm.PathLike,
    objective: ddpm.Objective | None = None, labels: Tensor | None = None, deadline: float = math.inf,
    loop: Callable[..., Iterator[ddpm.TrainingStep]] = ddpm.training_loop,
    draw: Callable[[ddpm.Run, ddpm.Schedule], np.ndarray] = ddpm.preview, world: World | None = None,
) -> ddpm.Run:  # fmt: skip
    """Trains run to settings.epochs on uint8 images (N, C, H, W); checkpoints and previews go to folder.

    Both after each epoch or, where epochs are short, after as many as have PREVIEW_EVERY steps and as keep saving
    within 3 s plus a twentieth of the time; checkpoints every five minutes too.
    objective, labels: as in training_loop. deadline: time.monotonic() at which to save and stop in any case.
    loop, draw: what trains, and what draws a preview, the notebook's own perhaps. world: of several processes.

    Raises ValueError unless there are labels exactly where settings.classes asks for them, and as many images as
    before, of the settings' shape, FileExistsError where it would overwrite another run's checkpoint,
    FloatingPointError for a loss that is not finite, KeyboardInterrupt after Ctrl-C; the message says what is saved
    and how to go on.
    """
    check_labels(labels, len(images), run.settings.classes)
    if tuple(images.shape[1:]) != run.settings.shape:
        given, wanted = tuple(images.shape[1:]), run.settings.shape
        raise ValueError(f"the images are {given}, and the run's settings say {wanted}: channels, height, width")
    if run.n not in (0, len(images)):
        raise ValueError(f"the run is one of {run.n} images, and here are {len(images)}: init_from goes on with others")
    if world is None and run.add_gradients is not None:
        raise ValueError("the run has joined several processes: fit it with processes.fit")
    world = world or World()
    room = torch.cuda.mem_get_info(run.device)[0] // 4 if run.device.type == "cuda" else 2**31
    images = images.to(run.device) if images.numel() < min(2**31, room) else images  # else batch by batch
    folder, epoch_steps = writable_folder(folder), ddpm.steps_per_epoch(run.settings, images)

    def save() -> None:  # by the first process, for all
        nonlocal saved_at
        if world.rank == 0:
            must_be_free(folder, run)  # another may have begun there meanwhile
            save_run(folder, run)
        saved_at, run.home, run.saved = run.step, folder.resolve(), run.step

    must_be_free(folder, run)
    run.n = len(images)
    signal_left = schedule.alpha_bar[-1].item()
    if signal_left > 0.01 and world.rank == 0:
        left = f"At t = T {signal_left:.0%} of the signal's power is left"
        print(f"{left}, but sampling starts from noise: raise T or beta_T")
    total, warmup = ddpm.total_steps(run.settings, images), run.settings.warmup_steps
    if run.step == 0 and total < 2 * warmup and not run.settings.init_from and world.rank == 0:
        few = f"{total} steps in all, and in the first {warmup} the learning rate only rises"
        print(f"{few}: more epochs, smaller batches or fewer warmup_steps would learn more")
    (folder / "previews").mkdir(exist_ok=True)
    began, saved_at, saving = run.step, run.step if saved_whole(folder, run) else None, 0.0
    start = last_save = time.monotonic()
    late, stopped = False, False
    rhythm = epoch_steps * max(1, PREVIEW_EVERY // epoch_steps)
    bar = ddpm.progress_bar(total=total, initial=run.step, desc="training", unit="step")
    with bar, deferred_interrupt() as interrupted:
        try:
            for step, *_ in loop(run, images, schedule, objective, labels):
                now = time.monotonic()
                try:
                    bar.update()
                except OSError:  # of what it is piped to, which Ctrl-C ends as well
                    bar.disable = True
                    bar.get_lock().release()  # for which tqdm's other threads would wait
                bar.set_postfix(loss=f"{np.mean(run.losses[-100:]):.4f}", refresh=False)
                late = math.isfinite(deadline) and world.any(now > deadline)
                stopped = world.any(bool(interrupted))
                run.seconds += time.monotonic() - now  # where several processes wait for each other
                due = step == total or late or (step % rhythm == 0 and saving < 3 + (now - start) / 20)
                if due or stopped or now - last_save > 300:
                    save()
                    if due and world.rank == 0:
                        preview = folder / "previews" / f"epoch_{math.ceil(step / epoch_steps):03d}.png"
                        with suppress(FloatingPointError, OSError):  # the loss and the next save tell
                            imageio.imwrite(preview, draw(run, schedule))
                    last_save = now
                    saving += time.monotonic() - now
                if late or stopped:
                    break
            if run.step != saved_at:  # a loop that ended early, or a save that was cut short
                save()
            if run.step == began and world.rank == 0:
                print(f"{folder} was trained to its end before: set more epochs to go on")
            stopped = world.any(bool(interrupted))  # until the last checkpoint is written, all wait
            if stopped:
                more = ": resume to go on" if run.step < total else ", its last"
                raise KeyboardInterrupt(f"stopped after step {run.step} and saved in {folder}{more}")
        except (FloatingPointError, OSError, RuntimeError, MemoryError) as error:
            if isinstance(error, RuntimeError | MemoryError) and (world.size > 1 or not out_of_memory(error)):
                raise  # of several processes, mnist_ddpm.processes tells what is saved
            whole = f"the checkpoint of step {saved_at} in {folder} is good"
            saved = whole if saved_at and not isinstance(error, FileExistsError) else left_there(folder, run)
            saved = saved if world.rank == 0 else f"what the first process has saved in {folder} is good"
            advice = "; try a lower learning_rate, or float32" if isinstance(error, FloatingPointError) else ""
            raise type(error)(f"{first_line(error)}; {saved}{advice}") from error
    return run
