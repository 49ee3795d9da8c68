"""Networks from and for diffusers: the folders of its DDPMPipeline and UNet2DModel.

They are local or on Hugging Face's hub. diffusers itself is not needed: its folders are JSON and
tensors. Its t is ours minus 1. Of a scheduler only the betas, T and the prediction are used:
variance_type, clip_sample and timestep_spacing concern sampling.
"""

import json
import re
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from mnist_ddpm import catalogue
from mnist_ddpm.catalogue import look_up
from mnist_ddpm.ddpm import Schedule, UNet, check
from mnist_ddpm.formats import checkpoints
from mnist_ddpm.formats.hub import download, read_config, read_tensors
from mnist_ddpm.machine.files import replacing
from mnist_ddpm.machine.text import describe_error
from mnist_ddpm.recipe import Recipe, height_width, simplify_size

# Settings that only have another name there
SAME_SETTINGS = {
    "image_size": "sample_size",
    "channels": "in_channels",
    "blocks_per_level": "layers_per_block",
    "norm_groups": "norm_num_groups",
    "dropout": "dropout",
}
SAME_SCHEDULE = {"T": "num_train_timesteps", "beta_1": "beta_start", "beta_T": "beta_end"}
# UNet2DModel's defaults that matter here, where a configuration is incomplete
DEFAULTS = {
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "downsample_padding": 1,
    "norm_eps": 1e-5,
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "dropout": 0.0,
}
UP_BLOCKS = {"DownBlock2D": "UpBlock2D", "AttnDownBlock2D": "AttnUpBlock2D"}
SCHEDULES = {
    "linear": "linear",
    "squaredcos_cap_v2": "cosine",
    "scaled_linear": "quadratic",
    "sigmoid": "sigmoid",
}
PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
PIPELINES = "DDPMPipeline", "DDIMPipeline"

# Our names of layers with diffusers', where they differ
LAYER_NAMES = {
    "time.0": "time_embedding.linear_1",
    "time.2": "time_embedding.linear_2",
    "norm_out": "conv_norm_out",
    "residual": "resnets",
    "attention": "attentions",
    "time": "time_emb_proj",
    "skip": "conv_shortcut",
    "norm": "group_norm",
    "qkv": "to_{}",
    "out": "to_out.0",
}
OLD_ATTENTION_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}

CONFIG = "config.json"
SCHEDULER = "scheduler_config.json"
INDEX = "model_index.json"
CONFIGS = INDEX, CONFIG, SCHEDULER, f"unet/{CONFIG}", f"scheduler/{SCHEDULER}"
WEIGHTS = "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"


def check_expressible(recipe: Recipe) -> None:
    """Raises ValueError naming a setting that DDPMPipeline has no counterpart of."""
    expressible = {
        "network": recipe.network == "unet",
        "patch_size": recipe.patch_size == 1,
        "classes": recipe.classes == 0,
        "condition": not recipe.conditional,
        "objective": not catalogue.learns_variance(recipe),
        "base_channels": recipe.base_channels >= 4,  # else its time embedding divides by 0
    }
    for name, is_expressible in expressible.items():
        check(is_expressible, f"{name} is {getattr(recipe, name)}: DDPMPipeline cannot express it")


def norm_groups(recipe: Recipe) -> list[int]:
    """The different numbers of groups in a network's normalisations, rising."""
    with torch.device("meta"):
        layers = list(catalogue.make_network(recipe).modules())
    return sorted({layer.num_groups for layer in layers if isinstance(layer, nn.GroupNorm)})


def settings_to_diffusers(recipe: Recipe) -> tuple[dict, dict]:
    """The configurations of UNet2DModel and DDPMScheduler. Raises as check_expressible."""
    check_expressible(recipe)
    return network_to_diffusers(recipe), scheduler_to_diffusers(recipe)


def network_to_diffusers(recipe: Recipe) -> dict:
    """The configuration of the UNet2DModel."""
    groups = norm_groups(recipe)
    check(len(groups) == 1, f"norm_groups would be {groups}: diffusers has one number throughout")
    levels = range(len(recipe.channel_mults))
    down = ["AttnDownBlock2D" if i in recipe.attention else "DownBlock2D" for i in levels]
    return {
        "_class_name": "UNet2DModel",
        **{theirs: getattr(recipe, ours) for ours, theirs in SAME_SETTINGS.items()},
        "norm_num_groups": groups[0],
        "out_channels": recipe.channels,
        "block_out_channels": [recipe.base_channels * mult for mult in recipe.channel_mults],
        "down_block_types": down,
        "up_block_types": [UP_BLOCKS[name] for name in reversed(down)],
        # what our U-Net always has
        "act_fn": "silu",
        "add_attention": True,
        "attention_head_dim": None,
        "attn_norm_num_groups": None,
        "center_input_sample": False,
        "class_embed_type": None,
        "downsample_padding": 0,
        "downsample_type": "conv",
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "mid_block_scale_factor": 1,
        "mid_block_type": "UNetMidBlock2D",
        "norm_eps": 1e-6,
        "num_class_embeds": None,
        "resnet_time_scale_shift": "default",
        "time_embedding_dim": None,
        "time_embedding_type": "positional",
        "upsample_type": "conv",
    }


def scheduler_to_diffusers(recipe: Recipe) -> dict:
    """The configuration of the DDPMScheduler."""
    schedules = {ours: theirs for theirs, ours in SCHEDULES.items()}
    predictions = {ours: theirs for theirs, ours in PREDICTIONS.items()}
    schedule = recipe.schedule.removesuffix("-zero-snr")
    for name, value, table in (
        ("schedule", schedule, schedules),
        ("prediction", recipe.prediction, predictions),
    ):
        advice = f"take --format onnx, or train with --{name} {' or '.join(table)}"
        check(value in table, f"diffusers has no {name} {value}: {advice}")
    return {
        "_class_name": "DDPMScheduler",
        **{theirs: getattr(recipe, ours) for ours, theirs in SAME_SCHEDULE.items()},
        "beta_schedule": schedules[schedule],
        "rescale_betas_zero_snr": schedule != recipe.schedule,
        "prediction_type": predictions[recipe.prediction],
        "variance_type": "fixed_small",
        "clip_sample": True,
        "timestep_spacing": "trailing",  # else fewer steps than T would not start at T
    }


def settings_from_diffusers(
    config: dict, scheduler: dict | None = None, dataset: str = "diffusers"
) -> Recipe:
    """A recipe from the configurations of a UNet2DModel and its scheduler.

    Without a scheduler it has DDPMScheduler's defaults. Raises ValueError naming what our network
    or schedules cannot express, KeyError or TypeError for what is no such configuration.
    """
    check_class(config, "UNet2DModel")
    config = with_defaults(config)
    schedule = schedule_from_diffusers(scheduler or {})
    recipe = Recipe(dataset=dataset, **network_from_diffusers(config), **schedule)
    by_width = replace(recipe, norm_groups=0)
    recipe = by_width if norm_groups(by_width) == [recipe.norm_groups] else recipe
    check_expressible(recipe)
    for name, ours in network_to_diffusers(recipe).items():
        theirs = config.get(name, ours)
        check(theirs == ours, f"{name} is {theirs}: our network has {ours}")
    return recipe


def with_defaults(config: dict) -> dict:
    """A UNet2DModel's configuration with diffusers' defaults, in today's form."""
    config = {**DEFAULTS, **config}
    for name in ("down_block_types", "up_block_types"):
        config[name] = [block.removeprefix("UNetRes") for block in config[name]]
    size = config["sample_size"]
    config["sample_size"] = simplify_size(tuple(size)) if isinstance(size, list) else size
    widths = config["block_out_channels"]
    attention_widths = {widths[-1], *(widths[level] for level in attention_levels(config))}
    if {config["attention_head_dim"]} == attention_widths:
        config["attention_head_dim"] = None  # one head, as in ours
    return config


def attention_levels(config: dict) -> list[int]:
    """The levels with self-attention."""
    blocks = config["down_block_types"]
    return [level for level, name in enumerate(blocks) if name == "AttnDownBlock2D"]


def network_from_diffusers(config: dict) -> dict:
    """The settings of the network, from a configuration with_defaults."""
    size = config["sample_size"]
    is_size = isinstance(size, int | tuple)
    check(is_size, f"sample_size is {size}: it must be the images' side, or height and width")
    side = min(height_width(size))
    widths = config["block_out_channels"]
    return {
        **{ours: config[theirs] for ours, theirs in SAME_SETTINGS.items()},
        "base_channels": widths[0],
        "channel_mults": tuple(width // widths[0] for width in widths),
        "attention_resolutions": tuple(side // 2**level for level in attention_levels(config)),
        "patch_size": 1,
    }


def schedule_from_diffusers(scheduler: dict) -> dict:
    """The settings of the schedule, and what the network predicts."""
    check_class(scheduler, "DDPMScheduler", "DDIMScheduler")
    learns_variance = "learned" in scheduler.get("variance_type", "")
    is_readable = scheduler.get("trained_betas") is None and not learns_variance
    check(is_readable, "trained_betas and a learned variance_type cannot be read")
    schedule = look_up("beta_schedule", scheduler.get("beta_schedule", "linear"), SCHEDULES)
    prediction = scheduler.get("prediction_type", "epsilon")
    return {  # the defaults of SAME_SCHEDULE are alike, too
        **{ours: scheduler[name] for ours, name in SAME_SCHEDULE.items() if name in scheduler},
        "schedule": schedule + "-zero-snr" * bool(scheduler.get("rescale_betas_zero_snr")),
        "prediction": look_up("prediction_type", prediction, PREDICTIONS),
    }


def check_class(config: dict, *classes: str) -> None:
    """Raises ValueError for a configuration of another class."""
    name = config.get("_class_name", classes[0])
    check(name in classes, f"_class_name is {name}: only {' and '.join(classes)} can be read")


def diffusers_tensors(network: UNet, blocks_per_level: int) -> dict[str, Tensor]:
    """Views of the network's tensors under diffusers' names and in its shapes."""
    tensors = {}
    for name, tensor in network.state_dict().items():
        path, kind = name.rsplit(".", 1)
        part, *layer = path.split(".")
        theirs = LAYER_NAMES.get(path, path)
        if part in ("down", "middle", "up"):
            # A level is a run of blocks, one more on the way up, and, but for the last level, a
            # change of size.
            level, block = divmod(int(layer[0]), blocks_per_level + (2 if part == "up" else 1))
            theirs = f"{part}samplers.0.conv"
            if layer[1] != "conv":
                theirs = f"{LAYER_NAMES[layer[1]]}.{block}.{LAYER_NAMES.get(layer[2], layer[2])}"
            parent = "mid_block" if part == "middle" else f"{part}_blocks.{level}"
            theirs = f"{parent}.{theirs}"
        if "attention" in layer and tensor.ndim == 4:  # a 1 x 1 convolution, there a linear layer
            tensor = tensor[..., 0, 0]
        thirds = zip("qkv", tensor.chunk(3)) if "qkv" in layer else [("", tensor)]
        tensors |= {f"{theirs.format(letter)}.{kind}": third for letter, third in thirds}
    return tensors


def with_new_names(weights: dict[str, Tensor], source: str | Path) -> dict[str, Tensor]:
    """The weights under today's names and in today's shapes. Raises ValueError for one twice."""
    pattern = re.compile(rf"\.({'|'.join(OLD_ATTENTION_NAMES)})\.(weight|bias)$")
    renamed = {}
    for old_name, weight in weights.items():
        name = pattern.sub(lambda match: f".{OLD_ATTENTION_NAMES[match[1]]}.{match[2]}", old_name)
        check(name not in renamed, f"{source} holds {name} twice, under its old name too")
        was_convolution = ".attentions." in name and weight.shape[2:] == (1, 1)
        renamed[name] = weight[..., 0, 0] if was_convolution else weight
    return renamed


def load_diffusers(
    source: str | Path, device: torch.device | str = "cpu", revision: str | None = None
) -> tuple[UNet, Schedule, Recipe]:
    """A diffusers model, ready to sample, with its schedule and recipe.

    source: the folder of a DDPMPipeline or DDIMPipeline, or of a UNet2DModel alone (with
    DDPMScheduler's defaults), or a name on the hub such as "google/ddpm-cifar10-32", with a
    branch, tag or commit after an @, or in revision. Raises FileNotFoundError for missing files,
    OSError where the download fails, ValueError for damaged files and naming what our network
    cannot express.
    """
    is_local = Path(source).is_dir()
    name = Path(source).as_posix()
    folder = Path(source) if is_local else download(name, revision, CONFIGS)
    unet = folder / "unet" if (folder / "unet").is_dir() else folder
    config, scheduler = read_configs(source, folder, unet / CONFIG)
    try:
        recipe = settings_from_diffusers(config, scheduler, str(source))
        schedule = catalogue.make_schedule(recipe)
    except ValueError as error:
        raise ValueError(f"{source} cannot become a network of ours: {error}") from error
    except (LookupError, TypeError, AttributeError, ArithmeticError) as error:
        reason = describe_error(error)
        raise ValueError(f"{source} has a damaged configuration ({reason})") from error
    for file in WEIGHTS:
        if not is_local:  # by its commit, since the hub's files may change meanwhile
            download(name, folder.name, (*CONFIGS, file, f"unet/{file}"))
        if (unet / file).is_file():
            break
    else:
        missing = f"neither {' nor '.join(WEIGHTS)} is in {unet}"
        raise FileNotFoundError(f"{source} is no diffusers model: {missing}")
    network = catalogue.make_network(recipe)
    weights = with_new_names(read_tensors(unet / file), unet / file)
    tensors = diffusers_tensors(network, recipe.blocks_per_level)
    checkpoints.load_weights(tensors, weights, unet / file)
    return network.to(device).eval().requires_grad_(False), schedule, recipe


def read_configs(source: str | Path, folder: Path, config: Path) -> tuple[dict, dict | None]:
    """The configurations of a network and its scheduler, if any. Raises as load_diffusers."""
    index = folder / INDEX
    is_nested = (folder / "scheduler").is_dir()  # the oldest pipelines are one folder
    scheduler = folder / "scheduler" / SCHEDULER if is_nested else folder / SCHEDULER
    pipeline = read_config(index).get("_class_name") if index.is_file() else PIPELINES[0]
    check(pipeline in PIPELINES, f"{source} is a {pipeline}: only {' and '.join(PIPELINES)} fit")
    for path in (config, scheduler) if index.is_file() else (config,):
        if not path.is_file():
            raise FileNotFoundError(f"{source} is no diffusers model: there is no {path}")
    return read_config(config), read_config(scheduler) if scheduler.is_file() else None


def save_diffusers(folder: str | Path, network: UNet, recipe: Recipe) -> None:
    """Writes a folder for DDPMPipeline.from_pretrained. Raises as settings_to_diffusers."""
    config, scheduler = settings_to_diffusers(recipe)
    classes = {"unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", "DDPMScheduler"]}
    tensors = diffusers_tensors(network, recipe.blocks_per_level)
    # Copies, since they must share no memory
    weights = {name: tensor.cpu().contiguous().clone() for name, tensor in tensors.items()}
    with replacing(Path(folder, "unet", WEIGHTS[0])) as path:
        path.write_bytes(save(weights, {"format": "pt"}))
    contents = {
        f"unet/{CONFIG}": config,
        f"scheduler/{SCHEDULER}": scheduler,
        INDEX: {"_class_name": "DDPMPipeline", **classes},
    }
    for name, content in contents.items():
        with replacing(Path(folder, name)) as path:
            path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
