"""The head that computes identity logits from an embedding."""

from __future__ import annotations

from torch import Tensor, nn


class BNNeck(nn.Module):
    """Batch normalisation between the embedding and the classifier (arXiv 1903.07071, section 3.5).

    The triplet loss uses the embedding before the norm, the cross-entropy the logits after it, so that the two losses
    do not compete in one space. Neither the norm nor the classifier has a trainable bias.
    """

    def __init__(self, dimensions: int, num_identities: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(dimensions)
        self.norm.bias.requires_grad_(False)
        self.classifier = nn.Linear(dimensions, num_identities, bias=False)
        nn.init.normal_(self.classifier.weight, std=0.001)

    def forward(self, embedding: Tensor) -> Tensor:
        """Map embeddings (B, D) to logits (B, identities)."""
        logits: Tensor = self.classifier(self.norm(embedding))
        return logits
