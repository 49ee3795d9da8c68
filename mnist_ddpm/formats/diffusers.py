"""Networks from and for diffusers: the folders of its DDPMPipeline and UNet2DModel.

They lie here or on Hugging Face's hub. diffusers itself is not needed: its folders are JSON and
tensors. Its t is ours minus 1. Of a scheduler only the betas, T and the prediction are taken:
variance_type, clip_sample and timestep_spacing are choices of whoever samples.
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
from mnist_ddpm.training.options import height_width, simplest
from mnist_ddpm.training.recipe import Recipe

DEFAULTS = {  # where a configuration is silent, as far as our network does not do the same
    "flip_sin_to_cos": True, "freq_shift": 0, "downsample_padding": 1, "norm_eps": 1e-5,
    "attention_head_dim": 8, "norm_num_groups": 32,
}  # fmt: skip
LEVELS = {"DownBlock2D": "UpBlock2D", "AttnDownBlock2D": "AttnUpBlock2D"}  # way down: way up
BETAS = {
    "linear": "linear", "squaredcos_cap_v2": "cosine", "scaled_linear": "quadratic",
    "sigmoid": "sigmoid",
}  # fmt: skip
PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
PIPELINES = "DDPMPipeline", "DDIMPipeline"

NAMES = {  # diffusers', where ours are others
    "time.0": "time_embedding.linear_1", "time.2": "time_embedding.linear_2",
    "norm_out": "conv_norm_out", "residual": "resnets", "attention": "attentions",
    "time": "time_emb_proj", "skip": "conv_shortcut", "norm": "group_norm", "qkv": "to_{}",
    "out": "to_out.0",
}  # fmt: skip
# of attention, once
OLD_ATTENTION_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}

INDEX, CONFIG, SCHEDULER = "model_index.json", "config.json", "scheduler_config.json"
CONFIGS = INDEX, CONFIG, SCHEDULER, f"unet/{CONFIG}", f"scheduler/{SCHEDULER}"
WEIGHTS = "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"


def check_expressible(recipe: Recipe) -> None:
    """Raises ValueError naming a setting that DDPMPipeline has no counterpart of."""
    foreign = {
        "network": (recipe.network != "unet", "such network"),
        "patch_size": (recipe.patch_size > 1, "patches"),
        "classes": (recipe.classes > 0, "labels"),
        "condition": (recipe.conditional, "image as the condition"),
        "objective": (catalogue.learns_variance(recipe), "learned variances"),
        "base_channels": (recipe.base_channels < 4, "time embedding so narrow"),  # divides by 0
    }
    for name, (wrong, what) in foreign.items():
        value = getattr(recipe, name)
        check(not wrong, f"{name} is {value}: diffusers' DDPMPipeline has no {what}")


def norm_groups(recipe: Recipe) -> set[int]:
    """The numbers of groups that normalisations have."""
    with torch.device("meta"):
        layers = list(catalogue.make_network(recipe).modules())
    return {layer.num_groups for layer in layers if isinstance(layer, nn.GroupNorm)}


def same_groups(recipe: Recipe) -> int:
    """The number of groups that all normalisations have. Raises ValueError if they differ."""
    groups = sorted(norm_groups(recipe))
    problem = f"norm_groups would be {groups}, by each layer's width"
    check(len(groups) == 1, f"{problem}: diffusers has one number throughout")
    return groups[0]


def settings_to_diffusers(recipe: Recipe) -> tuple[dict, dict]:
    """The configurations of the UNet2DModel and the DDPMScheduler that do what a recipe says.

    Raises ValueError naming a setting that DDPMPipeline has no counterpart of.
    """
    check_expressible(recipe)
    return network_to_diffusers(recipe), scheduler_to_diffusers(recipe)


def network_to_diffusers(recipe: Recipe) -> dict:
    """The configuration of the UNet2DModel."""
    s, levels = recipe, range(len(recipe.channel_mults))
    down = ["AttnDownBlock2D" if i in s.attention else "DownBlock2D" for i in levels]
    return {
        "_class_name": "UNet2DModel", "sample_size": s.image_size, "in_channels": s.channels,
        "out_channels": s.channels, "center_input_sample": False,
        "time_embedding_type": "positional", "time_embedding_dim": None, "freq_shift": 1,
        "flip_sin_to_cos": False, "down_block_types": down, "mid_block_type": "UNetMidBlock2D",
        "up_block_types": [LEVELS[name] for name in reversed(down)],
        "block_out_channels": [s.base_channels * mult for mult in s.channel_mults],
        "layers_per_block": s.blocks_per_level, "mid_block_scale_factor": 1,
        "downsample_padding": 0, "downsample_type": "conv", "upsample_type": "conv",
        "dropout": s.dropout, "act_fn": "silu", "attention_head_dim": None,
        "norm_num_groups": same_groups(s), "attn_norm_num_groups": None, "norm_eps": 1e-6,
        "resnet_time_scale_shift": "default", "add_attention": True, "class_embed_type": None,
        "num_class_embeds": None,
    }  # fmt: skip


def scheduler_to_diffusers(recipe: Recipe) -> dict:
    """The configuration of the DDPMScheduler."""
    tables = BETAS, PREDICTIONS
    betas, predictions = ({ours: theirs for theirs, ours in table.items()} for table in tables)
    schedule = recipe.schedule.removesuffix("-zero-snr")
    return {
        "_class_name": "DDPMScheduler", "num_train_timesteps": recipe.T,
        "beta_start": recipe.beta_1, "beta_end": recipe.beta_T,
        "beta_schedule": look_up("schedule", schedule, betas),
        "rescale_betas_zero_snr": schedule != recipe.schedule,
        "prediction_type": look_up("prediction", recipe.prediction, predictions),
        "variance_type": "fixed_small", "clip_sample": True,
        "timestep_spacing": "trailing",  # without it fewer steps than T do not start at T
    }  # fmt: skip


def settings_from_diffusers(
    config: dict, scheduler: dict | None = None, dataset: str = "diffusers"
) -> Recipe:
    """A recipe from the configurations of a UNet2DModel and its scheduler.

    Without a scheduler it has DDPMScheduler's defaults. Raises ValueError saying what our network
    or schedules cannot express, KeyError or TypeError for what is no such configuration.
    """
    check_class(config, "UNet2DModel")
    config = with_defaults(config)
    meaning = scheduler_from_diffusers(scheduler or {})
    recipe = Recipe(dataset=dataset, **network_from_diffusers(config), **meaning)
    by_width = replace(recipe, norm_groups=0)
    recipe = by_width if norm_groups(by_width) == {recipe.norm_groups} else recipe
    check_expressible(recipe)
    for name, ours in network_to_diffusers(recipe).items():
        theirs = config.get(name, ours)
        check(theirs == ours, f"{name} is {theirs}: our network has {ours}")
    return recipe


def with_defaults(config: dict) -> dict:
    """A UNet2DModel's configuration with diffusers' defaults, and one way to say each thing."""
    config = {**DEFAULTS, **config}
    for way in ("down_block_types", "up_block_types"):
        config[way] = [name.removeprefix("UNetRes") for name in config[way]]
    widths, size = config["block_out_channels"], config["sample_size"]
    config["sample_size"] = simplest(tuple(size)) if isinstance(size, list) else size
    attended = {widths[-1], *(widths[i] for i in attention_levels(config))}
    if {config["attention_head_dim"]} == attended:
        config["attention_head_dim"] = None  # as wide as the level: one head
    return config


def attention_levels(config: dict) -> list[int]:
    """The levels with self-attention."""
    down = config["down_block_types"]
    return [level for level, name in enumerate(down) if name == "AttnDownBlock2D"]


def network_from_diffusers(config: dict) -> dict:
    """The settings of the network."""
    widths, size = config["block_out_channels"], config["sample_size"]
    known = isinstance(size, int | tuple)
    check(known, f"sample_size is {size}: it must be the images' side, or height and width")
    side = min(height_width(size))
    return {
        "image_size": size, "channels": config["in_channels"], "base_channels": widths[0],
        "channel_mults": tuple(width // widths[0] for width in widths),
        "blocks_per_level": config["layers_per_block"],
        "attention_resolutions": tuple(side // 2**i for i in attention_levels(config)),
        "patch_size": 1, "norm_groups": config["norm_num_groups"],
        "dropout": config.get("dropout", 0.0),
    }  # fmt: skip


def scheduler_from_diffusers(scheduler: dict) -> dict:
    """The settings of the schedule, and what the network predicts."""
    check_class(scheduler, "DDPMScheduler", "DDIMScheduler")
    learned = "learned" in scheduler.get("variance_type", "")
    known = scheduler.get("trained_betas") is None and not learned
    check(known, "trained_betas and a learned variance_type cannot be read")
    betas = look_up("beta_schedule", scheduler.get("beta_schedule", "linear"), BETAS)
    predicted = scheduler.get("prediction_type", "epsilon")
    return {
        "schedule": betas + "-zero-snr" * bool(scheduler.get("rescale_betas_zero_snr")),
        "T": scheduler.get("num_train_timesteps", 1000),
        "beta_1": scheduler.get("beta_start", 1e-4), "beta_T": scheduler.get("beta_end", 0.02),
        "prediction": look_up("prediction_type", predicted, PREDICTIONS),
    }  # fmt: skip


def check_class(config: dict, *classes: str) -> None:
    """Raises ValueError for a configuration of another class."""
    name = config.get("_class_name", classes[0])
    check(name in classes, f"_class_name is {name}: only {' and '.join(classes)} can be read")


def diffusers_tensors(network: UNet, blocks_per_level: int) -> dict[str, Tensor]:
    """The network's tensors under diffusers' names and in its shapes.

    They are views: copying into them fills the network.
    """
    tensors = {}
    for name, tensor in network.state_dict().items():
        path, kind = name.rsplit(".", 1)
        theirs, (part, *layer) = NAMES.get(path, path), path.split(".")
        if part in ("down", "middle", "up"):
            # A level is a run of blocks, one more on the way up, and a change of size, which the
            # last level lacks.
            level, block = divmod(int(layer[0]), blocks_per_level + (2 if part == "up" else 1))
            theirs = f"{part}samplers.0.conv"
            if layer[1] != "conv":
                theirs = f"{NAMES[layer[1]]}.{block}.{NAMES.get(layer[2], layer[2])}"
            whole = "mid_block" if part == "middle" else f"{part}_blocks.{level}"
            theirs = f"{whole}.{theirs}"
        if "attention" in layer and tensor.ndim == 4:  # a 1 x 1 convolution, there a linear layer
            tensor = tensor[..., 0, 0]
        thirds = zip("qkv", tensor.chunk(3)) if "qkv" in layer else [("", tensor)]
        tensors |= {f"{theirs.format(letter)}.{kind}": third for letter, third in thirds}
    return tensors


def with_new_names(weights: dict[str, Tensor], source: str | Path) -> dict[str, Tensor]:
    """The weights under today's names and in today's shapes. Raises ValueError for one twice."""
    old = re.compile(rf"\.({'|'.join(OLD_ATTENTION_NAMES)})\.(weight|bias)$")
    given = {}
    for name, weight in weights.items():
        new = old.sub(lambda match: f".{OLD_ATTENTION_NAMES[match[1]]}.{match[2]}", name)
        check(new not in given, f"{source} holds {new} twice, under its old name too")
        was_convolution = ".attentions." in new and weight.shape[2:] == (1, 1)
        given[new] = weight[..., 0, 0] if was_convolution else weight
    return given


def load_diffusers(
    source: str | Path, device: torch.device | str = "cpu", revision: str | None = None
) -> tuple[UNet, Schedule, Recipe]:
    """A diffusers model, ready to sample, with its schedule and recipe.

    source: the folder of a DDPMPipeline or DDIMPipeline, or of a UNet2DModel alone (which gets
    DDPMScheduler's defaults), or a name on the hub such as "google/ddpm-cifar10-32", with its
    branch, tag or commit after an @, or in revision. Raises FileNotFoundError for missing files,
    OSError where the hub does not give them, ValueError for damaged ones and for all that our
    network cannot express, saying what it is.
    """
    local = Path(source).is_dir()
    folder = Path(source) if local else download(Path(source).as_posix(), revision, CONFIGS)
    unet = folder / "unet" if (folder / "unet").is_dir() else folder
    config, betas = read_configs(source, folder, unet / CONFIG)
    try:
        recipe = settings_from_diffusers(config, betas, str(source))
        schedule = catalogue.make_schedule(recipe)
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        known = isinstance(error, ValueError)
        reason = str(error) if known else f"damaged configuration, {error!r}"
        raise ValueError(f"{source} cannot become a network of ours: {reason}") from error
    for name in WEIGHTS:
        if not local:  # by its commit, since the hub's files may change meanwhile
            files = (*CONFIGS, name, f"unet/{name}")
            download(Path(source).as_posix(), folder.name, files)
        if (unet / name).is_file():
            break
    else:
        problem = f"there is neither {' nor '.join(WEIGHTS)} in {unet}"
        raise FileNotFoundError(f"{source} is no diffusers model: {problem}")
    network = catalogue.make_network(recipe)
    weights = with_new_names(read_tensors(unet / name), unet / name)
    tensors = diffusers_tensors(network, recipe.blocks_per_level)
    checkpoints.load_weights(tensors, weights, unet / name)
    return network.to(device).eval().requires_grad_(False), schedule, recipe


def read_configs(source: str | Path, folder: Path, config: Path) -> tuple[dict, dict | None]:
    """The configurations of a network and, where it is there, of its scheduler.

    The hub's oldest pipelines have all files in one folder. Raises as load_diffusers.
    """
    index, scheduler = folder / INDEX, folder / "scheduler" / SCHEDULER
    scheduler = scheduler if scheduler.parent.is_dir() else folder / SCHEDULER
    pipeline = read_config(index).get("_class_name") if index.is_file() else PIPELINES[0]
    problem = f"{source} is a {pipeline}: only {' and '.join(PIPELINES)} hold networks like ours"
    check(pipeline in PIPELINES, problem)
    for path in (config, scheduler) if index.is_file() else (config,):
        if not path.is_file():
            raise FileNotFoundError(f"{source} is no diffusers model: there is no {path}")
    return read_config(config), read_config(scheduler) if scheduler.is_file() else None


def save_diffusers(folder: str | Path, network: UNet, recipe: Recipe) -> None:
    """Writes a folder that diffusers' DDPMPipeline.from_pretrained reads.

    It samples as ddpm_sampler with the posterior's variance and clipping does. Raises ValueError
    as settings_to_diffusers.
    """
    config, scheduler = settings_to_diffusers(recipe)
    index = {
        "_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DModel"],
        "scheduler": ["diffusers", "DDPMScheduler"],
    }  # fmt: skip
    tensors = diffusers_tensors(network, recipe.blocks_per_level)
    weights = {  # copies, since they must share no memory
        name: tensor.cpu().contiguous().clone() for name, tensor in tensors.items()
    }
    unet, scheduling = Path(folder, "unet"), Path(folder, "scheduler")
    with replacing(unet / WEIGHTS[0]) as path:
        path.write_bytes(save(weights, {"format": "pt"}))
    files = {unet / CONFIG: config, scheduling / SCHEDULER: scheduler, Path(folder, INDEX): index}
    for file, values in files.items():
        with replacing(file) as path:
            path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
