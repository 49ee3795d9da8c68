"""Data sets as records: what a command knows of one comes from its record alone."""

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT

from mnist_ddpm.data.loading import reader
from mnist_ddpm.datasets import DATASETS, dataset_named

FIFTH = '''
import sys
import torch
from mnist_ddpm.datasets import DATASETS, Classifier, Dataset, Planning

def load_stripes(recipe, root, split):
    """160 pictures of vertical stripes, or 20 held out."""
    count = {"train": 160, "unseen": 20}[split]
    pictures = torch.arange(count * 256).view(count, 1, 16, 16) % 199
    return pictures.byte()

def stripe_labels(recipe, root, split):
    return torch.arange(len(load_stripes(recipe, root, split))) % recipe.classes

DATASETS["stripes"] = Dataset(
    title="Stripes", terms="They are free.", license={}, images=load_stripes, labels=stripe_labels,
    channels=1, is_mirrored=True, held_out="unseen",
    classifier=Classifier(3, stripe_labels, "20 unseen stripes", 16, 16, (4, 4), 1, "stripes"),
    presets={"tiny-stripes": {
        "image_size": 16, "base_channels": 8, "channel_mults": (1, 2), "T": 20, "epochs": 1,
        "batch_size": 32,
    }},
    planning=Planning(("tiny-stripes",), ("tiny-stripes",), 100, {"ema_decay": 0.9}),
    draw={("linear", 20): {"sampler": "ddim", "steps": 3, "eta": 0.0}},
)

from mnist_ddpm.commands.command_line import run_command_line as main
from mnist_ddpm.training import throughput
from tools import train_extractor as judge

throughput.MAX_SECONDS = 0.0  # a plan measures once, not for two seconds

for line in sys.stdin:
    try:
        program, *words = line.split()
        status = judge.main(words) if program == "extractor" else main([program, *words])
    except SystemExit as stopped:  # after --help
        status = stopped.code
    assert status == 0, line
'''


@pytest.mark.parametrize("name", [*DATASETS, "torchvision:CIFAR10", "a folder"])
def test_every_record_names_functions_that_are_there(name):
    record = dataset_named(name)
    named = [record.images, record.labels, record.classifier and record.classifier.targets]
    assert all(callable(reader(each)) for each in named if each)
    assert not record.extractor or DATASETS[record.extractor].classifier


def test_commands_know_a_data_set_by_its_record(tmp_path):
    """A fifth one is found in help, trained, planned, drawn and judged."""
    commands = [
        "train --help",
        "plan --help",
        "extractor --help",
        "extractor --dataset stripes --epochs 1 --out judge.safetensors --device cpu",
        "train --preset tiny-stripes --classes 3 --out mine --device cpu",
        "evaluate --checkpoint mine --extractor judge.safetensors --n 20 --out card.json "
        "--device cpu",
        "plan --dataset stripes --minutes 0.5 --dry-run --out planned --device cpu",
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    options = {"capture_output": True, "text": True, "cwd": tmp_path, "env": environment}
    command = [sys.executable, "-c", FIFTH]
    done = subprocess.run(command, input="\n".join(commands), **options)
    assert done.returncode == 0, done.stderr
    train, plan, extractor = done.stdout.split("usage: ")[1:]
    assert "mnist, celeba, ffhq, stripes" in " ".join(train.split()) and "tiny-stripes" in train
    assert "mnist, celeba, ffhq, stripes" in " ".join(plan.split())
    assert (
        "{mnist,celeba,stripes,torchvision:CIFAR10}" in extractor
        and "20 unseen stripes" in extractor
    )
    assert "preset tiny-stripes" in extractor
    card = json.loads((tmp_path / "card.json").read_text())
    assert card["sampler"]["name"] == "ddim" and card["sampler"]["steps"] == 3
    assert len(card["stripes"]["shares"]) == 3 and "held_out" in card["stripes"]
    assert card["reference"].startswith("stripes, 160 training images")
    assert json.loads((tmp_path / "mine" / "config.json").read_text())["draw"]["steps"] == 3
