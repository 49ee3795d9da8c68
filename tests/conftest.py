"""All machines alike: on the processor, a thread for each of the processes that share the tests."""

import os
import signal

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch looks
os.environ["HF_HUB_OFFLINE"] = "1"  # nor is the hub asked, but for a stand-in
os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import pytest

# A background shell and nohup have processes ignore these, and so the programs that tests start
USUAL = {"SIGINT": signal.default_int_handler, "SIGHUP": signal.SIG_DFL}
for name, handler in USUAL.items():
    number = getattr(signal, name, None)  # Windows has no SIGHUP
    if number and signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, handler)

ROOT = Path(__file__).resolve().parent.parent


def pytest_configure(config) -> None:
    """Unpacks MNIST once, before several processes would do so at the same time."""
    unpacked = [*(ROOT / "data" / "MNIST" / "raw").glob("*ubyte")]
    if len(unpacked) < 4 and not hasattr(config, "workerinput"):
        from torchvision.datasets import MNIST

        MNIST(ROOT / "data", download=True)


@pytest.fixture(scope="session", autouse=True)
def short_previews():
    """Previews of trainings take two steps, not as many as this returns."""
    from mnist_ddpm.training import session

    with pytest.MonkeyPatch.context() as patch:
        steps = session.STEPS
        patch.setattr(session, "STEPS", 2)
        yield steps


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """A folder of small coloured pictures."""
    from command_helpers import save_pictures

    return save_pictures(tmp_path_factory.mktemp("pictures") / "mine")


@pytest.fixture(scope="session")
def digits():
    """The first training digits: uint8 (6000, 1, 32, 32)."""
    from mnist_ddpm import ddpm

    return ddpm.load_mnist(root=ROOT / "data")[:6000]
