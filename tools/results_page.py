"""Writes the tables of docs/results.md from the cards and logs that it names.

python tools/results_page.py           writes the page
"""

import json
import re
import statistics
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "results.md"
RESULTS = ROOT / "benchmarks" / "results"
LOGS = ROOT / "speedrun" / "logs" / "five-minutes"
SAMPLERS = {"ddpm": "ancestral", "dpmpp": "DPM-Solver++", "ddim": "DDIM", "consistency": "its own"}


def read(path: Path) -> dict:
    """The content of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def estimate(figure: dict, digits: int = 3) -> str:
    """A value and half its 95 % interval."""
    half = (figure["high"] - figure["low"]) / 2
    return f"{figure['value']:.{digits}f} ± {half:.{digits}f}"


def rounded(value: float) -> str:
    """A share with three digits; a half is rounded up."""
    return str(Decimal(str(value)).quantize(Decimal("0.001"), ROUND_HALF_UP))


def table(names: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = ["| " + " | ".join(line) + " |" for line in [names, *rows]]
    return "\n".join([lines[0], "|---" * len(names) + "|", *lines[1:]])


def how_drawn(sampler: dict) -> str:
    """Sampler, steps, noise and guidance of a card, in words."""
    words = [SAMPLERS[sampler["name"]]]
    if sampler.get("timesteps"):
        words.append("t = " + ", ".join(map(str, sampler["timesteps"])))
    else:
        words.append(f"{sampler['steps']} steps" if sampler["steps"] > 1 else "1 step")
    if sampler["name"] == "dpmpp":
        words.append(f"η = {sampler['eta']:g}")
    scale = sampler.get("guidance", 1)
    if sampler.get("guide"):
        words.append(f"guide, {scale:g}")
    elif scale != 1:
        words.append("labels hidden" if scale == 0 else f"guidance {scale:g}")
    if sampler.get("guidance_interval"):
        words.append("t ≤ {1}".format(*sampler["guidance_interval"]))
    return ", ".join(words)


def cards(prefix: str, n: int) -> str:
    """The cards of a data set on n images or more, the nearest to real images first."""
    rows = []
    for path in RESULTS.glob(f"card-{prefix}*.json"):
        card = read(path)
        if card["n"] < n:
            continue
        metrics = card["metrics"]
        share = (card.get("digits") or {}).get("share_above_0.9", {}).get("value")
        row = [
            f"`{Path(card['checkpoint']).name}`",
            how_drawn(card["sampler"]),
            f"{card['n']:,}",
            estimate(metrics["frechet_distance"]),
            *(rounded(metrics[name]["value"]) for name in ("precision", "recall")),
            "" if share is None else f"{100 * share:.1f} %",
            path.stem.removeprefix("card-"),
        ]
        rows.append((metrics["frechet_distance"]["value"], row))
    names = ["network", "drawn by", "n", "Fréchet distance", "precision", "recall", "sure", "card"]
    return table(names, [row for _, row in sorted(rows)])


def samplers() -> str:
    """Fréchet distances of checkpoints/mnist-unlabelled by sampler and evaluations."""
    rows = []
    for name, budgets in read(RESULTS / "samplers.json")["rows"].items():
        if name != "real":
            row = [name]
            row += [estimate(budgets[budget]["frechet"], 2) for budget in ("10", "20", "50")]
            rows.append(row)
    return table(["sampler", "10 evaluations", "20", "50"], rows)


def five_minutes() -> str:
    """The entries of the speedrun's committed sessions: mean and deviation of their distances."""
    rows = []
    for folder in sorted(path for path in LOGS.iterdir() if path.is_dir()):
        distances: dict[str, list[float]] = {}
        for path in sorted(folder.glob("*.json")):
            log = read(path)
            value = log["card"]["metrics"]["frechet_distance"]["value"]
            distances.setdefault(log["entry"], []).append(value)
        for entry, values in sorted(distances.items(), key=lambda item: statistics.mean(item[1])):
            mean, spread = statistics.mean(values), statistics.stdev(values)
            rows.append([entry, f"{len(values)}", f"{mean:.3g}", f"{spread:.2g}", folder.name])
    return table(["entry", "runs", "mean distance", "standard deviation", "session"], rows)


def copies() -> str:
    """How near samples are to training images, beside real images that training has not seen."""
    rows = []
    for title, name in (("digits", "mnist-unlabelled-sde"), ("faces", "celeba")):
        card = read(RESULTS / f"card-{name}.json")
        for space in ("pixels", "features"):
            nearest = card[f"nearest_training_image_in_{space}"]
            closer = f"{100 * nearest['closer']['value']:.1f} %"
            medians = (f"{nearest[key]:.3g}" for key in ("median", "real"))
            rows.append([f"{title}, {space}", *medians, closer])
    names = ["median distance to the nearest training image", "samples", "unseen real images"]
    return table([*names, "samples nearer than the nearest 1 % of unseen ones"], rows)


TABLES = {
    "digits": lambda: cards("mnist", 5000),
    "faces": lambda: cards("celeba", 2000),
    "samplers": samplers,
    "five-minutes": five_minutes,
    "copies": copies,
}


def with_tables(page: str) -> str:
    """The page with each table written anew, between its markers."""

    def written(found: re.Match) -> str:
        name = found[1]
        return f"<!-- {name} -->\n\n{TABLES[name]()}\n\n<!-- end -->"

    return re.sub(r"<!-- ([\w-]+) -->\n.*?<!-- end -->", written, page, flags=re.DOTALL)


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
