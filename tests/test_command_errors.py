"""Requests of `sample`, `evaluate` and `likelihood` that end in one line, before the work."""

import os

import numpy as np
import pytest
from commanded import DIGITS, ROOT, blobs, error_of, save_network
from PIL import Image

from mnist_ddpm import catalogue
from mnist_ddpm.evaluation.extractors import Extractor, save_extractor
from mnist_ddpm.training.recipe import Recipe


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Untrained checkpoints of digits, and of colours in a folder, and an extractor."""
    folder = tmp_path_factory.mktemp("places")
    save_network(folder / "digits", DIGITS)
    save_network(folder / "plain", DIGITS, objective="simple", classes=0)
    sizes = {"image_size": 16, "base_channels": 8, "channel_mults": (1, 2), "T": 20}
    save_network(folder / "colours", Recipe(dataset="faces", **sizes))
    save_extractor(folder / "judge.safetensors", Extractor("mnist", 10, (8, 8)), {})
    return folder


@pytest.fixture
def few_digits(monkeypatch):
    parts = {"train": blobs(60), "test": blobs(24, 60)}
    monkeypatch.setattr(catalogue, "load_images", lambda recipe, root, split="train": parts[split])


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ("--n 0", "n is 0"),
        ("--steps 0", "0"),
        ("--steps 21", "1 to T = 20"),
        ("--eta -0.5", "eta is -0.5"),
        ("--seed -1", "seed is -1"),
        ("--seed 4294967296", "seed is 4294967296"),
        ("--batch-size 0", "batch_size is 0"),
        ("--device nonsense", '"nonsense"'),
        ("--device meta", '"meta"'),
        ("--checkpoint no/where", "no/where is not a checkpoint"),
        ("--out README.md/x", "README.md/x"),
        ("--guidance 2", "without labels"),
        ("--guidance-interval 5 15", "a checkpoint with labels"),
        ("--guide nowhere --guidance nan", "guidance is nan"),
        ("--guide nowhere --guidance 1e300", "guidance is 1e+300"),
        ("--guide nowhere --guidance-interval 5 21", "T = 20"),
        ("--guide nowhere --guidance-interval 3 6", "none of the 6 times"),
        ("--label 3", "without labels"),
        ("--sampler ddpm --variance learned", "learned no variance"),
        ("--sampler heun --eta 1", "heun takes no --eta"),
        ("--variance beta", "ddim takes no --variance"),
        ("--mask mask.png", "--init-image"),
        ("--init-image README.md", "README.md is not a readable image"),
        ("--init-image nowhere.png", "nowhere.png"),
        ("--init-image digit.png --strength 0", "strength is 0.0"),
        ("--strength 0.9", "--strength"),
        ("--init-image digit.png --mask mask.png --strength 0.9", "--strength"),
        ("--init-image digit.png --resamples 3", "--resamples"),
        ("--init-image digit.png --mask small.png", "10 x 9 pixels and the image 28 x 28"),
        ("--init-image digit.png --mask white.png", "white.png hides nothing"),
        ("--init-image digit.png --mask mask.png --sampler heun", "--sampler heun"),
        ("--init-image digit.png --mask mask.png --eta 1", "ddpm takes no --eta"),
    ],
)
def test_bad_requests_to_sample_end_in_one_line(
    places, tmp_path, monkeypatch, capsys, flags, named
):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.eye(28, dtype=np.uint8) * 255).save("digit.png")
    Image.fromarray(np.eye(28, dtype=np.uint8) * 255).save("mask.png")
    (tmp_path / "README.md").touch()
    Image.new("L", (10, 9)).save("small.png")
    Image.new("L", (28, 28), 255).save("white.png")
    base = ["--checkpoint", places / "colours", "--steps", 6]
    assert named in error_of(capsys, "sample", *base, *flags.split())


def test_labels_and_guidance_must_be_of_use(places, tmp_path, capsys):
    digits = places / "digits"
    base = ["sample", "--checkpoint", digits, "--out", tmp_path]
    for label in ("10", "-1"):
        assert f"label {label} " in error_of(capsys, *base, "--label", "3", label)
    interval = ["--steps", 6, "--guidance-interval", 5, 15]
    for guide in ([], ["--guide", digits, "--guidance", 1]):
        assert "--guidance to other than 1" in error_of(capsys, *base, *interval, *guide)
    told = save_network(tmp_path / "told", DIGITS, label_dropout=0.0)
    line = error_of(capsys, "sample", "--checkpoint", told, "--guidance", 2, "--out", tmp_path)
    assert "label_dropout 0" in line


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ("--extractor nowhere", "no extractor nowhere"),
        ("--n 3", "4 images and 8 of the training set at least, and there are 3 and 60"),
        ("--extractor README.md", "README.md is damaged"),
        ("--images README.md", "README.md is neither"),
        (f"--images {os.devnull}", f"{os.devnull} is neither"),
        ("--n -1", "n is -1"),
        ("--out tests", "tests is a folder"),
        ("--checkpoint nowhere", "nowhere is not a checkpoint"),
        ("--images x.npz --steps 9 --eta 1", "--steps and --eta"),
        ("--images x.npz --guidance-interval 1 9", "--guidance-interval"),
        ("--images x.npz --bits 9 --variance posterior", "x.npz is neither"),
        (
            "--images tests --out tests/card.json",
            "tests/card.json is in the folder of images tests",
        ),
        ("--bits 1", "--bits is 1"),
        ("--steps 0", "0"),
        ("--label 3", "without labels"),
    ],
)
def test_bad_requests_to_evaluate_end_in_one_line(
    places, few_digits, tmp_path, monkeypatch, capsys, flags, named
):
    monkeypatch.chdir(ROOT)
    steps = [] if "--images" in flags or "--steps" in flags else ["--steps", 4]
    base = ["evaluate", "--checkpoint", places / "plain", "--n", 4, *steps]
    base += ["--extractor", places / "judge.safetensors", "--out", tmp_path / "card"]
    assert named in error_of(capsys, *base, *flags.split())


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ("--variance learned", "learned no variance"),
        ("--n 1", "at least 2 images, and there are 1"),
        ("--steps 21", "1 to T = 20"),
        ("--times-per-image 21", "times_per_image is 21"),
        ("--seed -1", "seed is -1"),
        ("--spacing quadratic", "--steps"),
        ("--checkpoint no/where", "no/where is not a checkpoint"),
    ],
)
def test_bad_requests_for_a_likelihood_end_in_one_line(
    places, few_digits, tmp_path, capsys, flags, named
):
    base = ["likelihood", "--checkpoint", places / "plain", "--n", 4, "--out", tmp_path / "l.json"]
    assert named in error_of(capsys, *base, *flags.split())
