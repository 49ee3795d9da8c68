"""Networks to and from diffusers, against diffusers itself; with Google's configurations."""

import fnmatch
import hashlib
import inspect
import json
import shutil
from dataclasses import replace
from functools import cache, partial
from itertools import product
from pathlib import Path

import huggingface_hub
import pytest
import torch
from diffusers import DDIMPipeline, DDPMPipeline, DDPMScheduler, UNet2DModel
from helpers import equal, with_flipped_bit
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from mnist_ddpm import ddpm
from mnist_ddpm.catalogue import make_denoiser, make_network, make_schedule
from mnist_ddpm.formats import checkpoints
from mnist_ddpm.formats.diffusers import (
    DEFAULTS,
    diffusers_tensors,
    load_diffusers,
    save_diffusers,
    settings_from_diffusers,
    settings_to_diffusers,
)
from mnist_ddpm.recipe import Recipe
from mnist_ddpm.training.cost import count_parameters
from mnist_ddpm.training.first_weights import initial_weights
from mnist_ddpm.training.loop import start_run

SAFE, BIN = "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"


def configuration(side, widths, attended=(), **others):
    """As Google's repositories have it, which are older than some of UNet2DModel's arguments."""
    levels = range(len(widths))
    down = ["AttnDownBlock2D" if level in attended else "DownBlock2D" for level in levels]
    return {
        "_class_name": "UNet2DModel", "_diffusers_version": "0.0.4", "act_fn": "silu",
        "attention_head_dim": None, "block_out_channels": widths, "center_input_sample": False,
        "down_block_types": down, "downsample_padding": 0, "flip_sin_to_cos": False,
        "freq_shift": 1, "in_channels": 3, "layers_per_block": 2, "mid_block_scale_factor": 1,
        "norm_eps": 1e-6, "norm_num_groups": 32, "out_channels": 3, "sample_size": side,
        "time_embedding_type": "positional",
        "up_block_types": [name.replace("Down", "Up") for name in down[::-1]], **others,
    }  # fmt: skip


CIFAR10 = configuration(32, [128, 256, 256, 256], [1])
CELEBA = configuration(256, [128, 128, 256, 256, 512, 512], [4])
SCHEDULER = {
    "_class_name": "DDPMScheduler", "_diffusers_version": "0.1.1", "beta_end": 0.02,
    "beta_schedule": "linear", "beta_start": 0.0001, "clip_sample": True,
    "num_train_timesteps": 1000, "trained_betas": None, "variance_type": "fixed_large",
}  # fmt: skip
THIN = {"norm_num_groups": 1}
SMALL = configuration(16, [7, 14], [1], **THIN, layers_per_block=1)
NETWORKS = {
    "cifar10, two levels": configuration(8, [128, 256], [1], layers_per_block=1),
    "celebahq, thin": configuration(32, [7, 7, 14, 14, 14, 14], [4], **THIN),
    "grey": configuration(8, [128, 128], in_channels=1, out_channels=1),
    "attention throughout": configuration(8, [7, 14, 14], [0, 1, 2], **THIN, layers_per_block=1),
    "one level": configuration(8, [15], **THIN, layers_per_block=3),
    "four groups": configuration(8, [16, 32], [1], norm_num_groups=4, layers_per_block=1),
    "rectangles": configuration([8, 16], [7, 14, 14], [1], **THIN),
    "one wide head": configuration(8, [14, 14], [0], **THIN, attention_head_dim=14),
    "old names of blocks": {
        **configuration(8, [7, 14], **THIN),
        "down_block_types": ["UNetResDownBlock2D", "UNetResAttnDownBlock2D"],
        "up_block_types": ["UNetResAttnUpBlock2D", "UNetResUpBlock2D"],
    },
}


def randomised(network):
    """The network, without the ones and zeros that a fresh one has in many places."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in network.parameters():
            scale = 0.01 if p.numel() > 100_000 else 0.1
            p += scale * torch.randn(p.shape, generator=generator)
    return network.eval().requires_grad_(False)


def diffusers_network(config):
    torch.manual_seed(0)
    return randomised(UNet2DModel.from_config(config))


@cache
def small_recipe():
    return settings_from_diffusers(SMALL)


def small(**options):
    return replace(small_recipe(), **options)


def our_network(recipe):
    return randomised(make_network(recipe))


def save(folder, config=SMALL, weights=None, scheduler=None, name=SAFE):
    """A folder like Google's: all files in one, and a pipeline where there is a scheduler."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = weights if weights is not None else diffusers_network(config).state_dict()
    (save_file if name == SAFE else torch.save)(weights, folder / name)
    (folder / "config.json").write_text(json.dumps(config))
    if scheduler:
        (folder / "scheduler_config.json").write_text(json.dumps(scheduler))
        (folder / "model_index.json").write_text(json.dumps({"_class_name": "DDPMPipeline"}))
    return folder


def same_weights(network, expected):
    return equal(network.state_dict(), expected.state_dict())


@pytest.mark.parametrize("config", NETWORKS.values(), ids=NETWORKS)
def test_their_network_and_ours_say_the_same_and_the_way_back_is_exact(config, tmp_path):
    theirs = diffusers_network(config)
    theirs.save_pretrained(tmp_path / "theirs")
    ours, _, recipe = load_diffusers(tmp_path / "theirs")
    t = torch.tensor([1, 500, 1000])
    x = torch.randn(3, *recipe.shape, generator=torch.Generator().manual_seed(1))
    output = theirs(x, t - 1).sample
    assert (output[0] - output[1]).abs().max() > 1e-2 and output.std() > 0.1
    torch.testing.assert_close(ours(x, t), output, rtol=0, atol=1e-4)
    save_diffusers(tmp_path / "ours", ours, recipe)
    assert same_weights(UNet2DModel.from_pretrained(tmp_path / "ours" / "unet"), theirs)


@pytest.mark.parametrize(
    ("config", "parameters"),
    [(CIFAR10, 35_746_307), (CELEBA, 113_673_219)],
    ids=["cifar10", "celebahq"],
)
def test_googles_networks_have_all_their_tensors_in_ours(config, parameters):
    recipe = settings_from_diffusers(config, SCHEDULER)
    with torch.device("meta"):
        theirs, ours = UNet2DModel.from_config(config), make_network(recipe)
    tensors = diffusers_tensors(ours, recipe.blocks_per_level)
    expected = {name: tensor.shape for name, tensor in theirs.state_dict().items()}
    assert {name: tensor.shape for name, tensor in tensors.items()} == expected
    assert count_parameters(ours) == count_parameters(theirs) == parameters


def rename(weights, convolutions):
    """Under the names that attention had once, and as the convolutions that it was of."""
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for name, weight in weights.items():
        for new, former in old.items():
            if f".{new}." in name:
                name = name.replace(f".{new}.", f".{former}.")
                weight = weight[..., None, None] if convolutions and weight.ndim == 2 else weight
        renamed[name] = weight.contiguous()
    assert any(".proj_attn." in name for name in renamed)
    return renamed


@pytest.mark.parametrize("file", [SAFE, BIN])
@pytest.mark.parametrize("convolutions", [False, True], ids=["linear", "convolutions"])
def test_old_names_and_files_give_the_same_network(file, convolutions, tmp_path):
    theirs = diffusers_network(SMALL)
    weights = rename(theirs.state_dict(), convolutions)
    old = save(tmp_path / "old", weights=weights, name=file)
    saved = (load_file if file == SAFE else torch.load)(old / file)
    assert any(".query." in name for name in saved)
    expected, _, _ = load_diffusers(save(tmp_path / "new", weights=theirs.state_dict()))
    assert same_weights(load_diffusers(old)[0], expected)
    if not convolutions:
        assert same_weights(UNet2DModel.from_pretrained(old), theirs)


DDIM = DDIMPipeline, ddpm.ddim_sampler  # with few steps it must start at T, too


@pytest.mark.parametrize(
    ("schedule", "prediction"),
    [("linear", "eps"), ("cosine", "v"), ("linear-zero-snr", "v"), ("quadratic", "x0")],
)
@pytest.mark.parametrize(
    ("pipeline", "sampler", "steps", "options"),
    [
        (DDPMPipeline, ddpm.ddpm_sampler, 10, {}),
        (DDPMPipeline, ddpm.ddpm_sampler, 5, {}),
        (*DDIM, 5, {"eta": 0.0}),
        (*DDIM, 5, {"eta": 0.5}),
    ],
    ids=["ddpm-10", "ddpm-5", "ddim", "ddim-0.5"],
)
def test_pipelines_draw_our_images(
    schedule, prediction, pipeline, sampler, steps, options, tmp_path
):
    beta_T = 0.2 if options else 0.5
    recipe = small(T=10, schedule=schedule, prediction=prediction, beta_1=0.01, beta_T=beta_T)
    network, schedule = our_network(recipe), make_schedule(recipe)
    generator = torch.Generator().manual_seed(1)  # both draw their noise in the same order
    draw_noise = partial(torch.randn, 2, *recipe.shape, generator=generator)
    denoise = ddpm.clipped(make_denoiser(network, schedule, recipe), schedule)
    times = ddpm.timesteps(recipe.T, steps)
    *_, (_, x0, _) = sampler(denoise, schedule, times, draw_noise(), draw_noise, **options)
    ours = (x0 / 2 + 0.5).clamp(0, 1)
    assert ours.std() > 0.1 and ((ours > 0) & (ours < 1)).float().mean() > 0.3

    save_diffusers(tmp_path, network, recipe)
    theirs = pipeline.from_pretrained(tmp_path)
    theirs.set_progress_bar_config(disable=True)
    options = options and {**options, "use_clipped_model_output": True}
    options = {**options, "num_inference_steps": steps, "output_type": "np"}
    images = theirs(2, torch.Generator().manual_seed(1), **options).images
    expected = torch.from_numpy(images).permute(0, 3, 1, 2)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("schedule", "prediction"),
    [
        *product(("linear", "cosine", "quadratic", "sigmoid", "cosine-zero-snr"), ("x0", "v")),
        ("linear", "eps"),
    ],
)
def test_settings_go_there_and_back(schedule, prediction):
    recipe = small(
        schedule=schedule, prediction=prediction, T=50, beta_1=2e-4, beta_T=0.03, dropout=0.1,
        attention_resolutions=(16, 8), dataset="somewhere",
    )  # fmt: skip
    config, scheduler = json.loads(json.dumps(settings_to_diffusers(recipe)))
    assert settings_from_diffusers(config, scheduler, "somewhere") == recipe
    theirs = DDPMScheduler.from_config(scheduler).alphas_cumprod.double()
    ours = make_schedule(recipe).a[1:] ** 2
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-6)


def test_every_argument_of_diffusers_is_decided_and_its_defaults_are_known():
    """So that a new version with a new argument is noticed."""
    config, _ = settings_to_diffusers(small(blocks_per_level=2))
    arguments = inspect.signature(UNet2DModel.__init__).parameters
    assert set(config) - {"_class_name"} == set(arguments) - {"self", "num_train_timesteps"}
    sizes = {"sample_size", "block_out_channels", "down_block_types", "up_block_types"}
    for name in set(config) - sizes - {"_class_name", "norm_num_groups"}:
        assert DEFAULTS.get(name, config[name]) == arguments[name].default, name
    smallest, _ = settings_to_diffusers(small(attention_resolutions=None))
    assert smallest["down_block_types"] == ["DownBlock2D", "AttnDownBlock2D"]


def test_settings_that_diffusers_does_not_decide_have_their_defaults():
    name = "google/ddpm-cifar10-32"
    given = settings_from_diffusers(CIFAR10, SCHEDULER, name)
    assert given == Recipe(
        dataset=name, channels=3, base_channels=128, channel_mults=(1, 2, 2, 2),
        blocks_per_level=2, attention_resolutions=(16,), patch_size=1,
    )  # fmt: skip
    assert settings_from_diffusers(CIFAR10) == replace(given, dataset="diffusers")
    assert settings_from_diffusers({**SMALL, "sample_size": [16, 16]}).image_size == 16


def test_googles_pipelines_with_all_files_in_one_folder_are_read(tmp_path):
    scheduler = {**SCHEDULER, "num_train_timesteps": 77}
    network, schedule, recipe = load_diffusers(save(tmp_path, scheduler=scheduler))
    assert schedule.T == recipe.T == 77 and recipe.dataset == str(tmp_path)
    assert not network.training and not any(p.requires_grad for p in network.parameters())


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"_class_name": "UNet2DConditionModel"}, "_class_name is UNet2DConditionModel"),
        ({"down_block_types": ["ResnetDownsampleBlock2D", "DownBlock2D"]}, "_block_types"),
        ({"up_block_types": ["UpBlock2D", "AttnUpBlock2D"]}, "up_block_types"),
        ({"downsample_type": "resnet"}, "downsample_type is resnet"),
        ({"attention_head_dim": 7}, "attention_head_dim is 7"),
        ({"attention_head_dim": ...}, "attention_head_dim is 8"),
        ({"norm_num_groups": 5}, "norm_groups is 5"),
        ({"block_out_channels": [14, 21]}, r"block_out_channels is \[14, 21\]"),
        ({"block_out_channels": [14, 7]}, "channel_mults"),
        ({"out_channels": 6}, "out_channels is 6"),
        ({"in_channels": 4, "out_channels": 4}, "channels is 4"),
        ({"sample_size": None}, "sample_size is None"),
        ({"sample_size": [16, 8, 3]}, "image_size"),
        ({"sample_size": [16, 15]}, "image_size is 16x15"),
        ({"mid_block_type": None}, "mid_block_type is None"),
        ({"block_out_channels": ...}, "block_out_channels is missing"),
        ({"layers_per_block": "two"}, "blocks_per_level"),
        ({"block_out_channels": 5}, "damaged"),
        ({"block_out_channels": []}, "damaged"),
        ({"block_out_channels": [0, 14]}, "damaged"),
    ],
    ids=str,
)
def test_networks_that_ours_cannot_express_are_refused_with_the_reason(changes, name, tmp_path):
    config = {key: value for key, value in {**SMALL, **changes}.items() if value is not ...}
    save(tmp_path, config, weights={})
    with pytest.raises(ValueError, match=name):
        load_diffusers(tmp_path)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"_class_name": "ScoreSdeVeScheduler"}, "_class_name is ScoreSdeVeScheduler"),
        ({"beta_schedule": "laplace"}, 'beta_schedule "laplace"'),
        ({"prediction_type": "flow"}, 'prediction_type "flow"'),
        ({"trained_betas": [0.1, 0.2]}, "trained_betas"),
        ({"variance_type": "learned_range"}, "variance_type"),
        ({"beta_end": 2}, "beta_T"),
        ({"rescale_betas_zero_snr": True}, "linear-zero-snr"),
    ],
    ids=str,
)
def test_schedules_that_we_have_not_are_refused_with_the_reason(changes, name, tmp_path):
    save(tmp_path, weights={}, scheduler={**SCHEDULER, **changes})
    with pytest.raises(ValueError, match=name):
        load_diffusers(tmp_path)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"patch_size": 2, "attention_resolutions": None}, "patch_size is 2"),
        ({"classes": 10}, "classes is 10"),
        ({"objective": "hybrid"}, "objective is hybrid"),
        ({"condition": "grey"}, "condition is grey"),
        ({"base_channels": 3}, "base_channels is 3"),
        ({"base_channels": 32}, r"norm_groups would be \[8, 16, 32\]"),
        ({"prediction": "mu"}, "prediction mu"),
        ({"schedule": "own"}, "schedule own"),
    ],
    ids=str,
)
def test_settings_that_diffusers_has_not_are_refused(options, name, tmp_path):
    with pytest.raises(ValueError, match=name):
        save_diffusers(tmp_path / "new", make_network(small()), small(**options))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"mid_block.attentions.0.to_k.bias": None}, r"mid_block.attentions.0.to_k.bias.*\(14,\)"),
        ({"mid_block.attentions.1.to_k.bias": torch.zeros(1)}, "mid_block.attentions.1.to_k.bias"),
        (
            {"down_blocks.0.resnets.0.conv2.weight": torch.zeros(7, 7, 1, 1)},
            r"down_blocks.0.resnets.0.conv2.weight is .7, 7, 1, 1.*\(7, 7, 3, 3\)",
        ),
        ({"mid_block.attentions.0.key.bias": torch.zeros(14)}, "mid_block.attentions.0.to_k.bias"),
    ],
    ids=["missing", "surplus", "shape", "both names"],
)
def test_weights_that_do_not_fit_are_named(changes, name, tmp_path):
    weights = diffusers_network(SMALL).state_dict() | changes
    weights = {key: value for key, value in weights.items() if value is not None}
    with pytest.raises(ValueError, match=name):
        load_diffusers(save(tmp_path, weights=weights))


class Bomb:
    def __reduce__(self):
        return print, ("code was run",)


def test_damaged_files_are_named_and_no_code_is_run(tmp_path, capsys):
    save(tmp_path, scheduler=SCHEDULER)
    for name in ("config.json", "model_index.json", "scheduler_config.json"):
        good = (tmp_path / name).read_text()
        for bad in (good[:-9], "[]", "\0"):
            (tmp_path / name).write_text(bad)
            with pytest.raises(ValueError, match=name):
                load_diffusers(tmp_path)
        (tmp_path / name).write_text(good)
    weights = tmp_path / SAFE
    weights.write_bytes(weights.read_bytes()[:-9])
    with pytest.raises(ValueError, match=SAFE):
        load_diffusers(tmp_path)
    weights.unlink()
    for bad in (b"", b"no pickle", [torch.zeros(1)], {"a": 1}, {"a": Bomb()}):
        file = tmp_path / BIN
        file.write_bytes(bad) if isinstance(bad, bytes) else torch.save(bad, file)
        with pytest.raises(ValueError, match=BIN) as caught:
            load_diffusers(tmp_path)
        assert "\n" not in str(caught.value)
    assert "code was run" not in capsys.readouterr().out


@pytest.mark.parametrize("name", [SAFE, BIN])
def test_a_flipped_byte_in_the_hubs_cache_is_noticed(tmp_path, name):
    """There a large file is a link to one that is named by its SHA-256."""
    save(tmp_path, scheduler=SCHEDULER, name=name)
    weights, blobs = tmp_path / name, tmp_path / "blobs"
    content = weights.read_bytes()
    blobs.mkdir()
    blob = weights.rename(blobs / hashlib.sha256(content).hexdigest())
    weights.symlink_to(blob)
    load_diffusers(tmp_path)
    blob.write_bytes(with_flipped_bit(content, len(content) // 2))
    with pytest.raises(ValueError, match=name):
        load_diffusers(tmp_path)


def test_what_is_no_folder_of_a_model_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_diffusers(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="config.json"):
        load_diffusers(tmp_path)
    save(tmp_path, scheduler=SCHEDULER)
    for missing in (SAFE, "scheduler_config.json"):
        (tmp_path / missing).unlink()
        with pytest.raises(FileNotFoundError, match=missing):
            load_diffusers(tmp_path)
    (tmp_path / "model_index.json").write_text('{"_class_name": "LDMPipeline"}')
    with pytest.raises(ValueError, match="LDMPipeline"):
        load_diffusers(tmp_path)


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """The hub's cache, empty, without a network."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_name_on_the_hub_is_refused_in_one_line_without_network(offline):
    with pytest.raises(OSError, match="google/ddpm-cifar10-32") as caught:
        load_diffusers("google/ddpm-cifar10-32")
    assert "\n" not in str(caught.value)


def test_what_the_hub_gave_once_needs_no_network(offline):
    repository, commit = offline / "models--own--small", "0123456789" * 4
    save(repository / "snapshots" / commit, scheduler=SCHEDULER)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    network, _, recipe = load_diffusers("own/small")
    assert recipe.dataset == "own/small"
    assert same_weights(load_diffusers("own/small", revision=commit)[0], network)
    with pytest.raises(OSError, match="own/small"):
        load_diffusers("own/small", revision="other")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A repository "own/small" on a hub, with a list that fills with what is asked of it."""
    asked = []

    def snapshot_download(name, revision=None, allow_patterns=None):
        assert name == "own/small"
        snapshot = tmp_path / "snapshots" / "c0ffee"
        for path in (tmp_path / "hub").rglob("*.*"):
            file = path.relative_to(tmp_path / "hub").as_posix()
            if any(fnmatch.fnmatch(file, pattern) for pattern in allow_patterns):
                (snapshot / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, snapshot / file)
        asked.append((revision, sorted(Path(pattern).suffix for pattern in allow_patterns)))
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return asked


@pytest.mark.parametrize("name", [SAFE, BIN])
@pytest.mark.parametrize("folders", [False, True], ids=["one folder", "subfolders"])
def test_of_a_repository_only_what_is_needed_is_downloaded(folders, name, hub, tmp_path):
    repository = save(tmp_path / "hub", scheduler=SCHEDULER, name=name)
    if folders:
        parts = {"unet": ("config.json", name), "scheduler": ("scheduler_config.json",)}
        for part, files in parts.items():
            (repository / part).mkdir()
            for file in files:
                (repository / file).rename(repository / part / file)
    (repository / "large.safetensors").write_bytes(b"large")
    network, _, _ = load_diffusers("own/small", revision="v1")
    assert same_weights(network, load_diffusers(repository)[0])
    assert hub[0] == ("v1", [".json"] * 5), "the configurations first"
    assert {revision for revision, _ in hub[1:]} == {"c0ffee"}, "the weights by their commit"
    assert len(hub) == (2 if name == SAFE else 3)
    assert not list(tmp_path.glob("snapshots/*/large*"))


def test_a_network_that_ours_cannot_express_is_refused_before_its_download(hub, tmp_path):
    save(tmp_path / "hub", {**SMALL, "norm_eps": 1e-5}, scheduler=SCHEDULER)
    with pytest.raises(ValueError, match="norm_eps is 1e-05"):
        load_diffusers("own/small")
    assert len(hub) == 1


def test_training_starts_from_theirs_and_from_ours(tmp_path):
    cosine = {**SCHEDULER, "beta_schedule": "squaredcos_cap_v2"}
    save(tmp_path / "theirs", scheduler=cosine)
    decided, _ = initial_weights(tmp_path / "theirs")
    recipe = Recipe(**decided, dataset="mine", epochs=3)
    assert (recipe.image_size, recipe.channels, recipe.schedule) == (16, 3, "cosine")
    assert recipe.init_from == str(tmp_path / "theirs")
    run = start_run(recipe)
    assert same_weights(run.network, load_diffusers(tmp_path / "theirs")[0])
    mine = replace(recipe, prediction="v", objective="hybrid", classes=3, epochs=7, batch_size=5)
    network = our_network(mine)
    checkpoints.save_checkpoint(tmp_path / "ours", network, mine, {})
    decided, _ = initial_weights(tmp_path / "ours")
    recipe = Recipe(**decided, dataset="mine")
    assert (recipe.prediction, recipe.objective, recipe.classes) == ("v", "hybrid", 3)
    usual = Recipe()
    assert (recipe.epochs, recipe.batch_size) == (usual.epochs, usual.batch_size)
    assert same_weights(start_run(recipe).network, network)


def test_without_labels_it_is_the_network_that_is_told_none(tmp_path):
    recipe = small(dataset="celeba", attributes=("Smiling", "Male"), classes=4)
    network = our_network(recipe)
    checkpoints.save_checkpoint(tmp_path, network, recipe, {})
    decided, _ = initial_weights(tmp_path, labels=False)
    fresh = Recipe(**decided, dataset="mine")
    assert (fresh.classes, fresh.attributes) == (0, ())
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([3, 700])
    with torch.no_grad():
        started = start_run(fresh).network(x, t)
    torch.testing.assert_close(started, network(x, t))
    assert initial_weights(tmp_path)[0]["classes"] == 4


def test_without_labels_a_network_always_told_one_says_what_it_said_in_the_mean(tmp_path):
    recipe = small(classes=3, label_dropout=0.0)
    network = our_network(recipe)
    checkpoints.save_checkpoint(tmp_path, network, recipe, {})
    _, weights = initial_weights(tmp_path, labels=False)
    expected = network.time[2].bias + network.label.weight[:3].mean(dim=0)
    torch.testing.assert_close(weights["time.2.bias"], expected)
