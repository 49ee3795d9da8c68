"""`python -m mnist_ddpm push` and `export`: a checkpoint for others."""

import html
import json
import math
from pathlib import Path

import imageio.v3 as imageio
import torch

from mnist_ddpm import ddpm
from mnist_ddpm.commands.flags import ExportFlags, PushFlags, SampleFlags
from mnist_ddpm.commands.outputs import print_written
from mnist_ddpm.commands.sample import prepare_job
from mnist_ddpm.data.labels import describe_names, label_names
from mnist_ddpm.datasets import dataset_named
from mnist_ddpm.ddpm import check
from mnist_ddpm.evaluation import cards, copies
from mnist_ddpm.evaluation.distances import Estimate
from mnist_ddpm.evaluation.extractors import digest
from mnist_ddpm.formats import checkpoints, diffusers, hub, onnx
from mnist_ddpm.formats.checkpoints import CONFIG, WEIGHTS, Checkpoint, description_digests
from mnist_ddpm.machine import devices, files
from mnist_ddpm.machine.text import describe_error, printable, read_json, without_folders
from mnist_ddpm.recipe import Recipe
from mnist_ddpm.sampling import Sampling
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


def run_push(flags: PushFlags) -> None:
    """Draws some images, uploads them with the checkpoint, and prints the address."""
    device = devices.pick_device(flags.device)
    address = push_to_hub(
        flags.checkpoint, flags.to, card=flags.card, device=device, private=flags.private
    )
    print(address)


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
    figures = read_card_of(digest(files[WEIGHTS]), card) if card else {}
    sampler = figures.get("sampler")
    figures = without_folders(figures)
    full_name = f"{repository}@{revision}" if revision else repository
    _, record = checkpoints.load_config(folder)
    # before images are drawn, since what is no card is refused here
    page = model_card(full_name, checkpoint, record, figures)
    options = {"n": SHOWN, "seed": figures.get("seed", 0), "device": str(device)}
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
    grid = ddpm.tile(images, math.isqrt(SHOWN), scale=2)
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


def run_export(flags: ExportFlags) -> None:
    """Writes a checkpoint for another library. Raises ValueError for what that cannot express."""
    export_onnx(flags) if flags.format == "onnx" else export_diffusers(flags)


def export_diffusers(flags: ExportFlags) -> None:
    """Writes a folder for DDPMPipeline."""
    precision = flags.precision
    check(precision == "float32", f"--precision {precision} is for --format onnx: leave it out")
    network, _, recipe = checkpoints.load(flags.checkpoint)
    try:
        diffusers.settings_to_diffusers(recipe)
    except ValueError as error:
        raise ValueError(f"{flags.checkpoint} cannot be exported: {error}") from error
    if any(files.writable_folder(flags.out).iterdir()):
        raise FileExistsError(f"{flags.out} is not empty: name another folder")
    diffusers.save_diffusers(flags.out, network, recipe)
    print(f'{flags.out}: DDPMPipeline.from_pretrained("{flags.out}") reads it')
    print_written(*sorted(path for path in flags.out.rglob("*") if path.is_file()))


def export_onnx(flags: ExportFlags) -> None:
    """Writes a file for ONNX Runtime."""
    out = flags.out
    check(out.suffix == ".onnx", f"--out is {out}: name a file that ends in .onnx")
    if out.exists():
        raise FileExistsError(f"{out} is there already: name another file")
    onnx.packages()
    network, schedule, recipe = checkpoints.load(flags.checkpoint)
    draw = checkpoints.sampling_defaults(flags.checkpoint)
    if "guide" in draw:  # a name, or a folder here
        draw = draw | {"guide": Path(draw["guide"]).name}
    files.check_writable(out)
    print("exporting, and comparing with PyTorch: this can take a minute", flush=True)
    try:
        difference = onnx.save_onnx(out, network, schedule, recipe, flags.precision, draw)
    except ValueError as error:
        raise ValueError(f"{flags.checkpoint} cannot be exported: {error}") from error
    print(f"{out}: ONNX Runtime and PyTorch differ by {difference:.1e} at most")
    print_written(out)
