"""What only a GPU can show; skipped elsewhere."""

import json

import pytest
import torch

from autoreid import train
from tests.tiny import write_tiny

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]


def _result(folder):
    return json.loads((folder / "runs/tiny/result.json").read_text())


@pytest.mark.parametrize("order", ["first", "second"])
def test_a_gpu_finds_what_the_cpu_finds(tmp_path, order):
    for device in ("cpu", "cuda"):
        folder = tmp_path / device
        folder.mkdir()
        path = write_tiny(folder, distributed__device=device, search__order=order)
        assert train.main(["--config", str(path)]) == 0
    cpu, cuda = _result(tmp_path / "cpu"), _result(tmp_path / "cuda")
    assert cuda["map"] == pytest.approx(cpu["map"], abs=0.05)
    assert cuda["steps"] == cpu["steps"]


def test_bfloat16_and_channels_last(tmp_path):
    changes = {
        "distributed__device": "cuda",
        "training__precision": "bfloat16",
        "training__channels_last": True,
    }
    assert train.main(["--config", str(write_tiny(tmp_path, **changes))]) == 0
    assert 0 < _result(tmp_path)["map"] <= 1
