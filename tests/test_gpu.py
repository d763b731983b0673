"""What only a GPU can show; skipped elsewhere."""

import json
import warnings

import pytest
import torch

from autoreid import distributed, train
from autoreid.data.training_data import build_search_data
from autoreid.distributed import StopSignal
from autoreid.layers.separable import separable
from autoreid.search.build import build_search
from autoreid.training.memory import measure_need
from tests.helpers.tiny import tiny_config, write_tiny

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


def _task(folder, **changes):
    config = tiny_config(folder, distributed__device="cuda", **changes)
    with distributed.setup("cuda", cudnn_benchmark=False) as world:
        return build_search(config, build_search_data(config, world), world)


@pytest.mark.parametrize("changes", [{"search__order": "first"}, {"search__level": "single"}])
def test_graphs_replay_what_is_computed(tmp_path, changes):
    states = []
    for graphs in (False, True):
        task = _task(tmp_path, **changes, training__precision="float32", training__cuda_graphs=graphs)
        for _ in range(4):
            task.step(StopSignal())
        states.append(task.state.network.state_dict() | task.state.alphas.state_dict())
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("order", ["first", "second"])
def test_the_host_waits_once_a_step(tmp_path, order):
    task = _task(tmp_path, search__order=order)
    for _ in range(2):
        task.step(StopSignal())
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            task.step(StopSignal())
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [one for one in found if "synchronizing CUDA operation" in str(one.message)]
    assert len(waits) == 1, [f"{one.filename}:{one.lineno}" for one in waits]


def test_the_dense_form_of_a_separable_convolution_is_the_separable_one():
    torch.manual_seed(0)
    x = torch.randn(2, 4, 9, 7, dtype=torch.float64, requires_grad=True)
    weights = [torch.randn(12, 1, 3, 3, dtype=torch.float64), torch.randn(12, 4, 1, 1, dtype=torch.float64)]
    for stride, dilation in ((1, 1), (2, 1), (1, 2), (2, 2)):
        found = []
        for device in ("cpu", "cuda"):
            leaves = [tensor.detach().to(device).requires_grad_() for tensor in (x, *weights)]
            y = separable(*leaves, stride, dilation, recompute=True)
            found.append([y, *torch.autograd.grad(y.sin().sum(), leaves)])
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(other.cpu(), one)


def test_a_step_takes_the_memory_that_was_said(tmp_path):
    sizes = {
        "search__reid_cell__stem": "resnet",
        "search__reid_cell__channels": 12,
        "data__height": 96,
        "data__width": 48,
    }
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
