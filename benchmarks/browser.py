"""How fast the page draws in headless Chromium: `python benchmarks/browser.py PAGE` prints JSON.

Needs playwright and Chromium. `make playground` builds the page. The page itself takes the times:
the median evaluation of an image of 100 steps, of which the median of 5. `memory_mb` is what the
kernels hold: the weights, and one evaluation of 16 images.
"""

import argparse
import json
import re
import shutil
import statistics
import time
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
IMAGES, STEPS = 5, 100


def first_digit(page: Page, address: str) -> float:
    """Seconds from opening the page to a digit."""
    began = time.perf_counter()
    page.goto(address)
    page.wait_for_selector("#t:text-is('0')", timeout=600_000)
    return time.perf_counter() - began


def cost(page: Page, address: str, seed: int) -> tuple[float, float]:
    """Milliseconds of an evaluation, and megabytes, as an image of this seed is drawn."""
    page.goto(f"{address}#seed={seed}&steps={STEPS}&sampler=ddim")
    page.wait_for_selector(f"#status:text-matches('of seed {seed} is')", timeout=600_000)
    said = re.search(r"([\d.]+) ms each, in (\d+) MB", page.locator("#pace").inner_text())
    return float(said[1]), float(said[2])


def main() -> None:
    """Reads the page's path, and prints what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", type=Path, nargs="?", default=ROOT / "playground" / "digits.html")
    path = parser.parse_args().page.resolve()
    found = filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome")))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=next(found, None), args=["--no-sandbox"]
        )
        page = browser.new_page()
        opened = first_digit(page, path.as_uri())
        page.wait_for_selector("#grid[data-t='0']", timeout=600_000)
        costs = [cost(page, path.as_uri(), seed) for seed in range(1, IMAGES + 1)]
        each, memory = (statistics.median(values) for values in zip(*costs))
        measured = {
            "page_mb": path.stat().st_size / 1e6, "first_digit_s": round(opened, 2),
            "evaluations_per_s": round(1000 / each), "memory_mb": memory,
            "browser": browser.version,
        }  # fmt: skip
        browser.close()
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
