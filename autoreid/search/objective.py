"""What the search minimises, for weights and alphas alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from autoreid.data.loaders import Batch
from autoreid.losses import LossTerms, RetrievalLoss

#: (images, mixing) -> (embedding, logits)
Network = Callable[[Tensor, Mapping[str, Tensor]], tuple[Tensor, Tensor]]


class Score(NamedTuple):
    """A batch's losses and how many of its images were given their own identity."""

    losses: LossTerms
    accuracy: Tensor


class Objective:
    """The retrieval loss of a supernet on a batch, under autocast if the precision says so."""

    def __init__(self, loss: RetrievalLoss, precision: str, device: torch.device) -> None:
        self.loss = loss
        self.autocast = precision == "bfloat16"
        self.device = device

    def __call__(self, network: Network, batch: Batch, mixing: Mapping[str, Tensor]) -> Score:
        """Scores one batch; the losses are computed in float32."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            embedding, logits = network(batch.images, mixing)
        losses = self.loss(embedding, logits, batch.labels)
        return Score(losses, (logits.detach().argmax(1) == batch.labels).float().mean())
