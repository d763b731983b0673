"""Watches for a search that collapses to skip connections or to nothing (DARTS+, arXiv 1909.06035)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from autoreid.search.alphas import entropies


def collapse_signs(probabilities: Mapping[str, Tensor], operations: Sequence[str]) -> dict[str, float]:
    """How undecided a search is, and what share of the mixture goes to skip_connect and none.

    Args:
        probabilities: (E, O) a group.
        operations: names of the O columns.

    Returns:
        Means over a group's edges: `<group>/entropy` in nats, `<group>/skip_share` and `<group>/none_share`.
    """
    signs: dict[str, float] = {}
    for name, entropy in entropies(probabilities).items():
        signs[f"{name}/entropy"] = entropy.mean().item()
        for operation, label in (("skip_connect", "skip_share"), ("none", "none_share")):
            if operation in operations:
                signs[f"{name}/{label}"] = probabilities[name][:, operations.index(operation)].mean().item()
    return signs


def count_skips(cell: Sequence[Sequence[tuple[str, int]]]) -> int:
    """skip_connect edges in a genotype's cell: DARTS+ stops when the normal cell has two."""
    return sum(operation == "skip_connect" for node in cell for operation, _ in node)
