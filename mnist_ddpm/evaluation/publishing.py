"""A checkpoint on the hub, with a page that shows what it draws, and how good that is."""

import inspect
import json
import math
from functools import partial
from pathlib import Path

import imageio.v3 as imageio
import torch
from torch import Tensor

from mnist_ddpm import catalogue, ddpm
from mnist_ddpm.data.labels import label_names
from mnist_ddpm.datasets import dataset_named
from mnist_ddpm.ddpm import check
from mnist_ddpm.evaluation import audit, cards, generation
from mnist_ddpm.evaluation.distances import Estimate
from mnist_ddpm.evaluation.extractors import digest
from mnist_ddpm.formats import checkpoints, hub
from mnist_ddpm.formats.checkpoints import Checkpoint
from mnist_ddpm.machine.text import printable, read_json
from mnist_ddpm.methods import solvers
from mnist_ddpm.methods.learned_variance import takes_exponent
from mnist_ddpm.training.recipe import Recipe
from mnist_ddpm.training.run import count_parameters
from mnist_ddpm.training.saving import CONFIG, WEIGHTS

SHOWN = 36  # images
SAMPLING = {"name": "dpmpp", "steps": 20}  # of checkpoints without a card and defaults
CLIPS = {"dynamic": solvers.thresholded, "none": None}
LOADING = """With the package `mnist-ddpm` installed:

```python
import mnist_ddpm

images = mnist_ddpm.sample("{name}", 64, seed=0)
```

```sh
mnist-ddpm sample --checkpoint {name} --out out
```"""


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
    files = {file: Path(folder, file).read_bytes() for file in (CONFIG, WEIGHTS)}
    figures = read_card_of(digest(files[WEIGHTS]), card) if card else {}
    full_name = f"{repository}@{revision}" if revision else repository
    _, record = checkpoints.load_config(folder)
    # before images are drawn, since what is no card is refused here
    page = model_card(full_name, checkpoint, record, figures)
    defaults = SAMPLING | checkpoints.sampling_defaults(folder)
    defaults["name"] = defaults.get("sampler", defaults["name"])
    images = draw(checkpoint, figures.get("sampler", defaults), figures.get("seed", 0), device)
    grid = ddpm.tile(images, math.isqrt(SHOWN), scale=2)
    files["samples.png"] = imageio.imwrite("<bytes>", grid, extension=".png")
    files["README.md"] = page.encode()
    if figures:
        files["card.json"] = json.dumps(figures, indent=2).encode()
    return hub.upload(repository, files, private, revision)


def read_card_of(weights: str, path: str | Path) -> dict:
    """The card of the weights with a digest. Raises ValueError for no card, or one of others."""
    others = cards.read_card(path)["checkpoint_sha256"]
    check(others == weights, f"{path} is a card of other weights, {others}: these are {weights}")
    return read_json(Path(path))


def draw(checkpoint: Checkpoint, settings: dict, seed: int, device: torch.device | str) -> Tensor:
    """Images, drawn with the sampler's settings of a card: uint8 (SHOWN, C, H, W)."""
    network, schedule, recipe = checkpoint
    sampler = catalogue.look_up("sampler", settings["name"], catalogue.SAMPLERS)
    names = inspect.signature(sampler).parameters
    options = {name: settings[name] for name in names if name in settings}
    if "variance" in options:
        options["variance"] = catalogue.VARIANCES[options["variance"]]
    labels = settings.get("labels")
    if recipe.classes:
        cycle = torch.tensor(labels if isinstance(labels, list) else range(recipe.classes))
        labels = cycle[torch.arange(SHOWN) % len(cycle)]
    guide = None
    if "guide" in settings:
        loaded = checkpoints.load(settings["guide"], device)
        guide = loaded.network, loaded.recipe
    path = catalogue.make_path(recipe, settings["path"]) if "path" in settings else None
    steps = min(settings["steps"], recipe.T)
    spacing = settings.get("spacing", "trailing")
    times = catalogue.sampling_times(path or schedule, steps, spacing)
    source = generation.denoisers(
        network,
        schedule,
        recipe,
        labels=labels,
        scale=settings.get("guidance", 1.0),
        guide=guide,
        interval=settings.get("guidance_interval"),
        clip=CLIPS.get(settings.get("clip"), ddpm.clipped),
        path=path,
        heading=catalogue.heading(settings["name"], times, recipe),
        with_exponent=takes_exponent(options.get("variance")),
    )
    bound = partial(sampler, **options)
    run = {"times": times, "sampler": bound, "seed": seed, "device": device}
    images, _ = generation.generate(source, path or schedule, SHOWN, recipe.shape, **run)
    return images


def model_card(name: str, checkpoint: Checkpoint, record: dict, card: dict) -> str:
    """The page of a repository: what the network is, what it draws, its figures, how to load it.

    record: of the training, as checkpoints.load_config returns it. card: {} where there is none.
    """
    from huggingface_hub import ModelCardData  # slow to import

    recipe = checkpoint.recipe
    dataset = dataset_named(recipe.dataset)
    head = ModelCardData(
        library_name="mnist-ddpm",
        pipeline_tag="unconditional-image-generation",
        tags=["diffusion", "ddpm", "pytorch", "image-generation"],
        **dataset.license,
    )
    parts = [
        f"---\n{head.to_yaml()}\n---\n\n# {name.split('/')[1]}",
        description(dataset.title, recipe, count_parameters(checkpoint.network), record),
        f"![{SHOWN} images](samples.png)\n\n{SHOWN} images, none selected.",
        f"## Load it\n\n{LOADING.format(name=name)}",
        *(["## How good it is", *card_sections(card)] if card else []),
        f"## Terms\n\n{dataset.terms}",
    ]
    return "\n\n".join(parts) + "\n"


def description(title: str, recipe: Recipe, parameters: int, record: dict) -> str:
    """What the network is, in two or three sentences."""
    size = "{1} x {2} pixels".format(*recipe.shape)
    colour = "grey" if recipe.channels == 1 else "colour"
    network = f"A denoising diffusion model of {title}: {size}, {colour}, {parameters:,} parameters"
    method = f"schedule {recipe.schedule}, T = {recipe.T}, predicting {recipe.prediction}"
    labels = ", ".join(label_names(recipe)) if recipe.attributes else f"0 to {recipe.classes - 1}"
    labels = f" Its labels are {labels}." if recipe.classes else ""
    trained = f" It was trained for {record['steps']:,} steps." if "steps" in record else ""
    return f"{network}; {method}.{labels}{trained}"


def card_sections(card: dict) -> list[str]:
    """A table of a card's figures beside those of real images, how they were made, and more lines.

    Raises ValueError for what is no card.
    """
    try:
        names = [*card["metrics"]]
        rows = {"these images": {"n": card["n"], **card["metrics"]}, **card["floor"]}
        titles = (name.replace("_", " ").replace("frechet", "Fréchet") for name in names)
        table = [["", "n", *titles], ["---"] * (len(names) + 2)]
        for title, row in rows.items():
            estimates = (str(Estimate(**row[name])) for name in names)
            table.append([title, f"{row['n']:,}", *estimates])
        about = f"Seed {card['seed']}; features of {card['extractor']}; "
        about += f"against {card['reference']}. "
        about += f"Sampler: {cards.describe_value(card.get('sampler'))}."
        if card.get("command"):
            about += f" Command: `{card['command']}`."
        lines = []
        for space in cards.SPACES:
            nearest = card[f"nearest_training_image_in_{space}"]
            nearest = nearest | {"closer": Estimate(**nearest["closer"])}
            lines.append(f"in {space}: {audit.describe_audit(nearest)}")
        lines += cards.measured_lines(card)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"this card lacks figures ({error!r}): evaluate again") from error
    about += " ± is a 95 % interval over the images. The rows below the first are what real images "
    about += "score."
    rows = ["| " + " | ".join(map(printable, row)) + " |" for row in table]
    more = [printable(f"- {line}") for line in lines]
    return ["\n".join(rows), printable(about), "\n".join(more)]
