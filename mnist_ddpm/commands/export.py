"""`python -m mnist_ddpm export`."""

from pathlib import Path

from mnist_ddpm.commands.flags import ExportFlags
from mnist_ddpm.commands.outputs import print_written
from mnist_ddpm.ddpm import check
from mnist_ddpm.formats import checkpoints, diffusers, onnx
from mnist_ddpm.machine import files


def run_export(flags: ExportFlags) -> None:
    """Writes a checkpoint for another library. Raises ValueError for what that cannot express."""
    export_onnx(flags) if flags.format == "onnx" else export_diffusers(flags)


def export_diffusers(flags: ExportFlags) -> None:
    """Writes a folder for DDPMPipeline."""
    precision = flags.precision
    check(precision == "float32", f"--precision {precision} is for --format onnx: leave it out")
    network, _, recipe = checkpoints.load(flags.checkpoint)
    try:
        diffusers.settings_to_diffusers(recipe)
    except ValueError as error:
        raise ValueError(f"{flags.checkpoint} cannot be exported: {error}") from error
    if any(files.writable_folder(flags.out).iterdir()):
        raise FileExistsError(f"{flags.out} is not empty: name another folder")
    diffusers.save_diffusers(flags.out, network, recipe)
    print(f'{flags.out}: DDPMPipeline.from_pretrained("{flags.out}") reads it')
    print_written(*sorted(path for path in flags.out.rglob("*") if path.is_file()))


def export_onnx(flags: ExportFlags) -> None:
    """Writes a file for ONNX Runtime."""
    out = flags.out
    check(out.suffix == ".onnx", f"--out is {out}: name a file that ends in .onnx")
    if out.exists():
        raise FileExistsError(f"{out} is there already: name another file")
    onnx.packages()
    network, schedule, recipe = checkpoints.load(flags.checkpoint)
    draw = checkpoints.sampling_defaults(flags.checkpoint)
    if "guide" in draw:  # a name, or a folder here
        draw = draw | {"guide": Path(draw["guide"]).name}
    files.check_writable(out)
    print("exporting, and comparing with PyTorch: this can take a minute", flush=True)
    try:
        difference = onnx.save_onnx(out, network, schedule, recipe, flags.precision, draw)
    except ValueError as error:
        raise ValueError(f"{flags.checkpoint} cannot be exported: {error}") from error
    print(f"{out}: ONNX Runtime and PyTorch differ by {difference:.1e} at most")
    print_written(out)
