from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autoreid.config import Search, Temperature, Training
from autoreid.search.alphas import Alphas
from autoreid.search.relaxations import GDAS, DrNAS, GumbelSoftmax, HardGumbelSoftmax, SmoothDARTS, Softmax
from autoreid.search.schedules import TemperatureSchedule, alpha_learning_rate
from autoreid.spaces.reid_cell.genotype import count_skips

SHAPES = {"reduce": (5, 7), "normal": (14, 7)}


def make_alphas(seed=0, shapes=SHAPES):
    return Alphas(shapes, torch.Generator().manual_seed(seed))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-300, 300), min_size=1, max_size=8))
def test_mixing_is_the_softmax_of_each_row(row):
    alphas = make_alphas(shapes={"a": (2, len(row))}).double()
    alphas.groups["a"].data[0] = torch.tensor(row, dtype=torch.float64)
    mixing = Softmax().mixture(alphas)["a"]
    highest = max(row)
    total = math.fsum(math.exp(value - highest) for value in row)
    expected = [math.exp(value - highest) / total for value in row]
    assert mixing[0].tolist() == pytest.approx(expected, abs=1e-15)
    torch.testing.assert_close(mixing.sum(-1), torch.ones(2, dtype=torch.float64))


def test_the_gradient_is_that_of_a_softmax():
    """dp/da = diag(p) - p·pᵀ within an edge, and zero between edges."""
    alphas = make_alphas(shapes={"a": (3, 5)}).double()
    torch.manual_seed(0)
    alphas.groups["a"].data.normal_()
    mixing = Softmax().mixture(alphas)["a"]
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


def test_probabilities_are_the_detached_mixing_weights():
    alphas = make_alphas()
    mixing, probabilities = Softmax().mixture(alphas), Softmax().probabilities(alphas)
    assert mixing.keys() == probabilities.keys() == {"normal", "reduce"}
    for name in mixing:
        assert torch.equal(mixing[name], probabilities[name])
        assert mixing[name].requires_grad
        assert not probabilities[name].requires_grad


def test_initial_alphas_are_small_and_depend_on_the_generator_only():
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


def test_count_skips():
    skip, other = ("skip_connect", 0), ("sep_conv_3x3", 1)
    assert count_skips(()) == 0
    assert count_skips(((other, other),)) == 0
    assert count_skips(((skip, other), (other, skip), (skip, skip))) == 4


def gumbel(hard=False, temperature=1.0, seed=7):
    kind = HardGumbelSoftmax if hard else GumbelSoftmax
    settings = Temperature(start=temperature, end=temperature)
    return kind(seed, TemperatureSchedule(settings, 10, 10))


def logits(*rows):
    alphas = make_alphas(shapes={"a": (len(rows), len(rows[0]))}).double()
    alphas.groups["a"].data = torch.tensor(rows, dtype=torch.float64)
    return alphas


def soft_samples(relaxation, alphas, count=4000):
    with torch.no_grad():
        return torch.stack([relaxation.mixture(alphas, step, "weights")["a"] for step in range(count)])


def test_gumbel_samples_follow_the_softmax():
    """The Gumbel-max trick: argmax(alpha + noise) is a sample from softmax(alpha), at any temperature."""
    rows = [[0.0, 1.0, -1.0, 0.3], [2.0, 0.0, 0.0, 0.0]]
    hard, alphas = gumbel(hard=True, temperature=5.0), logits(*rows)
    columns = torch.tensor([hard.sample(alphas, step, "weights", False)["a"] for step in range(4000)])
    soft = soft_samples(gumbel(temperature=5.0), logits(*rows))
    assert torch.equal(soft.argmax(-1), columns), "the same sample, soft or hard"
    for row, values in enumerate(rows):
        weights = np.exp(values) / np.exp(values).sum()
        for column, probability in enumerate(weights):
            found = (columns[:, row] == column).double().mean().item()
            assert abs(found - probability) < 5 * math.sqrt(probability * (1 - probability) / len(columns))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 10.0])
def test_soft_weights_have_the_defined_distribution(temperature):
    """The log-odds of two candidates are (a0 - a1 + noise) / temperature.

    The noise is a difference of two Gumbel variables, so it has a logistic distribution.
    """
    soft = soft_samples(gumbel(temperature=temperature), logits([0.7, -0.4]))[:, 0]
    torch.testing.assert_close(soft.sum(-1), torch.ones(len(soft), dtype=torch.float64))
    noise = temperature * (soft[:, 0] / soft[:, 1]).log() - 1.1
    expected = torch.arange(1, len(noise) + 1) / len(noise)
    # Kolmogorov-Smirnov test against the logistic distribution, at a significance level of about 1e-6.
    assert (torch.sigmoid(noise.sort().values) - expected).abs().max() < 2.7 / math.sqrt(len(noise))


def test_noise_is_independent_between_rows_and_steps():
    soft = soft_samples(gumbel(), logits([0.0, 0.0], [0.0, 0.0]))
    odds = (soft[..., 0] / soft[..., 1]).log()
    bound = 5 / math.sqrt(len(odds))
    assert abs(np.corrcoef(odds[:, 0], odds[:, 1])[0, 1]) < bound
    assert abs(np.corrcoef(odds[1:, 0], odds[:-1, 0])[0, 1]) < bound


def test_a_sample_depends_on_seed_step_and_level_only():
    alphas = make_alphas()
    before = torch.get_rng_state()
    first = gumbel().mixture(alphas, 3, "weights")
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(5)
    for again in (gumbel().mixture(alphas, 3, "weights"), gumbel().mixture(make_alphas(), 3, "weights")):
        assert all(torch.equal(again[name], first[name]) for name in first)
    for other in (
        gumbel(seed=8).mixture(alphas, 3, "weights"),
        gumbel().mixture(alphas, 4, "weights"),
        gumbel().mixture(alphas, 3, "alphas"),
    ):
        assert not any(torch.equal(other[name], first[name]) for name in first)
    # The noise itself does not depend on the precision.
    double = gumbel().mixture(make_alphas().double(), 3, "weights")
    for name in first:
        torch.testing.assert_close(double[name].float(), first[name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("hard", [False, True])
def test_the_gradient_is_that_of_the_soft_weights(hard):
    """dp/da = (diag(p) - p·pᵀ) / temperature.

    Hard samples are one-hot in the forward pass and have the same gradient (straight-through).
    """
    alphas = logits([0.3, -0.2, 1.0, 0.0], [0.0, 0.5, 0.0, -2.0])
    soft = gumbel(temperature=2.5).mixture(alphas, 0, "alphas")["a"]
    mixing = gumbel(hard, 2.5).mixture(alphas, 0, "alphas")["a"]
    for row in range(2):
        p = soft[row].detach()
        expected = (torch.diag(p) - torch.outer(p, p)) / 2.5
        for column in range(4):
            (gradient,) = torch.autograd.grad(mixing[row, column], alphas.groups["a"], retain_graph=True)
            torch.testing.assert_close(gradient[row], expected[column])
            assert not gradient[1 - row].any()
    if hard:
        assert torch.equal(mixing.detach(), torch.eye(4, dtype=torch.float64)[soft.argmax(-1)])


def test_a_hard_sample_has_the_columns_of_the_one_hot_mixture():
    alphas = make_alphas()
    one_hot = gumbel(hard=True).mixture(alphas, 9, "weights")
    sample = gumbel(hard=True).sample(alphas, 9, "weights", False)
    assert gumbel(hard=True).sample(alphas, 9, "weights", True) is None
    assert sample == {name: values.argmax(-1).tolist() for name, values in one_hot.items()}
    assert {len(columns) for columns in sample.values()} == {shape[0] for shape in SHAPES.values()}


def test_soft_relaxations_have_no_sample():
    for relaxation in (Softmax(), gumbel()):
        assert relaxation.sample(make_alphas(), 9, "weights", False) is None


def test_evaluation_measures_the_mixture_of_the_probabilities():
    alphas = logits([0.0, 0.1, 0.0], [3.0, 0.0, 2.9])
    for relaxation in (Softmax(), gumbel(), gumbel(hard=True, seed=1)):
        (mixing,) = relaxation.evaluation(alphas)
        assert torch.equal(mixing["a"], alphas.groups["a"].detach().softmax(-1))
        assert not mixing["a"].requires_grad


def test_drnas_samples_have_the_moments_of_dirichlet_distributions():
    """Mean β/S and variance β(S - β) / (S²(S + 1)) with β = elu(α) + 1 and S its sum."""
    alphas = logits([0.0, 1.0, -1.0], [2.0, 0.0, 0.5])
    samples = soft_samples(DrNAS(3), alphas, 4000)
    beta = torch.where(alphas.groups["a"] > 0, alphas.groups["a"] + 1, alphas.groups["a"].exp()).detach()
    total = beta.sum(-1, keepdim=True)
    mean, variance = beta / total, beta * (total - beta) / (total.square() * (total + 1))
    torch.testing.assert_close(samples.sum(-1), torch.ones(4000, 2, dtype=torch.float64))
    assert ((samples.mean(0) - mean).abs() < 5 * (variance / 4000).sqrt()).all()
    torch.testing.assert_close(samples.var(0), variance, rtol=0.2, atol=0)
    torch.testing.assert_close(DrNAS(3).probabilities(alphas)["a"], mean)


def test_drnas_has_the_gradient_of_the_mean():
    """The derivative of the expected first weight, by many reparametrised samples."""
    alphas = logits([0.5, 0.2, 0.9])
    relaxation = DrNAS(5)
    found = torch.zeros(3, dtype=torch.float64)
    for step in range(3000):
        first = relaxation.mixture(alphas, step, "alphas")["a"][0, 0]
        found += torch.autograd.grad(first, alphas.groups["a"])[0][0] / 3000
    beta = (alphas.groups["a"][0] + 1).detach()
    total = beta.sum()
    expected = torch.stack([(total - beta[0]) / total**2, -beta[0] / total**2, -beta[0] / total**2])
    torch.testing.assert_close(found, expected, rtol=0.15, atol=0.005)


def test_a_smoothed_mixture_is_perturbed_within_its_bound_and_only_for_the_weights():
    alphas = logits([0.0, 1.0, -1.0, 0.3])
    relaxation = SmoothDARTS(1, steps=100)
    plain = Softmax().mixture(alphas)["a"]
    assert torch.equal(relaxation.mixture(alphas, 0, "weights")["a"], plain)
    for step, bound in ((50, 0.15), (100, 0.3), (500, 0.3)):
        assert torch.equal(relaxation.mixture(alphas, step, "alphas")["a"], plain)
        ratio = (relaxation.mixture(alphas, step, "weights")["a"] / plain).log()
        spread = ratio.max() - ratio.min()
        assert 0.1 * bound < spread <= 2 * bound
        assert relaxation.scheduled(step) == {"perturbation": pytest.approx(bound)}


def test_gdas_computes_one_candidate_in_every_pass():
    alphas, settings = make_alphas(), Temperature(start=2.0, end=2.0)
    relaxation = GDAS(7, TemperatureSchedule(settings, 10, 10))
    (_, sample), (mixing, again) = (
        relaxation.inputs(alphas, 3, "alphas", alphas_learn) for alphas_learn in (False, True)
    )
    assert sample == again == gumbel(True, 2.0).sample(alphas, 3, "alphas", False)
    for name, columns in sample.items():
        assert mixing[name].argmax(-1).tolist() == columns
        assert mixing[name].requires_grad


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {0: 10, 19: 10, 20: 5, 39: 5, 40: 2.5, 60: 1.25, 80: 1, 119: 1}),
        ({"every_epochs": 10, "start": 8.0, "end": 0.5}, {9: 8, 10: 4, 20: 2, 40: 0.5, 119: 0.5}),
        ({"schedule": "linear", "end": 0.1}, {0: 10, 60: 5.05, 30: 7.525, 120: 0.1}),
        ({"schedule": "cosine"}, {0: 10, 60: 5.5, 30: 1 + 4.5 * (1 + math.sqrt(0.5)), 120: 1}),
    ],
)
def test_temperatures(settings, expected):
    """At the given epochs of 120, with 7 steps each."""
    for epoch, value in expected.items():
        assert TemperatureSchedule(Temperature(**settings), 7, 120).at(7 * epoch) == pytest.approx(value)
    assert gumbel(temperature=3.0).scheduled(5) == {"temperature": 3.0}


def test_halving_changes_between_epochs_and_linear_in_every_step():
    halved, linear = (
        [
            TemperatureSchedule(Temperature(schedule=schedule, every_epochs=1), 5, 4).at(step)
            for step in range(20)
        ]
        for schedule in ("halving", "linear")
    )
    assert halved == [10.0] * 5 + [5.0] * 5 + [2.5] * 5 + [1.25] * 5
    steps = -np.diff(linear)
    assert steps.min() == pytest.approx(steps.max())


def test_a_temperature_that_is_halved_cannot_reach_its_end_early():
    with pytest.raises(ValueError, match=r"reached_at: 0\.5 needs schedule: linear or cosine, not halving"):
        Temperature(reached_at=0.5)


def test_the_temperature_reaches_its_end_early_where_asked():
    settings = Temperature(start=10.0, end=1.0, schedule="linear", reached_at=0.5)
    schedule = TemperatureSchedule(settings, 10, 10)
    assert [schedule.at(step) for step in (0, 25, 50, 99)] == pytest.approx([10, 5.5, 1, 1])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {0: 0.02, 20: 0.02, 99: 0.02}),
        ({"alpha_schedule": "cosine"}, {0: 0.02, 20: 0.02, 60: 0.01, 100: 0.0}),
        ({"alpha_schedule": "weights"}, {0: 0.02, 50: 0.02 * 0.505, 100: 0.02 * 0.01}),
        ({"alpha_optimizer": "sgd"}, {0: 0.02, 50: 0.02 * 0.505, 100: 0.02 * 0.01}),
        ({"alpha_optimizer": "sgd", "alpha_schedule": "constant"}, {50: 0.02}),
    ],
)
def test_the_learning_rate_of_the_alphas(changes, expected):
    search = Search(alpha_learning_rate=0.02, warmup_epochs=2, **changes)
    training = Training(epochs=10, learning_rate=0.1, final_learning_rate=0.001)
    for step, rate in expected.items():
        assert alpha_learning_rate(search, training, step, 10) == pytest.approx(rate)
