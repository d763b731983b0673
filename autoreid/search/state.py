"""The state of a search, and the result of one of its epochs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from autoreid.data.loaders import BatchStream
from autoreid.losses import RetrievalLoss
from autoreid.search.alphas import Alphas
from autoreid.search.cost import SearchCost
from autoreid.search.progress import SearchProgress
from autoreid.spaces.genotype import Genotype
from autoreid.training.loop import EpochResult
from autoreid.training.state import RunState


@dataclass(kw_only=True)
class SearchState(RunState):
    """The state of a search.

    Attributes:
        alphas: the architecture parameters.
        alpha_loss: the loss of the alphas at level bilevel.
        alpha_optimizer: their optimiser.
        alpha_stream: batches for the alphas; None if they learn from the weights' batches.
        progress: what the search remembers from epoch to epoch.
        cost: the costs of networks; None if they do not count.
        alphas_before: the alphas at the start of the epoch; None unless an epoch leaves a domain out.
        read_out_seconds: time spent on reading the genotype; checkpoints do not have it.
    """

    PARTS: ClassVar[tuple[str, ...]] = (
        *RunState.PARTS,
        "alphas",
        "alpha_loss",
        "alpha_optimizer",
        "alpha_stream",
        "progress",
        "cost",
        "alphas_before",
    )

    alphas: Alphas
    alpha_loss: RetrievalLoss
    alpha_optimizer: torch.optim.Optimizer
    alpha_stream: BatchStream | None
    progress: SearchProgress
    cost: SearchCost | None = None
    alphas_before: Alphas | None = None
    read_out_seconds: float = 0.0

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state; those of older versions have neither progress nor terms with a state."""
        super().load_state_dict({"progress": self.progress.state_dict(), "alpha_loss": {}, **state})


@dataclass(frozen=True)
class SearchResult(EpochResult):
    """The result of an epoch of a search.

    Attributes:
        genotype: read from the alphas; after the last epoch, as `search.read_out` says.
        probabilities: of each candidate, (E, O) for each group.
    """

    genotype: Genotype
    probabilities: dict[str, Tensor]
