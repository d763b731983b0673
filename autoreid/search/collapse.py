"""Watches where a search goes: to skip connections or to nothing, for one (DARTS+, arXiv 1909.06035)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from autoreid.search.alphas import entropies
from autoreid.spaces.space import Choices


def search_signs(
    probabilities: Mapping[str, Tensor],
    choices: Mapping[str, Choices],
    watched: Mapping[str, Sequence[str]],
) -> dict[str, float]:
    """How undecided a search is, and what share of the mixture goes to some of the candidates.

    Args:
        probabilities: (E, O) a group.
        choices: what the groups decide.
        watched: candidates under a name for their share.

    Returns:
        Means over the rows: `<group>/entropy` in nats, or `<family>/entropy` over all of a family's groups, and
        `<group>/<name>` for each share.
    """
    signs: dict[str, float] = {}
    rows: dict[str, list[Tensor]] = {}
    for group, entropy in entropies(probabilities).items():
        family = choices[group].family or group
        rows.setdefault(family, []).append(entropy)
        signs[f"{family}/entropy"] = torch.cat(rows[family]).mean().item()
        for name, candidates in watched.items():
            columns = [column for column, label in enumerate(choices[group].columns) if label in candidates]
            if columns:
                signs[f"{group}/{name}"] = probabilities[group][:, columns].sum(-1).mean().item()
    return signs
