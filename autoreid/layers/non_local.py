"""The non-local block: attention among the positions of a map, as a residual."""

from __future__ import annotations

from torch import Tensor, nn

from autoreid.layers.initialisation import initialise


class NonLocal(nn.Module):
    """A non-local block with dot products (arXiv 1711.07971, eqs. 4 and 6), z = x + norm(W · θ(x) φ(x)ᵀ g(x) / N).

    N is the number of positions. The embeddings θ, φ and g have half the channels. The norm's scale starts at 0, so
    that the block starts as the identity and can be added to a pretrained network (section 4.1).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        reduced = max(1, channels // 2)
        self.theta = nn.Conv2d(channels, reduced, 1)
        self.phi = nn.Conv2d(channels, reduced, 1)
        self.g = nn.Conv2d(channels, reduced, 1)
        # The norm would remove a bias.
        self.expand = nn.Conv2d(reduced, channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        initialise(self)
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, H, W)."""
        theta, phi, g = (layer(x).flatten(2) for layer in (self.theta, self.phi, self.g))
        # θ (φᵀ g) instead of (θ φᵀ) g: dot products need no matrix of all pairs of positions.
        context = (phi @ g.mT) / phi.shape[2]  # (B, C/2, C/2)
        responses = (context.mT @ theta).unflatten(2, x.shape[2:])
        result: Tensor = x + self.norm(self.expand(responses))
        return result
