"""How fast the page draws and learns in headless Chromium, as one line of JSON.

    python benchmarks/browser.py PAGE            drawing
    python benchmarks/browser.py PAGE --train    the bench "Train one"

Needs playwright and Chromium. `make playground` builds the page, which takes the times itself.
`first_digit_s` is from navigation to the first finished digit on the screen, the median of 5 new
pages. `evaluations_per_s` comes from the median evaluation of an image of 100 steps, of which the
median of 5. `memory_mb` is what the kernels hold: the weights and one evaluation of 16 images.

Of a training, `right` is how many of its sixteen digits the page takes for those asked for, for
each of 5 random starts (seeds 1 to 5 of the bench), after as many seconds.
"""

import argparse
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from harness import ROOT, run
from playwright.sync_api import Browser, Page, sync_playwright

TIMES, STEPS = 5, 100
MOMENTS = 20, 60, 120  # seconds of a training
LONGEST = 600_000  # milliseconds that anything may take


def time_first_digit(browser: Browser, address: str) -> tuple[Page, float]:
    """A new page, and the seconds from navigation to its first digit."""
    page = browser.new_context().new_page()
    page.set_default_timeout(LONGEST)
    page.goto(address, timeout=LONGEST)
    page.wait_for_selector("#t:text-is('0')")
    return page, page.evaluate("performance.getEntriesByName('digit')[0].startTime") / 1000


def time_evaluations(page: Page, address: str, seed: int) -> tuple[float, float]:
    """Milliseconds of an evaluation, and megabytes, as an image of this seed is drawn."""
    page.goto(f"{address}#seed={seed}&steps={STEPS}&sampler=ddim&guidance=1")
    page.wait_for_selector(f"#status:text-matches('of seed {seed} is')")
    pace = re.search(r"([\d.]+) ms each, in (\d+) MB", page.locator("#pace").inner_text())
    return float(pace[1]), float(pace[2])


def measure(browser: Browser, path: Path) -> dict:
    """All figures of a page."""
    address, seconds = path.as_uri(), []
    for k in range(TIMES):
        page, first = time_first_digit(browser, address)
        seconds.append(round(first, 2))
        if k < TIMES - 1:
            page.context.close()
    page.wait_for_selector("#grid[data-t='0']")
    costs = [time_evaluations(page, address, seed) for seed in range(1, TIMES + 1)]
    milliseconds, memory = map(median, zip(*costs))
    figures = {"page_mb": path.stat().st_size / 1e6, "first_digit_s": median(seconds)}
    figures |= {"each_first_digit_s": seconds, "evaluations_per_s": round(1000 / milliseconds)}
    return figures | {"memory_mb": memory, "browser": browser.version}


def watch_training(page: Page) -> Iterator[tuple[int, int]]:
    """Steps done and digits that are right, at each of the moments; 0 before a first drawing."""
    passed = 0
    for moment in MOMENTS:
        page.wait_for_timeout(1000 * (moment - passed))
        passed = moment
        seen = page.locator("#learned").evaluate("row => ({...row.dataset})")
        yield int(seen.get("step", 0)), int(seen.get("right", 0))


def measure_training(browser: Browser, path: Path) -> dict:
    """Steps and right digits of the bench's settings as they are, from several starts."""
    steps, right = [], []
    for others in range(TIMES):
        page = browser.new_context().new_page()
        page.set_default_timeout(LONGEST)
        page.goto(f"{path.as_uri()}#bench=train")
        page.wait_for_selector("#grid[data-t='0']")
        for _ in range(others):
            page.click("#train-again")
        page.click("#train-go")
        start_steps, start_right = zip(*watch_training(page))
        steps.append(start_steps)
        right.append(start_right)
        page.context.close()
    figures = {"seconds": MOMENTS, "steps": steps, "right": right, "of": 16}
    return figures | {"browser": browser.version}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path, nargs="?", default=ROOT / "playground" / "digits.html")
    parser.add_argument("--train", action="store_true", help="measure a training, for 10 minutes")
    flags = parser.parse_args()
    path = flags.page.resolve()
    names = "chromium", "chromium-browser", "google-chrome"
    chromium = next(filter(None, map(shutil.which, names)), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        measured = measure_training if flags.train else measure
        print(json.dumps(measured(browser, path)))
        browser.close()


if __name__ == "__main__":
    run(main)
