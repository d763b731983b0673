"""The loss of searches and trainings: a weighted sum of named terms."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from autoreid.losses.term import Outputs, Term
from autoreid.models import OutputSizes


class LossValues(NamedTuple):
    """The loss of a batch.

    Attributes:
        total: the loss to minimise, a scalar.
        terms: each term by name, a scalar, not multiplied by its weight.
        accuracy: fraction of the images that are classified correctly, a scalar.
        embeddings: (B, D), detached, for `RetrievalLoss.update`.
    """

    total: Tensor
    terms: dict[str, Tensor]
    accuracy: Tensor
    embeddings: Tensor

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

    def forward(
        self, outputs: tuple[Tensor, ...], labels: Tensor, feature_map: Tensor | None = None
    ) -> LossValues:
        """Compute all terms and their weighted sum.

        Args:
            outputs: outputs of a network in training mode: the embedding (B, D), the logits (B, identities) or
                (B, identities, parts), and the logits of the auxiliary head if the network has one.
            labels: (B,) int64.
            feature_map: the last feature map (B, C, h, w), if a term needs it.
        """
        named = Outputs(*outputs)._replace(feature_map=feature_map)
        terms = {name: term(named, labels) for name, term in self.terms.items()}
        first, *others = (self.weights[name] * value for name, value in terms.items())
        accuracy = _accuracy(named.logits.detach(), labels)
        return LossValues(sum(others, start=first), terms, accuracy, named.embedding.detach())

    @property
    def needs_map(self) -> bool:
        """Whether a term needs the last feature map."""
        return any(term.needs_map for term in self._each())

    @property
    def comparing(self) -> list[str]:
        """Names of the terms that compare images of one identity."""
        return [name for name, term in zip(self.terms, self._each(), strict=True) if term.compares_images]

    def prepare(self, sizes: OutputSizes, labels: Tensor) -> RetrievalLoss:
        """Create the states and parameters of the terms, and return the loss itself; arguments as in `Term.prepare`."""
        for term in self._each():
            term.prepare(sizes, labels)
        return self

    def update(self, embeddings: Tensor, labels: Tensor) -> None:
        """Update the states of the terms at the end of a step; arguments as in `Term.update`."""
        for term in self._each():
            term.update(embeddings, labels)

    def _each(self) -> Iterable[Term]:
        return cast("Iterable[Term]", self.terms.values())


def _accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    mean = logits.flatten(2).mean(2) if logits.dim() > 2 else logits  # over the parts
    return (mean.argmax(1) == labels).float().mean()
