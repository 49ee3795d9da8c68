"""`python -m mnist_ddpm export`."""

from mnist_ddpm.commands import flags
from mnist_ddpm.commands.common import tell_written
from mnist_ddpm.formats import checkpoints, diffusers
from mnist_ddpm.training import files


class Export(flags.Export):
    """A checkpoint for another library."""

    def run(self) -> None:
        """Writes it. Raises ValueError for what the library cannot express."""
        network, _, recipe, _ = checkpoints.load(self.checkpoint)
        try:
            diffusers.settings_to_diffusers(recipe)
        except ValueError as error:
            raise ValueError(f"{self.checkpoint} cannot be exported: {error}") from error
        if any(files.writable_folder(self.out).iterdir()):
            raise FileExistsError(f"{self.out} is not empty: name another folder")
        diffusers.save_diffusers(self.out, network, recipe)
        print(f'{self.out}: DDPMPipeline.from_pretrained("{self.out}") reads it')
        tell_written(*sorted(path for path in self.out.rglob("*") if path.is_file()))
