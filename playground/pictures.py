"""Takes the page's pictures, wide and narrow, light and dark: `python playground/pictures.py`.

Four PNGs of 64 colours, one of the bench "Fork", and a GIF of a scribble that becomes a digit, in
headless Chromium by playwright. `make playground` builds the page.
"""

import argparse
import io
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

HERE = Path(__file__).resolve().parent
SIZES = {"wide": (1280, 900), "narrow": (390, 844)}
SCHEMES = "light", "dark"
COLOURS = 64
LONGEST = 600_000  # milliseconds that anything may take
DONE = "#few [data-count='4']", "#grid", "#between", "#drawn"
SCRIBBLE = [  # like a 3: across and down, as shares of the pad
    (0.33, 0.25), (0.42, 0.17), (0.58, 0.17), (0.68, 0.26), (0.62, 0.4), (0.47, 0.48),
    (0.62, 0.54), (0.7, 0.68), (0.6, 0.8), (0.44, 0.83), (0.32, 0.75),
]  # fmt: skip
HELD = 650  # t of the bench: several digits are possible
GREYS = 32  # of the GIF


def picture(browser: Browser, address: str, size: str, scheme: str, full_page: bool) -> bytes:
    """The page as PNG, after everything is drawn, with a scribble in it."""
    width, height = SIZES[size]
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, reduced_motion="reduce"
    )
    context.set_default_timeout(LONGEST)
    page = context.new_page()
    page.goto(address)
    page.wait_for_selector("#t:text-is('0')")
    for _ in scribble(page):
        pass
    for selector in DONE:
        page.wait_for_selector(f"{selector}[data-t='0']")
    page.evaluate("scrollTo(0, 0)")
    png = page.screenshot(full_page=full_page)
    context.close()
    return png


def bench_picture(browser: Browser, address: str) -> bytes:
    """A held moment, what is expected there, and its sixteen futures, as PNG."""
    page = browser.new_page(viewport={"width": 800, "height": 900}, reduced_motion="reduce")
    page.set_default_timeout(LONGEST)
    page.goto(f"{address}&bench=fork&hold={HELD}")
    page.wait_for_selector("#futures[data-t='0']")
    png = page.locator("#bench-fork .fork").screenshot()
    page.close()
    return png


def save_png(png: bytes, path: Path) -> None:
    """Writes a picture with few colours, and says how large it is."""
    colours = Image.open(io.BytesIO(png)).convert("RGB").quantize(COLOURS, dither=0)
    colours.save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


def scribble(page: Page) -> Iterator[None]:
    """Draws on the pad, and pauses after each of some forty short moves."""
    page.locator("#pad").scroll_into_view_if_needed()
    box = page.locator("#pad").bounding_box()
    for k, (start, end) in enumerate(pairwise(SCRIBBLE)):
        for share in (0, 0.25, 0.5, 0.75, 1):
            x, y = (a + share * (b - a) for a, b in zip(start, end))
            page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
            if k == share == 0:
                page.mouse.down()
            yield
    page.mouse.up()


def film(browser: Browser, address: str) -> list[Image.Image]:
    """The pad and the network's answer, from an empty pad to a digit."""
    page = browser.new_page(viewport={"width": 800, "height": 900}, reduced_motion="reduce")
    page.set_default_timeout(LONGEST)
    page.goto(address)
    page.wait_for_selector("#between[data-t='0']")
    page.click("#clear")
    box = page.locator("section .pair").first.bounding_box()
    frames = []
    for _ in scribble(page):
        page.wait_for_timeout(150)  # milliseconds: an answer takes less
        frame = Image.open(io.BytesIO(page.screenshot(clip=box)))
        frames.append(frame.convert("L").quantize(GREYS, dither=0))
    page.close()
    return frames


def main() -> None:
    """Reads the flags, and writes the six files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", type=Path, nargs="?", default=HERE / "digits.html")
    parser.add_argument("--address", default="#seed=0", help="what it draws, as the page writes it")
    parser.add_argument("--whole", action="store_true", help="the whole page, not its first screen")
    parser.add_argument("--out", type=Path, default=HERE.parent / "out", help="a folder")
    flags = parser.parse_args()
    flags.out.mkdir(parents=True, exist_ok=True)
    names = "chromium", "chromium-browser", "google-chrome"
    path = next(filter(None, map(shutil.which, names)), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        address = flags.page.resolve().as_uri() + flags.address
        for size in SIZES:
            for scheme in SCHEMES:
                png = picture(browser, address, size, scheme, flags.whole)
                save_png(png, flags.out / f"digits-{size}-{scheme}.png")
        save_png(bench_picture(browser, address), flags.out / "digits-fork.png")
        first, *others = film(browser, address)
        path = flags.out / "digits-scribble.gif"
        durations = [80] * len(others) + [2000]  # milliseconds
        first.save(path, save_all=True, append_images=others, duration=durations, loop=0)
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB")
        browser.close()


if __name__ == "__main__":
    main()
