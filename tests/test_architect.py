from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from autoreid.config import CELL_OPERATIONS, Search
from autoreid.data.loaders import Batch
from autoreid.losses import LossTerms, RetrievalLoss
from autoreid.search.alphas import Alphas
from autoreid.search.architect import Architect
from autoreid.search.relaxations import Softmax
from autoreid.spaces.reid_cell.space import ReidCellSpace
from autoreid.training.objective import Objective

SHAPES = {"normal": (2, 3), "reduce": (1, 3)}
ORDERS = ["first", "second", "exact"]


class TinySupernet(nn.Module):
    """Two mixtures of three smooth operations, one of them with a norm, and a classifier: 300 odd weights."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(12, 6)
        self.branches = nn.ModuleList(nn.Linear(6, 6) for _ in range(6))
        self.norm = nn.BatchNorm1d(6, affine=False)
        self.frozen = nn.Parameter(torch.full((6,), 0.1), requires_grad=False)
        self.classifier = nn.Linear(6, 4)

    def forward(self, images, mixing):
        x = torch.tanh(self.stem(images.flatten(1)))
        for edge, weights in enumerate([mixing["normal"][0], mixing["normal"][1], mixing["reduce"][0]]):
            first, second = self.branches[2 * edge], self.branches[2 * edge + 1]
            candidates = [torch.tanh(first(x)), self.norm(second(x)), torch.sin(x)]
            x = sum(weight * candidate for weight, candidate in zip(weights, candidates, strict=True))
        return x + self.frozen, self.classifier(x)


class TinyScore(NamedTuple):
    losses: LossTerms
    accuracy: torch.Tensor


def tiny_objective(network, batch, mixing):
    """Called as Objective is; smooth, and dependent on both of the network's outputs."""
    embedding, logits = network(batch.images, mixing)
    classification = F.cross_entropy(logits, batch.labels)
    spread = 0.3 * embedding.square().sum(1).sqrt().mean()
    return TinyScore(LossTerms(classification + spread, classification, spread), torch.zeros(()))


tiny_objective.passes = nullcontext


def random_batch(seed, shape=(3, 2, 2), size=8, identities=4):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(size, *shape, generator=generator, dtype=torch.float64)
    return Batch(images, torch.arange(size) % identities, None)


class Problem(NamedTuple):
    net: nn.Module
    alphas: Alphas
    optimizer: torch.optim.SGD
    objective: object
    alpha_batch: Batch
    weight_batch: Batch

    def gradients(self, order):
        architect = Architect(self.net, self.alphas, Softmax(), self.objective, self.optimizer, order)
        return flat(architect.gradients(self.alpha_batch, self.weight_batch, step=3))

    def loss(self, net, batch):
        return self.objective(net, batch, Softmax().mixing(self.alphas)).losses.total


def flat(tensors):
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


def tiny_problem(steps_before):
    """A net whose alphas matter; a few real steps of SGD fill the momentum buffers."""
    torch.manual_seed(0)
    net = TinySupernet().double().train()
    alphas = Alphas(SHAPES, torch.Generator().manual_seed(0)).double()
    for alpha in alphas.parameters():
        alpha.data += torch.randn_like(alpha)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.4, momentum=0.9, weight_decay=0.02)
    problem = Problem(net, alphas, optimizer, tiny_objective, random_batch(1), random_batch(2))
    for step in range(steps_before):
        optimizer.zero_grad()
        problem.loss(net, random_batch(10 + step)).backward()
        optimizer.step()
    optimizer.zero_grad()
    alphas.zero_grad()
    return problem


def stepped(problem):
    """A copy of the net after one step of a fresh copy of the real optimiser on the weights' batch."""
    net = copy.deepcopy(problem.net)
    weights = [weight for weight in net.parameters() if weight.requires_grad]
    gradients = torch.autograd.grad(problem.loss(net, problem.weight_batch), weights)
    optimizer = torch.optim.SGD(net.parameters(), lr=1)
    optimizer.load_state_dict(copy.deepcopy(problem.optimizer.state_dict()))
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.grad = gradient
    optimizer.step()
    return net


def numerical_gradient(problem, step=1e-5):
    """Central differences of L_alphas(w'(alpha), alpha) in each alpha; w' by torch's own SGD."""
    result = []
    for alpha in problem.alphas.parameters():
        for index in range(alpha.numel()):
            values = []
            for sign in (1, -1):
                with torch.no_grad():
                    alpha.view(-1)[index] += sign * step
                values.append(problem.loss(stepped(problem), problem.alpha_batch).item())
                with torch.no_grad():
                    alpha.view(-1)[index] -= sign * step
            result.append((values[0] - values[1]) / (2 * step))
    return torch.tensor(result, dtype=torch.float64)


def direct_term(problem):
    """The gradient at w' as if w' did not depend on the alphas."""
    loss = problem.loss(stepped(problem), problem.alpha_batch)
    return flat(torch.autograd.grad(loss, list(problem.alphas.parameters())))


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
    # What the second order adds is large here, and right to a hundredth of itself.
    assert through_the_step.norm() > 0.2 * direct.norm()
    assert (second - exact).norm() < 1e-2 * through_the_step.norm()
    assert (second - exact).norm() < 2e-3 * exact.norm()
    # Multiplied by epsilon instead of divided by twice that, it would all but vanish.
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


def test_the_learning_rate_and_momentum_of_the_moment_count():
    problem = tiny_problem(2)
    before = problem.gradients("exact")
    problem.optimizer.param_groups[0]["lr"] = 1e-9
    # Without a step there is nothing to differentiate through.
    torch.testing.assert_close(problem.gradients("exact"), problem.gradients("first"), rtol=1e-6, atol=1e-8)
    assert (problem.gradients("exact") - before).norm() > 0.1 * before.norm()


@pytest.mark.parametrize("order", ORDERS)
def test_nothing_is_moved(order):
    problem = tiny_problem(2)
    problem.loss(problem.net, problem.weight_batch)  # running statistics other than their first values
    watched = [problem.net.state_dict(), problem.optimizer.state_dict(), problem.alphas.state_dict()]
    before = copy.deepcopy(watched)
    first = problem.gradients(order)
    torch.testing.assert_close(watched, before, rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in problem.net.parameters())
    assert all(alpha.grad is None for alpha in problem.alphas.parameters())
    assert problem.net.norm.track_running_stats
    assert problem.net.training
    assert torch.equal(problem.gradients(order), first)


@pytest.mark.parametrize("order", ORDERS)
def test_gradients_come_in_the_alphas_order(order):
    problem = tiny_problem(1)
    architect = Architect(problem.net, problem.alphas, Softmax(), problem.objective, problem.optimizer, order)
    gradients = architect.gradients(problem.alpha_batch, problem.weight_batch, step=3)
    assert [g.shape for g in gradients] == [alpha.shape for alpha in problem.alphas.parameters()]
    # A softmax does not change when all its alphas move alike.
    for gradient in gradients:
        assert gradient.sum(-1).abs().max() < 1e-9 < gradient.abs().max()


SMOOTH = ("none", "avg_pool_3x3", "skip_connect", "sep_conv_3x3", "dil_conv_3x3")


def real_problem(operations=CELL_OPERATIONS[:7], seed=0):
    """The real supernet and loss, as small as they come, in float64."""
    search = Search(channels=4, cells_per_stage=(1, 1), nodes=2, stem="darts", parts=2, operations=operations)
    space = ReidCellSpace(search)
    torch.manual_seed(seed)
    net = space.build_supernet(4).double().train()
    nn.init.normal_(net.neck.classifier.weight, std=0.05)
    shapes = {name: group.shape for name, group in space.choices().items()}
    alphas = Alphas(shapes, torch.Generator().manual_seed(0)).double()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=3e-4)
    objective = Objective(RetrievalLoss(0.5, None, 0.0), "float32", torch.device("cpu"))
    batches = [random_batch(seed, (3, 32, 16), size=16) for seed in (1, 2)]
    return Problem(net, alphas, optimizer, objective, *batches)


def test_exact_is_the_derivative_on_the_real_supernet():
    """Along a few directions of all alphas together, within one piece of the piecewise smooth loss."""
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
    """A step across a kink sees more curvature than autograd does; so no ReLU, no max pool, and a seed whose step
    leaves the hardest positives and negatives who they are.
    """
    monkeypatch.setattr(F, "relu", lambda x, inplace=False: F.silu(x))
    problem = real_problem(SMOOTH, seed=1)
    exact, second, direct = (*map(problem.gradients, ("exact", "second")), direct_term(problem))
    through_the_step = exact - direct
    assert through_the_step.norm() > 0.1 * direct.norm()
    assert (second - exact).norm() < 1e-3 * through_the_step.norm()


@pytest.mark.parametrize("order", ORDERS)
def test_the_real_supernet_is_left_as_it_was(order):
    problem = real_problem()
    before = copy.deepcopy(problem.net.state_dict())
    assert problem.gradients(order).isfinite().all()
    torch.testing.assert_close(problem.net.state_dict(), before, rtol=0, atol=0)
