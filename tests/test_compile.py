"""training.compile: a compiled network takes the same steps, on one rank and on two, and after a kill.

torch's tracing and its derivation of the backward pass are run for real; the kernels that inductor makes of them,
whose compilation takes minutes on CPUs, in one small test.
"""

from __future__ import annotations

import copy
import signal

import pytest
import torch

from autoreid.distributed import StopSignal
from autoreid.errors import ConfigError
from autoreid.recipes import load_config
from autoreid.spaces.reid_cell.cells import SearchCell, count_edges
from autoreid.training.build import place_network
from autoreid.training.memory import log_memory
from tests.helpers.float64 import compute_in_float64
from tests.helpers.image_folder import ALONE
from tests.helpers.ranks import run_ranks
from tests.helpers.runs import (
    assert_equal,
    restarts,
    run_processes,
    run_train,
    run_train_with_signal,
    search_outcome,
)
from tests.helpers.tasks import search_task_of
from tests.helpers.tiny import tiny_config, write_tiny

pytestmark = pytest.mark.slow

COMPILED = {"training__compile": True}
FEW = {"search__reid_cell__operations": ["none", "sep_conv_3x3", "part_aware"]}
#: Traced in a third of the time.
LIGHT = {"search__reid_cell__operations": ["skip_connect", "avg_pool_3x3"]}


def _without_inductor() -> None:
    torch.compiler.set_stance(force_backend="aot_eager")


def _steps(world, path):
    """What two steps make of the weights and the alphas, and how many graphs were compiled for them."""
    _without_inductor()
    compute_in_float64()
    task = search_task_of(path, world)
    log_memory(task, task.config, world)
    for _ in range(2):
        task.step(StopSignal())
    task.end_epoch(StopSignal())
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    return task.state.network.state_dict() | task.state.alphas.state_dict(), graphs


@pytest.mark.parametrize(
    ("changes", "ranks", "wanted"),
    [
        (LIGHT | {"distributed__share_batch_statistics": False}, 2, 2),
        (FEW | {"search__order": "exact", "training__accumulation": 2}, 1, 1),
        (FEW | {"search__order": "first"}, 1, 2),
    ],
    ids=["first order on two ranks", "second order", "first order"],
)
def test_steps_are_those_of_the_network_as_it_is(tmp_path, changes, ranks, wanted):
    tiny_config(tmp_path, **changes)
    plain = run_ranks(_steps, ranks, write_tiny(tmp_path, **changes))
    compiled = run_ranks(_steps, ranks, write_tiny(tmp_path, **changes, **COMPILED))
    for (found, graphs), (expected, none) in zip(compiled, plain, strict=True):
        assert none == 0
        assert graphs == wanted, "the whole network is one graph for each level that is compiled"
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-9, msg=name)


def _train(path):
    _without_inductor()
    run_train(path)


def _die(path, step):
    _without_inductor()
    run_train_with_signal(path, step, signal.SIGKILL, 0)


def test_killed_it_ends_bit_for_bit_the_same(tmp_path):
    calm, struck = tmp_path / "calm", tmp_path / "struck"
    for folder in (calm, struck):
        folder.mkdir()
    changes = LIGHT | COMPILED | {"search__level": "single"}
    assert run_processes(_train, write_tiny(calm, **changes)) == [0]
    path = write_tiny(struck, **changes, checkpoint__every_steps=1)
    assert run_processes(_die, path, 5) == [-signal.SIGKILL]
    assert run_processes(_train, path) == [0]
    assert restarts(struck) == 1
    found, expected = (search_outcome(folder, steps=10) for folder in (struck, calm))
    assert_equal(found, expected)


def test_by_inductor(tmp_path):
    """The kernels that inductor makes of a cell compute the same; few, for each takes seconds to compile."""
    torch.manual_seed(0)
    cell = SearchCell(["avg_pool_3x3"], 2, 2, (6, 6), 4, reduction=False, after_reduction=False)
    images = [torch.randn(4, 6, 8, 4, requires_grad=True) for _ in range(2)]
    mixing = torch.rand(count_edges(2), 1, requires_grad=True)
    found = []
    for compiled in (False, True):
        config = load_config(write_tiny(tmp_path, training__compile=compiled))
        network = place_network(copy.deepcopy(cell), config, ALONE)
        outputs = network(*images, mixing)
        gradients = torch.autograd.grad(outputs.sin().sum(), [*images, mixing, *network.parameters()])
        found.append([outputs, *gradients, *network.buffers()])
    assert torch._dynamo.utils.counters["inductor"], "inductor has compiled"
    for expected, value in zip(*found, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"search__relaxation": "gumbel_hard"}, "cannot be combined with search.relaxation: gumbel_hard"),
        ({"search__activation_checkpointing": "cell"}, "needs search.activation_checkpointing: none"),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        load_config(write_tiny(tmp_path, **changes, **COMPILED))


def test_statistics_over_ranks_are_refused(tmp_path):
    tiny_config(tmp_path)
    path = write_tiny(tmp_path, **COMPILED)
    for error in run_ranks(_steps, 2, path, raises=False):
        assert isinstance(error, ConfigError)
        assert "needs distributed.share_batch_statistics: false" in str(error)
