"""Cross-entropy over the identities."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from autoreid.config import Losses
from autoreid.losses.margin_softmax import MARGINS
from autoreid.losses.term import Outputs, Term


class Classification(Term):
    """Cross-entropy of the logits. With a margin, the network's logits must be cosines (`layers.heads.use_cosines`)."""

    def __init__(self, settings: Losses) -> None:
        super().__init__()
        self.label_smoothing = settings.label_smoothing
        self.margin_of = MARGINS.get(settings.softmax)
        self.scale, self.margin = settings.softmax_scale, settings.softmax_margin

    def forward(self, outputs: Outputs, labels: Tensor) -> Tensor:
        """Compute the term, a scalar."""
        return self.cross_entropy(outputs.logits, labels)

    def cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Compute the mean cross-entropy, a scalar.

        Args:
            logits: (B, identities), or (B, identities, parts) of a network with a classifier for each part.
            labels: (B,) int64.
        """
        # In half precision, small differences between many identities would be lost.
        logits = logits if logits.dtype == torch.float64 else logits.float()
        if logits.dim() > 2:
            # One row for each image and part: torch's loss over (B, identities, parts) is not deterministic on GPUs.
            labels = labels[:, None].expand(-1, logits.shape[2]).flatten()
            logits = logits.transpose(1, 2).flatten(0, 1)
        if self.margin_of is not None:
            own = labels[:, None] == torch.arange(logits.shape[1], device=labels.device)
            logits = self.scale * self.margin_of(logits, own, self.margin)
        return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)


class AuxiliaryClassification(Classification):
    """Cross-entropy of the auxiliary head's logits (DARTS, arXiv 1806.09055)."""

    def forward(self, outputs: Outputs, labels: Tensor) -> Tensor:
        """Compute the term, a scalar."""
        assert outputs.auxiliary is not None  # noqa: S101
        return self.cross_entropy(outputs.auxiliary, labels)
