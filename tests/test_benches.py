"""The page's benches: bugs, futures and the ideal denoiser against Python's, and what is seen."""

from functools import partial

import numpy as np
import pytest
import torch
from page_helpers import (
    FEW,
    SMALL,
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

from mnist_ddpm import catalogue, ddpm
from mnist_ddpm.methods import schedules
from mnist_ddpm.methods.consistency import consistency_sampler
from mnist_ddpm.methods.guidance import guided, with_labels
from mnist_ddpm.recipe import Recipe

wasm = pytest.fixture(scope="module")(find_kernels)
browser = pytest.fixture(scope="module")(launch_chromium)
in_node = pytest.fixture(node_runner)
open_page = pytest.fixture(page_opener)

BUGS = "time", "last", "clipping", "range", "neighbour"
STEPS = 10
LABEL = 5
GUIDANCE = 2.5
LONG = Recipe(**SMALL | {"T": 1000}, classes=10, prediction="v")  # where neighbours differ
FIRST_FUTURE = 2_000_000


def stored_digits() -> torch.Tensor:
    """The page's digits as uint8 (300, 1, 32, 32): MNIST in 16 grey levels."""
    return ((ddpm.load_mnist(32)[:300] / 17).round() * 17).to(torch.uint8)


def broken_denoiser(checkpoint, bug: str, times: list[int]) -> ddpm.Denoiser:
    """The denoiser with guidance and one of the bugs that concern it."""
    network, schedule, recipe = checkpoint
    next_time = dict(ddpm.transitions(times, schedule.T))

    def wrong(x, t, *labels):
        if bug == "time":
            t = torch.full_like(t, next_time[int(t[0])])
        return network((x + 1) / 2 if bug == "range" else x, t, *labels)

    of = partial(catalogue.make_denoiser, schedule=schedule, recipe=recipe)
    denoise = guided(of(wrong), of(with_labels(wrong, torch.tensor([LABEL]))), GUIDANCE)
    return denoise if bug == "clipping" else ddpm.clipped(denoise, schedule)


def broken_image(checkpoint, bug: str, seed: int, image: int) -> torch.Tensor:
    """The last state of ancestral sampling with a bug."""
    schedule = checkpoint.schedule
    draw_noise = ddpm.noise_source(seed, range(image, image + 1), checkpoint.recipe.shape)
    times = ddpm.timesteps(schedule.T, STEPS)
    denoise = broken_denoiser(checkpoint, bug, times)
    x = draw_noise()
    for t, s in ddpm.transitions(times, schedule.T):
        x0, _ = denoise(x, t)
        end = t - 1 if bug == "neighbour" else s
        x = ddpm.posterior_mean(schedule, x0, x, t, end)
        if s > 0:
            x = x + ddpm.posterior_variance(schedule, t, end).sqrt().to(x) * draw_noise()
        elif bug == "last":
            x = x + ddpm.step_variance(schedule, t, s).sqrt().to(x) * draw_noise()
    if bug == "clipping":  # a byte
        x = ((x + 1) * 127.5).trunc().remainder(256) / 127.5 - 1
    return x


def test_each_bug_draws_what_its_wrong_line_draws_in_python(in_node):
    checkpoint = fresh(LONG, 0.2)
    address = f"#seed=7&image=3&label={LABEL}&guidance={GUIDANCE}&steps={STEPS}&sampler=ddpm"
    requests = [{"address": f"{address}&bugs={bug}"} for bug in ("", *BUGS)]
    healthy, *broken = in_node("worker", requests, weights=weights_of(checkpoint))
    assert nearly_equal(healthy, levels(broken_image(checkpoint, "", 7, 3)))
    for bug, found in zip(BUGS, broken):
        assert nearly_equal(found, levels(broken_image(checkpoint, bug, 7, 3))), bug
        assert not nearly_equal(found, np.array(healthy)), bug


def test_bugs_add_up(in_node):
    address = f"#label={LABEL}&steps={STEPS}&sampler=ddpm&bugs="
    requests = [{"address": address + bugs} for bugs in ("last,clipping", "clipping,last", "last")]
    both, other_order, one = in_node("worker", requests, weights=weights_of(fresh(LONG, 0.2)))
    assert both == other_order != one


def test_the_ideal_denoiser_of_the_stored_digits_is_python_s(in_node):
    digits = stored_digits()
    points = ddpm.to_float(digits)
    schedule = catalogue.make_schedule(LONG)
    noise = ddpm.noise_source(0, range(3), LONG.shape)()
    xt = ddpm.q_sample(schedule, points[[0, 7, 299]], torch.tensor([1000, 600, 100]), noise)
    times = [1, 100, 400, 700, 1000]
    files = {"weights": weights_of(fresh(LONG)), "digits": building.digits_file()}
    found = in_node("ideal", times, x=xt.numpy().tobytes(), **files)
    assert found["points"] == digits.flatten().tolist()
    denoise = ddpm.ideal_denoiser(schedule, points)
    for t, state in zip(times, found["states"]):
        for name, wanted in zip(("x0", "eps"), denoise(xt, torch.tensor(t))):
            close = np.allclose(state[name], wanted.flatten(), rtol=1e-5, atol=1e-5)
            assert close, f"{name} at t = {t}"
    distances, nearest = torch.cdist(xt.flatten(1), points.flatten(1)).min(dim=1)
    assert np.allclose(found["nearest"]["distances"], 127.5 * distances / 32, atol=1e-3)
    assert found["nearest"]["images"] == digits[nearest].flatten().tolist()


def test_futures_of_a_held_moment_are_python_s(in_node):
    checkpoint = fresh(FEW)
    held = torch.linspace(-2, 2, 32).expand(1, *FEW.shape)
    task = {
        "held": {"t": 12, "x": held.flatten().tolist()},
        "images": [FIRST_FUTURE, FIRST_FUTURE + 1],
        "labels": None,
    }
    request = {"address": f"#seed=3&steps={STEPS}&sampler=ddpm", "more": task}
    (found,) = in_node("worker", [request], weights=weights_of(checkpoint))
    draw_noise = ddpm.noise_source(3, range(FIRST_FUTURE, FIRST_FUTURE + 2), FEW.shape)
    times = [12, 10, 8, 6, 4, 2]
    start = held.repeat(2, 1, 1, 1)
    states = ddpm.ddpm_sampler(
        denoiser_of(checkpoint), checkpoint.schedule, times, start, draw_noise
    )
    *_, (_, x, _) = states
    assert nearly_equal(found, levels(x))
    assert found[:1024] != found[1024:]


def test_a_cancelled_task_ends_and_the_next_one_is_drawn(in_node):
    files = {"weights": weights_of(fresh(FEW)), "digits": building.digits_file()}
    times = in_node("cancelled", None, **files)
    assert times == {"futures": [20, 16], "ideal": [20, 16, 12, 8, 4, 0]}


ADDRESSES = {
    "#bench=fork&hold=9": ("fork", None, 9),
    "#bench=break&bugs=last,range,last": ("break", ["last", "range"], 10),
    "#bench=break&bugs=": ("break", [], 10),
    "#bench=__proto__&bugs=constructor,toString&hold=-1": (None, [], 10),
    "#bench=toString&hold=2.5&bugs=%E0%A4%A,__proto__": (None, [], 10),
    "#bench[]=fork&&=&hold=1e99&bench=fork%00": (None, None, 10),
}


def test_a_damaged_address_opens_nothing(in_node):
    found = in_node("addresses", list(ADDRESSES), weights=weights_of(fresh(FEW)))
    for (address, wanted), read in zip(ADDRESSES.items(), found):
        assert (read.get("bench"), read.get("bugs"), read["hold"]) == wanted, address
    written = [read["written"] for read in found]
    assert written[0].endswith("&bench=fork&hold=9")
    assert written[1].endswith("&bench=break&bugs=last,range")
    assert "bench" not in written[3] + written[4] + written[5]


LANES = "healthy", "broken", "question", "answer", "held", "futures", "network", "ideal"
LISTENING = """
    window.lanes = [];
    const post = Worker.prototype.postMessage;
    Worker.prototype.postMessage = function (message, ...more) {
        if (message.kind === "draw") lanes.push(message.lane);
        return post.call(this, message, ...more);
    };
"""


def open_bench(page, name: str) -> None:
    """Opens a bench by its summary, as a reader does."""
    page.locator(f"#bench-{name} > summary").press("Enter")


def row_levels(page, row: str, count: int) -> list[list[int]]:
    """The grey levels of each picture in a row."""
    return [canvas(page, f"#{row} canvas:nth-child({k + 1})") for k in range(count)]


def wait_for(page, row: str) -> None:
    page.wait_for_selector(f"#{row}[data-t='0']")


def test_nothing_is_computed_until_a_bench_is_opened(open_page):
    page = open_page("#bench=__proto__&bugs=toString", few_steps(), script=LISTENING)
    wait_for(page, "between")
    assert page.evaluate("lanes.length") > 0
    assert not {*page.evaluate("lanes")} & {*LANES}
    assert page.locator(".bench canvas:visible").count() == 0
    open_bench(page, "fork")
    wait_for(page, "futures")
    assert {*page.evaluate("lanes")} & {*LANES} == {"held", "futures"}


def test_bugs_are_switched_by_keyboard_and_add_their_line(open_page):
    page = open_page("#seed=7&image=3&bench=break&bugs=neighbour", few_steps(), width=320)
    wait_for(page, "broken")
    wait_for(page, "healthy")
    assert page.evaluate("document.documentElement.scrollWidth") == 320
    healthy = row_levels(page, "healthy", 4)
    assert row_levels(page, "broken", 4) != healthy
    assert page.locator("#explained h4:visible").count() == 1
    page.locator("#bugs input[value='neighbour']").press("Space")
    page.wait_for_function("() => $('broken').dataset.t === '0' && wish.bugs.length === 0")
    page.wait_for_function("() => awaited.broken.done === awaited.broken.count")
    assert row_levels(page, "broken", 4) == healthy and page.is_visible("#no-bug")
    page.locator("#bugs input[value='last']").press("Space")
    page.wait_for_url("**bench=break&bugs=last")
    page.wait_for_function("() => awaited.broken.done === awaited.broken.count")
    assert row_levels(page, "broken", 4) != healthy


def test_the_quiz_counts_and_explains(open_page):
    page = open_page("#bench=break", few_steps())
    page.click("#quiz-start")
    for right, asked in ((1, 1), (1, 2)):
        wait_for(page, "question")
        bug = page.evaluate("quiz.bug")
        options = page.eval_on_selector_all("#choices button", "(all) => all.map((b) => b.value)")
        assert len({*options}) == 4 and bug in options and {*options} <= {*BUGS}
        choice = bug if right == asked else next(name for name in options if name != bug)
        page.click(f"#choices button[value='{choice}']")
        assert f"{right} of {asked}" in page.inner_text("#score")
        assert page.get_attribute("#verdict .bug", "data-bug") == bug
        assert page.locator("#verdict pre span").count() == 2
        assert page.evaluate("document.activeElement.id") == "quiz-next"
        page.keyboard.press("Enter")
        assert page.evaluate("quiz.bug") != bug
        assert page.inner_text("#verdict") == ""


def test_a_drawing_forks_at_the_slider_and_can_be_cancelled(open_page):
    page = open_page("#seed=7&bench=fork&hold=20", few_steps(), reduced_motion="no-preference")
    wait_for(page, "futures")
    early = row_levels(page, "futures", 16)
    assert len({tuple(picture) for picture in early}) == 16
    page.press("#hold", "End")  # the last step adds no noise
    page.wait_for_selector("#spread:text-matches('t = 1, .* 0 grey')")
    late = row_levels(page, "futures", 16)
    assert len({tuple(picture) for picture in late}) == 1 and late[0] == canvas(page, "#mean")
    page.wait_for_url("**bench=fork&hold=1")
    page.press("#hold", "Home")
    page.wait_for_selector("#spread:text-matches('t = 20, ')")
    page.evaluate(
        """() => {
            drawFork();
            $("hold").value = $("hold").max; // while the drawing has no moments yet
            $("hold").dispatchEvent(new Event("input"));
            $("other-futures").click();
        }"""
    )
    page.wait_for_selector("#spread:text-matches('t = 20, ')")
    early = row_levels(page, "futures", 16)
    page.evaluate("() => { $('other-futures').click(); $('cancel-futures').click(); }")
    open_bench(page, "ideal")
    wait_for(page, "ideal")  # whose turn is after the futures'
    assert row_levels(page, "futures", 16) == early
    assert page.is_disabled("#cancel-futures")


def test_the_ideal_denoiser_copies_and_the_network_is_compared(open_page):
    page = open_page("#seed=7&image=3&bench=ideal", few_steps(), width=320)
    wait_for(page, "ideal")
    assert page.evaluate("document.documentElement.scrollWidth") == 320
    points = stored_digits()
    stored = {tuple(point) for point in points.flatten(1).tolist()}
    copies = row_levels(page, "ideal", 6)
    assert {tuple(copy) for copy in copies} <= stored
    assert copies == row_levels(page, "ideal-nearest", 6)
    assert page.locator("#ideal-distances").inner_text().split() == ["0"] * 6
    drawn = torch.tensor(row_levels(page, "network", 6)).float()
    distances, nearest = torch.cdist(drawn, points.flatten(1).float()).min(dim=1)
    assert row_levels(page, "network-nearest", 6) == points[nearest].flatten(1).tolist()
    shown = [int(word) for word in page.locator("#network-distances").inner_text().split()]
    assert np.abs(np.array(shown) - distances.numpy() / 32).max() <= 1
    checkpoint = fresh(FEW)
    draw_noise = ddpm.noise_source(7, range(3, 4), FEW.shape)
    times = schedules.even_signal(checkpoint.schedule, 4)
    denoise = ddpm.ideal_denoiser(checkpoint.schedule, ddpm.to_float(points))
    sampler = consistency_sampler(denoise, checkpoint.schedule, times, draw_noise(), draw_noise)
    states = [x0 for _, _, x0 in sampler]
    assert nearly_equal(copies[0], levels(states[-1]))
    page.press("#ideal-moment", "Home")
    assert nearly_equal(row_levels(page, "ideal", 1)[0], levels(states[0]))


def test_a_network_for_other_shapes_has_no_ideal_denoiser(open_page):
    recipe = Recipe(**SMALL, image_size=(16, 24), channels=3, dataset="celeba")
    page = open_page("#bench=ideal", weights_of(fresh(recipe)))
    wait_for(page, "between")
    assert page.is_hidden("#bench-ideal") and page.is_hidden("#trouble")


def test_damaged_digits_are_named_when_they_are_needed(open_page):
    def damage(text: str) -> str:
        return text.replace('id="digits">H4s', 'id="digits">H5s')

    page = open_page("", few_steps(), change=damage)
    wait_for(page, "between")
    assert page.is_hidden("#trouble")
    open_bench(page, "ideal")
    page.wait_for_selector("#trouble:visible")
    assert "damaged" in page.inner_text("#trouble")
