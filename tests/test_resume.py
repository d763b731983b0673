"""A search that is killed, stopped or moved to other ranks ends where an undisturbed one ends."""

import math
import signal

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.helpers.runs import (
    assert_equal,
    restarts,
    run_processes,
    run_train,
    run_train_with_signal,
    search_outcome,
)
from tests.helpers.tiny import OSNET, write_tiny

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("undisturbed")
    assert run_processes(run_train, write_tiny(folder)) == [0]
    return search_outcome(folder)


@pytest.mark.parametrize(("step", "every_steps"), [(1, 1), (3, 500), (4, 2), (5, 500), (6, 1)])
def test_killed_in_any_step_it_ends_bit_for_bit_the_same(tmp_path, undisturbed, step, every_steps):
    path = write_tiny(tmp_path, checkpoint__every_steps=every_steps)
    assert run_processes(run_train_with_signal, path, step, signal.SIGKILL, 0) == [-signal.SIGKILL]
    assert run_processes(run_train, path) == [0]
    assert restarts(tmp_path) == (1 if step > every_steps or step > 3 else 0)
    assert_equal(search_outcome(tmp_path), undisturbed)


def test_with_partial_channels_and_micro_batches_it_ends_the_same(tmp_path):
    """Killed in the second epoch, after one in which the alphas wait; edges' weights are in every curve."""
    calm, struck = tmp_path / "calm", tmp_path / "struck"
    changes = {
        "search__reid_cell__channels": 4,
        "search__reid_cell__partial_channels": 4,
        "search__warmup_epochs": 1,
    }
    changes["training__accumulation"] = 2
    for folder in (calm, struck):
        folder.mkdir()
    assert run_processes(run_train, write_tiny(calm, **changes)) == [0]
    path = write_tiny(struck, **changes, checkpoint__every_steps=1)
    assert run_processes(run_train_with_signal, path, 5, signal.SIGKILL, 0) == [-signal.SIGKILL]
    assert run_processes(run_train, path) == [0]
    assert restarts(struck) == 1
    expected = search_outcome(calm)
    assert_equal(search_outcome(struck), expected)
    betas = [f"groups.{kind}_node{node}" for kind in ("normal", "reduce") for node in (0, 1)]
    assert {*betas} < expected["checkpoint"]["alphas"].keys()
    last = expected["metrics"][-1]
    assert all(0 < last[f"{kind}_edges/entropy"] < math.log(6) / 2 for kind in ("normal", "reduce"))
    events = EventAccumulator(str(struck / "runs/tiny/tensorboard")).Reload()
    shown = [
        events.Scalars(f"alphas_normal_edges/node1/{source}")[-1].value
        for source in ("c_k-2", "c_k-1", "node0")
    ]
    assert sum(shown) == pytest.approx(1, abs=1e-5)
    for epoch in (1, 2):
        for kind in ("normal", "reduce"):
            assert (struck / f"genotypes/tiny/EP{epoch:02d}-{kind}.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_a_stop_signal_saves_the_step_and_leaves_with_status_0(tmp_path, undisturbed, number):
    path = write_tiny(tmp_path)
    assert run_processes(run_train_with_signal, path, 2, number, 0) == [0]
    checkpoints = tmp_path / "runs" / "tiny" / "checkpoints"
    assert [file.name for file in checkpoints.iterdir()] == ["step-00000002.pt"], "no step is lost"
    assert not (tmp_path / "runs" / "tiny" / "result.json").exists()
    assert run_processes(run_train, path) == [0]
    assert restarts(tmp_path) == 1
    assert_equal(search_outcome(tmp_path), undisturbed)


@pytest.mark.parametrize(
    # Killed in the second epoch. Three ranks add their gradients in an order that matters.
    ("changes", "ranks", "killed", "steps"),
    [
        ({"data__batch_size": 12}, 3, 5, 8),
        (OSNET | {"data__synthetic__people__train_identities": 8}, 2, 5, 6),
    ],
    ids=["reid_cell", "osnet_ain"],
)
def test_ranks_stop_and_die_together_and_end_the_same(tmp_path, changes, ranks, killed, steps):
    calm, stopped = tmp_path / "calm", tmp_path / "stopped"
    for folder in (calm, stopped):
        folder.mkdir()
    assert run_processes(run_train, write_tiny(calm, **changes), ranks=ranks) == [0] * ranks
    path = write_tiny(stopped, **changes)
    # The signal reaches one rank; all leave.
    assert run_processes(run_train_with_signal, path, 2, signal.SIGUSR2, 1, ranks=ranks) == [0] * ranks
    # A rank that is killed takes the others with it, which say why.
    left = run_processes(run_train_with_signal, path, killed, signal.SIGKILL, 1, ranks=ranks)
    assert left == [1, -signal.SIGKILL, 1][:ranks]
    assert run_processes(run_train, path, ranks=ranks) == [0] * ranks
    found, expected = search_outcome(stopped, steps), search_outcome(calm, steps)
    # The mean of the losses of an epoch that was cut in two is summed in another order.
    for one, other in zip(found.pop("metrics"), expected.pop("metrics"), strict=True):
        assert one == pytest.approx(other, rel=1e-6)
    assert_equal(found, expected)


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_it_goes_on_with_another_number_of_ranks(tmp_path, before, after):
    calm, moved = tmp_path / "calm", tmp_path / "moved"
    for folder in (calm, moved):
        folder.mkdir()
    assert run_processes(run_train, write_tiny(calm), float64=True) == [0]
    path = write_tiny(moved)
    assert (
        run_processes(run_train_with_signal, path, 2, signal.SIGTERM, 0, ranks=before, float64=True)
        == [0] * before
    )
    assert run_processes(run_train, path, ranks=after, float64=True) == [0] * after
    found, expected = search_outcome(moved), search_outcome(calm)
    for name, value in expected["checkpoint"]["alphas"].items():
        torch.testing.assert_close(found["checkpoint"]["alphas"][name], value, rtol=1e-8, atol=1e-10)
    assert found["genotypes"] == expected["genotypes"]
    assert found["result"]["map"] == pytest.approx(expected["result"]["map"], abs=1e-9)
