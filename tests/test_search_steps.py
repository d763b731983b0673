"""The steps of a search: single-level and bilevel updates of alphas and weights, in both spaces."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from autoreid.distributed import StopSignal
from autoreid.errors import ConfigError
from autoreid.spaces.space import NOTHING
from autoreid.training.measure import measure_network
from tests.helpers.tasks import build_search_task
from tests.helpers.tiny import OSNET


def flat(tensors):
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


SINGLE = [
    OSNET,
    OSNET | {"search__relaxation": "gumbel_hard"},
    {"search__level": "single", "search__relaxation": "gumbel", "search__alpha_optimizer": "sgd"},
]


@pytest.mark.parametrize("changes", SINGLE, ids=["osnet_ain", "osnet_ain hard", "reid_cell"])
def test_single_level_updates_alphas_and_weights_with_the_gradients_of_one_loss(tmp_path, changes):
    task = build_search_task(tmp_path, **changes)
    config, state = task.config, task.state
    batch = state.stream.preview()
    network, alphas = copy.deepcopy(state.network), copy.deepcopy(state.alphas)
    mixing = task.relaxation.mixture(alphas, 0, "weights")
    loss = task.loss(network(batch.images, mixing), batch.labels).total
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    wanted = torch.autograd.grad(loss, [*alphas.parameters(), *weights], allow_unused=True)
    task.step(StopSignal())

    before, after = list(alphas.parameters()), list(state.alphas.parameters())
    for old, new, gradient in zip(before, after, wanted, strict=False):
        # The first step of SGD, without the weight decay of the weights.
        expected = old - config.search.alpha_learning_rate * (
            gradient + config.search.alpha_weight_decay * old
        )
        torch.testing.assert_close(new, expected)
        assert not torch.equal(new, old)
    updated = [weight for weight in state.network.parameters() if weight.requires_grad]
    both = zip(weights, updated, wanted[len(before) :], strict=True)
    rest = [(old, new, gradient) for old, new, gradient in both if gradient is not None]
    norm = flat([gradient for *_, gradient in rest]).norm()
    scale = min(1.0, config.training.gradient_clip / norm.item())
    decay, rate = config.training.weight_decay, config.training.learning_rate
    updates = flat([new - old for old, new, _ in rest])
    expected = flat([-rate * (scale * gradient + decay * old) for old, _, gradient in rest])
    assert (updates - expected).norm() < 1e-3 * expected.norm()


def test_single_level_trains_both_on_all_images(tmp_path):
    task = build_search_task(tmp_path, **OSNET)
    assert task.state.alpha_stream is None
    halved = build_search_task(tmp_path, **OSNET | {"search__level": "bilevel"})
    assert halved.state.alpha_stream is not None
    assert task.state.steps_per_epoch > halved.state.steps_per_epoch
    assert "alpha_stream" not in task.state.state_dict()


def test_the_weight_decay_of_the_weights_is_not_applied_to_the_alphas(tmp_path):
    for level in ("single", "bilevel"):
        changes = OSNET | {"search__level": level, "search__order": "first"}
        task = build_search_task(tmp_path, **changes, training__weight_decay=0.9)
        alphas = {id(alpha) for alpha in task.state.alphas.parameters()}
        groups = task.state.weight_optimizer.param_groups
        assert not alphas & {id(weight) for group in groups for weight in group["params"]}
        assert [group["weight_decay"] for group in task.state.alpha_optimizer.param_groups] == [0.0]


@pytest.mark.parametrize("level", ["single", "bilevel"])
def test_alphas_are_not_updated_during_the_warm_up(tmp_path, level):
    changes = OSNET | {"search__level": level, "search__relaxation": "gumbel_hard"}
    task = build_search_task(tmp_path, **changes, search__warmup_epochs=1)
    alphas, weights = task.state.alphas.digest(), flat(task.state.network.parameters())
    task.step(StopSignal())
    assert task.state.alphas.digest() == alphas
    assert not torch.equal(flat(task.state.network.parameters()), weights)
    task.state.epoch = 1
    task.step(StopSignal())
    assert task.state.alphas.digest() != alphas


def test_sgd_of_the_alphas_follows_the_weights_schedule_and_adam_does_not(tmp_path):
    rates = {}
    for kind in ("sgd", "adam"):
        task = build_search_task(
            tmp_path,
            **OSNET | {"search__alpha_optimizer": kind, "search__alpha_learning_rate": 0.4},
            training__schedule="step",
            training__milestones=[1],
            training__decay=0.5,
            training__learning_rate=0.1,
        )
        task.state.step = task.state.steps_per_epoch
        task.step(StopSignal())
        rates[kind] = task.state.alpha_optimizer.param_groups[0]["lr"]
        assert task.state.weight_optimizer.param_groups[0]["lr"] == pytest.approx(0.05)
    assert rates == pytest.approx({"sgd": 0.2, "adam": 0.4})


@pytest.mark.parametrize("space", ["osnet_ain", "reid_cell"])
def test_hard_weight_steps_compute_and_update_the_sampled_candidates_only(tmp_path, space):
    changes = OSNET | {"search__level": "bilevel"} if space == "osnet_ain" else {}
    task = build_search_task(
        tmp_path, **changes | {"search__relaxation": "gumbel_hard", "search__order": "first"}
    )
    before = {name: weight.detach().clone() for name, weight in task.state.network.named_parameters()}
    statistics = {name: value.clone() for name, value in task.state.network.named_buffers()}
    alphas = copy.deepcopy(task.state.alphas)
    task.step(StopSignal())
    # The step of the alphas is too small to change the sample.
    chosen = task.relaxation.sample(task.state.alphas, 0, "weights", alphas_learn=False)
    updated = {
        name
        for name, weight in task.state.network.named_parameters()
        if not torch.equal(weight, before[name])
    }
    normalised = {
        name
        for name, value in task.state.network.named_buffers()
        if name.endswith("running_mean") and not torch.equal(value, statistics[name])
    }
    for names in (updated, normalised):
        seen = task.space.inherited({name: torch.zeros(()) for name in names}, _all_chosen(task, chosen))
        assert names
        if space == "osnet_ain":
            assert len(seen) == len(names), "nothing else has been updated"
    assert task.state.alphas.digest() != alphas.digest()


def _all_chosen(task, columns):
    hot = {name: torch.eye(group.shape[1])[columns[name]] for name, group in task.space.choices().items()}
    return task.space.genotype(hot)


def test_the_most_probable_network_is_measured_after_an_epoch(tmp_path):
    task = build_search_task(tmp_path, **OSNET)
    with torch.no_grad():
        task.state.alphas.groups["blocks"][:, 2] += 1.0
    task.state.step = task.state.steps_per_epoch
    result = task.end_epoch(StopSignal())
    assert result.genotype.blocks == ("in_after",) * 6
    assert result.metrics["blocks/in_share"] == pytest.approx((2 + 2.718) / (3 + 2.718), abs=1e-3)
    assert result.metrics["blocks/entropy"] < 1.386
    inputs = task.relaxation.evaluation(task.state.alphas)
    again = measure_network(task.config, task.state.network, task.data, task.world, inputs)
    assert again.map == result.retrieval.map
    images = task.state.stream.preview().images
    network = task.state.network.eval()
    with torch.no_grad():
        embeddings = [network(images, *task.relaxation.evaluation(task.state.alphas)) for _ in range(2)]
    assert torch.equal(*embeddings), "no noise in evaluation"


@pytest.mark.parametrize("level", ["bilevel", "single"])
@pytest.mark.parametrize("empty", [["normal"], ["normal", "reduce"]])
def test_alphas_that_a_sample_leaves_out_have_a_gradient_of_zero(tmp_path, monkeypatch, level, empty):
    """GDAS may sample `none` on every edge of a kind of cell, or of all cells."""
    changes = {"search__relaxation": "gdas", "search__order": "first", "search__level": level}
    task = build_search_task(tmp_path, **changes, search__alpha_weight_decay=0.0)
    path = task.space.path(task.space.random_genotype(np.random.default_rng(0)))
    path |= {name: [NOTHING] * len(path[name]) for name in empty}
    monkeypatch.setattr(type(task.relaxation), "sample", lambda *_, **__: path)
    before = {name: alpha.detach().clone() for name, alpha in task.state.alphas.groups.items()}
    task.step(StopSignal())
    for name, alpha in task.state.alphas.groups.items():
        assert torch.equal(alpha, before[name]) == (name in empty), name


def test_a_search_names_the_settings_that_have_no_effect(tmp_path, caplog):
    build_search_task(tmp_path, search__temperature={"start": 5.0}, search__one_shot={"population": 4})
    lines = [record.message for record in caplog.records if "no effect" in record.message]
    assert lines == [
        "search.temperature has no effect with search.relaxation: softmax",
        "search.one_shot has no effect with search.read_out: argmax",
    ]
    caplog.clear()
    build_search_task(tmp_path, **OSNET)
    assert "no effect" not in caplog.text


def test_an_unknown_term_of_the_alphas_loss_is_named_by_its_key(tmp_path):
    losses = {"classification_weight": 0.0, "terms": {"sprad": 1.0}}
    with pytest.raises(ConfigError, match=r"search\.losses\.terms: unknown term 'sprad'"):
        build_search_task(tmp_path, search__losses=losses)
