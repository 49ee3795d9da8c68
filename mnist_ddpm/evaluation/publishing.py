"""The page of a checkpoint on the hub: what it is, what it draws, and how good that is."""

import html
from pathlib import Path

from mnist_ddpm.data.labels import describe_names, label_names
from mnist_ddpm.datasets import dataset_named
from mnist_ddpm.ddpm import check
from mnist_ddpm.evaluation import cards, copies
from mnist_ddpm.evaluation.distances import Estimate
from mnist_ddpm.formats.checkpoints import Checkpoint
from mnist_ddpm.machine.text import describe_error, printable, read_json
from mnist_ddpm.recipe import Recipe
from mnist_ddpm.training.cost import count_parameters

SHOWN = 36  # images on the page
LOADING = """With the package `mnist-ddpm` installed:

```python
import mnist_ddpm

images = mnist_ddpm.sample("{name}", 64, seed=0)
```

```sh
mnist-ddpm sample --checkpoint {name} --out out
```"""


def read_card_of(weights: str, path: str | Path) -> dict:
    """The card of the weights with a digest. Raises ValueError for no card, or one of others."""
    others = cards.read_card(path)["checkpoint_sha256"]
    check(others == weights, f"{path} is a card of other weights, {others}: these are {weights}")
    return read_json(Path(path))


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
    names = html.escape(describe_names(label_names(recipe)))
    labels = f" Its labels are {names}." if recipe.classes else ""
    steps = record.get("steps") if isinstance(record, dict) else None
    trained = f" It was trained for {steps:,} steps." if type(steps) is int else ""
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
        for space, nearest in cards.audits(card).items():
            nearest = nearest | {"closer": Estimate(**nearest["closer"])}
            lines.append(f"in {space}: {copies.describe_audit(nearest)}")
        lines += cards.measured_lines(card)
    except (KeyError, TypeError, AttributeError) as error:
        reason = describe_error(error)
        raise ValueError(f"this card lacks figures ({reason}): evaluate again") from error
    about += " ± is a 95 % interval over the images. The rows below the first are what real images "
    about += "score."
    rows = ["| " + " | ".join(map(printable, row)) + " |" for row in table]
    more = [printable(f"- {line}") for line in lines]
    return ["\n".join(rows), printable(about), "\n".join(more)]
