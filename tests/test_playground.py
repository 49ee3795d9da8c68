"""The page that draws digits in a browser: its noise, network and samplers against Python's.

The scripts run in node as they stand in the page, and the whole page in Chromium.
"""

import base64
import gzip
import json
import re
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from helpers import with_random_weights
from other_browsers import Firefox, WebKit, drag
from page_helpers import (
    ADVICE,
    FEW,
    LABELLED,
    SMALL,
    as_stored,
    building,
    canvas,
    denoiser_of,
    few_steps,
    find_kernels,
    fresh,
    launch_chromium,
    levels,
    nearly_equal,
    node_runner,
    page_opener,
    weights_of,
)
from PIL import Image
from safetensors.numpy import load, save

from mnist_ddpm import ddpm
from mnist_ddpm.formats import checkpoints
from mnist_ddpm.methods import inpainting, schedules, solvers
from mnist_ddpm.methods.consistency import consistency_sampler
from mnist_ddpm.methods.shortcuts import shortcut_sampler, with_next_times
from mnist_ddpm.recipe import Recipe

wasm = pytest.fixture(scope="module")(find_kernels)
browser = pytest.fixture(scope="module")(launch_chromium)
in_node = pytest.fixture(node_runner)
open_page = pytest.fixture(page_opener)


def test_the_page_of_the_repository_is_what_its_sources_and_checkpoint_make():
    """But for the compiler: the page names the kernels' sources."""
    parts = re.compile(r'id="(wasm|weights|digits)">([^<]*)(?=</script>)')
    text = (ROOT / "playground" / "digits.html").read_text(encoding="utf-8")
    unpacked = {name: gzip.decompress(base64.b64decode(part)) for name, part in parts.findall(text)}
    assert unpacked["digits"] == building.digits_file()
    inside = unpacked["weights"]
    wanted = building.page_weights(building.CHECKPOINT, "int8")
    assert parts.sub("", text) == parts.sub("", building.page(b"", wanted))
    header, expected = (
        json.loads(file[8 : 8 + int.from_bytes(file[:8], "little")]) for file in (inside, wanted)
    )
    assert header == expected
    metadata = expected["__metadata__"]
    assert list(metadata) == sorted(metadata)  # each build writes the same page
    tensors = load(inside)
    assert all(np.array_equal(tensors[name], value) for name, value in load(wanted).items())


def test_noise_is_numpy_s(in_node):
    requests = [[0, [0, 1], 1023, 17], [7, [3], 1024, 34], [2**32 - 1, [10**6], 1025, 34]]
    for (seed, images, size, times), drawn in zip(requests, in_node("noise", requests)):
        draw = ddpm.noise_source(seed, images, (size,))
        wanted = torch.stack([draw() for _ in range(times)]).numpy()
        assert np.array_equal(np.float32(drawn).reshape(wanted.shape), wanted)


def test_each_layer_is_pytorch_s(in_node):
    torch.manual_seed(0)
    x = 0.4 * torch.randn(2, 10, 6, 4)
    layers = torch.nn.ModuleDict(
        {
            "three": torch.nn.Conv2d(10, 13, 3),
            "one": torch.nn.Conv2d(10, 13, 1),
            "linear": torch.nn.Linear(10, 13),
            "norm": torch.nn.GroupNorm(5, 10, 1e-6),
            "attention": ddpm.SelfAttention(10),
        }
    )
    with_random_weights(layers, 0.4)
    layers["attention"].norm.num_groups = 5
    tensors = {name: weight.numpy() for name, weight in layers.state_dict().items()}
    tensors["x"] = x.permute(0, 2, 3, 1).contiguous().numpy()
    about = {"shape": "[1, 1, 1]", "patch_size": "1", "norm_groups": "5"}
    found = in_node("kernels", [1, 500, 1000], weights=save(tensors, about))
    three = layers["three"].weight, layers["three"].bias
    norm = layers["norm"](x)
    wanted = {
        "conv3x3": F.conv2d(x, *three, padding=1),
        "downsample": F.conv2d(F.pad(x, (0, 1, 0, 1)), *three, stride=2),
        "conv1x1": layers["one"](x),
        "upsample": F.interpolate(x, scale_factor=2.0, mode="nearest"),
        "concatenate": torch.cat([x, layers["one"](x)], dim=1),
        "group norm": norm,
        "group norm, SiLU": F.silu(norm),
        "attention": layers["attention"](x),
        "SiLU": F.silu(x),
        "linear": layers["linear"](torch.from_numpy(tensors["x"]).view(-1, 10)[:3]),
        "time embedding": ddpm.time_embedding(torch.tensor([1, 500, 1000]), 15),
    }
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        value = value.permute(0, 2, 3, 1) if value.ndim == 4 else value
        error = np.abs(np.float32(found[name]) - value.detach().flatten().numpy()).max()
        assert error < 1e-5, f"{name} differs by {error}"


RECIPES = {
    "the notebook's": Recipe(base_channels=16),
    "labels and a learned variance": LABELLED,
    "odd widths": Recipe(**SMALL | {"base_channels": 7}, patch_size=1, norm_groups=7),
    "colour, two blocks, attention everywhere": Recipe(
        **SMALL,
        image_size=(16, 24),
        channels=3,
        dataset="celeba",
        blocks_per_level=2,
        attention_resolutions=(8, 4),
        prediction="x0",
    ),
}
CASES = [(name, "float32") for name in RECIPES]
CASES += [("odd widths", kind) for kind in ("float16", "int8")]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_the_network_is_pytorch_s(in_node, name, kind):
    recipe = RECIPES[name]
    weights = weights_of(fresh(recipe), kind)
    network = as_stored(fresh(recipe), kind).network
    x = torch.randn(3, *recipe.shape, generator=torch.Generator().manual_seed(0))
    labels = [[1, 7, 10]] if recipe.classes else []
    requests = [{"t": t, "labels": each} for t in (1, recipe.T) for each in (*labels, None)]
    answers = in_node("network", requests, weights=weights, x=x.numpy().tobytes())
    for request, answer in zip(requests, answers):
        label_arguments = () if request["labels"] is None else (torch.tensor(request["labels"]),)
        wanted = network(x, torch.full((3,), request["t"]), *label_arguments)
        assert np.abs(np.float32(answer) - wanted.flatten().numpy()).max() < 1e-4


def draw_in_python(checkpoint, seed, image, steps, sampler, label=None, guidance=1.0, T=None):
    """The same image in Python, in [-1, 1]."""
    schedule = checkpoint.schedule
    draw_noise = ddpm.noise_source(seed, range(image, image + 1), checkpoint.recipe.shape)
    times = ddpm.timesteps(T or schedule.T, steps)
    if checkpoint.recipe == FEW and sampler == consistency_sampler:  # as its advice says
        times = schedules.even_signal(schedule, steps)
    if sampler == shortcut_sampler:
        network = with_next_times(checkpoint.network, times, schedule.T)
        checkpoint = checkpoint._replace(network=network)
    denoise = denoiser_of(checkpoint, label, guidance)
    *_, (_, x, _) = sampler(denoise, schedule, times, draw_noise(), draw_noise)
    return x


def pixels_in_python(*arguments):
    """The same image's grey levels."""
    return levels(draw_in_python(*arguments))


def ddim(eta):
    return partial(ddpm.ddim_sampler, eta=eta)


def dpmpp(eta):
    return partial(solvers.dpmpp_2m_sampler, eta=eta)


ANCESTRAL = ddpm.ddpm_sampler
DIGITS = {  # of checkpoints/mnist-guide
    "#seed=7&image=3&steps=20&sampler=ddim": (7, 3, 20, ddim(0)),
    "#seed=0&image=0&steps=20&sampler=ddim&eta=1": (0, 0, 20, ddim(1)),
    "#seed=4294967295&image=999&steps=20&sampler=dpmpp": (2**32 - 1, 999, 20, dpmpp(0)),
    "#seed=1&image=2&steps=20&sampler=dpmpp&eta=0.5": (1, 2, 20, dpmpp(0.5)),
    "#seed=1&image=16&steps=20&sampler=ddpm": (1, 16, 20, ANCESTRAL),
    "#seed=3&image=1&steps=16&eta=0.3": (3, 1, 16, ddim(0.3)),  # 62.5: Python rounds to even
}
LABELS = {  # of a small network with labels
    "#seed=7&image=3&label=5&steps=4&sampler=ddpm": (7, 3, 4, ANCESTRAL, 5),
    "#seed=7&image=13&steps=20&guidance=2.5": (7, 13, 20, ddim(0), 3, 2.5),
    "#seed=7&image=3&label=0&steps=7&guidance=0": (7, 3, 7, ddim(0), 0, 0),
    "#seed=7&image=3&label=none&steps=5&sampler=dpmpp&eta=1": (7, 3, 5, dpmpp(1)),
    "#label=5&steps=4&sampler=toString": (0, 0, 4, ddim(0), 5),  # not a sampler, but a property
    "#label=5&steps=4&sampler=__proto__": (0, 0, 4, ddim(0), 5),
}


EDM = Recipe(**SMALL, prediction="edm", schedule="cosine")
CONSISTENT = {"#seed=7&image=3&steps=3&sampler=consistency": (7, 3, 3, consistency_sampler)}
FLOW = Recipe(**SMALL, prediction="velocity", schedule="flow")  # which ends in pure noise
JUMPING = Recipe(**SMALL, network="shortcut", classes=10, prediction="v")
JUMPS = {"#seed=7&image=3&label=5": (7, 3, 4, shortcut_sampler, 5)}
QUICK = {"#seed=7&image=3&label=5&steps=3": (7, 3, 3, consistency_sampler, 5)}
STRAIGHT = {"#seed=7&image=3&steps=5&sampler=dpmpp": (7, 3, 5, dpmpp(0))}


def test_an_address_is_the_same_image_in_python(in_node):
    trained = checkpoints.load(ROOT / "checkpoints" / "mnist-guide")
    for addresses, checkpoint in (
        (DIGITS, trained),
        (LABELS, fresh(LABELLED)),
        (CONSISTENT, fresh(EDM)),
        (STRAIGHT, fresh(FLOW)),
        (JUMPS, fresh(JUMPING)),
        (QUICK, fresh(FEW)),
    ):
        requests = [{"address": address} for address in addresses]
        draw = {JUMPING: {"sampler": "shortcut", "steps": 4}, FEW: ADVICE}
        weights = weights_of(checkpoint, "float32", draw.get(checkpoint.recipe, {}))
        found = in_node("worker", requests, weights=weights)
        for (address, wanted), pixels in zip(addresses.items(), found):
            assert nearly_equal(pixels, pixels_in_python(checkpoint, *wanted)), address


def test_a_drawing_becomes_the_same_image_in_python(in_node):
    checkpoint = fresh(LABELLED)
    size = (1, *LABELLED.shape)
    picture = torch.linspace(-1, 1, 32).expand(size).contiguous()
    mask = torch.zeros(size)
    mask[:, :, :16] = 1
    drawing = {"picture": picture.flatten().tolist()}
    requests = [
        {"address": "#label=1&steps=10", "more": drawing | {"strength": 0.55}},
        {"address": "#label=1&steps=10", "more": drawing | {"mask": mask.flatten().tolist()}},
    ]
    varied, completed = in_node("worker", requests, weights=weights_of(checkpoint))
    started = inpainting.sdedit(picture, ddpm.ddim_sampler)
    assert nearly_equal(varied, pixels_in_python(checkpoint, 0, 0, 10, started, 1, 1.0, 11))
    filling = partial(inpainting.repaint_sampler, known=picture, mask=mask)
    assert nearly_equal(completed, pixels_in_python(checkpoint, 0, 0, 10, filling, 1))


def test_a_drawing_is_changed_in_steps_of_even_signal(in_node, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "playground")
    from measure import page_times

    checkpoint = fresh(FEW)
    picture = torch.linspace(-1, 1, 32).expand(1, *FEW.shape).contiguous()
    drawing = {"picture": picture.flatten().tolist(), "strength": 0.5}
    request = {"address": "#label=1&image=0", "more": drawing}
    (found,) = in_node("worker", [request], weights=few_steps())
    draw_noise = ddpm.noise_source(0, range(1), FEW.shape)
    times = page_times(checkpoint.schedule, 10, 4)
    assert len({*times}) == 4 and times[0] == 10
    sampler = inpainting.sdedit(picture, consistency_sampler)
    denoise = denoiser_of(checkpoint, 1)
    *_, (_, x, _) = sampler(denoise, checkpoint.schedule, times, draw_noise(), draw_noise)
    assert nearly_equal(found, levels(x))


def test_a_task_that_fails_is_reported_and_the_next_one_drawn(in_node):
    answers = in_node("failures", None, weights=weights_of(fresh(LABELLED)))
    assert answers == [
        {"kind": "error", "lane": "grid", "id": 1, "name": "TypeError"},
        {"kind": "error", "lane": "large", "id": 2, "name": "RangeError"},  # memory
        {"kind": "state", "lane": "large", "id": 3, "t": 0},
    ]


@pytest.mark.parametrize(("kind", "share"), [("float16", 0.51), ("int8", 0.32)])
def test_weights_are_stored_as_closely_as_their_kind_allows(kind, share):
    network = fresh(LABELLED).network
    weights = {name: value.numpy() for name, value in network.state_dict().items()}
    stored = building.stored_weights(weights, kind)
    sizes = [sum(each.nbytes for each in tensors.values()) for tensors in (weights, stored)]
    assert sizes[1] < share * sizes[0]
    for name, read in building.read_weights(stored).items():
        scale = stored.get(f"{name}.scale")
        step = np.abs(weights[name]) / 2048 + 1e-7 if scale is None else scale.max() / 1.99
        assert (np.abs(read - weights[name]) <= step).all(), name


def test_stored_weights_are_a_checkpoint_to_measure(tmp_path, capsys):
    checkpoints.save_checkpoint(tmp_path / "it", fresh(FEW).network, FEW, {}, ADVICE)
    flags = ["--checkpoint", str(tmp_path / "it"), "--as-checkpoint", str(tmp_path / "int8")]
    assert building.main(flags) == 0
    found = checkpoints.load(tmp_path / "int8")
    assert found.recipe == FEW
    assert checkpoints.sampling_defaults(tmp_path / "int8") == ADVICE
    wanted = as_stored(fresh(FEW), "int8").network.state_dict()
    for name, value in found.network.state_dict().items():
        assert torch.equal(value, wanted[name])
    assert not torch.equal(value, fresh(FEW).network.state_dict()[name])
    assert building.main([*flags[:3], str(tmp_path / "it")]) == 1  # its own folder
    assert "name another folder" in capsys.readouterr().err


def saved(page) -> np.ndarray:
    """The pixels that the page saves, as wide as the network's."""
    with page.expect_download() as download:
        page.click("#save")
    return np.array(Image.open(download.value.path()).convert("L"))[8::16, 8::16].flatten()


def test_the_page_draws_what_its_address_says(open_page):
    page = open_page("#seed=7&image=3&label=5&steps=4&sampler=ddpm")
    wanted = pixels_in_python(fresh(LABELLED), 7, 3, 4, ANCESTRAL, 5)
    assert nearly_equal(saved(page), wanted)
    command = "sample --checkpoint it --seed 7 --n 4 --sampler ddpm --steps 4 --variance posterior"
    command += " --label 5 --guidance 1"
    assert page.locator("#command").inner_text().split()[3:] == command.split()
    with page.expect_download() as download:
        page.click("#film")
    with Image.open(download.value.path()) as gif:
        assert gif.n_frames == 5
        gif.seek(4)
        last = np.array(gif.convert("L"), int)[2::4, 2::4].flatten()
    assert np.abs(last - wanted).max() <= 6  # half a level of 32, and a grey level
    page.focus("#moment")
    page.keyboard.press("Home")
    assert page.locator("#t").inner_text() == "20"
    noise = ddpm.noise_source(7, range(3, 4), LABELLED.shape)()
    assert nearly_equal(saved(page), levels(noise))
    assert not page.is_visible("#again")  # where motion is unwelcome
    page.press("#moment", "End")
    assert page.locator("#t").inner_text() == "0"


IN_THE_BROWSER = {  # of the small network that draws in few steps
    "#seed=8&image=13&steps=1": (8, 13, 1, consistency_sampler, 3),
    "#seed=9&image=4&steps=2&guidance=2": (9, 4, 2, consistency_sampler, 4, 2),
    "#seed=10&image=0&label=none&steps=20&sampler=dpmpp&eta=1": (10, 0, 20, dpmpp(1)),
}


def test_addresses_are_python_s_images_in_the_browser(open_page):
    page = open_page("", few_steps("int8"))
    checkpoint = as_stored(fresh(FEW), "int8")
    for address, (seed, image, *wanted) in IN_THE_BROWSER.items():
        page.evaluate("(address) => { location.hash = address; }", address)
        page.wait_for_selector(f"#status:text-is('Image {image} of seed {seed} is drawn.')")
        expected = pixels_in_python(checkpoint, seed, image, *wanted)
        assert nearly_equal(canvas(page, "#xt"), expected), address


def test_every_control_is_in_the_address(open_page):
    page = open_page("", few_steps())
    assert page.locator("#pace").inner_text().startswith("The network was asked 4 times")
    for act, part in (
        (lambda: page.click("#quick button:text-is('2')"), "steps=2&sampler=consistency"),
        (lambda: page.select_option("#sampler", "dpmpp"), "sampler=dpmpp"),
        (lambda: page.press("#steps", "Home"), "steps=1&"),
        (lambda: page.press("#eta", "End"), "eta=1&"),
        (lambda: page.press("#guidance", "Home"), "guidance=0"),
        (lambda: page.click("#label label:text-is('8')"), "label=8&"),
        (lambda: page.click("#quick button:text-is('4')"), "steps=4&sampler=consistency"),
        (lambda: page.click("#grid button[aria-label='image 9']"), "image=9&"),
    ):
        act()
        page.wait_for_url(f"**{part}**")
    page.click("#fresh")
    page.wait_for_selector("#status:text-matches('of seed [1-9]')")
    page.wait_for_url(re.compile("#seed=[1-9]"))
    page.wait_for_selector("#grid[data-t='0']")
    page.go_back()
    page.wait_for_selector("#status:text-matches('Image 9 of seed 0')")
    page.fill("#seed", "12")
    page.press("#seed", "Enter")
    page.wait_for_url(re.compile("#seed=12&image=9"))
    page.fill("#seed", "-1")  # is none
    page.press("#seed", "Enter")
    assert page.input_value("#seed") == "12"
    page.goto(page.url.split("#")[0] + "#seed=5&image=17")  # as typed by hand
    page.wait_for_selector("#status:text-matches('17 of seed 5')")
    assert page.get_attribute("#grid button:nth-child(2)", "aria-pressed") == "true"
    unnamed = page.eval_on_selector_all(
        "input, select",
        """(all) => all.filter(({ id, labels, attributes }) => {
            const says = document.getElementById(attributes["aria-describedby"]?.value);
            return !labels[0]?.textContent.trim() || (id && !says.textContent);
        }).map(({ id }) => id)""",
    )
    assert unnamed == []


def test_the_network_is_seen_at_any_time_and_after_each_evaluation(open_page):
    page = open_page("#seed=7&image=3&label=5", few_steps(), width=320)
    checkpoint = fresh(FEW)
    page.wait_for_selector("#few [data-count='4'][data-t='0']")
    noise = ddpm.noise_source(7, range(3, 4), FEW.shape)()
    assert nearly_equal(canvas(page, "#few [data-count='0']"), levels(noise))
    for count in (1, 2, 4):
        wanted = pixels_in_python(checkpoint, 7, 3, count, consistency_sampler, 5)
        assert nearly_equal(canvas(page, f"#few [data-count='{count}']"), wanted), count
    denoise = denoiser_of(checkpoint, 5)
    x0 = draw_in_python(checkpoint, 7, 3, 4, consistency_sampler, 5)
    for t, key in (20, "End"), (1, "Home"):
        page.press("#level", key)
        page.wait_for_selector(f"#guess[data-t='{t}']")
        xt = ddpm.q_sample(checkpoint.schedule, x0, torch.tensor([t]), noise)
        for name, wanted in ("noised", xt), ("guess", denoise(xt, torch.tensor([t]))[0]):
            assert nearly_equal(canvas(page, f"#{name}"), levels(wanted))


def test_a_drawing_is_answered_while_it_is_drawn(open_page):
    page = open_page("#label=1", few_steps(), width=390)
    pad = page.locator("#pad")
    pad.scroll_into_view_if_needed()
    box = pad.bounding_box()
    middle = box["x"] + box["width"] / 2
    above = box["y"] + 20
    page.wait_for_selector("#drawn[data-t='0']")
    shown = canvas(page, "#drawn")
    assert {*shown} != {0} and page.is_visible("#hint")  # an example
    page.mouse.move(middle, above)
    for act in (
        page.mouse.down,
        lambda: page.mouse.move(middle, above + 80),  # with the button down
        lambda: [page.mouse.up(), page.touchscreen.tap(middle + 40, above + 40)],
        lambda: page.press("#pad", "ArrowRight"),
        lambda: page.click("#label label:text-is('8')"),
        lambda: page.press("#strength", "Home"),
        lambda: page.select_option("#keep", "upper"),
        lambda: page.select_option("#keep", "left"),
        lambda: page.click("#take"),
        lambda: page.click("#clear"),
    ):
        act()
        shown = changed(page, shown)
        assert page.is_visible("#hint") == ({*shown} == {0})


def changed(page, before: list[int]) -> list[int]:
    """The network's answer, as soon as it differs from what was there before."""
    page.wait_for_function(
        """(before) => {
            const { width, height } = $("drawn");
            const copy = new OffscreenCanvas(width, height).getContext("2d");
            copy.drawImage($("drawn"), 0, 0);
            const { data } = copy.getImageData(0, 0, width, height);
            return before.some((level, k) => level !== data[4 * k]);
        }""",
        arg=before,
    )
    return canvas(page, "#drawn")


WAITING = """
    const asked = Response.prototype.arrayBuffer;
    const late = new Promise((resolve) => { window.goOn = resolve; });
    Response.prototype.arrayBuffer = function () { return late.then(() => asked.call(this)); };
"""


def test_a_stroke_counts_before_the_network_is_ready(open_page):
    page = open_page("", few_steps(), script=WAITING, forced_colors="active")
    assert {*canvas(page, "#drawn")} == {0}
    page.locator("#pad").tap()
    assert page.is_hidden("#hint")  # the example made way
    levels_on_pad = {*canvas(page, "#pad")}
    assert {0, 255} <= levels_on_pad
    ground = (
        "getComputedStyle($('pad')).backgroundColor + getComputedStyle($('pad')).forcedColorAdjust"
    )
    assert page.evaluate(ground) == "rgb(0, 0, 0)none"  # white strokes need it
    page.evaluate("goOn()")
    page.wait_for_selector("#drawn[data-t='0']")
    assert {*canvas(page, "#drawn")} != {0}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text[: text.index('id="weights">') + 2000], "ends too early"),
        (lambda text: text.replace('id="weights">H4s', 'id="weights">H5s'), "damaged"),
        (lambda text: text.replace('id="wasm">H4s', 'id="wasm">?4s'), "damaged"),
    ],
)
def test_a_damaged_file_is_named(open_page, change, words):
    page = open_page("", change=change)
    page.wait_for_selector("#trouble:visible")
    assert words in page.inner_text("#trouble")


SHIFTS = """
    window.shift = 0;
    new PerformanceObserver((list) => {
        for (const entry of list.getEntries()) if (!entry.hadRecentInput) shift += entry.value;
    }).observe({ type: "layout-shift", buffered: true });
"""


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_moves_and_nothing_flickers_where_motion_is_unwelcome(open_page, width):
    page = open_page("", few_steps(), width=width, script=SHIFTS)
    page.wait_for_selector("#between[data-t='0']")
    assert page.evaluate("shift") <= 0.1
    page.evaluate(
        """() => {
            window.painted = {};
            const plain = paint;
            paint = (canvas, x) => {
                painted[canvas.id] = 1 + (painted[canvas.id] ?? 0);
                plain(canvas, x);
            };
        }"""
    )
    page.evaluate("() => { location.hash = 'seed=3&steps=20&sampler=ddpm'; }")
    page.wait_for_selector("#status:text-matches('of seed 3')")
    page.wait_for_selector("#between[data-t='0']")
    found = page.evaluate("painted")
    assert found["xt"] == found["x0"] == 1 and found["drawn"] == 1


DRAWN = """
    const levels = (id) => {
        const canvas = document.getElementById(id), { width, height } = canvas;
        const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
        return Array.from({ length: width * height }, (_, k) => data[4 * k]);
    };
    const before = window.drawnBefore ?? "";
    const isDone = () => {
        const status = document.getElementById("status").textContent;
        const answer = document.getElementById("drawn").dataset.t === "0" ? levels("drawn") : "";
        const isShown = document.getElementById("t").textContent === "0";
        return status.includes("seed 7") && isShown && String(answer) !== before;
    };
    while (!isDone()) await new Promise((resolve) => setTimeout(resolve, 20));
    window.drawnBefore = String(levels("drawn"));
    const { left, top, width } = document.getElementById("pad").getBoundingClientRect();
    const trouble = document.getElementById("trouble").textContent;
    return { image: levels("xt"), trouble, left, top, width };
"""


@pytest.mark.parametrize("kind", [Firefox, WebKit], ids=lambda kind: kind.__name__)
def test_other_browsers_draw_the_same_and_answer_a_scribble(kind, wasm, tmp_path):
    if kind.program is None:
        pytest.skip(f"the page is also tried in {kind.__name__}, which is not installed")
    path = tmp_path / "digits.html"
    path.write_text(building.page(wasm, few_steps("int8")), encoding="utf-8")
    other = kind()
    try:
        other.start(tmp_path)
        other.open(path.as_uri() + "#seed=7&image=3&label=5")
        found = other.run(DRAWN)
        wanted = pixels_in_python(as_stored(fresh(FEW), "int8"), 7, 3, 4, consistency_sampler, 5)
        assert found["trouble"] == "" and nearly_equal(found["image"], wanted)
        other.move(drag(found["left"] + found["width"] / 2, found["top"] + 20, 10, 60))
        assert other.run(DRAWN)["trouble"] == ""
    finally:
        other.close()
