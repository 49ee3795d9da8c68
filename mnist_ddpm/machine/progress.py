"""Progress bars of long work."""

import os
import sys

from tqdm import tqdm


def first_process() -> bool:
    """Whether this is the first of the processes that a launcher has started, or the only one."""
    alone = os.environ.get("WORLD_SIZE", "1") == "1"
    return alone or os.environ.get("RANK", "0") == "0"


def progress_bar(iterable=None, disable: bool = False, **kwargs) -> tqdm:
    """A bar of text with the time that is left, on stderr; of several processes, the first's."""
    # A notebook shows stderr in red.
    stream = sys.stdout if "ipykernel" in sys.modules else sys.stderr
    if disable or stream is None or not first_process():
        kwargs["disable"] = True  # without it the environment decides: TQDM_DISABLE
    return tqdm(iterable, file=stream, mininterval=1.0, ncols=96, **kwargs)
