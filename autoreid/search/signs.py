"""Signs of how a search is doing: whether its choices are decided, and what the mixture consists of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from autoreid.spaces.space import Choices

#: A choice is decided if its best candidate is at least this many times as probable as the second.
DECIDED_RATIO = 2.0


def entropies(probabilities: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Compute the entropy of each row in nats, (E,) for each group: ln(O) if undecided, 0 if decided."""
    return {name: torch.special.entr(values).sum(-1) for name, values in probabilities.items()}


def best_two(probabilities: Tensor, choices: Choices) -> Tensor:
    """Return the two largest probabilities of each row (E, 2), among the candidates that a genotype may have.

    Args:
        probabilities: (E, O).
        choices: what the group decides. With a single candidate, the second probability is 0.
    """
    allowed = probabilities[:, choices.allowed]
    if allowed.shape[1] == 1:
        allowed = torch.cat([allowed, torch.zeros_like(allowed)], dim=1)
    return allowed.topk(2, dim=-1).values


def undecided(probabilities: Mapping[str, Tensor], choices: Mapping[str, Choices]) -> dict[str, int]:
    """Count the rows of each group whose best candidate is less than DECIDED_RATIO times as probable as the second."""
    found = {}
    for name, values in probabilities.items():
        first, second = best_two(values, choices[name]).unbind(1)
        found[name] = int((first < DECIDED_RATIO * second).sum())
    return found


def best_columns(probabilities: Mapping[str, Tensor], choices: Mapping[str, Choices]) -> dict[str, list[int]]:
    """Return the most probable candidate of each row among those that a genotype may have, by its column."""
    found = {}
    for name, values in probabilities.items():
        allowed = choices[name].allowed
        found[name] = [allowed[index] for index in values[:, allowed].argmax(-1).tolist()]
    return found


def search_signs(
    probabilities: Mapping[str, Tensor],
    choices: Mapping[str, Choices],
    watched: Mapping[str, Sequence[str]],
) -> dict[str, float]:
    """Describe the alphas' probabilities by a few numbers.

    Args:
        probabilities: (E, O) for each group, on the CPU.
        choices: what the groups decide.
        watched: candidates by the name of the curve of their share (DARTS+, arXiv 1909.06035: skip connections).

    Returns:
        For each group, or family of groups: the means over its rows of `<group>/entropy` in nats and of
        `<group>/margin`, the best candidate's probability minus the second's; and `<group>/undecided`, the share of
        undecided rows. For each group also `<group>/<name>` for each share that is watched.
    """
    rows: dict[str, list[str]] = {}
    for group in probabilities:
        rows.setdefault(choices[group].family or group, []).append(group)
    signs: dict[str, float] = {}
    entropy, counts = entropies(probabilities), undecided(probabilities, choices)
    for family, groups in rows.items():
        size = sum(len(probabilities[group]) for group in groups)
        pairs = torch.cat([best_two(probabilities[group], choices[group]) for group in groups])
        signs[f"{family}/entropy"] = torch.cat([entropy[group] for group in groups]).mean().item()
        signs[f"{family}/margin"] = (pairs[:, 0] - pairs[:, 1]).mean().item()
        signs[f"{family}/undecided"] = sum(counts[group] for group in groups) / size
    for group, values in probabilities.items():
        for name, candidates in watched.items():
            columns = [column for column, label in enumerate(choices[group].columns) if label in candidates]
            if columns:
                signs[f"{group}/{name}"] = values[:, columns].sum(-1).mean().item()
    return signs
