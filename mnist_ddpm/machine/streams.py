"""Standard streams that may close before the work is done."""

import io
import os
import sys


class TolerantStream(io.TextIOWrapper):
    """A stream that drops its output once its reader is gone or its disk is full."""

    def write(self, text: str) -> int:
        """Writes text, or drops it; returns its length."""
        try:
            return super().write(text)
        except OSError:
            redirect_to_null(self.fileno())
            return len(text)

    def flush(self) -> None:
        """Writes what is buffered, or drops it."""
        try:
            super().flush()
        except OSError:  # Python would try again at exit, and print an error
            redirect_to_null(self.fileno())


def redirect_to_null(descriptor: int) -> None:
    """Discards all further output to a file descriptor."""
    null = os.open(os.devnull, os.O_WRONLY)
    if null != descriptor:
        os.dup2(null, descriptor)
        os.close(null)


def tolerate_broken_streams() -> None:
    """Makes this process's stdout and stderr tolerant, also if they were closed at its start."""
    for descriptor, name in enumerate(("stdout", "stderr"), 1):
        stream = getattr(sys, name)
        if stream is None:  # else the next file would get this number, to which C code writes
            redirect_to_null(descriptor)
            stream = open(descriptor, "w")
        buffering = {"line_buffering": stream.line_buffering, "write_through": stream.write_through}
        encoding = stream.encoding
        tolerant = TolerantStream(stream.detach(), encoding, "backslashreplace", **buffering)
        setattr(sys, name, tolerant)
        setattr(sys, f"__{name}__", tolerant)
