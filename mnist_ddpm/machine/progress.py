"""Progress bars."""

import os
import sys

from tqdm import tqdm


def is_first_process() -> bool:
    """Whether this is the first of the processes that a launcher has started, or the only one."""
    is_alone = os.environ.get("WORLD_SIZE", "1") == "1"
    return is_alone or os.environ.get("RANK", "0") == "0"


def progress_bar(iterable=None, disable: bool = False, **kwargs) -> tqdm:
    """As ddpm.progress_bar, but of several processes only the first one shows it."""
    # A notebook shows stderr in red.
    stream = sys.stdout if "ipykernel" in sys.modules else sys.stderr
    if disable or stream is None or not is_first_process():
        kwargs["disable"] = True  # if not given, the environment decides: TQDM_DISABLE
    return tqdm(iterable, file=stream, mininterval=1.0, ncols=96, **kwargs)
