"""The robust step: the notebook's bit for bit, and what it does beyond it."""

import math
from dataclasses import replace
from itertools import combinations, islice

import pytest
import torch
from helpers import raising
from training_helpers import NOTEBOOK, PATH, TINY, same, squares, start_simple, steps

from mnist_ddpm import ddpm
from mnist_ddpm.ddpm import l_simple
from mnist_ddpm.machine.processes import ProcessGroup
from mnist_ddpm.training.loop import start_run as start
from mnist_ddpm.training.loop import training_loop
from mnist_ddpm.training.run import training_step


@pytest.mark.parametrize(
    "options", [{}, {"augment": ddpm.mirrored}, {"labels": torch.arange(36) % 3}]
)
def test_the_step_is_the_notebooks_bit_for_bit(options):
    """In float32 with Adam, weights, average, optimiser and losses are equal."""
    classes = {"classes": 3, "label_dropout": 0.3} if "labels" in options else {}
    theirs = ddpm.start_run(replace(NOTEBOOK, epochs=2.5, ema_decay=0.5, **classes))
    images = squares(36)  # of which an epoch leaves out four
    list(ddpm.training_loop(theirs, images, PATH, **options))
    ours = start(replace(TINY, epochs=2.5, ema_decay=0.5, warmup_steps=500, **classes))
    list(training_loop(ours, images, PATH, **options))
    assert ours.step == theirs.step == 5 and ours.losses == theirs.losses
    assert same(ours.network, theirs.network) and same(ours.ema, theirs.ema)
    mine, own = (run.optimizer.state_dict() for run in (ours, theirs))
    assert mine["param_groups"] == own["param_groups"]
    for k, state in own["state"].items():
        assert all(torch.equal(mine["state"][k][name], value) for name, value in state.items())


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_a_step_in_parts_with_checkpointing_is_the_same_step(precision):
    """Same gradients: the weights after two steps differ by rounding alone."""
    recipe, x0 = replace(TINY, precision=precision), ddpm.to_float(squares(16))
    results = []
    for changes in ({}, {"accumulation": 3}, {"gradient_checkpointing": True}):
        run = start(replace(recipe, **changes))
        run.optimizer.param_groups[0]["lr"] = 1e-4
        for k in range(2):
            training_step(run, x0, PATH, ddpm.random_generator(0, 1, k))
        weights = torch.cat([p.flatten() for p in run.network.parameters()])
        results.append((torch.tensor(run.losses), weights))
    (losses, weights), *others = results
    exact = precision == "float32"
    for other_losses, other_weights in others:
        rtol = 1e-5 if exact else 1e-3
        torch.testing.assert_close(other_losses, losses, rtol=rtol, atol=1e-5)
        assert (other_weights - weights).abs().mean() < (1e-6 if exact else 2e-5)


def test_checkpointing_computes_blocks_again_with_the_same_dropout():
    counts, runs = [], []
    for again in (False, True):
        run = start(replace(TINY, dropout=0.2, gradient_checkpointing=again))
        calls = []
        run.network.middle[0].residual.register_forward_hook(lambda *_, seen=calls: seen.append(1))
        list(islice(steps(run), 2))
        counts.append(len(calls))
        runs.append(run)
    assert counts == [2, 4]
    assert runs[0].losses == runs[1].losses and same(runs[0].ema, runs[1].ema)
    assert [*runs[0].network.state_dict()] == [*runs[1].network.state_dict()]


@pytest.mark.parametrize(("precision", "factor"), [("float32", 1e4), ("float16", 0.1)])
def test_gradients_are_clipped(precision, factor):
    """In float16 those of the loss itself, not of what it is scaled to."""
    run = start(replace(TINY, gradient_clip=1e-3, precision=precision))
    next(steps(run, lambda *args: factor * l_simple(*args)))
    grads = [p.grad.norm() for p in run.network.parameters() if p.grad is not None]
    assert torch.stack(grads).norm().item() == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_network_computes_in_the_precision_of_the_recipe(precision):
    seen = []

    def objective(network, schedule, x0, t, eps):
        seen.append(network(x0, t).dtype)
        return l_simple(network, schedule, x0, t, eps)

    run = start(replace(TINY, precision=precision))
    next(steps(run, objective))
    assert seen == [getattr(torch, precision)]
    assert {weight.dtype for weight in run.network.parameters()} == {torch.float32}


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_float16_scales_the_loss_and_leaves_out_steps_that_overflow(optimizer):
    """A gradient of 1e-8 would be 0 in float16; one above 65,504 is infinite.

    The scale comes down until it is not.
    """
    names = {"precision": "float16", "optimizer": optimizer}
    recipe = replace(TINY, epochs=1, channel_mults=(1,), warmup_steps=0, **names)
    run = start(replace(recipe, gradient_clip=1e9))
    assert run.scaler.get_scale() == 65536
    before = [p.detach().clone() for p in run.network.parameters()]
    taken = steps(run, lambda *args: 100 * l_simple(*args))
    next(taken)
    assert run.scaler.get_scale() == 32768
    assert all(map(torch.equal, before, run.network.parameters()))
    assert [loss > 50 and math.isfinite(loss) for loss in taken] == [True] * 5
    assert run.scaler.get_scale() >= 128
    assert not all(map(torch.equal, before, run.network.parameters()))
    assert all(p.isfinite().all() for p in run.network.parameters())
    faint = start(recipe)
    list(islice(steps(faint, lambda *args: 1e-6 * l_simple(*args)), 3))
    largest = faint.network.conv_out.weight.abs().max()
    assert largest > 1e-4, "Adam takes full steps, however small the gradient"


def test_float16_goes_on_after_an_interrupt_within_a_step(monkeypatch):
    run = start(replace(TINY, precision="float16"))
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(torch.nn.utils, "clip_grad_norm_", raising(KeyboardInterrupt))
        next(steps(run))
    assert math.isfinite(next(steps(run))) and run.step == 1


def test_float16_that_overflows_even_unscaled_stops():
    """After 16 steps that were left out, each with half the scale."""
    run = start_simple(replace(TINY, precision="float16", epochs=10))
    with pytest.raises(FloatingPointError, match="step 17"):
        list(steps(run, lambda *args: 1e20 * l_simple(*args)))
    assert run.step == 16 and all(p.isfinite().all() for p in run.network.parameters())


def test_an_infinite_gradient_of_a_finite_loss_stops():
    def steep(network, schedule, x0, t, eps):
        return network(x0, t).sum(dim=(1, 2, 3)) * 1e38 * 1e-30 * 1e38

    run = start(TINY)
    before = [p.detach().clone() for p in run.network.parameters()]
    with pytest.raises(FloatingPointError, match="gradient norm (inf|nan)"):
        next(steps(run, steep))
    assert run.step == 0 and all(map(torch.equal, before, run.network.parameters()))


@pytest.mark.parametrize("label_dropout", [0.0, 0.25])
def test_labels_go_with_their_images_and_some_are_hidden_from_the_network(label_dropout):
    """In a batch all true labels, and in the network's own table those that it is given."""
    images = torch.arange(96, dtype=torch.uint8).view(96, 1, 1, 1).repeat(1, 1, 16, 16)
    names = {"classes": 5, "label_dropout": label_dropout}
    run = start(replace(TINY, channel_mults=(1,), accumulation=2, **names))
    batches, given = [], []
    loss = run.method.loss
    run.method.loss = lambda *inputs: batches.append(inputs[-1]) or loss(*inputs)
    run.network.label.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0]))
    list(steps(run, images=images, labels=torch.arange(96) % 5))
    numbers = torch.cat([batch.x0[:, 0, 0, 0] for batch in batches]).add(1).mul(127.5).round()
    true_labels = torch.cat([batch.true_labels for batch in batches])
    given = torch.cat(given)
    is_hidden = given == 5
    assert torch.equal(true_labels, numbers.long() % 5)
    assert torch.equal(given[~is_hidden], true_labels[~is_hidden])
    assert is_hidden.float().mean().item() == pytest.approx(label_dropout, abs=0.1)
    assert is_hidden.any() == (label_dropout > 0)


def test_times_that_are_drawn_otherwise_weigh_their_losses_and_learn_of_them():
    class Late:
        told = ()

        def draw(self, n, generator):
            return torch.full((n,), 50), torch.full((n,), 3.0)

        def update(self, t, losses):
            self.told = t, losses

    def flat(network, schedule, x0, t, eps):
        assert (t == 50).all()
        return 2 + 0 * network(x0, t).sum(dim=(1, 2, 3))

    run = start(TINY)
    run.time_sampler = Late()
    assert next(steps(run, flat)) == 6
    assert torch.equal(run.time_sampler.told[1], torch.full((16,), 2.0))


def test_an_objective_that_is_no_loss_for_each_image_is_refused():
    for shape in ((), (16, 1, 1, 1)):
        flat = lambda *given, shape=shape: l_simple(*given).mean().expand(shape)  # noqa: E731
        with pytest.raises(ValueError, match="loss"):
            next(steps(start(TINY), flat))


def test_sampling_between_steps_does_not_end_dropout():
    recipe = replace(TINY, dropout=0.2, epochs=1)
    watched, plain = start(recipe), start(recipe)
    for step, _ in enumerate(steps(watched)):
        if step == 2:
            denoise = ddpm.eps_denoiser(watched.network.eval(), PATH)
            ddpm.generate(denoise, PATH, 2, TINY.shape, ddpm.ddim_sampler, steps=2)
    list(steps(plain))
    assert same(watched.network, plain.network)


def test_each_step_and_each_process_draws_its_own_dropout():
    class Second(ProcessGroup):
        rank, size = 1, 2

        def gather(self, x):
            return torch.cat([x, x])

    runs = (islice(steps(start(TINY), world=world), 4) for world in (ProcessGroup(), Second()))
    seen = [[torch.initial_seed() for _ in each] for each in runs]
    assert len({*seen[0], *seen[1]}) == 8


def test_the_seed_decides_order_times_noise_and_dropout():
    seen = []

    def objective(network, schedule, x0, t, eps):
        seen.append((x0, t, eps, torch.tensor(torch.initial_seed())))
        return l_simple(network, schedule, x0, t, eps)

    for seed in (0, 0, 1):
        next(steps(start(replace(TINY, seed=seed)), objective))
    assert all(map(torch.equal, seen[0], seen[1])) and not any(map(torch.equal, seen[1], seen[2]))


def test_no_epoch_of_a_seed_has_the_order_of_an_epoch_of_another():
    """As seed 0's epoch 1000 and seed 1's first would have, of 1000 · seed + epoch."""
    batches, images = [], squares()

    def objective(network, schedule, x0, t, eps):
        batches.append(x0)
        return l_simple(network, schedule, x0, t, eps)

    for seed, epoch in ((0, 0), (0, 1000), (1, 0), (1, 1000), (1000, 0)):
        run = start_simple(replace(TINY, seed=seed, epochs=2000), objective)
        run.step = epoch * (len(images) // TINY.batch_size)
        next(training_loop(run, images, PATH))
    assert not any(torch.equal(*pair) for pair in combinations(batches, 2))


def test_the_network_alone_is_compiled(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: asked.append(module))
    run = start(replace(TINY, compile=True))
    start(TINY)
    assert len(asked) == 1 and asked[0] is run.network
