"""Gradient accumulation: the mean gradient of the micro-batches, on any number of ranks, with one graph at a time."""

from __future__ import annotations

import copy
import re
from collections import Counter

import pytest
import torch

from autoreid import distributed, train
from autoreid.data.loaders import Batch
from autoreid.data.training_data import build_search_data
from autoreid.distributed import StopSignal, World
from autoreid.errors import ConfigError
from autoreid.recipes import load_config
from autoreid.search.build import build_search
from autoreid.training.accumulation import Accumulation
from autoreid.training.build import build_accumulation
from tests.helpers.ranks import run_ranks
from tests.helpers.tasks import (
    build_search_task,
    build_training_task,
    count_collectives,
    search_in_float64,
    train_in_float64,
)
from tests.helpers.tiny import OSNET, OSNET_HARD, OSNET_TRAINING, tiny_config, write_tiny
from tests.helpers.tiny_problem import (
    ORDERS,
    Problem,
    direct_term,
    flat,
    numerical_gradient,
    stepped,
    tiny_problem,
)

TWICE = {"training__accumulation": 2}
UNSHARED = {"distributed__share_batch_statistics": False, "losses__mine_across_ranks": False}


def split_by_hand(batch, count, images_per_identity):
    """The expected micro-batches: the g-th identity goes to micro-batch g mod `count`."""
    size = images_per_identity
    groups = torch.arange(len(batch.labels)).split(size)
    rows = [torch.cat(groups[number::count]) for number in range(count)]
    return [Batch(batch.images[some], batch.labels[some], batch.broken) for some in rows]


@pytest.mark.parametrize(("count", "ranks"), [(1, 1), (1, 4), (2, 1), (2, 2), (2, 6), (3, 2), (4, 3), (6, 1)])
def test_micro_batches_of_all_ranks_are_those_of_one_process(count, ranks):
    size, identities = 3, 12
    images = torch.arange(size * identities * 2.0).view(-1, 1, 1, 2)
    batch = Batch(images, torch.arange(size * identities) // size, None)
    accumulation = Accumulation(count, size)
    alone = list(accumulation.micro_batches(batch))
    for found, wanted in zip(alone, split_by_hand(batch, count, size), strict=True):
        assert torch.equal(found.images, wanted.images)
        assert torch.equal(found.labels, wanted.labels)
        assert set(Counter(found.labels.tolist()).values()) == {size}, "whole identities"
    shares = [
        batch._replace(images=images, labels=labels)
        for images, labels in zip(images.chunk(ranks), batch.labels.chunk(ranks), strict=True)
    ]
    if identities // ranks % count:
        return
    for number, together in enumerate(
        zip(*(accumulation.micro_batches(share) for share in shares), strict=True)
    ):
        assert torch.equal(torch.cat([part.labels for part in together]), alone[number].labels)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_micro_batches_keep_the_memory_format_of_the_batch(layout):
    batch = Batch(torch.randn(8, 3, 4, 4).to(memory_format=layout), torch.arange(8), None)
    for micro_batch in Accumulation(2, 2).micro_batches(batch):
        assert micro_batch.images.is_contiguous(memory_format=layout)


class Accumulated(Problem):
    """A problem with the mean loss of the micro-batches, which differs from the batch's because there is a norm."""

    def loss(self, net, batch):
        losses = [Problem.loss(self, net, micro_batch) for micro_batch in split_by_hand(batch, 2, 2)]
        return sum(losses) / len(losses)


def accumulated_problem(steps_before):
    return Accumulated(*tiny_problem(steps_before))._replace(accumulation=Accumulation(2, 2))


@pytest.mark.parametrize("steps_before", [0, 3])
def test_exact_is_the_derivative_of_the_unrolled_mean_loss(steps_before):
    problem = accumulated_problem(steps_before)
    found, expected = problem.gradients("exact"), numerical_gradient(problem)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)
    whole = tiny_problem(steps_before).gradients("exact")
    assert (whole - found).norm() > 1e-2 * found.norm(), "micro-batches make a difference here"


def test_first_order_is_the_mean_of_the_micro_batches_gradients():
    problem = accumulated_problem(2)
    alphas = list(problem.alphas.parameters())
    expected = torch.zeros(())
    for micro_batch in split_by_hand(problem.alpha_batch, 2, 2):
        expected = (
            expected + flat(torch.autograd.grad(Problem.loss(problem, problem.net, micro_batch), alphas)) / 2
        )
    torch.testing.assert_close(problem.gradients("first"), expected, rtol=1e-12, atol=1e-14)


def test_second_order_is_darts_with_the_mean_loss():
    problem = accumulated_problem(2)
    net, alphas = stepped(problem), list(problem.alphas.parameters())
    weights = [weight for weight in net.parameters() if weight.requires_grad]
    direction = torch.autograd.grad(problem.loss(net, problem.alpha_batch), weights)
    epsilon = 0.01 / flat(direction).norm()
    sides = []
    for sign in (1, -1):
        nearby = copy.deepcopy(problem.net)
        moved = [weight for weight in nearby.parameters() if weight.requires_grad]
        with torch.no_grad():
            torch._foreach_add_(moved, [sign * epsilon * move for move in direction])
        sides.append(flat(torch.autograd.grad(problem.loss(nearby, problem.weight_batch), alphas)))
    rate = problem.optimizer.param_groups[0]["lr"]
    expected = direct_term(problem) - rate * (sides[0] - sides[1]) / (2 * epsilon)
    torch.testing.assert_close(problem.gradients("second"), expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("order", ORDERS)
def test_gradients_change_no_state(order):
    problem = accumulated_problem(2)
    before = copy.deepcopy([problem.net.state_dict(), problem.alphas.state_dict()])
    problem.gradients(order)
    torch.testing.assert_close(
        [problem.net.state_dict(), problem.alphas.state_dict()], before, rtol=0, atol=0
    )
    assert all(tensor.grad is None for tensor in [*problem.net.parameters(), *problem.alphas.parameters()])


@pytest.mark.parametrize(
    "changes",
    [OSNET, {"search__level": "single"}, {"search__order": "first"}],
    ids=["osnet_ain", "single", "bilevel"],
)
def test_a_step_of_a_search_has_the_mean_gradient_and_metrics(tmp_path, changes):
    task = build_search_task(tmp_path, **changes, **TWICE, training__gradient_clip=None)
    state, batch = task.state, task.state.stream.preview()
    network, alphas = copy.deepcopy(state.network), copy.deepcopy(state.alphas)
    _, metrics = task.step(StopSignal())
    if state.alpha_stream is not None:
        alphas = state.alphas  # the weights are updated after the alphas
    wanted = torch.zeros(4)
    for micro_batch in split_by_hand(batch, 2, 4):
        mixing = task.relaxation.mixture(alphas, 0, "weights")
        values = task.state.loss(network(micro_batch.images, mixing), micro_batch.labels)
        learned = [weight for weight in network.parameters() if weight.requires_grad]
        (values.total / 2).backward(inputs=[*learned, *alphas_learned_with_weights(alphas, state)])
        wanted += values.metrics() / 2
    torch.testing.assert_close(metrics, wanted)
    pairs = list(zip(network.parameters(), state.network.parameters(), strict=True))
    if state.alpha_stream is None:
        pairs += zip(alphas.parameters(), state.alphas.parameters(), strict=True)
    grads = [(old.grad, new.grad) for old, new in pairs if old.grad is not None]
    assert len(grads) > 10
    for expected, found in grads:
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def alphas_learned_with_weights(alphas, state):
    """The alphas that get their gradient together with the weights."""
    return list(alphas.parameters()) if alphas is not state.alphas else []


def test_a_step_of_a_training_has_the_mean_gradient(tmp_path):
    task = build_training_task(tmp_path, **TWICE, training__gradient_clip=None)
    network, batch = copy.deepcopy(task.state.network), task.state.stream.preview()
    _, metrics = task.step(StopSignal())
    for micro_batch in split_by_hand(batch, 2, 4):
        (task.state.loss(network(micro_batch.images), micro_batch.labels).total / 2).backward()
    for expected, found in zip(network.parameters(), task.state.network.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-3, atol=1e-5)
    assert metrics.isfinite().all()


def assert_all_close(found, expected, tolerance):
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=tolerance, atol=tolerance / 100)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"search__order": "first"},
        {"search__order": "second"},
        {"search__order": "exact"},
        OSNET,
        OSNET_HARD,
    ],
    ids=["first", "second", "exact", "osnet_ain single", "osnet_ain hard, first"],
)
def test_ranks_search_with_micro_batches_as_one_process_does(tmp_path, changes):
    tiny_config(tmp_path, **changes, **TWICE)
    path = write_tiny(tmp_path, **changes, **TWICE)
    ((alphas, weights, losses, _),) = run_ranks(search_in_float64, 1, path)
    results = run_ranks(search_in_float64, 2, path)
    assert len({digest for *_, digest in results}) == 1
    for found in results:
        assert_all_close(found[0], alphas, 1e-6)
        assert_all_close(found[1], weights, 1e-6)
        torch.testing.assert_close(found[2], losses, rtol=1e-6, atol=1e-8)


@pytest.mark.slow
def test_ranks_train_with_micro_batches_as_one_process_does(tmp_path):
    changes = OSNET_TRAINING | TWICE
    tiny_config(tmp_path, **changes)
    path = write_tiny(tmp_path, **changes)
    (alone,) = run_ranks(train_in_float64, 1, path)
    for weights in run_ranks(train_in_float64, 2, path):
        assert_all_close(weights, alone, 1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"search__order": "second"}, {"search__level": "single"}])
def test_micro_batches_are_equivalent_to_ranks_without_shared_statistics(tmp_path, changes):
    """There are as many identities as micro-batches, so that both split the batch in the same way; without triplets."""
    changes = UNSHARED | changes | {"data__batch_size": 8, "losses__classification_weight": 1.0}
    tiny_config(tmp_path, **changes)
    ((alphas, weights, losses, _),) = run_ranks(
        search_in_float64, 1, write_tiny(tmp_path, **changes, **TWICE)
    )
    learned = {
        name: value for name, value in weights.items() if "running" not in name and "num_b" not in name
    }
    for found in run_ranks(search_in_float64, 2, write_tiny(tmp_path, **changes)):
        assert_all_close(found[0], alphas, 1e-6)
        assert_all_close(found[1], learned, 1e-6)
        torch.testing.assert_close(found[2], losses, rtol=1e-6, atol=1e-8)


def test_gradients_are_reduced_once_a_step(tmp_path):
    tiny_config(tmp_path)
    once, twice = (
        run_ranks(
            count_collectives,
            2,
            write_tiny(tmp_path, **UNSHARED, training__accumulation=count, losses__classification_weight=1.0),
        )
        for count in (1, 2)
    )
    assert twice == once


class _Saved:
    """A tensor that autograd has saved. The tracker counts it until it is freed."""

    def __init__(self, tensor, tracker):
        self.tensor, self.tracker = tensor, tracker
        self.key = (tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes())
        tracker.uses[self.key] += 1
        tracker.peak = max(tracker.peak, sum(size for (_, size), uses in tracker.uses.items() if uses))

    def __del__(self):
        self.tracker.uses[self.key] -= 1


class _Tracker:
    def __init__(self):
        self.uses, self.peak = Counter(), 0


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"search__order": "second"}, {"search__level": "single"}])
def test_only_one_micro_batch_is_in_memory_at_a_time(tmp_path, changes):
    peaks = {}
    for count in (1, 2, 4):
        # With four, a micro-batch has one identity and therefore no triplets.
        changes["losses__classification_weight"] = 1.0
        task = build_search_task(tmp_path, **changes, training__accumulation=count)
        weights = {weight.data_ptr() for weight in task.state.network.parameters()}
        tracker = _Tracker()

        def pack(tensor, tracker=tracker, weights=weights):
            return tensor if tensor.data_ptr() in weights else _Saved(tensor, tracker)

        def unpack(saved):
            return saved.tensor if isinstance(saved, _Saved) else saved

        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            task.step(StopSignal())
        peaks[count] = tracker.peak
    assert peaks[2] < 0.6 * peaks[1]
    assert peaks[4] < 0.6 * peaks[2]


def test_identities_that_cannot_be_split_evenly_are_refused(tmp_path, capsys):
    path = write_tiny(tmp_path, losses__classification_weight=1.0)
    assert train.main(["--config", str(path), "training.accumulation=3"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "training.accumulation 3" in line
    assert "data.batch_size 16 must be a multiple of 12, such as 12 or 24" in line
    assert train.main(["--config", str(path), "training.accumulation=0"]) == 2
    assert "training.accumulation" in capsys.readouterr().err

    config = tiny_config(tmp_path, training__accumulation=4, losses__classification_weight=1.0)
    with distributed.setup("cpu") as world:
        build_search(config, build_search_data(config, world), world)
    two = World(0, 2, 0, torch.device("cpu"))
    with pytest.raises(
        ConfigError, match=r"on 2 ranks: data\.batch_size 16 must be a multiple of 32, such as 32$"
    ):
        build_search(config, build_search_data(config, two), two)


@pytest.mark.parametrize(
    ("ranks", "changes", "message"),
    [
        (1, {"training__accumulation": 4}, None),
        (2, {}, None),
        (4, {"losses__mine_across_ranks": True}, None),
        (
            4,
            {"losses__mine_across_ranks": False},
            "each micro-batch of a rank has one identity, so that the triplet",
        ),
        (4, {"losses__mine_across_ranks": False, "losses__classification_weight": 1.0}, None),
        (
            2,
            {"losses__mine_across_ranks": False, "training__accumulation": 2},
            "use losses.mine_across_ranks: true",
        ),
        (
            4,
            {"search__losses": {"classification_weight": 0.0}},
            "use search.losses.mine_across_ranks: true",
        ),
    ],
)
def test_every_share_must_have_negatives(tmp_path, ranks, changes, message):
    """A batch of four identities, on several ranks."""
    if ranks * changes.get("training__accumulation", 1) == 4 and "losses__mine_across_ranks" not in changes:
        changes = {"losses__classification_weight": 1.0} | changes
    config = load_config(write_tiny(tmp_path, **changes))
    world = World(0, ranks, 0, torch.device("cpu"))
    if message is None:
        build_accumulation(config, world)
    else:
        with pytest.raises(ConfigError, match=re.escape(message)):
            build_accumulation(config, world)


@pytest.mark.parametrize(
    ("ranks", "shared", "refused"), [(1, True, True), (2, True, False), (2, False, True)]
)
def test_a_norm_must_not_see_one_image(tmp_path, ranks, shared, refused):
    """Micro-batches of one image on each rank; with shared statistics, two ranks have two."""
    changes = {"data__images_per_identity": 1, "losses__classification_weight": 1.0}
    changes |= {"distributed__share_batch_statistics": shared, "data__batch_size": 4 * ranks}
    config = load_config(write_tiny(tmp_path, **changes, training__accumulation=4))
    world = World(0, ranks, 0, torch.device("cpu"))
    if refused:
        with pytest.raises(ConfigError, match="a batch norm would see one image at a time"):
            build_accumulation(config, world)
    else:
        build_accumulation(config, world)
