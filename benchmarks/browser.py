"""How fast the page draws in headless Chromium: `python benchmarks/browser.py PAGE` prints JSON.

Needs playwright and Chromium. `make playground` builds the page, which takes the times itself.
`first_digit_s` is from navigation to the first finished digit on the screen, the median of 5 pages
opened anew. `evaluations_per_s` is of the median evaluation of an image of 100 steps, of which the
median of 5. `memory_mb` is what the kernels hold, the weights and one evaluation of 16 images, and
`process_mb` all that the page's process has in memory then (Linux).
"""

import argparse
import json
import re
import shutil
import statistics
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
TIMES, STEPS = 5, 100
LONGEST = 600_000  # milliseconds that anything may take


def opened(browser: Browser, address: str) -> tuple[Page, float]:
    """A new page, and the seconds from navigation to its first digit."""
    page = browser.new_context().new_page()
    page.set_default_timeout(LONGEST)
    page.goto(address, timeout=LONGEST)
    page.wait_for_selector("#t:text-is('0')")
    began = "performance.getEntriesByName('digit')[0].startTime"
    return page, page.evaluate(began) / 1000


def cost(page: Page, address: str, seed: int) -> tuple[float, float]:
    """Milliseconds of an evaluation, and megabytes, as an image of this seed is drawn."""
    page.goto(f"{address}#seed={seed}&steps={STEPS}&sampler=ddim")
    page.wait_for_selector(f"#status:text-matches('of seed {seed} is')")
    said = re.search(r"([\d.]+) ms each, in (\d+) MB", page.locator("#pace").inner_text())
    return float(said[1]), float(said[2])


def process_mb(browser: Browser) -> float | None:
    """What the largest process of a page has in memory; None where there is no /proc."""
    found = browser.new_browser_cdp_session().send("SystemInfo.getProcessInfo")["processInfo"]
    files = [
        Path("/proc", str(each["id"]), "status") for each in found if each["type"] == "renderer"
    ]
    texts = [path.read_text(encoding="utf-8") for path in files if path.exists()]
    sizes = [int(re.search(r"VmRSS:\s+(\d+) kB", text)[1]) / 1000 for text in texts]
    return round(max(sizes)) if sizes else None


def measured(browser: Browser, path: Path) -> dict:
    """All figures of a page."""
    address, seconds = path.as_uri(), []
    for k in range(TIMES):
        page, first = opened(browser, address)
        seconds.append(first)
        if k < TIMES - 1:
            page.context.close()
    page.wait_for_selector("#grid[data-t='0']")
    costs = [cost(page, address, seed) for seed in range(1, TIMES + 1)]
    each, memory = (statistics.median(values) for values in zip(*costs))
    return {
        "page_mb": path.stat().st_size / 1e6,
        "first_digit_s": round(statistics.median(seconds), 2),
        "each_first_digit_s": [round(value, 2) for value in seconds],
        "evaluations_per_s": round(1000 / each), "memory_mb": memory,
        "process_mb": process_mb(browser), "browser": browser.version,
    }  # fmt: skip


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
        print(json.dumps(measured(browser, path)))
        browser.close()


if __name__ == "__main__":
    main()
