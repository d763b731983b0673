"""Searches whose alphas see other cameras, identities or domains than the weights."""

from __future__ import annotations

import copy
import signal

import numpy as np
import pytest
import torch

from autoreid.data.training_data import build_search_data
from autoreid.distributed import StopSignal, World, average_and_agree
from autoreid.errors import ConfigError
from autoreid.layers.batch_norm import running_statistics
from autoreid.search.domains import domain_gains
from tests.helpers.float64 import compute_in_float64
from tests.helpers.ranks import run_ranks
from tests.helpers.runs import (
    assert_equal,
    restarts,
    run_processes,
    run_train,
    run_train_with_signal,
    search_outcome,
)
from tests.helpers.tasks import build_search_task, search_task_of
from tests.helpers.tiny import OSNET_HARD, TINY, tiny_config, write_tiny
from tests.helpers.tiny_problem import flat, stepped, tiny_problem

#: The alphas learn from the triplet loss alone.
TRIPLET = {"search__losses": {"classification_weight": 0.0, "mine_across_ranks": True}}
_PEOPLE = TINY["data"]["synthetic"]["people"]
#: Three domains of different sizes.
DOMAINS = TRIPLET | {
    "search__alphas_see": "domains",
    "data__sources": ["a", "b", "c"],
    "data__synthetic": {
        name: _PEOPLE | {"domain": number, "train_identities": 6 + number, "images_per_identity": 8 + number}
        for number, name in enumerate("abc")
    },
}
IDENTITIES = TRIPLET | {
    "search__alphas_see": "identities",
    "data__synthetic__people__train_identities": 20,
}
CAMERAS = {"search__alphas_see": "cameras"}
NUMBERS = {"domains": DOMAINS, "identities": IDENTITIES, "cameras": CAMERAS}


def run_steps(task, steps):
    for _ in range(steps):
        task.step(StopSignal())
    return task


@torch.no_grad()
def evaluated(supernet, images, mixing):
    """The embedding before the neck, of a copy in evaluation mode."""
    copied, seen = copy.deepcopy(supernet).eval(), []
    if hasattr(copied, "neck"):
        copied.neck.norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    embedding = copied(images, mixing)
    return seen[0] if seen else embedding


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"search__activation_checkpointing": "cell"},
        {"search__reid_cell__partial_channels": 2, "distributed__share_batch_statistics": False},
        OSNET_HARD,
        OSNET_HARD | {"distributed__share_batch_statistics": False},
    ],
    ids=["reid_cell", "recomputed", "partial", "osnet_ain", "osnet_ain alone"],
)
def test_running_statistics_are_those_of_evaluation(tmp_path, changes):
    task = run_steps(build_search_task(tmp_path, **changes), 2)
    supernet, images = task.state.network, task.state.stream.preview().images
    with torch.no_grad():
        mixing = task.relaxation.probabilities(task.state.alphas)
        before = copy.deepcopy(supernet.state_dict())
        with running_statistics(supernet):
            embedding, logits = supernet(images, mixing)
        assert all(module.training for module in supernet.modules())
        assert_equal(dict(supernet.state_dict()), dict(before))
        expected = evaluated(supernet, images, mixing)
        by_batch, _ = supernet(images, mixing)
    assert torch.equal(embedding, expected)
    assert logits.shape == (len(images), task.data.num_identities)
    assert not torch.allclose(embedding, by_batch, rtol=1e-2), "batch statistics give something else"


def loss_by_running_statistics(problem, net):
    for buffer, own in zip(net.buffers(), problem.net.buffers(), strict=True):
        buffer.copy_(own)  # as they were before the step
    net.norm.eval()
    return problem.loss(net, problem.alpha_batch).item()


@pytest.mark.parametrize("order", ["first", "second", "exact"])
def test_the_gradient_is_that_of_a_loss_by_running_statistics(order):
    problem = tiny_problem(steps_before=3)
    architect = problem.architect(order)
    architect.by_running_statistics = True
    found = flat(architect.gradients(problem.alpha_batch, problem.weight_batch, step=3).values)
    assert problem.net.norm.training
    expected = []
    for alpha in problem.alphas.parameters():
        for index in range(alpha.numel()):
            values = []
            for sign in (1, -1):
                with torch.no_grad():
                    alpha.view(-1)[index] += sign * 1e-5
                net = copy.deepcopy(problem.net) if order == "first" else stepped(problem)
                with torch.no_grad():
                    values.append(loss_by_running_statistics(problem, net))
                    alpha.view(-1)[index] -= sign * 1e-5
            expected.append((values[0] - values[1]) / 2e-5)
    tolerance = 1e-3 if order == "second" else 1e-6
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=tolerance, atol=1e-7)
    assert not torch.allclose(found, problem.gradients(order), rtol=1e-2), "batch statistics give another one"


def domains_in(stream, batch):
    """Domains of a batch, read off the paths of all images with its labels."""
    paths = [stream.split.paths[stream._batches.labels == label] for label in set(batch.labels.tolist())]
    return {str(path).split("/")[-3] for some in paths for path in some}


@pytest.mark.slow
def test_domains_are_left_out_in_turn(tmp_path, monkeypatch):
    task = build_search_task(tmp_path, **DOMAINS, training__epochs=4)
    state, seen = task.state, []
    original = type(task)._next

    def recorded(self, stream):
        batch = original(self, stream)
        seen.append((state.epoch, stream is state.stream, domains_in(stream, batch)))
        return batch

    monkeypatch.setattr(type(task), "_next", recorded)
    for epoch in range(4):
        run_steps(task, state.steps_per_epoch)
        assert state.stream.sampler.epoch == state.alpha_stream.sampler.epoch == epoch + 1
        task.end_epoch(StopSignal())
    assert len(seen) == 2 * 4 * state.steps_per_epoch
    for epoch, of_weights, domains in seen:
        own = "abc"[epoch % 3]
        assert own not in domains if of_weights else domains == {own}
    assert "images: " in task.data.summary


@pytest.mark.slow
def test_the_gain_is_how_much_the_alphas_loss_has_fallen(tmp_path):
    task = run_steps(build_search_task(tmp_path, **DOMAINS), 1)
    state, architect = task.state, task.architect
    run_steps(task, state.steps_per_epoch - 1)
    before = copy.deepcopy(state.alphas_before)

    def mean_loss(alphas, epoch):
        losses = []
        for batch in state.alpha_stream.first_batches(epoch, 4):
            embedding = evaluated(state.network, batch.images, task.relaxation.probabilities(alphas))
            losses.append(
                architect.alpha_loss((embedding, torch.zeros(len(embedding), 1)), batch.labels).total
            )
        return torch.stack(losses).mean().item()

    metrics = task.end_epoch(StopSignal()).metrics
    for name, epoch in (("left_out_gain", 3), ("seen_gain", 1)):
        expected = mean_loss(before, epoch) - mean_loss(state.alphas, epoch)
        assert metrics[name] == pytest.approx(expected, abs=1e-6)
        assert metrics[name] != 0
    assert metrics["left_out_gain"] != metrics["seen_gain"]
    assert_equal(dict(state.alphas_before.state_dict()), dict(state.alphas.state_dict()))
    assert {
        domain
        for batch in state.alpha_stream.first_batches(3, 4)
        for domain in domains_in(state.stream, batch)
    } == {"a"}, "the domain that the first epoch has left out"


@pytest.mark.slow
def test_domains_with_sampled_candidates(tmp_path):
    task = build_search_task(tmp_path, **OSNET_HARD | DOMAINS)
    before = task.state.alphas.digest()
    run_steps(task, task.state.steps_per_epoch)
    metrics = task.end_epoch(StopSignal()).metrics
    assert task.state.alphas.digest() != before
    assert np.isfinite([metrics["left_out_gain"], metrics["seen_gain"]]).all()


def test_alphas_that_have_not_moved_gain_nothing(tmp_path):
    task = build_search_task(tmp_path, **DOMAINS, search__warmup_epochs=1)
    state = task.state
    run_steps(task, state.steps_per_epoch)
    same = domain_gains(task.architect, state.alphas_before, state.alpha_stream, 3, torch.channels_last)
    assert same == {"left_out_gain": 0.0, "seen_gain": 0.0}
    assert "seen_gain" not in task.end_epoch(StopSignal()).metrics, "the warm-up has no gain"


def test_identities_of_the_alphas_are_unknown_to_the_classifier(tmp_path):
    task = build_search_task(tmp_path, **IDENTITIES)
    state = task.state
    weights, alphas = (set(stream.split.identities.tolist()) for stream in (state.stream, state.alpha_stream))
    # 20 identities less a fifth that is held out.
    assert (len(weights), len(alphas), len(weights & alphas)) == (10, 13, 7)
    assert task.data.num_identities == state.network.neck.classifier.out_features == 10
    labels = {
        number: {
            int(identity): int(label)
            for identity, label in zip(stream.split.identities, stream._batches.labels, strict=True)
        }
        for number, stream in enumerate((state.stream, state.alpha_stream))
    }
    assert sorted(labels[0].values()) == list(range(10))
    assert all(labels[1][identity] == labels[0][identity] for identity in weights & alphas)
    assert min(labels[1][identity] for identity in alphas - weights) >= 10
    assert "10 identities for the weights, 13 for the alphas, 7 of them in both" in task.data.summary
    run_steps(task, 1)


def test_cameras_are_on_one_side_each(tmp_path):
    task = build_search_task(tmp_path, **CAMERAS)
    streams = (task.state.stream, task.state.alpha_stream)
    views = [set(zip(s.split.identities.tolist(), s.split.cameras.tolist(), strict=True)) for s in streams]
    assert not views[0] & views[1]
    assert "by other cameras (0 identities cannot be divided" in task.data.summary


@pytest.mark.parametrize("see", NUMBERS)
def test_ranks_share_the_images_of_one_process(tmp_path, see):
    config = tiny_config(tmp_path, **NUMBERS[see])
    worlds = [World(rank, size, rank, torch.device("cpu")) for rank, size in ((0, 1), (0, 2), (1, 2))]
    found = [build_search_data(config, world) for world in worlds]
    for level in ("stream", "alpha_stream"):
        alone, *ranks = (getattr(data, level) for data in found)
        for _ in range(alone.batches_per_epoch + 1):
            whole, shares = next(alone), [next(stream) for stream in ranks]
            assert torch.equal(torch.cat([share.images for share in shares]), whole.images)
            assert torch.equal(torch.cat([share.labels for share in shares]), whole.labels)
        assert all(len(stream.sampler) == len(alone.sampler) for stream in ranks)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (CAMERAS | {"search__level": "single"}, r"search\.alphas_see: cameras needs level: bilevel"),
        (TRIPLET | {"search__level": "single"}, r"search\.losses: need level: bilevel"),
        (
            DOMAINS | {"search__losses": None},
            r"search\.alphas_see: domains needs search\.losses\.classification_weight: 0, not 0\.5",
        ),
        (
            IDENTITIES | {"search__losses__classification_weight": 0.25},
            r"search\.alphas_see: identities needs search\.losses\.classification_weight: 0, not 0\.25",
        ),
        (
            TRIPLET | {"search__alphas_see": "domains"},
            r"search\.alphas_see: domains needs two or more data\.sources, not people alone",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message) as caught:
        tiny_config(tmp_path, **changes)
    assert "\n" not in str(caught.value)


def _epoch_in_float64(world, path):
    """Alphas, weights, and gains of an epoch and a step."""
    compute_in_float64()
    task = search_task_of(path, world)
    losses = []
    for _ in range(task.state.steps_per_epoch):
        _, metrics = task.step(StopSignal())
        losses.append(average_and_agree([metrics.double()])[0][0])
    epoch = task.end_epoch(StopSignal()).metrics
    task.step(StopSignal())
    gains = [value for name, value in epoch.items() if name.endswith("_gain")]
    alphas = {name: value.detach() for name, value in task.state.alphas.named_parameters()}
    losses.append(torch.tensor(gains, dtype=torch.float64))
    return alphas, dict(task.state.network.state_dict()), losses, task.state.alphas.digest()


@pytest.mark.slow
@pytest.mark.parametrize("see", ["domains", "identities"])
def test_two_ranks_compute_what_one_process_computes(tmp_path, see):
    changes = NUMBERS[see]
    path = write_tiny(tmp_path, **changes)
    tiny_config(tmp_path, **changes)
    (alone,) = run_ranks(_epoch_in_float64, 1, path)
    results = run_ranks(_epoch_in_float64, 2, path)
    assert len({digest for *_, digest in results}) == 1
    assert len(alone[2][-1]) == (2 if see == "domains" else 0)
    for found in results:
        for mine, theirs in zip(found[:3], alone[:3], strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("see", "order"), [("domains", "first"), ("domains", "second"), ("identities", "first")]
)
def test_killed_in_the_middle_of_an_epoch_it_ends_the_same(tmp_path, see, order):
    calm, struck = tmp_path / "calm", tmp_path / "struck"
    changes = NUMBERS[see] | {"search__order": order}
    for folder in (calm, struck):
        folder.mkdir()
    assert run_processes(run_train, write_tiny(calm, **changes)) == [0]
    saved = (calm / "runs/tiny/checkpoints").glob("step-*.pt")
    steps = max(int(path.stem.removeprefix("step-")) for path in saved)
    path = write_tiny(struck, **changes, checkpoint__every_steps=1)
    killed = steps // 2 + 2
    assert run_processes(run_train_with_signal, path, killed, signal.SIGKILL, 0) == [-signal.SIGKILL]
    assert run_processes(run_train, path) == [0]
    assert restarts(struck) == 1
    expected = search_outcome(calm, steps)
    assert_equal(search_outcome(struck, steps), expected)
    if see == "domains":
        assert all(np.isfinite(epoch["seen_gain"]) for epoch in expected["metrics"])
