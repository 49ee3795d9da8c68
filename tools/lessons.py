"""For developers: the small networks of further/break_it.ipynb, the right one and those with a bug.

python tools/lessons.py [NAME …]    of right, restless, one-time, zero-to-one, mirrored; or all

All are written to checkpoints/lessons in half precision. `right` and `one-time` are trained for
1500 steps on 16x16 digits with one thread, some three minutes each. The others continue:
`restless` is `right` after 100 more steps with a high learning rate and batches of four, raw and
averaged (restless-raw, restless-averaged), `zero-to-one` is `right` after 500 more steps on digits
in [0, 1], `mirrored` is checkpoints/mnist-guide after 1200 more steps on digits mirrored by a coin.
"""

import json
import sys
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from mnist_ddpm import ddpm  # noqa: E402

REPORT_EVERY = 150
SETTINGS = ddpm.Settings(
    image_size=16, base_channels=16, channel_mults=(1, 2, 2), patch_size=1,
    epochs=0.8, batch_size=32, learning_rate=8e-3, warmup_steps=100, ema_decay=0.995,
)  # fmt: skip
SHORT = replace(SETTINGS, epochs=4 / 15, learning_rate=2e-3)
MIRRORED = replace(SHORT, image_size=32, channel_mults=(1, 2, 4), patch_size=2, epochs=0.64)
SCHEDULE = ddpm.beta_schedule(ddpm.linear_beta(SETTINGS.T, SETTINGS.beta_1, SETTINGS.beta_T))


def zero_to_one(x0: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The bug: images in [0, 1] instead of [-1, 1]."""
    return (x0 + 1) / 2


def one_time(network, schedule, x0, t, eps) -> torch.Tensor:
    """The bug: l_simple with the first image's time for the whole batch."""
    return ddpm.l_simple(network, schedule, x0, t[:1].expand_as(t), eps)


TRAININGS = {  # settings, the network that each continues if any, and its bug
    "right": (SETTINGS, None, {}),
    "one-time": (SETTINGS, None, {"objective": one_time}),
    "zero-to-one": (SHORT, "lessons/right", {"augment": zero_to_one}),
    "mirrored": (MIRRORED, "mnist-guide", {"augment": ddpm.mirrored}),
}


def digits(size: int) -> torch.Tensor:
    """MNIST's training digits, 32x32 or averaged to 16x16: uint8 (60000, 1, size, size)."""
    images = ddpm.load_mnist(32, ROOT / "data")
    return F.avg_pool2d(images.float(), 32 // size).round().to(torch.uint8)


def write(name: str, network: torch.nn.Module, run: ddpm.Run) -> None:
    """Writes a folder that ddpm.load_checkpoint reads, with some of the run's losses."""
    folder = ROOT / "checkpoints" / "lessons" / name
    folder.mkdir(parents=True, exist_ok=True)
    weights = save({key: value.half().contiguous() for key, value in network.state_dict().items()})
    losses = [round(loss, 4) for loss in run.losses[::8]]
    config = {
        "format": 2,
        "settings": asdict(run.settings),
        "method": {"schedule": "linear", "prediction": "eps"},
        "sha256": {"model.safetensors": sha256(weights).hexdigest()},
        "training": {"steps": run.step, "loss_every_8_steps": losses},
    }
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "config.json").write_text(json.dumps(config))


def train(name: str) -> ddpm.Run:
    """Trains one network, or continues the training of another, and writes it."""
    settings, start, bug = TRAININGS[name]
    run = ddpm.start_run(settings)
    if start:
        trained, _, _ = ddpm.load_checkpoint(ROOT / "checkpoints" / start)
        run.network.load_state_dict(trained.state_dict())
        run.ema.load_state_dict(trained.state_dict())
    run.network.to(memory_format=torch.channels_last)  # faster on a processor
    images = digits(settings.image_size)
    for loss in ddpm.training_loop(run, images, SCHEDULE, **bug):
        if run.step % REPORT_EVERY == 0:
            print(f"{name}: step {run.step}, loss {loss:.4f}", flush=True)
    write(name, run.ema, run)
    return run


def train_restless() -> None:
    """Trains `right`, continues it, and writes its raw and its averaged weights."""
    run = train("right")
    images = digits(SETTINGS.image_size)
    run.optimizer.param_groups[0]["lr"] = 3e-3
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        batch = torch.randint(len(images), (4,), generator=generator)
        ddpm.training_step(run, ddpm.l_simple, SCHEDULE, ddpm.to_float(images[batch]), generator)
    write("restless-raw", run.network, run)
    write("restless-averaged", run.ema, run)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for each in sys.argv[1:] or ["restless", *list(TRAININGS)[1:]]:
        train_restless() if each == "restless" else train(each)
