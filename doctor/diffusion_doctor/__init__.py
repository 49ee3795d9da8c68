"""Examines anybody's diffusion code: exact denoisers take the network's place, and bugs show."""

__version__ = "0.30.0"
__all__ = ["examine"]


def __getattr__(name: str):
    """examine, which imports PyTorch when it is first used."""
    if name == "examine":
        from diffusion_doctor.examination import examine

        return examine
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
