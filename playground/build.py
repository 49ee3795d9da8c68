"""Builds the page that draws digits in the browser: `make playground` writes one HTML file.

A checkpoint's weights, the kernels compiled to WebAssembly, scripts and style are all inside, so
the page opens from a disk, without a server. Needs clang with wasm-ld (Debian: clang and lld).

With --as-checkpoint it writes the weights as the page reads them, for `mnist_ddpm evaluate`.
"""

import argparse
import base64
import gzip
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(1, str(Path(__file__).parents[1]))

import numpy as np
import torch
from safetensors.numpy import save

from mnist_ddpm import catalogue
from mnist_ddpm.ddpm import check
from mnist_ddpm.formats import checkpoints
from mnist_ddpm.methods.predictions import x0_factors
from mnist_ddpm.training.checkpoint_files import told_advice
from mnist_ddpm.training.saving import CONFIG

HERE = Path(__file__).resolve().parent
KERNELS = HERE / "kernels.c", HERE / "noise.c"
CHECKPOINT = "mnist-few"  # in the page, unless told
MOST = 4_000_000  # bytes of the page
KINDS = "float32", "float16", "int8"  # of stored weights
# With int8, layers with less than this share of the weights stay in half precision: mostly those of
# the first level, next to the image, where errors cost most
SMALL = 1 / 80
WORKER = "weights", "memory", "network", "noise", "samplers", "worker"  # scripts, in this order
PAGE = "samplers", "address", "gif", "draw", "page"
COMPILE = (
    "--target=wasm32 -O3 -msimd128 -mbulk-memory -mnontrapping-fptoint -ffreestanding -nostdlib "
    "-Wall -Wextra -Wl,--no-entry,--export=__heap_base,--allow-undefined,--strip-all"
).split()


def find_clang() -> str:
    """clang's name. Raises FileNotFoundError where there is none that can link WebAssembly."""
    names = "clang", *(f"clang-{version}" for version in range(30, 11, -1))
    with tempfile.TemporaryDirectory() as folder:
        for name in filter(shutil.which, names):
            trial = [name, "--target=wasm32", "-nostdlib", "-Wl,--no-entry", "-x", "c", "-"]
            trial += ["-o", Path(folder, "nothing.wasm")]
            if subprocess.run(trial, input=b"", capture_output=True).returncode == 0:
                return name
    raise FileNotFoundError(
        "the kernels need clang with wasm-ld, and there is none: install clang and lld of one "
        "version (Debian: apt-get install clang lld)"
    )


def compile_kernels() -> bytes:
    """The kernels as WebAssembly. Raises FileNotFoundError where there is no compiler."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "kernels.wasm")
        subprocess.run([find_clang(), *COMPILE, *KERNELS, "-o", out], check=True)
        return out.read_bytes()


def quantised(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whole numbers -127 … 127 like the weight, and what each output (row) is to be scaled by."""
    rows = weight.reshape(len(weight), -1)
    scale = np.abs(rows).max(axis=1) / 127
    scale[scale == 0] = 1
    return np.rint(rows / scale[:, None]).astype(np.int8).reshape(weight.shape), scale


def stored(weights: dict[str, np.ndarray], kind: str) -> dict[str, np.ndarray]:
    """The weights as the page holds them; 8-bit ones have a `name.scale` beside them."""
    if kind == "float32":
        return weights
    few = SMALL * sum(weight.size for weight in weights.values())
    tensors = {}
    for name, weight in weights.items():
        if kind == "float16" or weight.ndim < 2 or weight.size < few:
            tensors[name] = weight.astype(np.float16)
        else:
            tensors[name], tensors[f"{name}.scale"] = quantised(weight)
    return tensors


def as_read(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The float32 weights that the page makes of stored ones."""
    weights = {}
    for name, value in tensors.items():
        if f"{name}.scale" in tensors:
            scale = tensors[f"{name}.scale"].reshape(-1, *[1] * (value.ndim - 1))
            weights[name] = value.astype(np.float32) * scale
        elif not name.endswith(".scale"):
            weights[name] = value.astype(np.float32)
    return weights


def tables(checkpoint: checkpoints.Checkpoint) -> dict[str, np.ndarray]:
    """The schedule and the way from x_t to x0_hat, float64 (T+1,) each.

    The network sees input[t] x_t; its value, whatever it is, says that x0_hat is
    from_x[t] x_t + from_value[t] value.
    """
    schedule, conversion = checkpoint.schedule, catalogue.conversion_of(checkpoint.recipe)
    scale, (from_x, from_value) = conversion.scale, x0_factors(schedule, conversion)
    unscaled = torch.ones_like(schedule.a)
    found = {
        "signal": schedule.a, "noise": schedule.b,
        "input": scale(schedule, torch.arange(schedule.T + 1)) if scale else unscaled,
        "from_x": from_x, "from_value": from_value,
    }  # fmt: skip
    return {f"schedule.{name}": table.numpy() for name, table in found.items()}


def weights_of(checkpoint: checkpoints.Checkpoint) -> dict[str, np.ndarray]:
    """A checkpoint's weights by their names."""
    return {name: value.numpy() for name, value in checkpoint.network.state_dict().items()}


def weights_file(checkpoint: checkpoints.Checkpoint, name: str, kind: str, draw: dict) -> bytes:
    """All that the page knows of a checkpoint, as one safetensors file."""
    recipe, weights = checkpoint.recipe, weights_of(checkpoint)
    metadata = {
        "name": name, "weights": kind, "parameters": sum(each.size for each in weights.values()),
        "shape": recipe.shape, "patch_size": recipe.patch_size, "norm_groups": recipe.norm_groups,
        "draw": draw,
    }  # fmt: skip
    text = {key: value if type(value) is str else json.dumps(value)
            for key, value in metadata.items()}  # fmt: skip
    return save(stored(weights, kind) | tables(checkpoint), text)


def packed(content: bytes) -> str:
    """Bytes as text, compressed."""
    return base64.b64encode(gzip.compress(content, mtime=0)).decode()


def script(name: str) -> str:
    """A script of this folder."""
    return (HERE / f"{name}.js").read_text(encoding="utf-8")


def page(wasm: bytes, weights: bytes) -> str:
    """The page with everything inside."""
    parts = {
        "style": (HERE / "page.css").read_text(encoding="utf-8"),
        "worker": "\n".join(map(script, WORKER)),
        "kernels": hashlib.sha256(b"".join(path.read_bytes() for path in KERNELS)).hexdigest(),
        "wasm": packed(wasm),
        "weights": packed(weights),
        "page": "\n".join(map(script, PAGE)),
    }
    template = (HERE / "page.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], template)


def contents(source: str, kind: str) -> bytes:
    """The weights file of a checkpoint. Raises ValueError for one that no page can draw with."""
    checkpoint = checkpoints.load(source)
    network, condition = checkpoint.recipe.network, checkpoint.recipe.condition
    known = "unet", "shortcut"
    check(network in known, f"network is {network} in {source}: the page knows U-Nets alone")
    check(condition == "none", f"condition is {condition} in {source}: the page shows it none")
    return weights_file(checkpoint, Path(source).name, kind, checkpoints.sampling_defaults(source))


def build(source: str, kind: str, out: Path) -> int:
    """Writes the page of a checkpoint and returns its size in bytes.

    Raises ValueError for one that is too large, and as checkpoints.load and compile_kernels.
    """
    text = page(compile_kernels(), contents(source, kind)).encode()
    check(len(text) <= MOST, f"the page would have {len(text):,} bytes, above {MOST:,}: "
          "take --weights int8, or a smaller checkpoint")  # fmt: skip
    out.write_bytes(text)
    return len(text)


def as_checkpoint(source: str, kind: str, folder: Path) -> None:
    """Writes a checkpoint's weights as the page reads them, to be measured like any other.

    Raises ValueError for a folder that holds one already, OSError, and as checkpoints.load.
    """
    there = (folder / CONFIG).exists()
    check(not there, f"{folder} holds a checkpoint already: name another folder, or remove it")
    found = checkpoints.find(source)
    checkpoint = checkpoints.load(found)
    _, record = checkpoints.load_config(found)
    read = as_read(stored(weights_of(checkpoint), kind))
    tensors = {name: torch.from_numpy(value) for name, value in read.items()}
    checkpoint.network.load_state_dict(tensors)
    record = record | {"weights": f"{kind} of {Path(source).name}"}
    advice = told_advice(found)
    checkpoints.save(folder, checkpoint.network, checkpoint.recipe, record, advice)


def main(arguments: list[str] | None = None) -> int:
    """Reads the flags, builds, and says what it wrote."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", default=CHECKPOINT, help="a name or folder")
    parser.add_argument("--weights", choices=KINDS, default="int8", help="how they are stored")
    parser.add_argument("--out", type=Path, default=HERE / "digits.html")
    parser.add_argument(
        "--as-checkpoint", type=Path, metavar="FOLDER",
        help="write no page, but the weights as it reads them, for evaluate --checkpoint FOLDER",
    )  # fmt: skip
    flags = parser.parse_args(arguments)
    try:
        if flags.as_checkpoint:
            as_checkpoint(flags.checkpoint, flags.weights, flags.as_checkpoint)
            print(f"{flags.as_checkpoint}: {flags.checkpoint} in {flags.weights}")
            return 0
        size = build(flags.checkpoint, flags.weights, flags.out)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{flags.out}: {size / 1e6:.2f} MB, {flags.checkpoint} in {flags.weights}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
