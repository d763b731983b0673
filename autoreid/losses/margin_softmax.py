"""Margins of a softmax over cosines: the image's own identity must win by a margin.

Shape letters: B images, N identities.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

#: Largest absolute value of a cosine, because the derivative of the arc cosine is infinite at 1.
_LARGEST_COSINE = 1 - 1e-7


def cosface(cosines: Tensor, own: Tensor, margin: float) -> Tensor:
    """Return cos θ - margin for the own identity, cos θ for the others (CosFace, arXiv 1801.09414, eq. 4)."""
    return torch.where(own, cosines - margin, cosines)


def arcface(cosines: Tensor, own: Tensor, margin: float) -> Tensor:
    """Return cos(θ + margin) for the own identity, cos θ for the others (ArcFace, arXiv 1801.07698, eq. 3).

    Beyond θ = π - margin, where cos(θ + margin) grows again, it is replaced by cos θ - margin · sin(margin), as in the
    authors' code.
    """
    angles = cosines.clamp(-_LARGEST_COSINE, _LARGEST_COSINE).acos()
    shifted = torch.where(
        angles <= math.pi - margin, (angles + margin).cos(), cosines - margin * math.sin(margin)
    )
    return torch.where(own, shifted, cosines)


def circle(cosines: Tensor, own: Tensor, margin: float) -> Tensor:
    """Return the weighted similarities of Circle loss with class labels (arXiv 2002.10857, section 3).

    The optimum of the own identity's cosine is 1 + margin, that of the others -margin. The weights, the distances to
    these optima, are constants in the gradient.
    """
    weights = torch.where(own, 1 + margin - cosines, cosines + margin).clamp(min=0).detach()
    return weights * torch.where(own, cosines - (1 - margin), cosines - margin)


#: The margins by their names in `losses.softmax`. Arguments: the cosines (B, N), whether each column is the image's own
#: identity (B, N), and the margin. The result (B, N) times the scale gives the logits.
MARGINS: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "cosface": cosface,
    "arcface": arcface,
    "circle": circle,
}
