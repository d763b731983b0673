"""Signs of how a search is doing: whether its choices are decided, and what the mixture consists of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from autoreid.spaces.space import Choices

#: A choice is decided if its best candidate is at least this many times as probable as the second,
DECIDED_RATIO = 2.0
#: and if the gradients favoured it over the second by at least this many standard errors.
DECIDED_ERRORS = 2.0


def entropies(probabilities: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Compute the entropy of each row in nats, (E,) for each group: ln(O) if undecided, 0 if decided."""
    return {name: torch.special.entr(values).sum(-1) for name, values in probabilities.items()}


def best_two(probabilities: Tensor, choices: Choices) -> tuple[Tensor, Tensor]:
    """Return the two largest probabilities of each row and their columns, both (E, 2).

    Args:
        probabilities: (E, O).
        choices: what the group decides. Candidates that no genotype has do not count. If only one counts, it stands
            in both columns, and the second probability is 0.
    """
    allowed = torch.tensor(choices.allowed)
    values, places = probabilities[:, allowed].topk(min(2, len(allowed)), dim=-1)
    if len(allowed) == 1:
        return torch.cat([values, torch.zeros_like(values)], 1), allowed[torch.cat([places, places], 1)]
    return values, allowed[places]


def undecided(
    probabilities: Mapping[str, Tensor], choices: Mapping[str, Choices], leads: Mapping[str, Tensor]
) -> dict[str, int]:
    """Count the rows of each group that are not decided.

    Args:
        probabilities: (E, O) for each group.
        choices: what the groups decide.
        leads: how much the gradients favoured a candidate over another one in a row, in standard errors, (E, O, O)
            for each group; NaN if it is not known.
    """
    found = {}
    for name, values in probabilities.items():
        pairs, columns = best_two(values, choices[name])
        lead = leads[name][torch.arange(len(values)), columns[:, 0], columns[:, 1]]
        alone = columns[:, 0] == columns[:, 1]
        decided = (pairs[:, 0] >= DECIDED_RATIO * pairs[:, 1]) & (lead >= DECIDED_ERRORS)
        found[name] = int((~decided & ~alone).sum())
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
    open_rows: Mapping[str, int],
) -> dict[str, float]:
    """Describe the alphas' probabilities by a few numbers.

    Args:
        probabilities: (E, O) for each group, on the CPU.
        choices: what the groups decide.
        watched: candidates by the name of the curve of their share (DARTS+, arXiv 1909.06035: skip connections).
        open_rows: number of undecided rows of each group.

    Returns:
        For each group, or family of groups: the means over its rows of `<group>/entropy` in nats and of
        `<group>/margin`, the best candidate's probability minus the second's; and `<group>/undecided`, the share of
        undecided rows. For each group also `<group>/<name>` for each share that is watched.
    """
    rows: dict[str, list[str]] = {}
    for group in probabilities:
        rows.setdefault(choices[group].family or group, []).append(group)
    signs: dict[str, float] = {}
    entropy = entropies(probabilities)
    for family, groups in rows.items():
        size = sum(len(probabilities[group]) for group in groups)
        pairs = torch.cat([best_two(probabilities[group], choices[group])[0] for group in groups])
        signs[f"{family}/entropy"] = torch.cat([entropy[group] for group in groups]).mean().item()
        signs[f"{family}/margin"] = (pairs[:, 0] - pairs[:, 1]).mean().item()
        signs[f"{family}/undecided"] = sum(open_rows[group] for group in groups) / size
    for group, values in probabilities.items():
        for name, candidates in watched.items():
            columns = [column for column, label in enumerate(choices[group].columns) if label in candidates]
            if columns:
                signs[f"{group}/{name}"] = values[:, columns].sum(-1).mean().item()
    return signs
