from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autoreid.search.alphas import Alphas, entropies
from autoreid.search.collapse import collapse_signs, count_skips
from autoreid.search.relaxations import Softmax

SHAPES = {"reduce": (5, 7), "normal": (14, 7)}


def make_alphas(seed=0, shapes=SHAPES):
    return Alphas(shapes, torch.Generator().manual_seed(seed))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-300, 300), min_size=1, max_size=8))
def test_mixing_is_the_softmax_of_each_row(row):
    alphas = make_alphas(shapes={"a": (2, len(row))}).double()
    alphas.groups["a"].data[0] = torch.tensor(row, dtype=torch.float64)
    mixing = Softmax().mixing(alphas)["a"]
    highest = max(row)
    total = math.fsum(math.exp(value - highest) for value in row)
    expected = [math.exp(value - highest) / total for value in row]
    assert mixing[0].tolist() == pytest.approx(expected, abs=1e-15)
    torch.testing.assert_close(mixing.sum(-1), torch.ones(2, dtype=torch.float64))


def test_the_gradient_is_that_of_a_softmax():
    """dp/da = diag(p) - p·pᵀ within an edge, nothing between edges."""
    alphas = make_alphas(shapes={"a": (3, 5)}).double()
    torch.manual_seed(0)
    alphas.groups["a"].data.normal_()
    mixing = Softmax().mixing(alphas)["a"]
    for edge in range(3):
        jacobian = torch.stack(
            [
                torch.autograd.grad(mixing[edge, column], alphas.groups["a"], retain_graph=True)[0]
                for column in range(5)
            ]
        )
        p = mixing[edge].detach()
        torch.testing.assert_close(jacobian[:, edge], torch.diag(p) - torch.outer(p, p))
        others = [other for other in range(3) if other != edge]
        assert not jacobian[:, others].any()


def test_probabilities_are_the_mixing_without_gradient():
    alphas = make_alphas()
    mixing, probabilities = Softmax().mixing(alphas), Softmax().probabilities(alphas)
    assert mixing.keys() == probabilities.keys() == {"normal", "reduce"}
    for name in mixing:
        assert torch.equal(mixing[name], probabilities[name])
        assert mixing[name].requires_grad
        assert not probabilities[name].requires_grad


def test_alphas_start_small_and_follow_from_the_generator():
    alphas = make_alphas(shapes={"normal": (200, 50)})
    values = alphas.groups["normal"].detach()
    assert values.dtype == torch.float32
    assert values.mean().abs() < 1e-4
    assert values.std().item() == pytest.approx(1e-3, rel=0.03)
    assert values.abs().max() > 3e-3
    before = torch.get_rng_state()
    assert make_alphas(3).digest() == make_alphas(3).digest() != make_alphas(4).digest()
    assert torch.equal(torch.get_rng_state(), before)
    # The order in which a space names its groups does not matter.
    assert make_alphas(3).digest() == make_alphas(3, dict(reversed(SHAPES.items()))).digest()


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(sorted(SHAPES)), st.integers(0, 34), st.integers(0, 31))
def test_the_digest_changes_with_any_bit_and_with_nothing_else(group, index, bit):
    alphas = make_alphas()
    before = alphas.digest()
    assert len(before) == 32
    assert alphas.digest() == before
    bits = alphas.groups[group].detach().numpy().reshape(-1).view(np.uint32)
    bits[index] ^= np.uint32(1 << bit)
    assert alphas.digest() != before
    bits[index] ^= np.uint32(1 << bit)
    assert alphas.digest() == before
    alphas.groups[group].grad = torch.ones_like(alphas.groups[group])
    assert alphas.digest() == before


def test_the_digest_survives_a_state_dict_and_a_strided_layout():
    alphas, other = make_alphas(0), make_alphas(1)
    other.load_state_dict(alphas.state_dict())
    assert other.digest() == alphas.digest()
    values = other.groups["normal"].data
    other.groups["normal"].data = values.t().contiguous().t()
    assert not other.groups["normal"].is_contiguous()
    assert other.digest() == alphas.digest()


def test_entropies():
    rows = torch.tensor([[0.25] * 4, [1, 0, 0, 0], [0.5, 0.5, 0, 0], [0.7, 0.1, 0.1, 0.1]])
    found = entropies({"a": rows})["a"].tolist()
    last = -0.7 * math.log(0.7) - 0.3 * math.log(0.1)
    assert found == pytest.approx([math.log(4), 0, math.log(2), last])


def test_collapse_signs():
    operations = ("none", "sep_conv_3x3", "skip_connect")
    normal = torch.tensor([[0.5, 0.2, 0.3], [0.1, 0.8, 0.1]])
    reduce = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    signs = collapse_signs({"normal": normal, "reduce": reduce}, operations)
    entropy = -sum(p * math.log(p) for p in (0.5, 0.2, 0.3, 0.1, 0.8, 0.1)) / 2
    assert signs == pytest.approx(
        {
            "normal/entropy": entropy,
            "normal/skip_share": 0.2,
            "normal/none_share": 0.3,
            "reduce/entropy": 0.0,
            "reduce/skip_share": 0.5,
            "reduce/none_share": 0.0,
        }
    )
    assert set(collapse_signs({"normal": normal}, ("a", "b", "c"))) == {"normal/entropy"}


def test_count_skips():
    skip, other = ("skip_connect", 0), ("sep_conv_3x3", 1)
    assert count_skips(()) == 0
    assert count_skips(((other, other),)) == 0
    assert count_skips(((skip, other), (other, skip), (skip, skip))) == 4
