"""Features of real images: kept from one card to the next, the same to the last bit."""

import shutil
from dataclasses import replace
from threading import Lock

import numpy as np
import pytest
import torch
from helpers import equal, in_processes, untrained_judge, with_flipped_bit

from mnist_ddpm.evaluation import extractors
from mnist_ddpm.evaluation.extractors import RealImages

SOURCE = torch.Generator().manual_seed(0)
IMAGES = torch.randint(0, 256, (24, 1, 28, 28), generator=SOURCE, dtype=torch.uint8)


class Asked:
    """Real images in a folder of features, and how many the extractor is asked about."""

    def __init__(self, folder, mirrored=True, **options):
        self.judge, self.count = untrained_judge(**options), 0
        self.judge.network.body.register_forward_pre_hook(self.counted)
        self.real = RealImages(self.judge, IMAGES[:16], IMAGES[16:], mirrored, folder)

    def counted(self, module, inputs):
        self.count += len(inputs[0])

    def features(self) -> tuple[list, int]:
        """As they are, and for how many images the extractor was asked."""
        before = self.count
        return [*self.real.features()], self.count - before


def test_features_are_those_of_the_judge_and_computed_once(tmp_path):
    asked, judge = Asked(tmp_path / "new" / "cache"), untrained_judge()
    expected = [judge.features(part) for part in (IMAGES[:16], IMAGES[:16].flip(-1), IMAGES[16:])]
    for count in (16 + 16 + 8, 0):
        found = asked.features()
        assert equal(found, (expected, count))
    (training, *rest), count = Asked(tmp_path / "new" / "cache", mirrored=False).features()
    assert equal([training, *rest], [expected[0], None, expected[2]]) and count == 0
    assert Asked(None).features()[1] == Asked(None).features()[1] == 40, "nowhere to keep them"


def test_a_file_is_of_these_images_this_extractor_and_this_machine_alone(tmp_path, monkeypatch):
    real = Asked(tmp_path).real
    changed = [
        replace(real, training=IMAGES[:16].flip(2)),
        replace(real, judge=replace(real.judge, name="another")),
        replace(real, judge=replace(real.judge, device="meta")),
    ]
    paths = [each.path("training") for each in (real, *changed)] + [real.path("mirrored")]
    monkeypatch.setattr(extractors.devices, "versions", lambda: {"torch": "2.99"})
    paths.append(real.path("training"))
    monkeypatch.setattr(extractors, "COMPUTING", extractors.COMPUTING + 1)
    paths.append(real.path("training"))
    assert len({*paths}) == 7
    other = replace(real, held_out=IMAGES[15:])
    assert other.path("training") == paths[-1] and other.path("held_out") != real.path("held_out")


def test_damaged_and_foreign_files_are_replaced(tmp_path, capsys):
    asked = Asked(tmp_path)
    expected, _ = asked.features()
    paths = [asked.real.path(kind) for kind in ("training", "mirrored", "held_out")]
    path, content = paths[0], paths[0].read_bytes()
    place = content.index(expected[0].float().numpy().tobytes()) + 100
    for damage in (with_flipped_bit(content, place), content[:-50], b"", paths[1].read_bytes()):
        path.write_bytes(damage)
        capsys.readouterr()
        assert equal(asked.features(), (expected, 16))
        assert str(path) in capsys.readouterr().out and path.stat().st_size == len(content)
    with path.open("wb") as file:
        np.savez(file, features=np.zeros((15, 8), np.float32), name=path.name)
    assert equal(asked.features(), (expected, 16)) and equal(asked.features(), (expected, 0))


@pytest.mark.parametrize("place", ["file", "folder"])
def test_where_features_cannot_be_kept_they_are_computed(tmp_path, place, capsys):
    asked = Asked(tmp_path / "cache")
    if place == "file":
        (tmp_path / "cache").touch()
    else:
        asked.real.path("training").mkdir(parents=True)
    first, second = asked.features(), asked.features()
    assert equal(first[0], second[0]) and second[1] == (40 if place == "file" else 16)
    assert str(tmp_path / "cache") in capsys.readouterr().out


def test_several_processes_keep_them_each_on_its_disk(tmp_path):
    """Also where only one of them has lost its file: then all have a part to compute."""

    one_at_a_time = Lock()  # the processes are threads, with one seed for random weights

    def asked(world):
        with one_at_a_time:
            own = Asked(tmp_path / str(world.rank % 2), world=world)
        return own.features()

    first, again = in_processes(3, asked), in_processes(3, asked)
    shutil.rmtree(tmp_path / "1")
    third = in_processes(3, asked)
    found = [each for each, _ in first + again + third]
    assert all(equal(each, found[0]) for each in found)
    counts = [sum(count for _, count in each) for each in (first, again, third)]
    assert counts == [40, 0, 40]
