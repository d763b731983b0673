"""Retrieval results on several targets, and their mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from autoreid.evaluation.ranking import RetrievalResult


@dataclass(frozen=True)
class MeanRetrieval:
    """The retrieval results of several targets, each with its own gallery, and their mean.

    Attributes:
        targets: name -> result; at least one, all with the same ranks.
    """

    targets: Mapping[str, RetrievalResult]

    @property
    def map(self) -> float:
        """Mean of the targets' mAP values."""
        return fmean(result.map for result in self.targets.values())

    @property
    def minp(self) -> float:
        """Mean of the targets' mINP values."""
        return fmean(result.minp for result in self.targets.values())

    @property
    def cmc(self) -> dict[int, float]:
        """Rank k -> mean of the targets' CMC at k."""
        results = list(self.targets.values())
        return {rank: fmean(result.cmc[rank] for result in results) for rank in results[0].cmc}

    def as_plain(self) -> dict[str, Any]:
        """Return `map`, `minp` and `cmc` for JSON and checkpoints; `targets` lists them per target if several."""
        plain = _plain(self)
        if len(self.targets) > 1:
            plain["targets"] = {name: _plain(result) for name, result in self.targets.items()}
        return plain


def _plain(figures: RetrievalResult | MeanRetrieval) -> dict[str, Any]:
    cmc = {str(rank): rate for rank, rate in figures.cmc.items()}
    return {"map": figures.map, "minp": figures.minp, "cmc": cmc}
