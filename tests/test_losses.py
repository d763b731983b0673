from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from autoreid.config import Losses
from autoreid.distributed import average_and_agree
from autoreid.errors import ConfigError
from autoreid.losses import TERMS, Term, build_loss, triplet_loss
from autoreid.models import OutputSizes
from tests.helpers.ranks import run_ranks

MARGINS = [0.3, 0.0, None]


def weighted_mean(distances, sign):
    """AGW's Σ w d with w = exp(± d) / Σ exp(± d)."""
    weights = [math.exp(sign * distance) for distance in distances]
    return sum(w * d for w, d in zip(weights, distances, strict=True)) / sum(weights)


def brute_force(embeddings, labels, margin, weighted=False):
    """The definition, in plain Python floats; None if no anchor is valid."""
    rows, names = embeddings.double().tolist(), labels.tolist()
    losses = []
    for a, anchor in enumerate(rows):
        positives, negatives = [], []
        for b, other in enumerate(rows):
            distance = math.sqrt(sum((x - y) ** 2 for x, y in zip(anchor, other, strict=True)))
            if a != b:
                (positives if names[a] == names[b] else negatives).append(distance)
        if positives and negatives:
            if weighted:
                difference = weighted_mean(positives, 1) - weighted_mean(negatives, -1)
            else:
                difference = max(positives) - min(negatives)
            losses.append(
                math.log1p(math.exp(difference)) if margin is None else max(difference + margin, 0.0)
            )
    return sum(losses) / len(losses) if losses else None


def random_batch(seed, B, D, identities, dtype=torch.float64):
    """Embeddings that require gradients, and labels that are neither consecutive nor all positive."""
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(B, D, generator=generator, dtype=dtype).requires_grad_()
    return embeddings, torch.randint(0, identities, (B,), generator=generator) * 5 - 1


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 24),
    st.integers(1, 6),
    st.integers(1, 8),
    st.sampled_from(MARGINS),
    st.booleans(),
)
def test_agrees_with_the_definition(seed, B, D, identities, margin, weighted):
    embeddings, labels = random_batch(seed, B, D, identities)
    loss = triplet_loss(embeddings, labels, margin, weighted=weighted)
    expected = brute_force(embeddings, labels, margin, weighted)
    loss.backward()
    if expected is None:
        assert loss.item() == 0
        assert not embeddings.grad.any()
    else:
        assert loss.item() == pytest.approx(expected, rel=1e-12, abs=1e-12)
    single = triplet_loss(embeddings.detach().float(), labels, margin, weighted=weighted)
    assert single.item() == pytest.approx(expected or 0, abs=1e-5)


@pytest.mark.parametrize("weighted", [False, True], ids=["hard", "weighted"])
@pytest.mark.parametrize("margin", MARGINS)
def test_first_and_second_derivatives(margin, weighted):
    embeddings, labels = random_batch(1, 10, 4, 3)

    def loss(x):
        return triplet_loss(x, labels, margin, weighted=weighted)

    assert loss(embeddings) > 0
    assert torch.autograd.gradcheck(loss, embeddings)
    assert torch.autograd.gradgradcheck(loss, embeddings)


@pytest.mark.parametrize("weighted", [False, True], ids=["hard", "weighted"])
@pytest.mark.parametrize("labels", [[1, 2, 3, 4], [7, 7, 7, 7], [1, 1, 2, 2], [5]])
def test_duplicates_and_batches_without_positives_or_negatives_have_finite_derivatives(labels, weighted):
    embeddings = torch.ones(len(labels), 3, dtype=torch.float64, requires_grad=True)
    loss = triplet_loss(embeddings, torch.tensor(labels), 0.3, weighted=weighted)
    (gradient,) = torch.autograd.grad(loss, embeddings, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum() + loss, embeddings)
    assert loss.item() == pytest.approx(0.3 if labels == [1, 1, 2, 2] else 0, abs=1e-12)
    assert torch.equal(gradient, torch.zeros_like(gradient))
    assert second.isfinite().all()


def test_an_anchor_is_not_its_own_positive_and_needs_one():
    # Anchors 0 and 1 have a distance of 3, and distances of 1 and 2 to their negative; anchor 2 has no positive.
    embeddings, labels = torch.tensor([[0.0], [3.0], [1.0]]), torch.tensor([4, 4, 9])
    loss = triplet_loss(embeddings, labels, 0.5)
    assert loss.item() == pytest.approx(((3 - 1 + 0.5) + (3 - 2 + 0.5)) / 2)


def test_small_distances_between_large_embeddings_are_accurate():
    """Computing |a|² + |b|² - 2ab in float32 would give errors of about 1 here."""
    embeddings = torch.full((4, 8), 1000.0)
    embeddings[:, 0] += torch.tensor([0.0, 0.25, 1.0, 1.5])
    labels = torch.tensor([0, 0, 1, 1])
    expected = brute_force(embeddings, labels, 0.3)
    assert expected > 0
    assert triplet_loss(embeddings, labels, 0.3).item() == pytest.approx(expected, rel=1e-6)


def test_a_nan_propagates():
    embeddings, labels = random_batch(0, 8, 3, 2)
    with_nan = embeddings.detach().clone()
    with_nan[3, 1] = torch.nan
    assert triplet_loss(with_nan, labels, 0.3).isnan()


def across_ranks(embeddings, labels, ranks, margin, weighted):
    """The average over simulated ranks. Their shares are separate leaves, gathered by concatenation."""
    leaves = [x.detach().clone().requires_grad_() for x in embeddings.chunk(ranks)]
    everyone, total = torch.cat(leaves), torch.zeros((), dtype=embeddings.dtype)
    for rank, (own, own_labels) in enumerate(zip(leaves, labels.chunk(ranks), strict=True)):
        first = rank * len(own)
        total = total + triplet_loss(own, own_labels, margin, everyone, labels, first, weighted) / ranks
    total.backward()
    return total, torch.cat([x.grad for x in leaves])


@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 6),
    st.sampled_from([1, 2, 3, 4]),
    st.integers(1, 12),
    st.sampled_from(MARGINS),
    st.booleans(),
)
def test_the_average_over_ranks_is_one_process_on_the_whole_batch(
    seed, share, ranks, identities, margin, weighted
):
    """With few identities in random order, ranks have different numbers of valid anchors."""
    embeddings, labels = random_batch(seed, share * ranks, 3, identities)
    labels = (labels + 1) // 5
    whole = triplet_loss(embeddings, labels, margin, weighted=weighted)
    whole.backward()
    total, gradient = across_ranks(embeddings, labels, ranks, margin, weighted)
    torch.testing.assert_close(total, whole)
    torch.testing.assert_close(gradient, embeddings.grad)


def _rank_loss(world, embeddings, logits, labels):
    """The mean loss over the ranks, with its gradients for all rows of this rank."""
    own = [x.chunk(world.size)[world.rank].clone().requires_grad_() for x in (embeddings, logits)]
    criterion = build_loss(Losses(classification_weight=0.4, label_smoothing=0.1, mine_across_ranks=True))
    values = criterion(tuple(own), labels.chunk(world.size)[world.rank])
    gradients = torch.autograd.grad(values.total, own)
    (total,), _ = average_and_agree([values.total.detach()])
    return total, [gradient / world.size for gradient in gradients]


def test_real_ranks_have_the_loss_of_one_process():
    embeddings, labels = random_batch(7, 12, 3, 4)
    embeddings, labels = embeddings.detach(), (labels + 1) // 5
    logits = random_batch(8, 12, 6, 1)[0].detach()
    ((whole, expected),) = run_ranks(_rank_loss, 1, embeddings, logits, labels)
    results = run_ranks(_rank_loss, 3, embeddings, logits, labels)
    for total, _ in results:
        torch.testing.assert_close(total, whole)
    for place in (0, 1):
        found = torch.cat([gradients[place] for _, gradients in results])
        torch.testing.assert_close(found, expected[place])


@pytest.mark.parametrize("normalise", [False, True])
def test_the_triplet_loss_of_several_embeddings_is_their_mean(normalise):
    embeddings, labels = random_batch(0, 12, 6, 3)
    labels = (labels + 1) // 5
    criterion = build_loss(Losses(normalise=normalise, margin=1.2))
    criterion.prepare(OutputSizes(6, embeddings=3), torch.arange(3))
    found = criterion((embeddings, torch.zeros(12, 3)), labels).terms["triplet"]
    vectors = [embeddings[:, first : first + 2].detach() for first in (0, 2, 4)]
    if normalise:
        vectors = [vector / vector.norm(dim=1, keepdim=True) for vector in vectors]
    expected = sum(brute_force(vector, labels, 1.2) for vector in vectors) / 3
    assert found.item() == pytest.approx(expected)


def test_terms_are_weighted():
    embeddings, labels = random_batch(5, 12, 4, 3)
    labels = (labels + 1) // 5
    logits, auxiliary = random_batch(6, 12, 3, 1)[0], random_batch(7, 12, 3, 1)[0]
    settings = Losses(classification_weight=0.25, label_smoothing=0.1, auxiliary_weight=0.4)
    criterion = build_loss(settings, has_auxiliary=True)
    values = criterion((embeddings, logits, auxiliary), labels)
    targets = F.one_hot(labels, 3) * 0.9 + 0.1 / 3
    cross_entropy, of_auxiliary = (-(targets * x.log_softmax(1)).sum(1).mean() for x in (logits, auxiliary))
    torch.testing.assert_close(values.terms["classification"], cross_entropy)
    torch.testing.assert_close(values.terms["auxiliary"], of_auxiliary)
    assert values.terms["triplet"].item() == pytest.approx(brute_force(embeddings, labels, 0.3))
    total = 0.25 * cross_entropy + 0.75 * values.terms["triplet"] + 0.4 * of_auxiliary
    torch.testing.assert_close(values.total, total)
    assert values.accuracy.item() == pytest.approx((logits.argmax(1) == labels).double().mean().item())
    named = dict(zip(criterion.metric_names, values.metrics(), strict=True))
    assert list(named) == ["loss", "classification", "triplet", "auxiliary", "accuracy"]
    assert named["loss"] == values.total
    assert named["triplet"] == values.terms["triplet"]


class SpreadTerm(Term):
    """A further term, as docs/extend.md adds one."""

    def __init__(self, settings):
        super().__init__()
        self.smoothing = settings.label_smoothing

    def forward(self, outputs, labels):
        return outputs.embedding.square().mean() + self.smoothing


def test_a_further_term_needs_only_a_name_and_a_weight(monkeypatch):
    monkeypatch.setitem(TERMS, "spread", SpreadTerm)
    embeddings, labels = random_batch(5, 12, 4, 3)
    outputs, labels = (embeddings, random_batch(6, 12, 3, 1)[0]), (labels + 1) // 5
    plain = build_loss(Losses(label_smoothing=0.1))(outputs, labels)
    criterion = build_loss(Losses(label_smoothing=0.1, terms={"spread": 2.0}))
    values = criterion(outputs, labels)
    assert criterion.metric_names == ("loss", "classification", "triplet", "spread", "accuracy")
    torch.testing.assert_close(values.total, plain.total + 2 * (embeddings.square().mean() + 0.1))


@pytest.mark.parametrize("name", ["sprad", "triplet", "auxiliary"])
def test_unknown_terms_and_those_with_a_separate_key_are_refused(monkeypatch, name):
    monkeypatch.setitem(TERMS, "spread", SpreadTerm)
    with pytest.raises(
        ConfigError, match=rf"losses\.terms: unknown term '{name}'; known are alignment, memory, spread"
    ):
        build_loss(Losses(terms={name: 1.0}))


def test_stays_in_float32_under_autocast():
    """Equal to the loss of the same embeddings in float32, and close to that of a full-precision network."""
    torch.manual_seed(0)
    body, head = nn.Linear(32, 16), nn.Linear(16, 5)
    images, labels = torch.randn(20, 32), torch.arange(20) % 5
    criterion = build_loss(Losses(margin=None, label_smoothing=0.1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        embeddings = body(images)
        logits = head(embeddings)
        values = criterion((embeddings, logits), labels)
    assert embeddings.dtype == logits.dtype == torch.bfloat16
    again = criterion((embeddings.float(), logits.float()), labels)
    full = criterion((body(images), head(body(images))), labels)
    for name in ("classification", "triplet"):
        value = values.terms[name]
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, again.terms[name])
        torch.testing.assert_close(value, full.terms[name], rtol=0.02, atol=0)
    assert values.total.dtype == torch.float32
    values.total.backward()
    assert body.weight.grad.isfinite().all()
