"""Standard streams that may end before the work does."""

import io
import os
import sys


class Steady(io.TextIOWrapper):
    """A stream whose reader may leave, or whose disk may fill: what follows is lost, no more."""

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError:
            lead_nowhere(self.fileno())
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError:  # Python would try again as it exits, and say so
            lead_nowhere(self.fileno())


def lead_nowhere(number: int) -> None:
    """Sends what is written to a descriptor nowhere, from now on."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    if nowhere != number:
        os.dup2(nowhere, number)
        os.close(nowhere)


def steady() -> None:
    """Makes this process's streams so, also those that were closed before it began."""
    for number, name in enumerate(("stdout", "stderr"), 1):
        stream = getattr(sys, name)
        if stream is None:  # else the next file would get its number, to which C code writes
            lead_nowhere(number)
            stream = open(number, "w")
        how = {"line_buffering": stream.line_buffering, "write_through": stream.write_through}
        made = Steady(stream.detach(), stream.encoding, "backslashreplace", **how)
        setattr(sys, name, made)
        setattr(sys, f"__{name}__", made)
