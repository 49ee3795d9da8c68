"""`python -m mnist_ddpm export`."""

from pathlib import Path

from mnist_ddpm.commands import flags
from mnist_ddpm.commands.common import tell_written
from mnist_ddpm.formats import checkpoints, diffusers, onnx
from mnist_ddpm.machine import files


class Export(flags.Export):
    """A checkpoint for another library."""

    def run(self) -> None:
        """Writes it. Raises ValueError for what the library cannot express."""
        self.to_onnx() if self.format == "onnx" else self.to_diffusers()

    def to_diffusers(self) -> None:
        """A folder for DDPMPipeline."""
        if self.precision != "float32":
            raise ValueError(f"--precision {self.precision} is for --format onnx: leave it out")
        network, _, recipe = checkpoints.load(self.checkpoint)
        try:
            diffusers.settings_to_diffusers(recipe)
        except ValueError as error:
            raise ValueError(f"{self.checkpoint} cannot be exported: {error}") from error
        if any(files.writable_folder(self.out).iterdir()):
            raise FileExistsError(f"{self.out} is not empty: name another folder")
        diffusers.save_diffusers(self.out, network, recipe)
        print(f'{self.out}: DDPMPipeline.from_pretrained("{self.out}") reads it')
        tell_written(*sorted(path for path in self.out.rglob("*") if path.is_file()))

    def to_onnx(self) -> None:
        """A file for ONNX Runtime."""
        if self.out.suffix != ".onnx":
            raise ValueError(f"--out is {self.out}: name a file that ends in .onnx")
        if self.out.exists():
            raise FileExistsError(f"{self.out} is there already: name another file")
        onnx.packages()
        network, schedule, recipe = checkpoints.load(self.checkpoint)
        draw = checkpoints.sampling_defaults(self.checkpoint)
        if "guide" in draw:  # a name, or a folder here
            draw = draw | {"guide": Path(draw["guide"]).name}
        files.check_writable(self.out)
        print("exporting, and comparing with PyTorch: this can take a minute", flush=True)
        try:
            worst = onnx.save_onnx(self.out, network, schedule, recipe, self.precision, draw)
        except ValueError as error:
            raise ValueError(f"{self.checkpoint} cannot be exported: {error}") from error
        print(f"{self.out}: ONNX Runtime and PyTorch differ by {worst:.1e} at most")
        tell_written(self.out)
