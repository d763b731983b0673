"""A search's step small enough to be differentiated numerically, in float64."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from autoreid.data.loaders import Batch
from autoreid.losses import LossValues
from autoreid.search.alphas import Alphas
from autoreid.search.architect import Architect
from autoreid.search.relaxations import Softmax
from autoreid.training.accumulation import Accumulation
from autoreid.training.precision import PassPrecision

SHAPES = {"normal": (2, 3), "reduce": (1, 3)}
ORDERS = ["first", "second", "exact"]
FLOAT32 = PassPrecision("float32", torch.device("cpu"))


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


def tiny_loss(outputs, labels):
    """Called like RetrievalLoss; smooth, and dependent on both of the network's outputs."""
    embedding, logits = outputs
    classification = F.cross_entropy(logits, labels)
    spread = 0.3 * embedding.square().sum(1).sqrt().mean()
    return LossValues(classification + spread, {}, torch.zeros(()), embedding.detach())


def random_batch(seed, shape=(3, 2, 2), size=8, identities=4):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(size, *shape, generator=generator, dtype=torch.float64)
    return Batch(images, torch.arange(size) % identities, None)


class Problem(NamedTuple):
    net: nn.Module
    alphas: Alphas
    optimizer: torch.optim.SGD
    criterion: object
    alpha_batch: Batch
    weight_batch: Batch
    accumulation: Accumulation = Accumulation()

    def architect(self, order):
        return Architect(
            self.net,
            self.alphas,
            Softmax(),
            self.criterion,
            self.criterion,
            self.optimizer,
            order,
            FLOAT32,
            self.accumulation,
        )

    def gradients(self, order):
        return flat(self.architect(order).gradients(self.alpha_batch, self.weight_batch, step=3).values)

    def loss(self, net, batch):
        return self.criterion(net(batch.images, Softmax().mixture(self.alphas)), batch.labels).total


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
    problem = Problem(net, alphas, optimizer, tiny_loss, random_batch(1), random_batch(2))
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
