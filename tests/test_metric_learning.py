"""Losses of pytorch-metric-learning as terms; our own against those that the library has as well."""

from __future__ import annotations

import copy
import sys
from contextlib import nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autoreid.config import Losses
from autoreid.distributed import StopSignal, average_and_agree
from autoreid.errors import ConfigError
from autoreid.losses import Outputs, build_loss
from autoreid.losses.margin_softmax import MARGINS
from autoreid.models import OutputSizes
from autoreid.recipes import load_config
from tests.helpers.ranks import run_ranks
from tests.helpers.tasks import build_training_task
from tests.helpers.tiny import tiny_config, write_tiny

library = pytest.importorskip("pytorch_metric_learning.losses")

LABELS = torch.tensor([3, 9, 3, 7, 9, 7, 3, 9])
SIZES, KNOWN = OutputSizes(6), torch.tensor([3, 7, 9])


def batch(seed=0, count=8):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 6, generator=generator, dtype=torch.float64)


def build(name, across_ranks=False, **options):
    given_options = {name: options} if options else {}
    term = f"metric_learning:{name}"
    losses = Losses(terms={term: 0.5}, metric_learning=given_options, mine_across_ranks=across_ranks)
    return build_loss(losses).prepare(SIZES, KNOWN), term


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("MultiSimilarityLoss", {"alpha": 1.5, "beta": 40, "base": 0.4}),
        ("CircleLoss", {"m": 0.3, "gamma": 32}),
        ("TripletMarginLoss", {}),
        ("SupConLoss", {}),
    ],
)
def test_a_term_has_the_librarys_value_and_gradient(name, options):
    loss, term = build(name, **options)
    embeddings = batch().requires_grad_()
    values = loss((embeddings, torch.zeros(8, 10, dtype=torch.float64)), LABELS)
    expected = getattr(library, name)(**options)(embeddings, LABELS)
    torch.testing.assert_close(values.terms[term], expected)
    weighted = values.terms["classification"] * 0.5 + values.terms["triplet"] * 0.5 + 0.5 * expected
    torch.testing.assert_close(values.total, weighted)
    mine, theirs = (
        torch.autograd.grad(x, embeddings, retain_graph=True)[0] for x in (values.terms[term], expected)
    )
    torch.testing.assert_close(mine, theirs)
    assert expected > 0


def test_a_loss_with_proxies_has_parameters_and_labels_from_zero():
    loss, term = build("ProxyAnchorLoss", margin=0.2)
    (proxies,) = loss.parameters()
    assert proxies.shape == (3, 6)
    embeddings = batch().float()
    values = loss((embeddings, torch.zeros(8, 10)), LABELS)
    theirs = library.ProxyAnchorLoss(3, 6, margin=0.2)
    theirs.load_state_dict(loss.terms[term].loss.state_dict())
    torch.testing.assert_close(values.terms[term], theirs(embeddings, torch.searchsorted(KNOWN, LABELS)))


@pytest.mark.parametrize("name", ["ArcFaceLoss", "CosFaceLoss", "SubCenterArcFaceLoss"])
def test_classes_that_pass_on_their_parameters_are_told_the_sizes(name):
    """The second and the third do not name them themselves."""
    loss, term = build(name)
    embeddings = batch().float()
    value = loss((embeddings, torch.zeros(8, 10)), LABELS).terms[term]
    theirs = getattr(library, name)(num_classes=3, embedding_size=6)
    theirs.load_state_dict(loss.terms[term].loss.state_dict())
    torch.testing.assert_close(value, theirs(embeddings, torch.searchsorted(KNOWN, LABELS)))


def _on_ranks(world, embeddings):
    loss, term = build("MultiSimilarityLoss", across_ranks=True)
    own = embeddings.chunk(world.size)[world.rank].clone().requires_grad_()
    labels = LABELS.chunk(world.size)[world.rank]
    value = loss((own, torch.zeros(len(own), 10)), labels).terms[term]
    (gradient,) = torch.autograd.grad(value, own)
    (total,), _ = average_and_agree([value.detach()])
    return total, gradient / world.size


def test_ranks_compute_what_one_process_computes():
    (alone,) = run_ranks(_on_ranks, 1, batch())
    parts = run_ranks(_on_ranks, 2, batch())
    for total, _ in parts:
        torch.testing.assert_close(total, alone[0])
    torch.testing.assert_close(torch.cat([gradient for _, gradient in parts]), alone[1])


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["arcface", "cosface"]), st.sampled_from([0.2, 0.5]))
def test_our_margins_are_the_librarys(seed, kind, margin):
    theirs = {"arcface": library.ArcFaceLoss, "cosface": library.CosFaceLoss}[kind]
    # The library measures ArcFace's margin in degrees.
    theirs = theirs(3, 6, margin=margin * 180 / torch.pi if kind == "arcface" else margin, scale=16).double()
    embeddings, labels = batch(seed), torch.searchsorted(KNOWN, LABELS)
    cosines = torch.nn.functional.cosine_similarity(embeddings[:, None], theirs.W.T, dim=2)
    own = labels[:, None] == torch.arange(3)
    logits = 16 * MARGINS[kind](cosines, own, margin)
    found = torch.nn.functional.cross_entropy(logits, labels)
    torch.testing.assert_close(found, theirs(embeddings, labels), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "MultySimilarityLoss",
            {},
            "has no loss 'MultySimilarityLoss'; did you mean one of MultiSimilarityLoss",
        ),
        (
            "MultiSimilarityLoss",
            {"alfa": 1},
            r"losses\.metric_learning\.MultiSimilarityLoss = {'alfa': 1}: .*alfa",
        ),
        ("CrossBatchMemory", {}, "has no loss 'CrossBatchMemory'"),
        ("cat", {}, "has no loss 'cat'"),
    ],
)
def test_impossible_names_and_options_are_one_line(name, options, message):
    with pytest.raises(ConfigError, match=message) as caught:
        build(name, **options)
    assert "\n" not in str(caught.value)


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_metric_learning", None)
    with pytest.raises(
        ConfigError, match=r"metric_learning:CircleLoss requires .*'autoreid\[metric-learning\]'"
    ):
        build("CircleLoss")


def test_the_config_takes_them_in_trainings_only(tmp_path):
    terms = {"losses__terms": {"metric_learning:CircleLoss": 1.0}}
    config = tiny_config(tmp_path, task="train", **terms)
    assert config.losses.terms == {"metric_learning:CircleLoss": 1.0}
    path = write_tiny(tmp_path, task="train")
    overrides = [
        "losses.terms={metric_learning:CircleLoss: 0.5}",
        "losses.metric_learning={CircleLoss: {m: 0.3}}",
    ]
    assert load_config(path, overrides).losses.metric_learning == {"CircleLoss": {"m": 0.3}}
    with pytest.raises(ConfigError, match=r"losses\.metric_learning\.CircleLoss: needs the term"):
        load_config(path, overrides[1:])
    with pytest.raises(
        ConfigError, match=r"losses\.terms: metric_learning:CircleLoss is for task: train only"
    ):
        load_config(path, [*overrides, "task=search"])


def test_a_loss_that_needs_other_inputs_is_an_error_in_one_line():
    loss, term = build("VICRegLoss")
    with pytest.raises(
        ConfigError, match=r"^losses\.terms: metric_learning:VICRegLoss cannot be computed: .*; use another"
    ):
        loss.terms[term](Outputs(batch(), batch()), LABELS)


@pytest.mark.parametrize(
    ("name", "compares"),
    [("TripletMarginLoss", True), ("SupConLoss", True), ("ProxyAnchorLoss", False), ("ArcFaceLoss", False)],
)
def test_one_image_an_identity_is_refused_for_losses_that_need_positives(tmp_path, name, compares):
    """The loss would be 0 in each step."""
    terms = {"losses__terms": {f"metric_learning:{name}": 1.0}, "losses__triplet_weight": 0.0}
    changes = {**terms, "data__images_per_identity": 1, "data__batch_size": 8}
    expected = (
        pytest.raises(
            ConfigError, match=f"1 leaves no positives to losses.terms metric_learning:{name}, which"
        )
        if compares
        else nullcontext()
    )
    with expected:
        build_training_task(tmp_path, **changes)


def test_outputs_of_half_precision_are_computed_in_single():
    loss, term = build("SupConLoss")
    half = batch().bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = loss.terms[term](Outputs(half, half), LABELS)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, library.SupConLoss()(half.float(), LABELS))


def test_a_training_trains_proxies_and_resumes_them(tmp_path):
    term = "metric_learning:ProxyAnchorLoss"
    tasks = [build_training_task(tmp_path, losses__terms={term: 1.0}) for _ in range(2)]
    name = f"terms.{term}.loss.proxies"
    before = tasks[0].state.loss.state_dict()[name].clone()
    _, metrics = tasks[0].step(StopSignal())
    after = tasks[0].state.loss.state_dict()[name]
    assert metrics.isfinite().all()
    assert not after.equal(before)
    tasks[1].state.load_state_dict(copy.deepcopy(tasks[0].state.state_dict()))
    for task in tasks:
        task.step(StopSignal())
    assert tasks[1].state.loss.state_dict()[name].equal(tasks[0].state.loss.state_dict()[name])


def test_a_loss_with_running_statistics_resumes_with_them():
    """The histogram of the distances in earlier batches weights the triplets of a batch."""
    first, term = build("DynamicSoftMarginLoss")
    logits = torch.zeros(8, 10)
    first((batch().float(), logits), LABELS)
    resumed, fresh = build("DynamicSoftMarginLoss")[0], build("DynamicSoftMarginLoss")[0]
    resumed.load_state_dict(first.state_dict())
    values = [loss((batch(1).float(), logits), LABELS).terms[term] for loss in (first, resumed, fresh)]
    assert values[0] == values[1] != values[2]
