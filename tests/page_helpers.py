"""What the tests of the page share: its scripts in node, the page in Chromium, small networks.

Each test module registers `find_kernels` as the fixture wasm, `launch_chromium` as browser,
`node_runner` as in_node and `page_opener` as open_page.
"""

import importlib.util
import json
import shutil
import subprocess
from functools import partial

import numpy as np
import pytest
import torch
from conftest import ROOT
from helpers import with_random_weights
from safetensors.numpy import load

from mnist_ddpm import catalogue, ddpm
from mnist_ddpm.formats import checkpoints
from mnist_ddpm.methods.guidance import guided, with_labels
from mnist_ddpm.recipe import Recipe

spec = importlib.util.spec_from_file_location("playground_build", ROOT / "playground" / "build.py")
building = importlib.util.module_from_spec(spec)
spec.loader.exec_module(building)

NODE = shutil.which("node")


def find_kernels() -> bytes:
    """The page's kernels. Skips the test where they cannot be compiled."""
    try:
        return building.kernels()
    except FileNotFoundError as error:
        pytest.skip(str(error))


def node_runner(wasm, tmp_path):
    """Runs a job of playground.js on requests and files, and returns its answer."""
    if NODE is None:
        pytest.skip("the page's scripts run in node, and there is none: install Node.js")

    def run(job: str, requests, **files: bytes):
        (tmp_path / "kernels.wasm").write_bytes(wasm)
        (tmp_path / "asked.json").write_text(json.dumps(requests))
        for name, content in files.items():
            name = "weights.safetensors" if name == "weights" else name
            (tmp_path / name).write_bytes(content)
        if job in ("worker", "failures", "addresses"):
            facts = json.dumps(building.facts_of(files["weights"]))
            (tmp_path / "facts.json").write_text(facts)
        scripts = [building.script(name) for name in (*building.WORKER, "address")]
        driver = (ROOT / "tests" / "playground.js").read_text(encoding="utf-8")
        program = "\n".join(["globalThis.self = globalThis;", *scripts, driver])
        subprocess.run(
            [NODE, "-", job, tmp_path], input=program, text=True, encoding="utf-8", check=True
        )
        return json.loads((tmp_path / "out.json").read_text())

    return run


SMALL = {"base_channels": 8, "channel_mults": (1, 2), "T": 20}
LABELLED = Recipe(**SMALL, objective="hybrid", classes=10, prediction="v", schedule="cosine")
FEW = Recipe(**SMALL, classes=10, prediction="v")
ADVICE = {"sampler": "consistency", "steps": 4, "spacing": "signal"}


def fresh(recipe: Recipe, std: float = 0.1) -> checkpoints.Checkpoint:
    """A checkpoint with random weights."""
    network = with_random_weights(catalogue.make_network(recipe), std)
    network.requires_grad_(False)
    return checkpoints.Checkpoint(network, catalogue.make_schedule(recipe), recipe)


def weights_of(checkpoint, kind: str = "float32", draw: dict | None = None) -> bytes:
    """The page's file of a checkpoint."""
    return building.weights_file(checkpoint, "it", kind, draw or {})


def as_stored(checkpoint, kind: str) -> checkpoints.Checkpoint:
    """The checkpoint with the weights that the page reads."""
    read = building.read_weights(load(weights_of(checkpoint, kind)))
    names = checkpoint.network.state_dict()
    checkpoint.network.load_state_dict({name: torch.from_numpy(read[name]) for name in names})
    return checkpoint


def denoiser_of(checkpoint, label=None, guidance=1.0):
    """What it predicts of images with a label, clipped."""
    network, schedule, recipe = checkpoint
    of = partial(catalogue.make_denoiser, schedule=schedule, recipe=recipe)
    denoise = of(network if label is None else with_labels(network, torch.tensor([label])))
    if label is not None:
        denoise = guided(of(network), denoise, guidance)
    return ddpm.clipped(denoise, schedule)


def levels(x):
    """An image's grey levels, flattened."""
    return ddpm.to_uint8(x).flatten().numpy()


def nearly_equal(found: list[int], wanted: np.ndarray) -> bool:
    """Whether 99.9 % of the pixels are within one grey level."""
    assert len(found) == len(wanted)
    return (np.abs(np.array(found) - wanted) <= 1).mean() >= 0.999


def few_steps(kind: str = "float32") -> bytes:
    """Of a small network that advises the consistency sampler in four steps of even signal."""
    return weights_of(fresh(FEW), kind, ADVICE)


def launch_chromium():
    """A headless Chromium, as a fixture. Skips the test where there is none."""
    needed = "the page is tried in Chromium by playwright"
    api = pytest.importorskip("playwright.sync_api", reason=f"{needed}: pip install playwright")
    paths = filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome")))
    path = next(paths, None)
    if path is None:
        pytest.skip(f"{needed}, and there is no Chromium: install it")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


def page_opener(browser, wasm, tmp_path):
    """Opens the page of weights on a phone; at the end there were no errors and no requests."""
    messages = []
    schemes = set()
    contexts = []

    def open_at(address: str, weights=None, width=360, script="", change=str, **options):
        path = tmp_path / "digits.html"
        weights = weights or weights_of(fresh(LABELLED))
        path.write_text(change(building.page(wasm, weights)), encoding="utf-8")
        phone = {"viewport": {"width": width, "height": 740}, "has_touch": True}
        context = browser.new_context(**phone, **{"reduced_motion": "reduce"} | options)
        contexts.append(context)
        context.set_default_timeout(600_000)  # milliseconds, for a machine that is busy
        page = context.new_page()
        page.add_init_script(script)
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.on("request", lambda request: schemes.add(request.url.split(":")[0]))
        page.goto(path.as_uri() + address)
        if not script and change is str:
            page.wait_for_selector("#t:text-is('0')")
        assert page.evaluate("document.documentElement.scrollWidth") == width
        return page

    yield open_at
    for context in contexts:
        context.close()
    assert messages == []
    assert "file" in schemes and schemes <= {"file", "blob"}  # the page and its worker


def canvas(page, selector: str) -> list[int]:
    """The grey levels that a canvas shows, once the page has painted."""
    return page.evaluate(
        """async (selector) => {
            for (const frame of [1, 2]) await new Promise(requestAnimationFrame);
            const canvas = document.querySelector(selector), { width, height } = canvas;
            const copy = new OffscreenCanvas(width, height).getContext("2d");
            copy.drawImage(canvas, 0, 0);
            const { data } = copy.getImageData(0, 0, width, height);
            return Array.from({ length: width * height }, (_, k) => data[4 * k]);
        }""",
        selector,
    )
