"""What only a GPU can show; skipped elsewhere."""

import json

import pytest
import torch

from autoreid import distributed, train
from autoreid.data.training_data import build_search_data
from autoreid.distributed import StopSignal
from autoreid.search.build import build_search
from autoreid.training.memory import measure_need
from tests.tiny import tiny_config, write_tiny

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


def test_a_step_takes_the_memory_that_was_said(tmp_path):
    sizes = {"search__stem": "resnet", "search__channels": 12, "data__height": 96, "data__width": 48}
    config = tiny_config(tmp_path, **sizes, distributed__device="cuda", search__order="second")
    with distributed.setup("cuda") as world:
        before = torch.cuda.memory_allocated()
        task = build_search(config, build_search_data(config, world), world)
        need = measure_need(task, config, world)
        for _ in range(2):
            torch.cuda.reset_peak_memory_stats()
            task.step(StopSignal())
        taken = torch.cuda.max_memory_allocated() - before
    assert need.of(config.data.batch_size) == pytest.approx(taken, rel=0.25)
