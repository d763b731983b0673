"""Losses for training re-identification networks.

To add a term, add a file here and a line to `TERMS`; `losses.terms` in the config then gives it a weight.
"""

from __future__ import annotations

from autoreid.config import METRIC_LEARNING, Losses
from autoreid.errors import ConfigError
from autoreid.losses.alignment import SpatialAlignment
from autoreid.losses.classification import AuxiliaryClassification, Classification
from autoreid.losses.loss import LossValues, RetrievalLoss
from autoreid.losses.memory import ClassMemory
from autoreid.losses.metric_learning import MetricLearning
from autoreid.losses.term import Outputs, Term
from autoreid.losses.triplet import Triplet, triplet_loss

__all__ = ["TERMS", "LossValues", "Outputs", "RetrievalLoss", "Term", "build_loss", "triplet_loss"]

#: All terms by name. TensorBoard shows each term under its name.
TERMS: dict[str, type[Term]] = {
    "classification": Classification,
    "triplet": Triplet,
    "auxiliary": AuxiliaryClassification,
    "memory": ClassMemory,
    "alignment": SpatialAlignment,
}


def build_loss(
    settings: Losses, has_auxiliary: bool = False, only_weighted: bool = False, section: str = "losses"
) -> RetrievalLoss:
    """Build the loss λ · cross-entropy + (1 - λ) · triplet (Auto-ReID, arXiv 1903.09776, section 3.3) + further terms.

    Before the first pass, `prepare` must be called on it, to create the states of the terms.

    Args:
        has_auxiliary: whether the network has an auxiliary head.
        only_weighted: whether to leave out terms of weight 0. Layers that only such terms use then get no gradient.
        section: name of the settings in messages.

    Raises:
        ConfigError: `terms` names a term that does not exist, or a term whose weight is set by another key.
    """
    weights = settings.own_weights()
    further = sorted({*TERMS} - {*weights, "auxiliary"})
    for name in settings.terms:
        if name not in further and not name.startswith(METRIC_LEARNING):
            raise ConfigError(
                f"{section}.terms: unknown term {name!r}; known are {', '.join(further)}, "
                f"and {METRIC_LEARNING}NAME"
            )
    if has_auxiliary:
        weights["auxiliary"] = settings.auxiliary_weight
    weights |= settings.terms
    if only_weighted:
        weights = {name: weight for name, weight in weights.items() if weight}
    return RetrievalLoss({name: _build_term(name, settings) for name in weights}, weights)


def _build_term(name: str, settings: Losses) -> Term:
    if name.startswith(METRIC_LEARNING):
        return MetricLearning(name.removeprefix(METRIC_LEARNING), settings)
    return TERMS[name](settings)
