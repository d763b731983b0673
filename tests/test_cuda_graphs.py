"""training.cuda_graphs: replayed steps give the same results, and unsupported settings are refused in one line.

These tests need no GPU. A fake replaces torch's capture and behaves as documented: it runs warm-up passes on the
example inputs before the capture, a replay copies new inputs into static buffers, and all replays return the same
gradient tensors. tests/test_gpu.py uses the real capture.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch.utils import _pytree as pytree

from autoreid import distributed
from autoreid.data.training_data import build_search_data, build_training_data
from autoreid.distributed import StopSignal, World
from autoreid.errors import ConfigError
from autoreid.recipes import load_config
from autoreid.search.build import build_search
from autoreid.training import build as training_build
from autoreid.training.cuda_graphs import check_cuda_graphs
from autoreid.training.measure import measure_network
from autoreid.training.task import build_training
from tests.helpers.ranks import run_ranks
from tests.helpers.tasks import build_search_task
from tests.helpers.tiny import OSNET_TRAINING, tiny_config, write_tiny

GRAPHS = {"training__cuda_graphs": True}


def fake_capture(module, example):
    """Replace a module's forward method, as torch.cuda.make_graphed_callables does."""
    plain = module.forward
    buffers = pytree.arg_tree_leaves(*example)
    structure = pytree.tree_structure(example)
    parameters = tuple(module.parameters())
    surface = [*buffers, *parameters]
    wanted = [tensor for tensor in surface if tensor.requires_grad]

    def run():
        outputs = plain(*pytree.tree_unflatten(buffers, structure))
        return outputs, torch.autograd.grad(outputs, wanted, [torch.ones_like(y) for y in outputs])

    for _ in range(3):
        _, gradients = run()
    static_gradients = [torch.empty_like(gradient) for gradient in gradients]

    class Replay(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *inputs):
            for buffer, tensor in zip(buffers, inputs, strict=False):
                buffer.copy_(tensor)
            with torch.enable_grad():
                ctx.outputs = plain(*pytree.tree_unflatten(buffers, structure))
            return tuple(y.detach() for y in ctx.outputs)

        @staticmethod
        def backward(ctx, *gradients):
            computed = torch.autograd.grad(ctx.outputs, wanted, gradients)
            for static, gradient in zip(static_gradients, computed, strict=True):
                static.copy_(gradient)
            found = iter(static_gradients)
            return tuple(next(found).detach() if x.requires_grad else None for x in surface)

    module.forward = lambda *inputs: Replay.apply(*pytree.arg_tree_leaves(*inputs), *parameters)
    return module


@pytest.fixture
def captures(monkeypatch):
    """The passes that are captured."""
    found = []
    monkeypatch.setattr(training_build, "check_cuda_graphs", lambda *_: None)
    monkeypatch.setattr(
        torch.cuda, "make_graphed_callables", lambda *given: (found.append(given), fake_capture(*given))[1]
    )
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"search__order": "first"}, 2),
        ({"search__order": "second"}, 1),
        ({"search__level": "single"}, 1),
        ({"search__order": "first", "search__relaxation": "gumbel"}, 2),
    ],
    ids=["first", "second", "single", "gumbel"],
)
def test_a_search_gives_the_same_with_and_without_graphs(tmp_path, captures, changes, wanted):
    states = []
    for graphs in (False, True):
        task = build_search_task(tmp_path, **changes, training__cuda_graphs=graphs)
        for _ in range(3):
            task.step(StopSignal())
        states.append(task.state.network.state_dict() | task.state.alphas.state_dict())
    assert len(captures) == wanted
    plain, replayed = states
    assert plain.keys() == replayed.keys()
    for name, value in plain.items():
        assert torch.equal(replayed[name], value), name


@pytest.mark.slow
def test_a_search_resumes_with_graphs(tmp_path, captures):
    uninterrupted = build_search_task(tmp_path, search__order="first")
    for _ in range(3):
        uninterrupted.step(StopSignal())
    interrupted = build_search_task(tmp_path, search__order="first", **GRAPHS)
    interrupted.step(StopSignal())
    state = copy.deepcopy(interrupted.state.state_dict())
    resumed = build_search_task(tmp_path, search__order="first", **GRAPHS)
    resumed.state.load_state_dict(state)
    for _ in range(2):
        resumed.step(StopSignal())
    assert len(captures) == 4
    assert resumed.state.alphas.digest() == uninterrupted.state.alphas.digest()
    for name, value in uninterrupted.state.network.state_dict().items():
        assert torch.equal(resumed.state.network.state_dict()[name], value), name


def _steps_of_rank(world, path):
    training_build.check_cuda_graphs = lambda *_: None
    torch.cuda.make_graphed_callables = fake_capture
    config = load_config(path)
    task = build_search(config, build_search_data(config, world), world)
    for _ in range(3):
        task.step(StopSignal())
    return task.state.network.state_dict() | task.state.alphas.state_dict()


def test_ddp_averages_the_gradients_of_replayed_passes(tmp_path):
    changes = {"search__order": "first", "distributed__share_batch_statistics": False}
    tiny_config(tmp_path, **changes)
    plain = run_ranks(_steps_of_rank, 2, write_tiny(tmp_path, **changes))
    replayed = run_ranks(_steps_of_rank, 2, write_tiny(tmp_path, **changes, **GRAPHS))
    for one, other in zip(plain, replayed, strict=True):
        for name, value in one.items():
            assert torch.equal(other[name], value), name


@pytest.mark.slow
def test_a_training_gives_the_same_with_and_without_graphs(tmp_path, captures):
    states = []
    for graphs in (False, True):
        config = tiny_config(tmp_path, **OSNET_TRAINING, training__cuda_graphs=graphs)
        with distributed.setup("cpu") as world:
            task = build_training(config, build_training_data(config, world), world)
        for _ in range(3):
            task.step(StopSignal())
        states.append(task.state.network.state_dict())
        before = task.state.network.training
        retrieval = measure_network(config, task.state.network, task.data, world)
        assert 0 < retrieval.map <= 1, "evaluation is not replayed"
        assert task.state.network.training == before
    assert len(captures) == 1
    for name, value in states[0].items():
        assert torch.equal(states[1][name], value), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training__compile": True}, "cannot be combined with compile"),
        ({"training__accumulation": 2}, "needs accumulation: 1, not 2"),
        ({"search__relaxation": "gumbel_hard"}, "cannot be combined with search.relaxation: gumbel_hard"),
        ({"search__activation_checkpointing": "cell"}, "needs search.activation_checkpointing: none"),
        (OSNET_TRAINING | {"training__frozen_epochs": 1}, "needs frozen_epochs: 0"),
        (
            {"task": "train", "model": {"name": "derived", "options": {"drop_path": 0.2}}},
            "needs model.options.drop_path: 0",
        ),
    ],
)
def test_the_config_refuses_settings_that_cannot_be_captured(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        load_config(write_tiny(tmp_path, **changes, **GRAPHS))


@pytest.mark.parametrize(
    ("device", "ranks", "shared", "message"),
    [
        ("cpu", 1, True, "true needs a GPU; this run computes on cpu"),
        ("cuda", 2, True, "on 2 ranks needs distributed.share_batch_statistics: false"),
        ("cuda", 2, False, None),
        ("cuda", 1, True, None),
    ],
)
def test_unsupported_devices_and_ranks_are_refused(tmp_path, device, ranks, shared, message):
    config = load_config(write_tiny(tmp_path, **GRAPHS, distributed__share_batch_statistics=shared))
    world = World(0, ranks, 0, torch.device(device))
    if message is None:
        check_cuda_graphs(config, world)
        return
    with pytest.raises(ConfigError, match=message):
        check_cuda_graphs(config, world)
