"""Builds the page that draws digits in the browser: `make playground` writes one HTML file.

A checkpoint's weights, the kernels compiled to WebAssembly, a few digits of MNIST, scripts and
style are all inside, so the page opens from a disk, without a server. The compiled kernels are
those of digits.html; only where kernels.c or noise.c have changed since, clang with wasm-ld is
needed (Debian: clang, lld).

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
from mnist_ddpm.formats.checkpoints import CONFIG, config_value
from mnist_ddpm.methods.predictions import x0_factors

HERE = Path(__file__).resolve().parent
OUT = HERE / "digits.html"
KERNELS = HERE / "kernels.c", HERE / "noise.c", HERE / "train.c"
HEADER = HERE / "simd.h"  # which they include
CHECKPOINT = "mnist-few"  # in the page, unless told
MAX_BYTES = 4_500_000  # bytes of the page
KINDS = "float32", "float16", "int8"  # of stored weights
# How the page begins, beyond what the checkpoint recommends: with the guidance that measure.py
# finds best, where one image in `astray` shows another label, and an image that 50 steps draw, too
BEGIN = {"mnist-few": {"guidance": 1.5, "astray": 60, "image": 6}}
# With int8, layers with less than this share of the weights stay in half precision: mostly those of
# the first level, next to the image, where errors cost most
SMALL_SHARE = 1 / 80
RAW = HERE.parent / "data" / "MNIST" / "raw"
TRAINING_DIGITS = RAW / "train-images-idx3-ubyte.gz"
DIGITS = 300  # of these, for the ideal denoiser
SIDE = 28  # pixels of each
LEARNED = 2000  # of these, at half the size, for the network that learns in the page
# Scripts, in this order
WORKER = (
    "weights memory network noise samplers bugs ideal_denoiser trainer train_worker worker".split()
)
PAGE = (
    "samplers bugs address gif load film draw bug_bench fork_bench ideal_bench presets "
    "train_bench benches page"
).split()
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


def digest_of_sources() -> str:
    """The SHA-256 of the kernels' sources, which the page names."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in (*KERNELS, HEADER))).hexdigest()


def kernels() -> bytes:
    """The kernels as WebAssembly: those in digits.html, or compiled where the sources differ.

    Raises FileNotFoundError where they differ and there is no compiler.
    """
    if OUT.exists():
        text = OUT.read_text(encoding="utf-8")
        same = f'name="kernels" content="{digest_of_sources()}"' in text
        compiled = re.search(r'id="wasm">([^<]+)<', text)
        if same and compiled:
            return gzip.decompress(base64.b64decode(compiled[1]))
    return compile_kernels()


def quantise(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A weight as whole numbers -127 … 127, and the factor of each output (row)."""
    rows = weight.reshape(len(weight), -1)
    scale = np.abs(rows).max(axis=1) / 127
    scale[scale == 0] = 1
    return np.rint(rows / scale[:, None]).astype(np.int8).reshape(weight.shape), scale


def stored_weights(weights: dict[str, np.ndarray], kind: str) -> dict[str, np.ndarray]:
    """The weights as the page holds them; 8-bit ones have a `name.scale` beside them."""
    if kind == "float32":
        return weights
    small = SMALL_SHARE * sum(weight.size for weight in weights.values())
    tensors = {}
    for name, weight in weights.items():
        if kind == "float16" or weight.ndim < 2 or weight.size < small:
            tensors[name] = weight.astype(np.float16)
        else:
            tensors[name], tensors[f"{name}.scale"] = quantise(weight)
    return tensors


def read_weights(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The float32 weights that the page computes from stored ones."""
    weights = {}
    for name, value in tensors.items():
        if f"{name}.scale" in tensors:
            scale = tensors[f"{name}.scale"].reshape(-1, *[1] * (value.ndim - 1))
            weights[name] = value.astype(np.float32) * scale
        elif not name.endswith(".scale"):
            weights[name] = value.astype(np.float32)
    return weights


def schedule_tables(checkpoint: checkpoints.Checkpoint) -> dict[str, np.ndarray]:
    """The schedule, and what computes x0_hat from x_t: float64 (T+1,) each.

    The network sees input[t] x_t. For its output, x0_hat is from_x[t] x_t + from_value[t] output.
    """
    schedule = checkpoint.schedule
    conversion = catalogue.conversion_of(checkpoint.recipe)
    input_scale = torch.ones_like(schedule.a)
    if conversion.scale:
        input_scale = conversion.scale(schedule, torch.arange(schedule.T + 1))
    from_x, from_value = x0_factors(schedule, conversion)
    return {
        "schedule.signal": schedule.a.numpy(),
        "schedule.noise": schedule.b.numpy(),
        "schedule.input": input_scale.numpy(),
        "schedule.from_x": from_x.numpy(),
        "schedule.from_value": from_value.numpy(),
    }


def weights_of(checkpoint: checkpoints.Checkpoint) -> dict[str, np.ndarray]:
    """A checkpoint's weights by their names."""
    return {name: value.numpy() for name, value in checkpoint.network.state_dict().items()}


def weights_file(checkpoint: checkpoints.Checkpoint, name: str, kind: str, draw: dict) -> bytes:
    """All that the page knows of a checkpoint, as one safetensors file."""
    recipe = checkpoint.recipe
    weights = weights_of(checkpoint)
    metadata = {
        "parameters": sum(weight.size for weight in weights.values()),
        "shape": recipe.shape,
        "patch_size": recipe.patch_size,
        "norm_groups": recipe.norm_groups,
        "draw": draw,
    }
    texts = {key: json.dumps(value) for key, value in metadata.items()}
    texts = {"name": name, "weights": kind, **texts}
    tensors = stored_weights(weights, kind) | schedule_tables(checkpoint)
    return with_sorted_header(save(tensors, texts))


def with_sorted_header(content: bytes) -> bytes:
    """A safetensors file with its metadata in order, so that each build writes the same page."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + content[end:]


def digits_file() -> bytes:
    """The first training digits with 16 grey levels, two pixels a byte.

    Raises OSError where the file of MNIST, which the repository contains, cannot be read.
    """
    with gzip.open(TRAINING_DIGITS) as file:
        file.seek(16)  # bytes of its header
        digits = np.frombuffer(file.read(DIGITS * SIDE**2), np.uint8)
    levels = np.rint(digits / 17).astype(np.uint8).reshape(-1, 2)
    return (levels[:, 0] << 4 | levels[:, 1]).tobytes()


def learned_digits_file() -> bytes:
    """The first training digits of 16 x 16 pixels, 16 grey levels, two pixels a byte; their labels.

    Raises OSError where a file of MNIST cannot be read.
    """
    with gzip.open(TRAINING_DIGITS) as file:
        file.seek(16)
        digits = np.frombuffer(file.read(LEARNED * SIDE**2), np.uint8).reshape(-1, SIDE, SIDE)
    with gzip.open(RAW / "train-labels-idx1-ubyte.gz") as file:
        file.seek(8)
        labels = file.read(LEARNED)
    wide = np.pad(digits, ((0, 0), (2, 2), (2, 2)))
    small = wide.reshape(-1, 16, 2, 16, 2).mean(axis=(2, 4))
    levels = np.rint(small / 17).astype(np.uint8).reshape(-1, 2)
    return (levels[:, 0] << 4 | levels[:, 1]).tobytes() + labels


def compressed_text(content: bytes) -> str:
    """Bytes, compressed, as base64."""
    return base64.b64encode(gzip.compress(content, mtime=0)).decode()


def facts_of(weights: bytes) -> dict:
    """What the page shows before the network is ready, of a weights file."""
    header = json.loads(weights[8 : 8 + int.from_bytes(weights[:8], "little")])
    about = header["__metadata__"]
    labels = header.get("label.weight")
    channels, height, width = shape = json.loads(about["shape"])
    return {
        "name": about["name"],
        "parameters": int(about["parameters"]),
        "draw": json.loads(about["draw"]),
        "shape": shape,
        "digits": DIGITS if channels == 1 and min(height, width) >= SIDE else 0,
        "classes": labels["shape"][0] - 1 if labels else 0,
        "T": header["schedule.signal"]["shape"][0] - 1,
    }


def script(name: str) -> str:
    """A script of this folder."""
    return (HERE / f"{name}.js").read_text(encoding="utf-8")


def page(wasm: bytes, weights: bytes) -> str:
    """The page with everything inside. Raises as digits_file."""
    facts = facts_of(weights)
    _, height, width = facts["shape"]
    style = (HERE / "page.css").read_text(encoding="utf-8")
    parts = {
        "facts": json.dumps(facts),
        "style": style.replace("{{aspect}}", f"{width} / {height}"),
        "worker": "\n".join(map(script, WORKER)),
        "kernels": digest_of_sources(),
        "wasm": compressed_text(wasm),
        "weights": compressed_text(weights),
        "digits": compressed_text(digits_file() if facts["digits"] else b""),
        "learned": compressed_text(learned_digits_file()),
        "page": "\n".join(map(script, PAGE)),
    }
    template = (HERE / "page.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], template)


def page_weights(source: str, kind: str) -> bytes:
    """A checkpoint's weights file. Raises ValueError for one that the page cannot draw with."""
    checkpoint = checkpoints.load(source)
    network = checkpoint.recipe.network
    condition = checkpoint.recipe.condition
    check(network in ("unet", "shortcut"), f"network is {network} in {source}: take a U-Net")
    check(condition == "none", f"condition is {condition} in {source}: the page gives it none")
    name = Path(source).name
    draw = checkpoints.sampling_defaults(source) | BEGIN.get(name, {})
    return weights_file(checkpoint, name, kind, draw)


def build_page(source: str, kind: str, out: Path) -> int:
    """Writes the page of a checkpoint and returns its size in bytes.

    Raises ValueError for one that is too large, and as checkpoints.load, kernels and page.
    """
    text = page(kernels(), page_weights(source, kind)).encode()
    too_large = f"the page would have {len(text):,} bytes, above {MAX_BYTES:,}"
    check(len(text) <= MAX_BYTES, f"{too_large}: take --weights int8, or a smaller checkpoint")
    out.write_bytes(text)
    return len(text)


def save_as_checkpoint(source: str, kind: str, folder: Path) -> None:
    """Saves a checkpoint's weights as the page reads them, to be measured like any other.

    Raises ValueError for a folder that holds a checkpoint already, and as checkpoints.load.
    """
    is_free = not (folder / CONFIG).exists()
    check(is_free, f"{folder} holds a checkpoint already: name another folder, or remove it")
    path = checkpoints.find(source)
    checkpoint = checkpoints.load(path)
    _, record = checkpoints.load_config(path)
    weights = read_weights(stored_weights(weights_of(checkpoint), kind))
    state = {name: torch.from_numpy(weight) for name, weight in weights.items()}
    checkpoint.network.load_state_dict(state)
    record = record | {"weights": f"{kind} of {Path(source).name}"}
    defaults = config_value(path, "draw")
    checkpoints.save_checkpoint(folder, checkpoint.network, checkpoint.recipe, record, defaults)


def main(arguments: list[str] | None = None) -> int:
    """Reads the flags, builds, and prints what it wrote."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", default=CHECKPOINT, help="a name or folder")
    parser.add_argument("--weights", choices=KINDS, default="int8", help="how they are stored")
    parser.add_argument("--out", type=Path, default=OUT)
    text = "write no page, but the weights as it reads them, for evaluate --checkpoint FOLDER"
    parser.add_argument("--as-checkpoint", type=Path, metavar="FOLDER", help=text)
    flags = parser.parse_args(arguments)
    try:
        if flags.as_checkpoint:
            save_as_checkpoint(flags.checkpoint, flags.weights, flags.as_checkpoint)
            print(f"{flags.as_checkpoint}: {flags.checkpoint} in {flags.weights}")
            return 0
        size = build_page(flags.checkpoint, flags.weights, flags.out)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{flags.out}: {size / 1e6:.2f} MB, {flags.checkpoint} in {flags.weights}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
