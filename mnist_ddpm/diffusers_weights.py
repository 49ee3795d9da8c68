"""Networks from and for diffusers: the folders of its DDPMPipeline and UNet2DModel, here or on Hugging Face's hub.

diffusers itself is not needed: its folders are JSON and tensors. Its t is ours minus 1. Of a scheduler only the betas,
T and the prediction are taken; variance_type, clip_sample and timestep_spacing are choices of whoever samples.
"""

import json
import pickle
import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from mnist_ddpm.ddpm import (
    DIFFUSION_SETTINGS,
    NETWORK_SETTINGS,
    Device,
    Model,
    PathLike,
    Schedule,
    Settings,
    UNet,
    load_checkpoint,
    load_weights,
    look_up,
    make_denoiser,
    make_model,
    make_schedule,
)
from mnist_ddpm.resumable import first_line, replacing

DEFAULTS = {  # where a configuration is silent, as far as our network does not do the same
    "flip_sin_to_cos": True, "freq_shift": 0, "downsample_padding": 1, "norm_eps": 1e-5, "attention_head_dim": 8,
    "norm_num_groups": 32,
}  # fmt: skip
LEVELS = {"DownBlock2D": "UpBlock2D", "AttnDownBlock2D": "AttnUpBlock2D"}  # each way down, and its way up
BETAS = {"linear": "linear", "squaredcos_cap_v2": "cosine", "scaled_linear": "quadratic", "sigmoid": "sigmoid"}
PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}

NAMES = {  # diffusers', where ours are others
    "time.0": "time_embedding.linear_1", "time.2": "time_embedding.linear_2", "norm_out": "conv_norm_out",
    "residual": "resnets", "attention": "attentions", "time": "time_emb_proj", "skip": "conv_shortcut",
    "norm": "group_norm", "qkv": "to_{}", "out": "to_out.0",
}  # fmt: skip
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # of attention, once

INDEX, CONFIG, SCHEDULER = "model_index.json", "config.json", "scheduler_config.json"
CONFIGS = INDEX, CONFIG, SCHEDULER, f"unet/{CONFIG}", f"scheduler/{SCHEDULER}"
WEIGHTS = "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"


def settings_to_diffusers(settings: Settings) -> tuple[dict, dict]:
    """The configurations of the UNet2DModel and the DDPMScheduler that do what these settings say.

    Raises ValueError naming a setting that DDPMPipeline has no counterpart of.
    """
    s = settings
    foreign = {
        "patch_size": (s.patch_size > 1, "patches"), "classes": (s.classes > 0, "labels"),
        "objective": (s.learned_variance, "learned variances"),
        "base_channels": (s.base_channels < 4, "time embedding so narrow"),  # it would divide by 0
    }  # fmt: skip
    for name, (wrong, what) in foreign.items():
        if wrong:
            raise ValueError(f"{name} is {getattr(s, name)}: diffusers' DDPMPipeline has no {what}")
    with torch.device("meta"):
        groups = sorted({m.num_groups for m in make_model(s).modules() if isinstance(m, nn.GroupNorm)})
    widths = [s.base_channels * m for m in s.channel_mults]
    if len(groups) > 1:
        raise ValueError(f"norm_num_groups would be {groups} at widths {widths}: diffusers has one number throughout")
    betas, predictions = ({ours: theirs for theirs, ours in table.items()} for table in (BETAS, PREDICTIONS))
    schedule, sides = s.schedule.removesuffix("-zero-snr"), [s.image_size // 2**i for i in range(len(widths))]
    attended = sides[-1:] if s.attention_resolutions is None else s.attention_resolutions
    down = ["AttnDownBlock2D" if side in attended else "DownBlock2D" for side in sides]
    config = {
        "_class_name": "UNet2DModel", "sample_size": s.image_size, "in_channels": s.channels,
        "out_channels": s.channels, "center_input_sample": False, "time_embedding_type": "positional",
        "time_embedding_dim": None, "freq_shift": 1, "flip_sin_to_cos": False, "down_block_types": down,
        "mid_block_type": "UNetMidBlock2D", "up_block_types": [LEVELS[name] for name in reversed(down)],
        "block_out_channels": widths, "layers_per_block": s.blocks_per_level, "mid_block_scale_factor": 1,
        "downsample_padding": 0, "downsample_type": "conv", "upsample_type": "conv", "dropout": s.dropout,
        "act_fn": "silu", "attention_head_dim": None, "norm_num_groups": groups[0], "attn_norm_num_groups": None,
        "norm_eps": 1e-6, "resnet_time_scale_shift": "default", "add_attention": True, "class_embed_type": None,
        "num_class_embeds": None,
    }  # fmt: skip
    scheduler = {
        "_class_name": "DDPMScheduler", "num_train_timesteps": s.T, "beta_start": s.beta_1, "beta_end": s.beta_T,
        "beta_schedule": look_up("schedule", schedule, betas), "rescale_betas_zero_snr": schedule != s.schedule,
        "prediction_type": look_up("prediction", s.prediction, predictions), "variance_type": "fixed_small",
        "clip_sample": True,
    }  # fmt: skip
    return config, scheduler


def settings_from_diffusers(config: dict, scheduler: dict | None = None, dataset: str = "diffusers") -> Settings:
    """Settings from the configurations of a UNet2DModel and its scheduler (None: of DDPMScheduler's defaults).

    Raises ValueError saying what our network or schedules cannot express, KeyError or TypeError for what is none.
    """
    scheduler = scheduler or {}
    for given, classes in ((config, ["UNet2DModel"]), (scheduler, ["DDPMScheduler", "DDIMScheduler"])):
        if given.get("_class_name", classes[0]) not in classes:
            raise ValueError(f"_class_name is {given['_class_name']}: only {' and '.join(classes)} can be read")
    down, up = ([name.removeprefix("UNetRes") for name in config[f"{way}_block_types"]] for way in ("down", "up"))
    theirs = {**DEFAULTS, **config, "down_block_types": down, "up_block_types": up}
    widths, side = config["block_out_channels"], config["sample_size"]
    if not isinstance(side, int):
        raise ValueError(f"sample_size is {side}: it must be the side of square images")
    attention = [i for i, name in enumerate(down) if name == "AttnDownBlock2D"]
    if {theirs["attention_head_dim"]} == {widths[-1], *(widths[i] for i in attention)}:
        theirs["attention_head_dim"] = None  # one head
    if scheduler.get("trained_betas") is not None or "learned" in scheduler.get("variance_type", ""):
        raise ValueError("trained_betas and a learned variance_type cannot be read")
    rescaled = "-zero-snr" if scheduler.get("rescale_betas_zero_snr") else ""
    settings = Settings(
        dataset=dataset, image_size=side, channels=config["in_channels"], base_channels=widths[0],
        channel_mults=tuple(width // widths[0] for width in widths), blocks_per_level=config["layers_per_block"],
        attention_resolutions=tuple(side // 2**i for i in attention), patch_size=1, dropout=config.get("dropout", 0.0),
        schedule=look_up("beta_schedule", scheduler.get("beta_schedule", "linear"), BETAS) + rescaled,
        T=scheduler.get("num_train_timesteps", 1000), beta_1=scheduler.get("beta_start", 1e-4),
        beta_T=scheduler.get("beta_end", 0.02),
        prediction=look_up("prediction_type", scheduler.get("prediction_type", "epsilon"), PREDICTIONS),
    )  # fmt: skip
    for name, ours in settings_to_diffusers(settings)[0].items():
        if theirs.get(name, ours) != ours:
            raise ValueError(f"{name} is {theirs[name]}: our network has {ours}")
    return settings


def diffusers_tensors(model: UNet, blocks_per_level: int) -> dict[str, Tensor]:
    """The network's tensors under diffusers' names and in its shapes: views, so copying into them fills the network."""
    tensors = {}
    for name, tensor in model.state_dict().items():
        path, kind = name.rsplit(".", 1)
        theirs, (part, *layer) = NAMES.get(path, path), path.split(".")
        if part in ("down", "middle", "up"):
            # a level is a run of blocks, one more on the way up, and a change of size, which the last level lacks
            level, block = divmod(int(layer[0]), blocks_per_level + (2 if part == "up" else 1))
            theirs = f"{part}samplers.0.conv"
            if layer[1] != "conv":
                theirs = f"{NAMES[layer[1]]}.{block}.{NAMES.get(layer[2], layer[2])}"
            theirs = f"mid_block.{theirs}" if part == "middle" else f"{part}_blocks.{level}.{theirs}"
        if "attention" in layer and tensor.ndim == 4:  # a 1 x 1 convolution, which is a linear layer there
            tensor = tensor[..., 0, 0]
        thirds = zip("qkv", tensor.chunk(3)) if "qkv" in layer else [("", tensor)]
        tensors |= {f"{theirs.format(letter)}.{kind}": third for letter, third in thirds}
    return tensors


def with_new_names(weights: dict[str, Tensor], source: PathLike) -> dict[str, Tensor]:
    """The weights under today's names and in today's shapes. Raises ValueError for one that is there twice."""
    old = re.compile(rf"\.({'|'.join(OLD_NAMES)})\.(weight|bias)$")
    given = {}
    for name, weight in weights.items():
        new = old.sub(lambda match: f".{OLD_NAMES[match[1]]}.{match[2]}", name)
        if new in given:
            raise ValueError(f"{source} holds {new} twice, under its old name too")
        was_convolution = ".attentions." in new and weight.shape[2:] == (1, 1)  # attention was of such ones once
        given[new] = weight[..., 0, 0] if was_convolution else weight
    return given


def download(name: str, revision: str | None, files: tuple[str, ...]) -> Path:
    """The folder with these files of a hub repository, from its cache where they are there already.

    Raises OSError where they cannot be had, FileNotFoundError for a name that no repository can have.
    """
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        raise FileNotFoundError(f"there is no folder {name}")
    try:
        from huggingface_hub import snapshot_download  # slow to import, and not needed for folders

        return Path(snapshot_download(name, revision=revision, allow_patterns=list(files)))
    except Exception as error:  # of the package, the name, the hub, the network or the disk
        raise OSError(
            f"{name} is no folder here, and the hub does not give it ({first_line(error)}): check the name and the "
            "network, or copy its files into a folder and name that"
        ) from error


def read_json(path: Path) -> dict:
    """Raises ValueError for what is damaged or no JSON object."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("it holds no object")
        return values
    except ValueError as error:
        raise ValueError(f"{path} is damaged or no configuration ({error})") from error


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors or .bin file; no code in it is run. Raises ValueError for a damaged one."""
    try:
        if path.suffix == ".safetensors":
            return load(path.read_bytes())
        weights = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(weights, dict) or not all(isinstance(tensor, Tensor) for tensor in weights.values()):
            raise ValueError("it holds something other than tensors")
        return weights
    except (SafetensorError, RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError) as error:
        raise ValueError(f"{path} is damaged or holds no weights ({first_line(error)})") from error


def load_diffusers(
    source: PathLike, device: Device = "cpu", revision: str | None = None
) -> tuple[Model, Schedule, Settings]:
    """A diffusers model, ready to sample, with its schedule and settings, as load_checkpoint gives ours.

    source: the folder of a DDPMPipeline or DDIMPipeline, or of a UNet2DModel alone (which gets DDPMScheduler's
    defaults), or a name on the hub such as "google/ddpm-cifar10-32", with its branch, tag or commit in revision.
    Raises FileNotFoundError for missing files, OSError where the hub does not give them, ValueError for damaged ones
    and for all that our network cannot express, saying what it is.
    """
    local = Path(source).is_dir()
    folder = Path(source) if local else download(Path(source).as_posix(), revision, CONFIGS)
    index = folder / INDEX
    pipeline = read_json(index).get("_class_name") if index.is_file() else "DDPMPipeline"
    if pipeline not in ("DDPMPipeline", "DDIMPipeline"):
        raise ValueError(f"{source} is a {pipeline}: only DDPMPipeline and DDIMPipeline hold networks like ours")
    # the hub's oldest pipelines have all files in one folder
    unet, scheduler = (folder / part if (folder / part).is_dir() else folder for part in ("unet", "scheduler"))
    config, betas = unet / CONFIG, scheduler / SCHEDULER
    for path in (config, betas) if index.is_file() else (config,):
        if not path.is_file():
            raise FileNotFoundError(f"{source} is no diffusers model: there is no {path}")
    config, betas = read_json(config), read_json(betas) if betas.is_file() else None
    try:
        settings = settings_from_diffusers(config, betas, str(source))
        schedule = make_schedule(settings)
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        reason = str(error) if isinstance(error, ValueError) else f"damaged configuration, {error!r}"
        raise ValueError(f"{source} cannot become a network of ours: {reason}") from error
    for name in WEIGHTS:
        if not local:  # by its commit, lest the hub's files change meanwhile
            download(Path(source).as_posix(), folder.name, (*CONFIGS, name, f"unet/{name}"))
        if (unet / name).is_file():
            break
    else:
        raise FileNotFoundError(f"{source} is no diffusers model: there is neither {' nor '.join(WEIGHTS)} in {unet}")
    network = make_model(settings)
    weights = with_new_names(read_weights(unet / name), unet / name)
    load_weights(diffusers_tensors(network, settings.blocks_per_level), weights, unet / name)
    network = network.to(device).eval().requires_grad_(False)
    return make_denoiser(network, schedule.to(device), settings), schedule, settings


def pretrained(source: PathLike, labels: bool = True) -> tuple[dict, dict[str, Tensor]]:
    """Weights to start training from, and the settings that decide their network and what its output means.

    source: a checkpoint's folder, or what load_diffusers reads. labels: whether there are any to train with; if not,
    a network with labels becomes one without, which predicts what it did for no label.
    Raises as load_checkpoint and load_diffusers.
    """
    config = Path(source, CONFIG)
    own = config.is_file() and "format" in read_json(config)
    model, _, settings = load_checkpoint(source) if own else load_diffusers(source)
    decided = {name: getattr(settings, name) for name in (*NETWORK_SETTINGS, *DIFFUSION_SETTINGS, "attributes")}
    del decided["learned_variance"]  # the objective's consequence
    weights = unwrapped(model).state_dict()
    if settings.classes and not labels:
        *told, unknown = weights.pop("label.weight")  # what is added to the embedding of t, which a bias may do too
        unknown = unknown if settings.label_dropout else torch.stack(told).mean(dim=0)  # else it was never trained
        weights["time.2.bias"] = weights["time.2.bias"] + unknown
        decided |= {"classes": 0, "attributes": ()}
    return decided | {"init_from": str(source)}, weights


def unwrapped(model: Model) -> UNet:
    """The network itself of what load_checkpoint and load_diffusers give."""
    return getattr(model, "network", model)


def save_diffusers(folder: PathLike, model: Model, settings: Settings) -> None:
    """Writes a folder that diffusers' DDPMPipeline.from_pretrained reads; model: a UNet, or what load_checkpoint gives.

    It samples as ddpm_sampler with the variance "posterior" does. Raises ValueError as settings_to_diffusers.
    """
    network = unwrapped(model)
    config, scheduler = settings_to_diffusers(settings)
    index = {
        "_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DModel"],
        "scheduler": ["diffusers", "DDPMScheduler"],
    }  # fmt: skip
    tensors = diffusers_tensors(network, settings.blocks_per_level)
    weights = {name: tensor.cpu().contiguous().clone() for name, tensor in tensors.items()}  # sharing no memory
    unet, scheduling = Path(folder, "unet"), Path(folder, "scheduler")
    with replacing(unet / WEIGHTS[0]) as path:
        path.write_bytes(save(weights, {"format": "pt"}))
    files = {unet / CONFIG: config, scheduling / SCHEDULER: scheduler, Path(folder, INDEX): index}
    for file, values in files.items():
        with replacing(file) as path:
            path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
