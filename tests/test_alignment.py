"""Spatial alignment: its definition, its attention's training, ranks, and what it cannot be combined with."""

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from autoreid import train
from autoreid.config import Losses
from autoreid.data.training_data import build_training_data
from autoreid.distributed import StopSignal
from autoreid.errors import ConfigError
from autoreid.losses import build_loss
from autoreid.models import OutputSizes
from autoreid.recipes import load_config
from autoreid.training.task import build_training
from tests.helpers.float64 import compute_in_float64
from tests.helpers.ranks import run_ranks
from tests.helpers.runs import assert_equal
from tests.helpers.tasks import build_training_task
from tests.helpers.tiny import OSNET_TRAINING, tiny_config, write_tiny

TRAINING = OSNET_TRAINING | {"losses__terms": {"alignment": 2.0}}


def cosine(one, other):
    return float(one @ other / math.sqrt(one @ one) / math.sqrt(other @ other))


def by_definition(maps, labels, query, key, negatives):
    """The definition, image by image and position by position, in numpy.

    Args:
        maps: (B, C, h, w).
        query, key: weight and bias each.
    """
    features = maps.reshape(*maps.shape[:2], -1).transpose(0, 2, 1)

    def response(a, b):
        return np.array([max(x @ y for y in features[a]) for x in features[b]])

    def attention(a):
        queries, keys = (features[a] @ weight.T + bias for weight, bias in (query, key))
        return np.array([max(x @ y for y in keys) for x in queries])

    images = range(len(maps))
    pairs = [(a, b) for a in images for b in images if labels[a] == labels[b]]
    result = np.mean([1 - cosine(attention(a), response(a, b)) for a, b in pairs])
    if negatives:
        others = {a: [response(a, b) for b in images if labels[a] != labels[b]] for a in images}
        result += np.mean(
            [np.mean([1 - cosine(one, other) for one in them for other in them]) for them in others.values()]
        )
    return result


@pytest.mark.parametrize("negatives", [True, False])
def test_agrees_with_the_definition(negatives):
    torch.manual_seed(0)
    settings = Losses(
        classification_weight=0.0, triplet_weight=0.0, terms={"alignment": 2.0}, alignment_negatives=negatives
    )
    loss = build_loss(settings, only_weighted=True).prepare(OutputSizes(3, 16), torch.arange(4)).double()
    term = loss.terms["alignment"]
    assert term.query.out_features == 2, "an eighth of the channels"
    maps = torch.randn(8, 16, 2, 2, dtype=torch.float64).relu().requires_grad_()
    labels = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    parts = [(layer.weight.detach().numpy(), layer.bias.detach().numpy()) for layer in (term.query, term.key)]
    outputs = torch.zeros(8, 3), torch.zeros(8, 4)
    values = loss(outputs, labels, maps)
    expected = by_definition(maps.detach().numpy(), labels.tolist(), *parts, negatives)
    assert expected > 0.1
    assert values.terms["alignment"].item() == pytest.approx(expected, rel=1e-9)
    assert values.total.item() == pytest.approx(2 * expected, rel=1e-9)
    assert torch.autograd.gradcheck(lambda x: loss(outputs, labels, x).total, maps, fast_mode=True)


def test_a_batch_of_one_identity_has_no_negatives():
    settings = Losses(terms={"alignment": 1.0})
    loss = build_loss(settings).prepare(OutputSizes(3, 8), torch.arange(1))
    values = loss(
        (torch.zeros(4, 3), torch.zeros(4, 1)), torch.zeros(4, dtype=torch.int64), torch.rand(4, 8, 2, 2)
    )
    assert values.total.isfinite()


def _train(world, path):
    compute_in_float64()
    config = load_config(path)
    task = build_training(config, build_training_data(config, world), world)
    for _ in range(2):
        task.step(StopSignal())
    return {name: getattr(task.state, name).state_dict() for name in ("network", "loss")}


@pytest.mark.slow
def test_two_ranks_train_network_and_attention_as_one_process_does(tmp_path):
    tiny_config(tmp_path, **TRAINING)
    path = write_tiny(tmp_path, **TRAINING)
    (alone,) = run_ranks(_train, 1, path)
    results = run_ranks(_train, 2, path)
    assert_equal(results[0]["loss"], results[1]["loss"])
    for found in results:
        torch.testing.assert_close(found, alone, rtol=1e-8, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [{"training__accumulation": 2, "training__ema_decay": 0.9}, {"training__frozen_epochs": 1}]
)
def test_the_attention_is_trained_saved_and_not_part_of_the_network(tmp_path, changes):
    task = build_training_task(tmp_path, **TRAINING, **changes)
    state = task.state
    before = {name: value.clone() for name, value in state.loss.state_dict().items()}
    assert set(before) == {
        f"terms.alignment.{layer}.{kind}" for layer in ("query", "key") for kind in ("weight", "bias")
    }
    task.dry_run(iter([state.stream.preview()]))
    assert_equal(state.loss.state_dict(), before)
    task.step(StopSignal())
    after = state.state_dict()
    assert not any(
        torch.equal(after["loss"][name], value) for name, value in before.items() if "weight" in name
    )
    assert not any("alignment" in name for name in after["network"])
    resumed = build_training_task(tmp_path, **TRAINING, **changes)
    resumed.state.load_state_dict(copy.deepcopy(after))
    for each in (task, resumed):
        each.step(StopSignal())
    found, expected = resumed.state.state_dict(), state.state_dict()
    for saved in (found, expected):
        del saved["seconds"]
    assert_equal(found, expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"losses__terms": {"alignment": 1.0}}, r"losses\.terms: alignment is for task: train only"),
        (
            {"search__losses": {"terms": {"alignment": 1.0}}},
            r"search\.losses\.terms: alignment is for task: train only",
        ),
        (TRAINING | {"training__compile": True}, r"alignment needs training\.compile: false"),
        (TRAINING | {"training__cuda_graphs": True}, r"alignment needs training\.cuda_graphs: false"),
        ({"losses__alignment_negatives": False}, r"losses\.alignment_negatives: needs the term alignment"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(write_tiny(tmp_path, **changes))
    assert "\n" not in str(caught.value)


PUBLISHED = Path(__file__).parents[1] / "searched_genotypes/published"
CELLS = {"channels": 2, "cells_per_stage": (1, 1), "parts": 2, "stem": "darts"}


@pytest.mark.parametrize(
    ("genotype", "options", "channels"), [("msinet", {"width": 0.25}, 128), ("auto_reid", CELLS, 16)]
)
def test_derived_networks_are_trained_with_it(tmp_path, genotype, options, channels):
    options = {"genotype": str(PUBLISHED / f"{genotype}.json")} | options
    changes = {"model": {"name": "derived", "options": options}, "training__gradient_clip": None}
    task = build_training_task(tmp_path, **(TRAINING | changes))
    assert task.state.loss.terms["alignment"].query.in_features == channels
    before = copy.deepcopy(task.state.loss.state_dict())
    _, metrics = task.step(StopSignal())
    assert metrics.isfinite().all()
    assert all(
        not torch.equal(task.state.loss.state_dict()[name], value)
        for name, value in before.items()
        if name.endswith("query.weight")
    )


def test_a_network_that_names_no_map_is_refused_with_status_2(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("autoreid.models.osnet.OmniScaleFrame.last_map", lambda network: None)
    assert train.main(["--config", str(write_tiny(tmp_path, **TRAINING))]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "model.name: osnet_x0_25 names no last feature map, which losses.terms need" in line
