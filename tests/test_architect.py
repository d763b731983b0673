from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from autoreid.config import DEFAULT_CELL_OPERATIONS, Losses, ReidCell, Search
from autoreid.losses import build_loss
from autoreid.search.alphas import Alphas
from autoreid.spaces.reid_cell.space import ReidCellSpace
from tests.helpers.tiny_problem import (
    ORDERS,
    Problem,
    direct_term,
    flat,
    numerical_gradient,
    random_batch,
    stepped,
    tiny_problem,
)


@pytest.mark.parametrize("steps_before", [0, 3])
def test_exact_is_the_derivative_of_the_unrolled_loss(steps_before):
    problem = tiny_problem(steps_before)
    assert bool(problem.optimizer.state) == bool(steps_before)
    expected = numerical_gradient(problem)
    torch.testing.assert_close(problem.gradients("exact"), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("steps_before", [0, 3])
def test_second_order_is_exact_up_to_the_finite_difference(steps_before):
    problem = tiny_problem(steps_before)
    exact, second, direct = problem.gradients("exact"), problem.gradients("second"), direct_term(problem)
    through_the_step = exact - direct
    # The second-order term is large here, and accurate to 1 %.
    assert through_the_step.norm() > 0.2 * direct.norm()
    assert (second - exact).norm() < 1e-2 * through_the_step.norm()
    assert (second - exact).norm() < 2e-3 * exact.norm()
    # A term that is multiplied by epsilon instead of divided by 2·epsilon is almost zero. This must be detected.
    net = stepped(problem)
    weights = [weight for weight in net.parameters() if weight.requires_grad]
    direction = torch.autograd.grad(problem.loss(net, problem.alpha_batch), weights)
    epsilon = 0.01 / flat(direction).norm()
    wrong = direct + through_the_step * 2 * epsilon**2
    assert (second - wrong).norm() > 0.1 * exact.norm()


def test_first_order_is_autograd_on_the_alphas_batch():
    problem = tiny_problem(2)
    loss = problem.loss(copy.deepcopy(problem.net), problem.alpha_batch)
    expected = flat(torch.autograd.grad(loss, list(problem.alphas.parameters())))
    torch.testing.assert_close(problem.gradients("first"), expected, rtol=1e-12, atol=1e-14)


def test_the_current_learning_rate_is_used():
    problem = tiny_problem(2)
    before = problem.gradients("exact")
    problem.optimizer.param_groups[0]["lr"] = 1e-9
    # With a vanishing step, only the first-order term remains.
    torch.testing.assert_close(problem.gradients("exact"), problem.gradients("first"), rtol=1e-6, atol=1e-8)
    assert (problem.gradients("exact") - before).norm() > 0.1 * before.norm()


@pytest.mark.parametrize("missing", [0, -1])
def test_a_weight_without_momentum_does_not_use_that_of_another(missing):
    """With a hard relaxation, weights have no gradient and no momentum until they are sampled."""
    problem = tiny_problem(3)
    weights = [weight for weight in problem.net.parameters() if weight.requires_grad]
    del problem.optimizer.state[weights[missing]]
    assert problem.optimizer.state
    torch.testing.assert_close(problem.gradients("exact"), numerical_gradient(problem), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("order", ORDERS)
def test_gradients_change_no_state(order):
    problem = tiny_problem(2)
    problem.loss(
        problem.net, problem.weight_batch
    )  # changes the running statistics from their initial values
    state = [problem.net.state_dict(), problem.optimizer.state_dict(), problem.alphas.state_dict()]
    before = copy.deepcopy(state)
    first = problem.gradients(order)
    torch.testing.assert_close(state, before, rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in problem.net.parameters())
    assert all(alpha.grad is None for alpha in problem.alphas.parameters())
    assert problem.net.norm.track_running_stats
    assert problem.net.training
    assert torch.equal(problem.gradients(order), first)


@pytest.mark.parametrize("order", ORDERS)
def test_gradients_are_in_the_order_of_the_alphas(order):
    problem = tiny_problem(1)
    gradients, _ = problem.architect(order).gradients(problem.alpha_batch, problem.weight_batch, step=3)
    assert [g.shape for g in gradients] == [alpha.shape for alpha in problem.alphas.parameters()]
    # Adding a constant to all alphas of a row does not change their softmax.
    for gradient in gradients:
        assert gradient.sum(-1).abs().max() < 1e-9 < gradient.abs().max()


SMOOTH = ("none", "avg_pool_3x3", "skip_connect", "sep_conv_3x3", "dil_conv_3x3")


def real_problem(operations=DEFAULT_CELL_OPERATIONS, seed=0):
    """The smallest real supernet and its loss, in float64."""
    settings = ReidCell(
        channels=4, cells_per_stage=(1, 1), nodes=2, stem="darts", parts=2, operations=operations
    )
    space = ReidCellSpace(Search(reid_cell=settings))
    torch.manual_seed(seed)
    net = space.build_supernet(4).double().train()
    nn.init.normal_(net.neck.classifier.weight, std=0.05)
    shapes = {name: group.shape for name, group in space.choices().items()}
    alphas = Alphas(shapes, torch.Generator().manual_seed(0)).double()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=3e-4)
    criterion = build_loss(Losses(margin=None))
    batches = [random_batch(seed, (3, 32, 16), size=16) for seed in (1, 2)]
    return Problem(net, alphas, optimizer, criterion, *batches)


def test_exact_is_the_derivative_on_the_real_supernet():
    """Along a few random directions, with steps small enough to stay in one smooth piece of the loss."""
    problem = real_problem()
    exact, step = problem.gradients("exact"), 1e-7
    alphas = list(problem.alphas.parameters())
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        direction = [torch.randn(alpha.shape, generator=generator, dtype=torch.float64) for alpha in alphas]
        values = []
        for move in (step, -2 * step):
            with torch.no_grad():
                torch._foreach_add_(alphas, direction, alpha=move)
            values.append(problem.loss(stepped(problem), problem.alpha_batch).item())
        with torch.no_grad():
            torch._foreach_add_(alphas, direction, alpha=step)
        numerical = (values[0] - values[1]) / (2 * step)
        assert (exact @ flat(direction)).item() == pytest.approx(numerical, rel=1e-4)


def test_second_order_is_exact_on_the_real_supernet_without_kinks(monkeypatch):
    """A finite difference across a kink differs from the derivative.

    The network therefore has no ReLU and no max pool, and the seed is one for which the finite differences do not
    change the hardest positives and negatives.
    """
    monkeypatch.setattr(F, "relu", lambda x, inplace=False: F.silu(x))
    problem = real_problem(SMOOTH, seed=1)
    exact, second, direct = (*map(problem.gradients, ("exact", "second")), direct_term(problem))
    through_the_step = exact - direct
    assert through_the_step.norm() > 0.1 * direct.norm()
    assert (second - exact).norm() < 1e-3 * through_the_step.norm()


@pytest.mark.parametrize("order", ORDERS)
def test_gradients_do_not_change_the_real_supernet(order):
    problem = real_problem()
    before = copy.deepcopy(problem.net.state_dict())
    assert problem.gradients(order).isfinite().all()
    torch.testing.assert_close(problem.net.state_dict(), before, rtol=0, atol=0)
