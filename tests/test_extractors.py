"""Networks that judge images: what they see, how they are kept, and what they learn."""

import hashlib
import json
import os
import sys

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from helpers import untrained_judge, with_flipped_bit
from safetensors.torch import save_file

from mnist_ddpm import ddpm
from mnist_ddpm.evaluation import extractors
from mnist_ddpm.evaluation.extractors import digest, in_batches, pick_judge
from tools import train_extractor as tool
from tools.train_extractor import shifted, train_extractor


def test_a_digest_is_that_of_all_bytes_in_a_tensors_order():
    images = torch.arange(6, dtype=torch.uint8).view(2, 3).mT
    count = torch.tensor(7, dtype=torch.uint8)
    expected = hashlib.sha256(bytes([0, 3, 1, 4, 2, 5, 7])).hexdigest()[:16]
    assert digest(images, count) == expected
    assert digest(b"ab") == digest(b"a", b"b") != digest(b"ba")


def test_features_do_not_depend_on_batches_or_order(digits):
    judge, images = untrained_judge(), digits[:30]
    whole = judge.features(images)
    parts = [in_batches(judge.network, part, "cpu", 4) for part in images.split(7)]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-5, atol=1e-6)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(judge.features(images[order]), whole[order], rtol=1e-5, atol=1e-6)
    assert whole.shape == (30, 8) and whole.dtype == torch.float64 and whole.std() > 0


def test_only_what_a_file_could_hold_is_judged(digits):
    colour = digits[:2].expand(-1, 3, -1, -1)
    for dataset, images in (("mnist", digits[:2].float()), ("mnist", colour), ("celeba", digits)):
        with pytest.raises(ValueError, match="1 channel" if dataset == "mnist" else "3 channel"):
            untrained_judge(dataset).features(images)


def test_the_margin_of_digits_and_the_size_of_faces_do_not_matter(digits):
    judge, wide = untrained_judge(), F.pad(digits[:3], [6, 6, 2, 2])
    assert torch.equal(judge.features(wide), judge.features(digits[:3]))
    small = digits[:3, :, 6:26, 6:26]
    assert torch.equal(judge.features(small), judge.features(F.pad(small, [4] * 4)))
    generator = torch.Generator().manual_seed(0)
    faces = torch.randint(0, 256, (2, 3, 8, 8), generator=generator, dtype=torch.uint8)
    judge, seen = untrained_judge("celeba"), []

    def look(module, inputs):
        seen.append(inputs[0][..., 3::8, 3::8])  # inside its squares, of 64 x 64 pixels

    judge.network.body.register_forward_pre_hook(look)
    for times in (8, 16):
        judge.features(faces.repeat_interleave(times, dim=2).repeat_interleave(times, dim=3))
    torch.testing.assert_close(seen, [ddpm.to_float(faces)] * 2, rtol=0, atol=1e-5)


def test_inception_resizes_as_in_papers_and_takes_few_images_at_once(monkeypatch):
    sizes = []

    class Network(torch.nn.Module):
        def __init__(self, name, features):
            super().__init__()
            self.use_antialias = True  # torchmetrics' default

        def forward(self, images):
            sizes.append(tuple(images.shape))
            return images.float().mean(dim=(2, 3)) + self.use_antialias

    monkeypatch.setattr("torchmetrics.image.fid.NoTrainInceptionV3", Network)
    monkeypatch.setitem(sys.modules, "torch_fidelity", sys)  # as if it were installed
    judge = pick_judge("inception", "mnist")
    features = judge.features(torch.zeros(60, 1, 32, 32, dtype=torch.uint8))
    assert sizes == [(50, 3, 32, 32), (10, 3, 32, 32)] and not features.any()


@pytest.mark.parametrize("package", ["torch_fidelity", "torchmetrics.image.fid"])
def test_a_missing_package_of_inception_is_named_with_its_extra(package, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", sys)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=rf"of {package} .*\[inception\]"):
        pick_judge("inception", "mnist")


def test_a_judge_is_picked_for_the_images(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    for dataset, known in (("mnist", "mnist"), ("ffhq", "celeba")):
        judge = pick_judge("auto", dataset)
        assert judge.network.dataset == known and f"{known}.safetensors" in judge.name
        assert digest((extractors.FOLDER / f"{known}.safetensors").read_bytes()) in judge.name
    with pytest.raises(ValueError, match="pics"):
        pick_judge("auto", "pics")
    path = tmp_path / "judge.safetensors"
    extractors.save_extractor(path, untrained_judge().network, {})
    assert pick_judge(str(path), "mnist", side=64).network.dataset == "mnist"
    assert pick_judge(str(path), "pics", side=28).network.dataset == "mnist"
    with pytest.raises(ValueError, match="28 x 28"):  # of other images it would see the middle only
        pick_judge(str(path), "pics", side=32)


def test_what_is_no_extractor_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        pick_judge("nowhere", "mnist")
    (tmp_path / "a.safetensors").write_text("text")
    with pytest.raises(ValueError, match="a.safetensors"):
        pick_judge(str(tmp_path / "a.safetensors"), "mnist")


@pytest.fixture
def kept(tmp_path):
    """An extractor's file."""
    path = tmp_path / "judge.safetensors"
    extractors.save_extractor(path, untrained_judge().network, {"accuracy": 0.5})
    return path


def test_a_flipped_byte_of_an_extractor_or_its_digest_is_noticed(kept):
    beside = extractors.digest_path(kept)
    for path in (kept, beside):
        good = path.read_bytes()
        for place in range(0, len(good) if path == kept else 64, max(1, len(good) // 40)):
            path.write_bytes(with_flipped_bit(good, place))
            with pytest.raises(ValueError, match=f"{kept.name} is damaged"):
                extractors.load_extractor(kept)
        path.write_bytes(good)
    extractors.load_extractor(kept)


def test_an_extractor_without_a_digest_loads_and_that_is_said_once(kept, capsys):
    extractors.digest_path(kept).unlink()
    for _ in range(2):
        extractors.load_extractor(kept)
    (line,) = capsys.readouterr().err.splitlines()
    assert str(kept) in line


def test_a_huge_extractor_is_refused_by_its_header_or_size(kept, monkeypatch):
    header = {"dataset": "mnist", "outputs": 10, "widths": [4096] * 8, "record": {}}
    save_file({"x": torch.ones(1)}, kept, {"extractor": json.dumps(header)})
    extractors.digest_path(kept).unlink()
    devices = []

    def make(*options):
        devices.append(torch.get_default_device().type)
        return torch.nn.Linear(1, 1)

    monkeypatch.setattr(extractors, "Extractor", make)
    with pytest.raises(ValueError, match=kept.name):
        extractors.load_extractor(kept)
    assert devices == ["meta"], "5 GB"
    os.truncate(kept, 2**40)
    with pytest.raises(ValueError, match="1 GB"):
        extractors.load_extractor(kept)


@pytest.mark.parametrize("change", [lambda w: w.to(torch.int8), lambda w: w * torch.nan])
def test_features_of_no_numbers_are_refused(kept, change):
    network = extractors.load_extractor(kept)[0]
    weights = network.state_dict()
    network.state_dict = lambda: weights | {"head.bias": change(weights["head.bias"])}
    extractors.save_extractor(kept, network, {})
    with pytest.raises(ValueError, match=r"head\.bias"):
        extractors.load_extractor(kept)


def test_shifts_move_an_image_and_repeat_its_edge():
    images = torch.zeros(64, 1, 5, 5, dtype=torch.uint8)
    images[:, 0, 2, 2] = 200
    moved = shifted(images, 2, torch.Generator().manual_seed(0))
    assert moved.shape == images.shape and moved.dtype == torch.uint8
    assert (moved == 200).sum() == 64
    places = {tuple(image[0].nonzero()[0].tolist()) for image in moved}
    assert len(places) > 15 and {0, 4} < {row for row, _ in places}
    flat = torch.full((8, 3, 4, 4), 7, dtype=torch.uint8)
    assert (shifted(flat, 2, torch.Generator()) == 7).all()


def test_an_extractor_learns_and_comes_back_from_its_file(digits, monkeypatch, tmp_path):
    _, labels = tool.labelled_images("mnist", ROOT / "data", "train")
    given = digits[:256], labels[:256]
    monkeypatch.setattr(tool, "labelled_images", lambda dataset, root, split: given)
    network, accuracy = train_extractor("mnist", epochs=4, batch_size=16)
    assert accuracy > 0.6 and not network.training
    extractors.save_extractor(tmp_path / "a.safetensors", network, {"accuracy": accuracy})
    again, record = extractors.load_extractor(tmp_path / "a.safetensors")
    assert record == {"accuracy": accuracy}
    assert torch.equal(again(digits[:5]), network(digits[:5]))
    given = digits[:64], labels[:64]
    first, second = (train_extractor("mnist", epochs=1, batch_size=32)[0] for _ in range(2))
    assert all(map(torch.equal, first.parameters(), second.parameters()))


def test_attributes_are_learnt_too(monkeypatch, tmp_path):
    images = torch.zeros(128, 3, 64, 64, dtype=torch.uint8)
    images[::2, 0] = 255
    wanted = torch.zeros(128, 40)
    wanted[::2] = 1
    given = images, wanted
    monkeypatch.setattr(tool, "labelled_images", lambda dataset, root, split: given)
    network, accuracy = train_extractor("celeba", epochs=2, batch_size=16)
    assert accuracy > 0.9 and network.channels == 3
    extractors.save_extractor(tmp_path / "a.safetensors", network, {})
    again, _ = extractors.load_extractor(tmp_path / "a.safetensors")
    assert torch.equal(again.classify(images[:3]), network.classify(images[:3]))


def test_an_extractor_is_not_trained_in_vain(digits, monkeypatch):
    """What would fail after the training fails before it."""

    def labelled_images(dataset, root, split):
        if split == "test" and len(given) > 100:
            raise ValueError("no test images")
        return given, torch.zeros(len(given), dtype=torch.long)

    monkeypatch.setattr(tool, "labelled_images", labelled_images)
    monkeypatch.setattr(tool, "Extractor", lambda *_: pytest.fail("it trains"))
    for n, told in ((200, "no test images"), (100, "100")):
        given = digits[:n]
        with pytest.raises(ValueError, match=told):
            train_extractor("mnist")
    for wrong in ({"dataset": "ffhq"}, {"dataset": "mnist", "epochs": 0}):
        with pytest.raises(ValueError):
            train_extractor(**wrong)


@pytest.mark.parametrize(("dataset", "least"), [("mnist", 0.994), ("celeba", 0.85)])
def test_shipped_extractors_are_small_and_say_what_they_are(dataset, least):
    path = ROOT / extractors.FOLDER / f"{dataset}.safetensors"
    assert path.stat().st_size < 5e6 and extractors.digest_path(path).is_file()
    network, record = extractors.load_extractor(path)
    assert network.dataset == dataset and not network.training and record["accuracy"] > least


def test_the_shipped_digit_classifier_is_as_good_as_it_says():
    """Of the first 1,000 test digits."""
    network, record = extractors.load_extractor(ROOT / extractors.FOLDER / "mnist.safetensors")
    images, labels = tool.labelled_images("mnist", ROOT / "data", "test")
    found = tool.accuracy(network, images[:1000], labels[:1000])
    assert found == pytest.approx(record["accuracy"], abs=4e-3)


def test_the_program_overwrites_nothing(tmp_path, monkeypatch, capsys):
    asked, out = [], tmp_path / "a.safetensors"
    trained = extractors.Extractor("mnist", 10, (8,))

    def train(dataset, root, **options):
        asked.append((dataset, options))
        return trained, 0.75

    monkeypatch.setattr(tool, "train_extractor", train)
    command = ["--epochs", "3", "--seed", "5", "--device", "cpu", "--out", str(out)]
    assert tool.main(command) == 0 and "75.00% right" in capsys.readouterr().out
    assert asked == [("mnist", {"epochs": 3, "seed": 5, "device": torch.device("cpu")})]
    saved, record = extractors.load_extractor(out)
    assert record["accuracy"] == 0.75 and record["epochs"] == 3
    assert all(map(torch.equal, saved.parameters(), trained.parameters()))
    assert tool.main(command) == 1 and "exists already" in capsys.readouterr().err
