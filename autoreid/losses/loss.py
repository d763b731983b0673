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
        terms: each term by name, a scalar, before its weight is applied.
        accuracy: share of the images whose own identity has the largest logit, a scalar.
    """

    total: Tensor
    terms: dict[str, Tensor]
    accuracy: Tensor

    def metrics(self) -> Tensor:
        """Returns the values in the order of `RetrievalLoss.metric_names`, (metrics,), without gradient."""
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
        """Names of the values that `LossValues.metrics` returns."""
        return "loss", *self.terms, "accuracy"

    def forward(self, outputs: tuple[Tensor, ...], labels: Tensor) -> LossValues:
        """Computes all terms and their weighted sum.

        Args:
            outputs: of a network in training mode: embedding (B, D), logits (B, identities) or (B, identities,
                parts), and the auxiliary head's logits if it has one.
            labels: (B,) int64.
        """
        named = Outputs(*outputs)
        terms = {name: term(named, labels) for name, term in self.terms.items()}
        first, *others = (self.weights[name] * value for name, value in terms.items())
        return LossValues(sum(others, start=first), terms, _accuracy(named.logits.detach(), labels))


def _accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    whole = logits.flatten(2).mean(2) if logits.dim() > 2 else logits
    return (whole.argmax(1) == labels).float().mean()
