"""DESIGN's distribution rules on real processes: many ranks compute what one computes, and decide alike."""

import re
from collections import Counter

import pytest
import torch
from torch import distributed as dist

from autoreid import distributed
from autoreid.distributed import StopSignal
from autoreid.errors import DataError, RunError
from tests.helpers.ranks import run_ranks
from tests.helpers.tasks import count_collectives, search_in_float64, search_task_of
from tests.helpers.tiny import MSINET, OSNET, tiny_config, write_tiny


@pytest.mark.parametrize("order", ["first", "second", "exact"])
def test_ranks_compute_what_one_process_computes(tmp_path, order):
    path = write_tiny(tmp_path, search__order=order)
    tiny_config(tmp_path, search__order=order)
    (alone,) = run_ranks(search_in_float64, 1, path)
    for ranks in (2, 4) if order == "first" else (2,):
        results = run_ranks(search_in_float64, ranks, path)
        assert len({digest for *_, digest in results}) == 1, "rule 1: bit-equal alphas on every rank"
        # Finite differences divide rounding by a small step.
        tolerance = {"rtol": 1e-6, "atol": 1e-8} if order == "second" else {"rtol": 1e-9, "atol": 1e-11}
        for alphas, weights, losses, _ in results:
            for name, value in alphas.items():
                torch.testing.assert_close(value, alone[0][name], **tolerance)
            for name, value in weights.items():
                torch.testing.assert_close(value, alone[1][name], **tolerance)
            torch.testing.assert_close(losses, alone[2], **tolerance)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        OSNET,
        OSNET | {"search__level": "bilevel", "search__order": "first", "search__relaxation": "gumbel_hard"},
        MSINET,
        # Of seed 0, a triplet's margin is met by a rounding error.
        {"search__relaxation": "gumbel_hard", "search__temperature": {"schedule": "linear"}, "seed": 1},
        {"search__relaxation": "gumbel", "search__order": "exact"},
        {"search__level": "single"},
        {"search__reid_cell__partial_channels": 2, "search__order": "exact"},
    ],
    ids=[
        "osnet_ain",
        "osnet_ain hard bilevel",
        "msinet",
        "reid_cell hard",
        "reid_cell gumbel exact",
        "reid_cell single",
        "reid_cell partial exact",
    ],
)
def test_so_they_do_in_any_space_with_any_relaxation_and_level(tmp_path, changes):
    path = write_tiny(tmp_path, **changes)
    tiny_config(tmp_path, **changes)
    (alone,) = run_ranks(search_in_float64, 1, path)
    results = run_ranks(search_in_float64, 2, path)
    assert len({digest for *_, digest in results}) == 1
    for alphas, weights, losses, _ in results:
        for name, value in alphas.items():
            torch.testing.assert_close(value, alone[0][name], rtol=1e-7, atol=1e-10)
        for name, value in weights.items():
            torch.testing.assert_close(value, alone[1][name], rtol=1e-7, atol=1e-10)
        torch.testing.assert_close(losses, alone[2], rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("warmup", [0, 1])
def test_alphas_move_after_the_warm_up_only(tmp_path, warmup):
    tiny_config(tmp_path, search__warmup_epochs=warmup)
    with distributed.setup("cpu") as world:
        task = search_task_of(tmp_path / "tiny.yaml", world)
        start = task.state.alphas.digest()
        task.step(StopSignal())
    assert (task.state.alphas.digest() == start) == bool(warmup)


def test_a_first_order_step_makes_one_all_reduce_beside_the_buckets(tmp_path):
    changes = {"distributed__share_batch_statistics": False, "losses__mine_across_ranks": False}
    tiny_config(tmp_path)
    for calls, tensors in run_ranks(count_collectives, 2, write_tiny(tmp_path, **changes)):
        # DDP's hook makes its all-reduces through the same function.
        assert calls["all_reduce"] - calls["buckets"] == 2, "one a step, for two steps"
        assert calls["others"] == 0
        assert 2 <= calls["buckets"] <= 4 < tensors


def _count_all(world, path):
    task = search_task_of(path, world)
    calls = Counter()
    for name in ("all_reduce", "all_gather"):
        original = getattr(dist, name)

        def counted(*arguments, name=name, original=original, **options):
            calls[name] += 1
            return original(*arguments, **options)

        setattr(dist, name, counted)
    task.step(StopSignal())
    return calls


@pytest.mark.parametrize(("order", "passes"), [("first", 2), ("second", 5)])
def test_shared_statistics_take_a_collective_for_each_level_of_a_cell(tmp_path, order, passes):
    changes = {"losses__mine_across_ranks": False, "search__order": order, "search__reid_cell__nodes": 3}
    tiny_config(tmp_path, **changes)
    # A cell's inputs; then the norms halfway and at the end, for both inputs and for each node that feeds another.
    levels = 2 * (1 + 2 * 3) + len(["stem", "neck"])
    for calls in run_ranks(_count_all, 2, write_tiny(tmp_path, **changes)):
        assert calls["all_gather"] == passes * levels
        # Besides: the alphas' gradient and, in second order, the two of the weights. What lies before the first
        # mixture needs no gradient where only the alphas do.
        assert calls["all_reduce"] <= passes * levels + (1 if order == "first" else 3)


def _fail(world, path, how):
    task = search_task_of(path, world)
    task.step(StopSignal())
    stream = task.state.stream if "weight" in how else task.state.alpha_stream
    stream_type = type(stream)
    original = stream_type.__next__

    def spoiled(self):
        batch = original(self)
        if world.rank == 1 and self is stream:
            if "nan" in how:
                batch.images[0, 0, 0, 0] = torch.nan
            else:
                batch = batch._replace(broken="people/0001_c1.jpg: cannot read this image: truncated")
        return batch

    stream_type.__next__ = spoiled
    task.step(StopSignal())


@pytest.mark.parametrize(
    ("how", "kind", "message"),
    [
        ("nan in weight images", RunError, r"step 2: the gradient of stem\.0\.weight is not finite"),
        ("nan in alpha images", RunError, r"step 2: the gradient of alphas\.groups\.normal is not finite"),
        ("broken image for alphas", DataError, r"people/0001_c1\.jpg: cannot read this image"),
    ],
)
def test_trouble_on_one_rank_stops_all_with_the_same_words(tmp_path, how, kind, message):
    changes = {"distributed__share_batch_statistics": False, "losses__mine_across_ranks": False}
    tiny_config(tmp_path)
    errors = run_ranks(_fail, 2, write_tiny(tmp_path, **changes), how, raises=False)
    for error in errors:
        assert isinstance(error, kind)
        assert re.search(message, str(error)), error


def _stop(world, path):
    task = search_task_of(path, world)
    stop = StopSignal()
    stopped = [task.step(stop)[0]]
    if world.rank == 1:
        stop.received = "SIGUSR2"
    stopped.append(task.step(stop)[0])
    return stopped, task.state.step


def test_a_stop_signal_on_one_rank_is_agreed_on(tmp_path):
    tiny_config(tmp_path)
    assert run_ranks(_stop, 2, write_tiny(tmp_path)) == [([False, True], 2)] * 2


def _disagree(world, path):
    task = search_task_of(path, world)
    with torch.no_grad():
        task.state.alphas.groups["normal"][0, 0] += 1e-6 * world.rank
    for _ in range(2):
        task.step(StopSignal())


def test_alphas_that_differ_in_one_bit_stop_the_run_within_the_interval(tmp_path):
    tiny_config(tmp_path)
    errors = run_ranks(_disagree, 2, write_tiny(tmp_path, distributed__digest_every_steps=2), raises=False)
    assert {str(error).partition(":")[0] for error in errors} == {"step 2"}
    assert all(error.exit_status == 3 for error in errors)
