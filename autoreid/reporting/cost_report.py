"""The cost of evaluated networks: as a table, as JSON, and as a picture of accuracy against cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from autoreid.evaluation.latency import Latency

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class NetworkCost(NamedTuple):
    """What a network costs.

    Attributes:
        source: name of the network in the table of the evaluation.
        parameters: number of parameters without the classifier.
        macs: multiply-accumulates for one image.
        device: what the latencies were measured on.
        latencies: for each number of images in a batch.
        is_onnx: whether they are those of its exported file.
    """

    source: str
    parameters: int
    macs: int
    device: str
    latencies: Sequence[Latency]
    is_onnx: bool = False

    @property
    def label(self) -> str:
        """The name in tables and pictures."""
        return f"{self.source}, ONNX" if self.is_onnx else self.source


def cost_json(costs: Sequence[NetworkCost]) -> list[dict[str, Any]]:
    """Return the costs as plain values; latencies are in milliseconds."""
    return [
        {
            "source": cost.source,
            "onnx": cost.is_onnx,
            "parameters": cost.parameters,
            "macs": cost.macs,
            "device": cost.device,
            "latency": [
                {"batch": one.batch, "p50_ms": one.p50, "p95_ms": one.p95, "passes": one.passes}
                for one in cost.latencies
            ],
        }
        for cost in costs
    ]


def cost_rows(costs: Sequence[NetworkCost]) -> list[list[str]]:
    """Return the costs as rows of a table, with a header."""
    batches = [one.batch for one in costs[0].latencies]
    columns = [f"ms, batch {batch}: p50 / p95" for batch in batches]
    return [
        ["cost", "M parameters", "GMACs", *columns, "on"],
        *(
            [
                cost.label,
                f"{cost.parameters / 1e6:.2f}",
                f"{cost.macs / 1e9:.3f}",
                *(f"{_short(one.p50)} / {_short(one.p95)}" for one in cost.latencies),
                cost.device,
            ]
            for cost in costs
        ),
    ]


def _short(milliseconds: float) -> str:
    """Return a time with about three digits."""
    return f"{milliseconds:.{max(0, 2 - len(str(int(milliseconds))) + 1)}f}"


def _panels(cost: NetworkCost) -> dict[str, float]:
    """Return the costs of a network in the picture, by the label of their axis."""
    first = cost.latencies[0]
    latency = {f"ms for a batch of {first.batch} (median)": first.p50}
    if cost.is_onnx:
        return latency
    return {"M parameters": cost.parameters / 1e6, "GMACs": cost.macs / 1e9} | latency


def cost_figure(costs: Sequence[NetworkCost], maps: Mapping[tuple[str, str], float]) -> Figure:
    """Return a figure of mAP against parameters, MACs and latency, with a labelled point for each network.

    Each data set has a colour. Exported networks are squares in the panel of the latency.

    Args:
        maps: mAP (0 to 1) by source and target.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    names = list(_panels(next(cost for cost in costs if not cost.is_onnx)))
    targets = list(dict.fromkeys(target for _, target in maps))
    figure = Figure(figsize=(4.2 * len(names), 4.2), layout="constrained")
    panels = figure.subplots(1, len(names), sharey=True)
    for axes, name in zip(panels, names, strict=True):
        axes.set_xlabel(name)
        axes.grid(alpha=0.3)
        axes.margins(0.25, 0.15)
        for number, target in enumerate(targets):
            points = [
                (cost, _panels(cost)[name], 100 * maps[cost.source, target])
                for cost in costs
                if name in _panels(cost) and (cost.source, target) in maps
            ]
            _draw(axes, points, f"C{number}")
    panels[0].set_ylabel(f"mAP in % on {targets[0]}" if len(targets) == 1 else "mAP in %")
    if len(targets) > 1:
        for number, target in enumerate(targets):
            panels[0].plot([], [], "o", color=f"C{number}", label=target)
        figure.legend(loc="outside lower center", ncols=len(targets))
    return figure


def _draw(axes: Axes, points: Sequence[tuple[NetworkCost, float, float]], colour: str) -> None:
    """Draw points, with their labels alternately above and below, so that neighbours do not cover each other."""
    for place, (cost, x, y) in enumerate(sorted(points, key=lambda point: point[1])):
        axes.plot([x], [y], "s" if cost.is_onnx else "o", color=colour)
        above = place % 2 == 0
        axes.annotate(
            cost.label,
            (x, y),
            xytext=(0, 7 if above else -7),
            textcoords="offset points",
            ha="center",
            va="bottom" if above else "top",
            fontsize=9,
        )
