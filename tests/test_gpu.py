"""The trial of a GPU: all its parts run, here on the processor, and none costs another."""

import json
import os
import sys
import time

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import gpu


@pytest.fixture
def kept(monkeypatch):
    """The results that are there stay as they are."""
    before = {path.name: path.read_bytes() for path in (ROOT / "benchmarks/results").iterdir()}
    yield
    assert before == {p.name: p.read_bytes() for p in (ROOT / "benchmarks/results").iterdir()}


def test_every_part_runs_on_the_processor_with_tiny_sizes(tmp_path, kept):
    out = tmp_path / "gpu.json"
    assert gpu.main(["--device", "cpu", "--quick", "--out", str(out)]) == 0
    record = json.loads(out.read_text())
    assert (record["quick"], record["device"], record["seed"]) == (True, "cpu", 0)
    assert "torch" in record["versions"]
    found = {part["part"]: part for part in record["parts"]}
    assert [*found] == [*gpu.PARTS]
    for name, part in found.items():
        assert ("problem" in part, part["rows"] == []) == 2 * (name in gpu.SLOW,), part
    for row in found["resume"]["rows"]:
        assert row["resumed_is_the_same"] and row["twice_is_the_same"]
    for row in found["images"]["rows"]:
        assert row["grey_levels_at_most"] <= 1


def test_a_part_that_fails_costs_no_other(tmp_path, monkeypatch, kept):
    def fails(b):
        b.add("half of it", images=3)
        raise RuntimeError("CUDA error: device-side assert\nand more")

    monkeypatch.setitem(gpu.PARTS, "rates", (fails, 10))
    out = tmp_path / "gpu.json"
    command = ["--device", "cpu", "--quick", "--parts", "rates", "optimizers", "--out", str(out)]
    assert gpu.main(command) == 1
    first, second = json.loads(out.read_text())["parts"]
    assert first["rows"] == [{"what": "half of it", "images": 3}] and "assert" in first["problem"]
    assert second["rows"] and "problem" not in second


def test_a_part_that_hangs_is_stopped_and_keeps_its_results(tmp_path):
    file = tmp_path / "rows"
    file.write_text('{"what": 1}\n{"wha')
    rows, problem = gpu.in_process(time.sleep, (600,), file, 0.5)
    assert rows == [{"what": 1}] and problem.startswith("stopped")
    rows, problem = gpu.in_process(sys.exit, ("no GPU",), file, 60)
    assert rows == [{"what": 1}] and problem == "failed: status 1"
    file.write_text('{"what": "", "problem": "failed: Odd"}\n')
    assert gpu.in_process(os.getpid, (), file, 60) == ([], "failed: Odd")


def test_without_a_gpu_it_says_how_to_try(kept):
    with pytest.raises(SystemExit, match="--quick"):
        gpu.main(["--device", "cuda:99"])
