"""The architecture parameters, in a separate module, so that neither the weights' decay nor DDP applies to them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import nn


class Alphas(nn.Module):
    """A float32 parameter (E, O) for each group of choices, initialised from 1e-3·N(0, 1) (DARTS)."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], generator: torch.Generator) -> None:
        super().__init__()
        self.groups = nn.ParameterDict(
            {name: 1e-3 * torch.randn(shapes[name], generator=generator) for name in sorted(shapes)}
        )

    def digest(self) -> bytes:
        """Return the SHA-256 of the float32 bytes, groups in alphabetical order."""
        sha256 = hashlib.sha256()
        for name in sorted(self.groups):
            sha256.update(self.groups[name].detach().float().cpu().contiguous().numpy().tobytes())
        return sha256.digest()
