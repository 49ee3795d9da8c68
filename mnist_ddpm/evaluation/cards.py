"""A card: all figures of a set of images, how they were made, and what real images would score.

It is a dict, written as JSON, printed in lines, and compared with another.
"""

import json
import math
from pathlib import Path

import torch
from torch import Tensor

from mnist_ddpm.datasets import DATASETS, dataset_named
from mnist_ddpm.ddpm import check
from mnist_ddpm.evaluation import copies, distances
from mnist_ddpm.evaluation.extractors import Judge, RealFeatures, RealImages, digest
from mnist_ddpm.machine import devices
from mnist_ddpm.machine.files import replacing
from mnist_ddpm.machine.text import describe_error, printable, read_json
from mnist_ddpm.recipe import Recipe, format_size

LEAST = distances.NEIGHBOURS + 1  # images of a card, at least
SMALL = 5000  # with fewer images, a good model's distance is mostly bias
SPACES = "pixels", "features"  # in which the nearest training images are looked for
MAY_DIFFER = "checkpoint", "checkpoint_sha256", "images", "sampler", "seed"  # in a comparison


def check_enough(n: int, training: int) -> None:
    """Raises ValueError where n images, or the training images, are too few for a card."""
    needed = f"{LEAST} images and {2 * LEAST} of the training set"
    counts = f"there are {n} and {training}"
    check(n >= LEAST and training >= 2 * LEAST, f"a card needs {needed} at least, and {counts}")


def build_card(
    images: Tensor,
    training: Tensor,
    held_out: Tensor | None,
    judge: Judge,
    recipe: Recipe,
    *,
    real: RealFeatures | None = None,
    n: int | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    **about,
) -> dict:
    """The card of uint8 images (N, C, H, W), or of n of them that the seed chooses.

    training, held_out: real images of the same shape. recipe: the training's, for its data set.
    real: their features, if they are known already, of mirrored ones if training saw them.
    device: where images were drawn. about: further facts, which replace those of the same name.
    Each of several processes calls it.
    """
    check_enough(len(images) if n is None else min(n, len(images)), len(training))
    chosen = torch.arange(len(images))
    if n is not None and n < len(images):
        chosen = distances.shuffled(chosen, seed, n)
    reference = f"{len(training)} training images of {format_size(recipe.image_size)} pixels"
    facts = {
        "n": len(chosen),
        "seed": seed,
        "extractor": judge.name,
        "reference": f"{recipe.dataset}, {reference}",
        "reference_sha256": about.get("reference_sha256") or digest(training),
        **about,
        "device": str(device),
        "hardware": devices.hardware(device),
        "threads": torch.get_num_threads(),
        "processes": judge.world.size,
        "versions": devices.versions(),
    }
    figures = card_figures(images[chosen], training, held_out, judge, recipe, real=real, seed=seed)
    for nearest in audits(figures).values():  # numbered as in all the images
        nearest["closest"] = [[chosen[i].item(), j] for i, j in nearest["closest"]]
    return facts | figures


def card_figures(
    images: Tensor,
    training: Tensor,
    held_out: Tensor | None,
    judge: Judge,
    recipe: Recipe,
    *,
    real: RealFeatures | None = None,
    seed: int = 0,
) -> dict:
    """The figures of a card, with arguments as build_card has them."""
    dataset = dataset_named(recipe.dataset)
    mirrored = recipe.is_mirrored
    real = real or RealImages(judge, training, held_out, mirrored).features()
    drawn = judge.features(images, f"{len(images):,} samples")
    if held_out is not None:  # in no order, since a data set may begin with the easier ones
        order = distances.shuffled(torch.arange(len(held_out)), seed)
        real = real._replace(held_out=real.held_out[order])
        held_out = held_out[order[: copies.AUDITED]]  # all may be more than memory holds
    card = {
        "metrics": distances.distances(real.training, drawn, seed),
        "frechet_bias": distances.frechet_bias(real.training, drawn, seed),
        "floor": distances.floors(real.training, real.held_out, len(images), seed),
    }
    knows_classes = recipe.dataset == getattr(judge.network, "dataset", None)
    if knows_classes and dataset.classifier.card_noun:
        balance = distances.class_balance(judge.logits(drawn))
        if held_out is not None:
            unseen = judge.logits(real.held_out[: len(images)])
            balance["held_out"] = distances.class_balance(unseen)
        card[dataset.classifier.card_noun] = balance
    in_pixels = copies.audit(images, training, held_out, mirrored, judge.device)
    card["nearest_training_image_in_pixels"] = in_pixels.figures()
    card["nearest_training_image_in_features"] = audit_features(drawn, real).figures()
    return card


def audits(card: dict) -> dict[str, dict]:
    """The figures about copies in a card, by the space in which they were looked for."""
    names = {space: f"nearest_training_image_in_{space}" for space in SPACES}
    return {space: card[name] for space, name in names.items() if name in card}


def audit_features(drawn: Tensor, real: RealFeatures) -> copies.Audit:
    """The audit of features (N, D) of images that were drawn."""
    training = real.training
    seen = [*training.split(1000)]
    if real.mirrored is not None:
        seen += real.mirrored.split(1000)
    own = copies.audited_indices(training) if real.held_out is None else None
    others = real.held_out[: copies.AUDITED] if own is None else training[own]
    return copies.audit_points([drawn], lambda: seen, len(training), others, own)


def bound_figures(bound, variance: str, times_per_image: int) -> dict:
    """A likelihood's bound, for a card: its "bits_per_dim"."""
    return {
        "n": len(bound.bits),
        "value": bound.mean,
        "standard_error": bound.standard_error,
        "variance": variance,
        "times_per_image": times_per_image,
    }


def closest_pairs(card: dict, images: Tensor, training: Tensor) -> Tensor:
    """The pairs nearest by features, K images and K of the training: uint8 (2 K, C, H, W)."""
    mine, theirs = zip(*card["nearest_training_image_in_features"]["closest"])
    return torch.cat([images[list(mine)], training[list(theirs)]])


def comparison(a: dict, b: dict) -> list[str]:
    """In what two cards differ, and a line for each figure that both have.

    It has both values, and whether 0 is outside the interval of their difference. Raises
    ValueError, with the reason, where they cannot be compared.
    """
    digest_name = "reference_sha256"  # of the same images, in any folder
    have_digests = a.get(digest_name) and b.get(digest_name)
    for name in ("n", "extractor", digest_name if have_digests else "reference"):
        values = f"{name} is {a[name]} in one and {b[name]} in the other"
        check(a[name] == b[name], f"these cards cannot be compared: {values}")
    lines = []
    for name in [name for name in MAY_DIFFER if a.get(name) != b.get(name)]:
        pair = [card.get(name) for card in (a, b)]
        if all(isinstance(value, dict) for value in pair):
            first, second = pair
            keys = [key for key in first | second if first.get(key) != second.get(key)]
            pair = [{key: value.get(key, "unknown") for key in keys} for value in pair]
        lines.append(f"{name}: {' against '.join(map(describe_value, pair))}")
    for name in [name for name in a["metrics"] if name in b["metrics"]]:
        first, second = (distances.Estimate(**card["metrics"][name]) for card in (a, b))
        larger, smaller = sorted([first, second], reverse=True)
        interval = math.hypot(larger.value - larger.low, smaller.high - smaller.value)
        is_clear = larger.value - smaller.value > interval
        verdict = "different" if is_clear else "no difference to be seen"
        lines.append(f"{name}: {first} against {second}, {verdict}")
    return [*map(printable, lines)]


def describe_value(value: object) -> str:
    """The value of a card's field, as text."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {part}" for key, part in value.items())
    return "unknown" if value is None else str(value)


def write_card(path: str | Path, card: dict) -> None:
    """Writes a card as JSON, each estimate as its value and the ends of its interval."""

    def to_plain(value: object) -> object:
        value = value._asdict() if isinstance(value, distances.Estimate) else value
        if isinstance(value, dict):
            return {name: to_plain(inner) for name, inner in value.items()}
        return [*map(to_plain, value)] if isinstance(value, list) else value

    text = json.dumps(to_plain(card), indent=2) + "\n"
    with replacing(Path(path)) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_card(path: str | Path) -> dict:
    """The fields of a card that comparison needs. Raises ValueError for a file that is no card."""
    check(Path(path).exists(), f"there is no card {path}: evaluate writes one")
    try:
        card = read_json(Path(path))
        for name, figure in card["metrics"].items():  # raises for a damaged one
            is_finite = all(map(math.isfinite, distances.Estimate(**figure)))
            check(is_finite, f"its {name} is not finite")
        fields = {name: card[name] for name in ("n", "extractor", "reference", "metrics")}
        return fields | {name: card.get(name) for name in ("reference_sha256", *MAY_DIFFER)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        reason = describe_error(error)
        raise ValueError(f"{path} is no card of the evaluate command ({reason})") from error


def card_lines(card: dict) -> list[str]:
    """The lines in which a card is printed."""
    about = f"n = {card['n']}, seed {card['seed']}, {card['extractor']}"
    lines = [f"{about}, against {card['reference']}"]
    rows = {"these images": {"n": card["n"], **card["metrics"]}, **card["floor"]}
    for title, row in rows.items():
        figures = ", ".join(f"{name.replace('_', ' ')} {row[name]}" for name in card["metrics"])
        lines.append(f"{title} (n = {row['n']}): {figures}")
    if card["n"] < SMALL:
        lines.append(
            f"n = {card['n']} is small: the Fréchet distance comes out about "
            f"{card['frechet_bias']:.2g} too large, and so does that of as many real images above; "
            "that falls as 1/n, so take n = 10,000 where you can"
        )
    classifiers = filter(None, (dataset.classifier for dataset in DATASETS.values()))
    for noun in {each.card_noun for each in classifiers} & card.keys():
        lines.append(f"{noun} {class_line(card[noun])}")
        if "held_out" in card[noun]:
            lines.append(f"held-out {noun} {class_line(card[noun]['held_out'])}")
    for space, nearest in audits(card).items():
        lines.append(f"in {space}: {copies.describe_audit(nearest)}")
    return lines + measured_lines(card)


def class_line(balance: dict) -> str:
    """The figures of class_balance as a sentence."""
    shares = " ".join(f"{100 * share.value:.1f}" for share in balance["shares"])
    error = max(100 * share.half for share in balance["shares"])
    average = balance["mean_confidence"].value
    sure_share = balance["share_above_0.9"]
    sure = f"above 90 % for {100 * sure_share.value:.1f} ± {100 * sure_share.half:.1f} %"
    shares = f"0 to {len(balance['shares']) - 1} in %: {shares} (each ± {error:.1f} at most)"
    return f"{shares}; the classifier is {average:.1%} sure on average, {sure}"


def measured_lines(card: dict) -> list[str]:
    """Lines about the network itself, as far as a card has such figures."""
    lines = []
    if "condition_error" in card:
        error = f"{card['condition_error']:.2f} of 255"
        condition = card["sampler"]["condition"]
        lines.append(f"their condition is off by {error} from what was given ({condition})")
    if "L_simple" in card:
        loss = card["L_simple"]
        tenths = ("-" if part is None else f"{part:.3g}" for part in loss["by_tenth_of_T"])
        mean = f"L_simple {loss['mean']:.4f} of the first {loss['n']} held-out images"
        lines.append(f"{mean}; by tenths of T: {' '.join(tenths)}")
    if "bits_per_dim" in card:
        bound = card["bits_per_dim"]
        figure = f"{bound['value']:.4f} ± {bound['standard_error']:.4f} bits/dim"
        settings = f"{bound['variance']} variance, {bound['times_per_image']} times an image"
        lines.append(f"{figure} of the first {bound['n']} held-out images ({settings})")
    if "seconds_per_image" in card:
        evaluations = f"{card['evaluations_per_image']:.0f} network evaluations"
        seconds = f"{card['seconds_per_image']:.3g} s an image"
        lines.append(f"{evaluations} and {seconds} on {card['device']}")
    return lines
