"""Networks to and from diffusers, against diffusers itself; with the configurations of Google's models on the hub."""

import fnmatch
import inspect
import json
import shutil
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from mnist_ddpm.ddpm import (
    Settings,
    count_parameters,
    ddpm_sampler,
    load_checkpoint,
    make_denoiser,
    make_model,
    make_schedule,
    save_checkpoint,
    start_run,
    timesteps,
)
from mnist_ddpm.diffusers_weights import (
    DEFAULTS,
    diffusers_tensors,
    load_diffusers,
    pretrained,
    save_diffusers,
    settings_from_diffusers,
    settings_to_diffusers,
    unwrapped,
)


def configuration(side, widths, attended=(), **others):
    """As Google's repositories have it, which are older than some of UNet2DModel's arguments."""
    down = ["AttnDownBlock2D" if i in attended else "DownBlock2D" for i in range(len(widths))]
    return {
        "_class_name": "UNet2DModel", "_diffusers_version": "0.0.4", "act_fn": "silu", "attention_head_dim": None,
        "block_out_channels": widths, "center_input_sample": False, "down_block_types": down, "downsample_padding": 0,
        "flip_sin_to_cos": False, "freq_shift": 1, "in_channels": 3, "layers_per_block": 2,
        "mid_block_scale_factor": 1, "norm_eps": 1e-6, "norm_num_groups": 32, "out_channels": 3, "sample_size": side,
        "time_embedding_type": "positional", "up_block_types": [name.replace("Down", "Up") for name in down[::-1]],
        **others,
    }  # fmt: skip


CIFAR10 = configuration(32, [128, 256, 256, 256], [1])
CELEBA = configuration(256, [128, 128, 256, 256, 512, 512], [4])
SCHEDULER = {
    "_class_name": "DDPMScheduler", "_diffusers_version": "0.1.1", "beta_end": 0.02, "beta_schedule": "linear",
    "beta_start": 0.0001, "clip_sample": True, "num_train_timesteps": 1000, "trained_betas": None,
    "variance_type": "fixed_large",
}  # fmt: skip
SMALL = configuration(16, [7, 14], [1], norm_num_groups=1)
NETWORKS = {
    "cifar10": CIFAR10,
    "celebahq, thin": configuration(32, [7, 7, 14, 14, 14, 14], [4], norm_num_groups=1),
    "grey": configuration(8, [128, 128], in_channels=1, out_channels=1),
    "attention throughout": configuration(8, [7, 14, 14], [0, 1, 2], norm_num_groups=1, layers_per_block=1),
    "one level": configuration(8, [15], norm_num_groups=1, layers_per_block=3),
    "as wide a head as all levels": configuration(8, [14, 14], [0], norm_num_groups=1, attention_head_dim=14),
    "old names of blocks": {
        **configuration(8, [7, 14], norm_num_groups=1),
        "down_block_types": ["UNetResDownBlock2D", "UNetResAttnDownBlock2D"],
        "up_block_types": ["UNetResAttnUpBlock2D", "UNetResUpBlock2D"],
    },
}


def randomised(network):
    """No parameter is left that a fresh network has twice, such as the ones and zeros of a normalisation."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in network.parameters():
            p += 0.1 * torch.randn(p.shape, generator=generator) * (0.1 if p.numel() > 100_000 else 1)
    return network.eval().requires_grad_(False)


def diffusers_network(config):
    torch.manual_seed(0)
    return randomised(UNet2DModel.from_config(config))


def our_settings(**options):
    return replace(settings_from_diffusers(SMALL), **options)


def our_network(settings):
    return randomised(make_model(settings))


def save(folder, config=SMALL, weights=None, scheduler=None, name="diffusion_pytorch_model.safetensors"):
    """A folder like Google's: all files in one, and a pipeline where there is a scheduler."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = weights if weights is not None else diffusers_network(config).state_dict()
    (save_file if name.endswith("safetensors") else torch.save)(weights, folder / name)
    (folder / "config.json").write_text(json.dumps(config))
    if scheduler:
        (folder / "scheduler_config.json").write_text(json.dumps(scheduler))
        (folder / "model_index.json").write_text(json.dumps({"_class_name": "DDPMPipeline"}))
    return folder


def same_weights(model, expected):
    given, wanted = model.state_dict(), expected.state_dict()
    return given.keys() == wanted.keys() and all(torch.equal(given[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("config", NETWORKS.values(), ids=NETWORKS)
def test_their_network_and_ours_say_the_same_and_the_way_back_is_exact(config, tmp_path):
    theirs = diffusers_network(config)
    theirs.save_pretrained(tmp_path / "theirs")
    ours, _, settings = load_diffusers(tmp_path / "theirs")
    t = torch.tensor([1, 500, 1000])
    x = torch.randn(3, config["in_channels"], config["sample_size"], config["sample_size"])
    output = theirs(x, t - 1).sample
    assert (output[0] - output[1]).abs().max() > 1e-2 and output.std() > 0.1
    torch.testing.assert_close(ours(x, t), output, rtol=0, atol=1e-4)
    save_diffusers(tmp_path / "ours", ours, settings)
    assert same_weights(UNet2DModel.from_pretrained(tmp_path / "ours" / "unet"), theirs)


@pytest.mark.parametrize(
    ("config", "parameters"), [(CIFAR10, 35_746_307), (CELEBA, 113_673_219)], ids=["cifar10", "celebahq"]
)
def test_googles_networks_have_all_their_tensors_in_ours(config, parameters):
    settings = settings_from_diffusers(config, SCHEDULER)
    with torch.device("meta"):
        theirs, ours = UNet2DModel.from_config(config), make_model(settings)
    tensors = diffusers_tensors(ours, settings.blocks_per_level)
    assert {k: v.shape for k, v in tensors.items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    assert count_parameters(ours) == count_parameters(theirs) == parameters


def test_their_tensors_are_all_of_ours_once():
    model = our_network(our_settings())
    tensors = diffusers_tensors(model, our_settings().blocks_per_level)
    assert sum(tensor.numel() for tensor in tensors.values()) == count_parameters(model)
    for tensor in tensors.values():
        tensor.zero_()
    assert not any(p.any() for p in model.parameters())


def rename(weights, convolutions):
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


@pytest.mark.parametrize("file", ["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"])
@pytest.mark.parametrize("convolutions", [False, True], ids=["linear", "convolutions"])
def test_old_names_and_files_give_the_same_network(file, convolutions, tmp_path):
    theirs = diffusers_network(SMALL)
    old = save(tmp_path / "old", weights=rename(theirs.state_dict(), convolutions), name=file)
    assert ".query." in str(list((load_file if file.endswith("s") else torch.load)(old / file)))
    expected, _, _ = load_diffusers(save(tmp_path / "new", weights=theirs.state_dict()))
    ours, _, _ = load_diffusers(old)
    assert same_weights(ours, expected)
    if not convolutions:
        assert same_weights(UNet2DModel.from_pretrained(old), theirs)


@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
def test_our_network_comes_back_bit_by_bit(prediction, tmp_path):
    settings = our_settings(prediction=prediction, dataset=str(tmp_path / "exported"))
    save_checkpoint(tmp_path / "ours", our_network(settings), settings)
    model, _, _ = load_checkpoint(tmp_path / "ours")
    save_diffusers(tmp_path / "exported", model, settings)
    again, schedule, back = load_diffusers(tmp_path / "exported")
    assert back == settings and same_weights(again, model) and type(again) is type(model)
    assert torch.equal(schedule.beta, make_schedule(settings).beta)


@pytest.mark.parametrize(
    ("schedule", "prediction"), [("linear", "eps"), ("cosine", "eps"), ("sigmoid-zero-snr", "v"), ("quadratic", "x0")]
)
def test_diffusers_pipeline_draws_our_images_from_the_same_noise(schedule, prediction, tmp_path):
    settings = our_settings(T=20, schedule=schedule, prediction=prediction, beta_1=0.01, beta_T=0.3)
    network, tables = our_network(settings), make_schedule(settings)
    save_diffusers(tmp_path, network, settings)
    pipeline = DDPMPipeline.from_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(1)
    theirs = pipeline(2, generator, num_inference_steps=20, output_type="pt").images

    def noise():
        return torch.randn(2, 3, 16, 16, generator=generator)

    generator.manual_seed(1)
    model = make_denoiser(network, tables, settings)
    *_, (_, x0, _) = ddpm_sampler(model, tables, timesteps(20, 20), noise(), noise)
    ours = (x0 / 2 + 0.5).clamp(0, 1)
    assert ours.std() > 0.1 and ((ours > 0) & (ours < 1)).float().mean() > 0.3
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
@pytest.mark.parametrize("schedule", ["linear", "cosine", "quadratic", "sigmoid", "cosine-zero-snr"])
def test_settings_go_there_and_back(schedule, prediction):
    settings = our_settings(
        schedule=schedule, prediction=prediction, T=50, beta_1=2e-4, beta_T=0.03, dropout=0.1,
        attention_resolutions=(16, 8), dataset="somewhere",
    )  # fmt: skip
    config, scheduler = json.loads(json.dumps(settings_to_diffusers(settings)))
    assert settings_from_diffusers(config, scheduler, "somewhere") == settings
    theirs = DDPMScheduler.from_config(scheduler).alphas_cumprod.double()
    ours = make_schedule(replace(settings, prediction="v")).alpha_bar[1:]  # zero-snr refuses eps
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-6)


def test_every_argument_of_diffusers_is_decided_and_its_defaults_are_known():
    """So that a new version with a new argument is noticed."""
    config, _ = settings_to_diffusers(our_settings())
    arguments = inspect.signature(UNet2DModel.__init__).parameters
    assert set(config) - {"_class_name"} == set(arguments) - {"self", "num_train_timesteps"}
    sizes = {"sample_size", "block_out_channels", "down_block_types", "up_block_types", "norm_num_groups"}
    for name in set(config) - {"_class_name"} - sizes:
        assert DEFAULTS.get(name, config[name]) == arguments[name].default, name
    smallest, _ = settings_to_diffusers(our_settings(attention_resolutions=None))
    assert smallest["down_block_types"] == ["DownBlock2D", "AttnDownBlock2D"]


def test_googles_pipelines_with_all_files_in_one_folder_are_read(tmp_path):
    model, schedule, settings = load_diffusers(save(tmp_path, scheduler={**SCHEDULER, "num_train_timesteps": 77}))
    assert schedule.T == settings.T == 77 and settings.dataset == str(tmp_path) and settings.objective == "simple"
    assert not model.training and not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_class_name": "UNet2DConditionModel"}, "_class_name is UNet2DConditionModel: only UNet2DModel can be read"),
        ({"down_block_types": ["ResnetDownsampleBlock2D", "DownBlock2D"]}, "up_block_types|ResnetDownsampleBlock2D"),
        ({"up_block_types": ["UpBlock2D", "AttnUpBlock2D"]}, "up_block_types is .*: our network has .'AttnUp"),
        ({"down_block_types": ["DownBlock2D"]}, "up_block_types|down_block_types"),
        ({"downsample_type": "resnet"}, "downsample_type is resnet: our network has conv"),
        ({"upsample_type": "resnet"}, "upsample_type is resnet"),
        ({"attention_head_dim": 7}, "attention_head_dim is 7: our network has None"),
        ({"attention_head_dim": ...}, "attention_head_dim is 8"),
        ({"downsample_padding": ...}, "downsample_padding is 1: our network has 0"),
        ({"flip_sin_to_cos": ...}, "flip_sin_to_cos is True: our network has False"),
        ({"freq_shift": ...}, "freq_shift is 0: our network has 1"),
        ({"norm_eps": ...}, "norm_eps is 1e-05: our network has 1e-06"),
        ({"norm_num_groups": 7}, "norm_num_groups is 7: our network has 1"),
        ({"block_out_channels": [64, 128]}, r"norm_num_groups would be \[16, 32\]"),
        ({"block_out_channels": [14, 21]}, r"block_out_channels is \[14, 21\]: our network has \[14, 14\]"),
        ({"block_out_channels": [14, 7]}, "channel_mults"),
        ({"out_channels": 6}, "out_channels is 6: our network has 3"),
        ({"in_channels": 4, "out_channels": 4}, "channels is 4"),
        ({"sample_size": None}, "sample_size is None: it must be the side of square images"),
        ({"sample_size": [16, 8]}, r"sample_size is \[16, 8\]"),
        ({"sample_size": 15}, "image_size 15 is no multiple of 2"),
        ({"time_embedding_type": "fourier"}, "time_embedding_type is fourier"),
        ({"time_embedding_dim": 64}, "time_embedding_dim is 64"),
        ({"act_fn": "gelu"}, "act_fn is gelu"),
        ({"resnet_time_scale_shift": "scale_shift"}, "resnet_time_scale_shift is scale_shift"),
        ({"mid_block_scale_factor": 1.4}, "mid_block_scale_factor is 1.4"),
        ({"mid_block_type": None}, "mid_block_type is None"),
        ({"add_attention": False}, "add_attention is False"),
        ({"center_input_sample": True}, "center_input_sample is True"),
        ({"num_class_embeds": 10}, "num_class_embeds is 10: our network has None"),
        ({"class_embed_type": "timestep"}, "class_embed_type is timestep"),
        ({"block_out_channels": ...}, "damaged configuration, KeyError.'block_out_channels'"),
        ({"layers_per_block": "two"}, "blocks_per_level is 'two': it must be a whole number"),
        ({"block_out_channels": 5}, "damaged configuration, TypeError"),
        ({"block_out_channels": []}, "damaged configuration, IndexError"),
        ({"block_out_channels": [0, 14]}, "damaged configuration, ZeroDivisionError"),
    ],
    ids=str,
)
def test_networks_that_ours_cannot_express_are_refused_with_the_reason(changes, message, tmp_path):
    config = {name: value for name, value in {**SMALL, **changes}.items() if value is not ...}
    save(tmp_path, config, weights={})
    with pytest.raises(ValueError, match=f"cannot become a network of ours: .*({message})"):
        load_diffusers(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_class_name": "ScoreSdeVeScheduler"}, "_class_name is ScoreSdeVeScheduler: only DDPMScheduler and DDIM"),
        ({"beta_schedule": "laplace"}, 'beta_schedule "laplace" is unknown: take one of linear, squared'),
        ({"prediction_type": "flow"}, 'prediction_type "flow" is unknown: take one of epsilon, sample'),
        ({"trained_betas": [0.1, 0.2]}, "trained_betas"),
        ({"variance_type": "learned_range"}, "learned variance_type"),
        ({"beta_end": 2}, "beta_T"),
        ({"rescale_betas_zero_snr": True}, '"linear-zero-snr" ends in pure noise'),
    ],
    ids=str,
)
def test_schedules_that_we_have_not_are_refused_with_the_reason(changes, message, tmp_path):
    save(tmp_path, weights={}, scheduler={**SCHEDULER, **changes})
    with pytest.raises(ValueError, match=message):
        load_diffusers(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch_size": 2}, "patch_size is 2: diffusers' DDPMPipeline has no patches"),
        ({"classes": 10}, "classes is 10: .* has no labels"),
        ({"objective": "hybrid"}, "objective is hybrid: .* has no learned variances"),
        ({"base_channels": 3}, "base_channels is 3"),
        ({"base_channels": 32}, r"norm_num_groups would be \[8, 16, 32\] at widths \[32, 64\]"),
        ({"prediction": "mu"}, 'prediction "mu" is unknown: take one of eps, x0, v'),
        ({"schedule": "own"}, 'schedule "own" is unknown'),
    ],
    ids=str,
)
def test_settings_that_diffusers_has_not_are_refused_before_anything_is_written(options, message, tmp_path):
    settings = our_settings(**options)
    with pytest.raises(ValueError, match=message):
        save_diffusers(tmp_path / "new", make_model(our_settings()), settings)
    assert not list(tmp_path.iterdir())


def without(weights):
    del weights["mid_block.attentions.0.to_k.bias"]


def surplus(weights):
    weights["mid_block.attentions.1.to_k.bias"] = torch.zeros(1)


def misshapen(weights):
    weights["down_blocks.0.resnets.1.conv2.weight"] = torch.zeros(7, 7, 1, 1)


def both_names(weights):
    weights["mid_block.attentions.0.key.bias"] = torch.zeros(14)


def all_other(weights):
    for name in list(weights):
        weights[f"module.{name}"] = weights.pop(name)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without, "mid_block.attentions.0.to_k.bias is missing, should be .14,"),
        (surplus, "mid_block.attentions.1.to_k.bias is unknown"),
        (misshapen, r"down_blocks.0.resnets.1.conv2.weight is .7, 7, 1, 1., should be .7, 7, 3, 3."),
        (both_names, "holds mid_block.attentions.0.to_k.bias twice"),
        (all_other, "time_embedding.linear_1.weight is missing, .*; and [0-9]+ more"),
    ],
)
def test_weights_that_do_not_fit_are_named(damage, message, tmp_path):
    weights = dict(diffusers_network(SMALL).state_dict())
    damage(weights)
    with pytest.raises(ValueError, match=message):
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
            with pytest.raises(ValueError, match=f"{name} is damaged or no configuration"):
                load_diffusers(tmp_path)
        (tmp_path / name).write_text(good)
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    with pytest.raises(ValueError, match="safetensors is damaged or holds no weights"):
        load_diffusers(tmp_path)
    weights.unlink()
    for bad in (b"", b"no pickle", [torch.zeros(1)], {"a": 1}, {"a": Bomb()}):
        file = tmp_path / "diffusion_pytorch_model.bin"
        file.write_bytes(bad) if isinstance(bad, bytes) else torch.save(bad, file)
        with pytest.raises(ValueError, match="bin is damaged or holds no weights .") as caught:
            load_diffusers(tmp_path)
        assert "\n" not in str(caught.value)
    assert "code was run" not in capsys.readouterr().out


def test_what_is_no_folder_of_a_model_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder .*nowhere"):
        load_diffusers(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="is no diffusers model: there is no .*config.json"):
        load_diffusers(tmp_path)
    save(tmp_path, scheduler=SCHEDULER)
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="neither diffusion_pytorch_model.safetensors nor .*bin"):
        load_diffusers(tmp_path)
    (tmp_path / "scheduler_config.json").unlink()
    with pytest.raises(FileNotFoundError, match="there is no .*scheduler_config.json"):
        load_diffusers(tmp_path)
    (tmp_path / "model_index.json").write_text('{"_class_name": "LDMPipeline"}')
    with pytest.raises(ValueError, match="is a LDMPipeline: only DDPMPipeline and DDIMPipeline"):
        load_diffusers(tmp_path)


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """The hub's cache, empty, without a network."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_name_on_the_hub_is_refused_in_one_line_without_network(offline):
    with pytest.raises(OSError, match="google/ddpm-cifar10-32 is no folder here.*check the name and the net") as caught:
        load_diffusers("google/ddpm-cifar10-32")
    assert "\n" not in str(caught.value)


def test_what_the_hub_gave_once_needs_no_network(offline):
    repository, commit = offline / "models--own--small", "0123456789" * 4
    save(repository / "snapshots" / commit, scheduler=SCHEDULER)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    model, _, settings = load_diffusers("own/small")
    assert settings.dataset == "own/small" and same_weights(load_diffusers("own/small", revision=commit)[0], model)
    with pytest.raises(OSError, match="own/small is no folder here"):
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


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"])
@pytest.mark.parametrize("folders", [False, True], ids=["one folder", "subfolders"])
def test_of_a_repository_only_what_is_needed_is_downloaded(folders, name, hub, tmp_path):
    repository = save(tmp_path / "hub", scheduler=SCHEDULER, name=name)
    if folders:
        for part, files in {"unet": ("config.json", name), "scheduler": ("scheduler_config.json",)}.items():
            (repository / part).mkdir()
            for file in files:
                (repository / file).rename(repository / part / file)
    (repository / "large.safetensors").write_bytes(b"large")
    model, _, _ = load_diffusers("own/small", revision="v1")
    assert same_weights(model, load_diffusers(repository)[0])
    assert hub[0] == ("v1", [".json"] * 5)
    assert {revision for revision, _ in hub[1:]} == {"c0ffee"}
    assert len(hub) == (2 if name.endswith("s") else 3) and not list(tmp_path.glob("snapshots/*/large*"))


def test_a_network_that_ours_cannot_express_is_refused_before_its_weights_are_downloaded(hub, tmp_path):
    save(tmp_path / "hub", {**SMALL, "norm_eps": 1e-5}, scheduler=SCHEDULER)
    with pytest.raises(ValueError, match="own/small cannot become a network of ours: norm_eps is 1e-05"):
        load_diffusers("own/small")
    assert len(hub) == 1


def test_without_labels_a_network_that_was_always_told_one_says_what_it_said_of_all_in_the_mean(tmp_path):
    settings = Settings(base_channels=8, channel_mults=(1, 2), classes=3, label_dropout=0.0)
    network = our_network(settings)
    save_checkpoint(tmp_path, network, settings)
    _, weights = pretrained(tmp_path, labels=False)
    expected = network.time[2].bias + network.label.weight[:3].mean(dim=0)
    torch.testing.assert_close(weights["time.2.bias"], expected.detach())


def test_a_checkpoint_that_lost_its_weights_is_told_as_one(tmp_path):
    settings = Settings(base_channels=8, channel_mults=(1, 2))
    save_checkpoint(tmp_path, our_network(settings), settings)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        pretrained(tmp_path)


def test_training_starts_from_theirs_and_from_ours(tmp_path):
    save(tmp_path / "theirs", scheduler={**SCHEDULER, "beta_schedule": "squaredcos_cap_v2"})
    decided, weights = pretrained(tmp_path / "theirs")
    settings = Settings(**decided, dataset="mnist", epochs=3)
    assert (settings.image_size, settings.channels, settings.schedule) == (16, 3, "cosine")
    assert settings.init_from == str(tmp_path / "theirs")
    run = start_run(settings, weights=weights)
    assert same_weights(run.model, unwrapped(load_diffusers(tmp_path / "theirs")[0]))
    mine = replace(settings, prediction="v", objective="hybrid", classes=3, epochs=7, batch_size=5)
    save_checkpoint(tmp_path / "ours", our_network(mine), mine)
    decided, weights = pretrained(tmp_path / "ours")
    settings = Settings(**decided)
    assert (settings.prediction, settings.objective, settings.classes) == ("v", "hybrid", 3)
    assert (settings.epochs, settings.batch_size) == (Settings().epochs, Settings().batch_size), "not of the network"
    assert same_weights(start_run(settings, weights=weights).model, unwrapped(load_checkpoint(tmp_path / "ours")[0]))


def test_training_without_labels_starts_from_a_network_for_labels(tmp_path):
    """It then is the network that is told no label, and fits data that have none."""
    settings = our_settings(dataset="celeba", attributes=("Smiling", "Male"), classes=4)
    model = our_network(settings)
    save_checkpoint(tmp_path / "labelled", model, settings)
    decided, weights = pretrained(tmp_path / "labelled", labels=False)
    fresh = Settings(**decided, dataset="mine")
    assert (fresh.classes, fresh.attributes) == (0, ())
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([3, 700])
    with torch.no_grad():
        torch.testing.assert_close(start_run(fresh, weights=weights).model(x, t), model(x, t))
    assert pretrained(tmp_path / "labelled")[0]["classes"] == 4


def test_settings_that_diffusers_does_not_decide_have_their_defaults():
    default, given = Settings(), settings_from_diffusers(CIFAR10, SCHEDULER, "google/ddpm-cifar10-32")
    assert given == replace(
        default, dataset="google/ddpm-cifar10-32", channels=3, base_channels=128, channel_mults=(1, 2, 2, 2),
        blocks_per_level=2, attention_resolutions=(16,), patch_size=1,
    )  # fmt: skip
    assert settings_from_diffusers(CIFAR10) == replace(given, dataset="diffusers")
