"""`python -m mnist_ddpm push`."""

import json
import math
from pathlib import Path

import imageio.v3 as imageio
import torch

from mnist_ddpm import ddpm
from mnist_ddpm.commands.flags import PushFlags, SampleFlags
from mnist_ddpm.commands.sample import prepare_job
from mnist_ddpm.ddpm import check
from mnist_ddpm.evaluation import publishing
from mnist_ddpm.evaluation.extractors import digest
from mnist_ddpm.formats import checkpoints, hub
from mnist_ddpm.formats.checkpoints import CONFIG, WEIGHTS, description_digests
from mnist_ddpm.machine import devices
from mnist_ddpm.machine.text import describe_error, read_json, without_folders
from mnist_ddpm.sampling import Sampling


def run_push(flags: PushFlags) -> None:
    """Draws some images, uploads them with the checkpoint, and prints the address."""
    device = devices.pick_device(flags.device)
    options = {"card": flags.card, "device": device, "private": flags.private}
    print(push_to_hub(flags.checkpoint, flags.to, **options))


def push_to_hub(
    source: str | Path,
    name: str,
    *,
    card: str | Path | None = None,
    private: bool = False,
    revision: str | None = None,
    device: torch.device | str = "cpu",
) -> str:
    """Publishes a checkpoint as "owner/name" on the hub; returns the commit's address.

    source: as checkpoints.find knows it. card: a file of the evaluate command, about these weights.
    private, revision: a new repository's, and a branch, which may stand in the name after an @.
    Raises ValueError for what does not fit, OSError where the hub does not take it.
    """
    parts = hub.repository_and_revision(name)
    check(parts is not None, f"{name} is no name on the hub: it must be owner/name[@branch]")
    repository = parts[0]
    revision = revision or parts[1]
    folder = checkpoints.find(source)
    checkpoint = checkpoints.load(source, device)
    condition = checkpoint.recipe.condition
    advice = "push is for networks that draw without"
    check(condition == "none", f"{source} needs a condition ({condition}): {advice}")
    files = {CONFIG: public_config(folder), WEIGHTS: Path(folder, WEIGHTS).read_bytes()}
    figures = publishing.read_card_of(digest(files[WEIGHTS]), card) if card else {}
    sampler = figures.get("sampler")
    figures = without_folders(figures)
    full_name = f"{repository}@{revision}" if revision else repository
    _, record = checkpoints.load_config(folder)
    # before images are drawn, since what is no card is refused here
    page = publishing.model_card(full_name, checkpoint, record, figures)
    options = {"n": publishing.SHOWN, "seed": figures.get("seed", 0), "device": str(device)}
    if not sampler and not checkpoints.sampling_defaults(folder):
        options |= {"sampler": "dpmpp", "steps": min(20, checkpoint.recipe.T)}
    try:
        if sampler and isinstance(sampler.get("labels"), list):
            options["label"] = sampler["labels"]
        sampling = Sampling.from_card(sampler) if sampler else None
        job = prepare_job(SampleFlags(checkpoint=folder, **options), sampling)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if not card:
            raise
        refusal = f"{card} has a sampler or a seed that evaluate did not write"
        raise ValueError(f"{refusal} ({describe_error(error)}): evaluate again") from error
    images, _ = job.draw()
    grid = ddpm.tile(images, math.isqrt(publishing.SHOWN), scale=2)
    files["samples.png"] = imageio.imwrite("<bytes>", grid, extension=".png")
    files["README.md"] = page.encode()
    if figures:
        files["card.json"] = json.dumps(figures, indent=2).encode()
    for path, content in files.items():
        print(f"{path}, {len(content):,} bytes, goes to {full_name}, where others may read it")
    return hub.upload(repository, files, private, revision)


def public_config(folder: Path) -> bytes:
    """A folder's config.json without the paths of this machine, such as that of the images."""
    config = without_folders(read_json(folder / CONFIG))
    digests = description_digests(config)
    config["sha256"] = {
        name: digests.get(name, digest) for name, digest in config.get("sha256", {}).items()
    }
    return json.dumps(config, indent=2).encode()
