"""The loss of searches and trainings: a weighted sum of named terms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from autoreid.losses.term import Outputs, Term


class LossValues(NamedTuple):
    """The loss of a batch.

    Attributes:
        total: the loss to minimise, a scalar.
        terms: each term by name, a scalar, not multiplied by its weight.
        accuracy: fraction of the images that are classified correctly, a scalar.
    """

    total: Tensor
    terms: dict[str, Tensor]
    accuracy: Tensor

    def metrics(self) -> Tensor:
        """Return the values in the order of `RetrievalLoss.metric_names`, (metrics,), detached."""
        return torch.stack([self.total, *self.terms.values(), self.accuracy]).detach()


class RetrievalLoss(nn.Module):
    """A weighted sum of named terms.

    Args:
        terms: the terms by name.
        weights: the weight of each term, by the same names.
    """

    def __init__(self, terms: Mapping[str, Term], weights: Mapping[str, float]) -> None:
        super().__init__()
        self.terms = nn.ModuleDict(terms)
        self.weights = dict(weights)

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Names of the values that `LossValues.metrics` returns, in the same order."""
        return "loss", *self.terms, "accuracy"

    def forward(self, outputs: tuple[Tensor, ...], labels: Tensor) -> LossValues:
        """Compute all terms and their weighted sum.

        Args:
            outputs: outputs of a network in training mode: the embedding (B, D), the logits (B, identities) or
                (B, identities, parts), and the logits of the auxiliary head if the network has one.
            labels: (B,) int64.
        """
        named = Outputs(*outputs)
        terms = {name: term(named, labels) for name, term in self.terms.items()}
        first, *others = (self.weights[name] * value for name, value in terms.items())
        return LossValues(sum(others, start=first), terms, _accuracy(named.logits.detach(), labels))


def _accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    mean = logits.flatten(2).mean(2) if logits.dim() > 2 else logits  # over the parts
    return (mean.argmax(1) == labels).float().mean()
