"""The verification measures of an evaluation: result.json, table and picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from autoreid.evaluation.roc import FALSE_POSITIVE_RATES, Roc
from autoreid.reporting.curves import figure_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def roc_json(roc: Roc) -> dict[str, Any]:
    """Return the measures for result.json, as fractions of 1."""
    pairs = {"positive_pairs": roc.positives, "negative_pairs": roc.negatives}
    return {
        "tpr_at_fpr": {f"{rate:g}": tpr for rate, tpr in roc.tpr.items()},
        "eer": roc.eer,
        "auc": roc.auc,
    } | pairs


def roc_rows(measured: Mapping[str, Roc]) -> list[list[str]]:
    """Return the measures by label as rows of a table, with a header; "-" where there are too few negative pairs."""
    header = ["verification in %", *(f"TPR at FPR {rate:g}" for rate in FALSE_POSITIVE_RATES), "EER", "AUC"]
    return [
        header,
        *(
            [
                label,
                *(f"{100 * roc.tpr[rate]:.1f}" if rate in roc.tpr else "-" for rate in FALSE_POSITIVE_RATES),
                f"{100 * roc.eer:.2f}",
                f"{100 * roc.auc:.2f}",
            ]
            for label, roc in measured.items()
        ),
    ]


def roc_figure(measured: Mapping[str, Roc]) -> Figure:
    """Return a figure of the ROC curves by label, with a logarithmic axis of false positive rates.

    Raises:
        ImportError: matplotlib is not installed.
    """
    curves = {
        f"{label}: EER {100 * roc.eer:.2f} %": (roc.curve[0], [100 * share for share in roc.curve[1]])
        for label, roc in measured.items()
    }
    return figure_of(curves, "false positive rate", "true positive rate in %", log_x=True)
