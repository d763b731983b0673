"""The architecture parameters, in a module of their own so that no weight decay or DDP bucket reaches them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Alphas(nn.Module):
    """One (E, O) float32 parameter a group of choices, from 1e-3·N(0, 1) (DARTS)."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], generator: torch.Generator) -> None:
        super().__init__()
        self.groups = nn.ParameterDict(
            {name: 1e-3 * torch.randn(shapes[name], generator=generator) for name in sorted(shapes)}
        )

    def digest(self) -> bytes:
        """SHA-256 of the float32 bytes, groups in alphabetical order: equal exactly when the alphas are."""
        sha256 = hashlib.sha256()
        for name in sorted(self.groups):
            sha256.update(self.groups[name].detach().float().cpu().contiguous().numpy().tobytes())
        return sha256.digest()


def entropies(probabilities: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Entropy of each row's probabilities in nats: (E,) a group; ln(O) when undecided, 0 when decided."""
    return {name: torch.special.entr(values).sum(-1) for name, values in probabilities.items()}
