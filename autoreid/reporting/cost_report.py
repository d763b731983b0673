"""The cost of evaluated networks: as a table, as JSON, and as a picture of accuracy against cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from autoreid.evaluation.latency import Latency

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D


#: Markers of networks in the picture, in turn. Their number differs from that of the colours, which repeat after ten.
_MARKERS = ("o", "^", "D", "v", "P", "X", "p")
#: Names in a line of the picture's legend.
_LEGEND_COLUMNS = 4


class NetworkCost(NamedTuple):
    """What a network costs.

    Attributes:
        source: name of the network in the table of the evaluation.
        parameters: number of parameters without the classifier.
        macs: multiply-accumulates for one image.
        device: what the latencies were measured on.
        latencies: for each number of images in a batch.
        is_onnx: whether they are those of its exported file.
        cosine: of an exported file, the smallest cosine of its embeddings and the network's for a few images.
    """

    source: str
    parameters: int
    macs: int
    device: str
    latencies: Sequence[Latency]
    is_onnx: bool = False
    cosine: float | None = None

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
            "cosine": cost.cosine,
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
    """Return a figure of mAP against parameters, MACs and latency, with a row for each data set.

    A network has the same colour and marker everywhere; the legend names them. Markers of exported networks, which have
    only a latency, are hollow.

    Args:
        maps: mAP (0 to 1) by source and target.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    names = list(_panels(next(cost for cost in costs if not cost.is_onnx)))
    targets = list(dict.fromkeys(target for _, target in maps))
    lines = -(-len(costs) // _LEGEND_COLUMNS)
    figure = Figure(figsize=(3.8 * len(names), 3.2 * len(targets) + 0.25 * lines + 0.2), layout="constrained")
    grid = figure.subplots(len(targets), len(names), sharex="col", sharey="row", squeeze=False)
    looks = {source: place for place, source in enumerate(dict.fromkeys(cost.source for cost in costs))}
    for row, target in zip(grid, targets, strict=True):
        for axes, name in zip(row, names, strict=True):
            for cost in costs:
                if name in _panels(cost) and (cost.source, target) in maps:
                    _point(
                        axes, cost, looks[cost.source], _panels(cost)[name], 100 * maps[cost.source, target]
                    )
            axes.set_xlim(left=0)
            axes.grid(alpha=0.3)
        row[0].set_ylabel(f"mAP in % on {target}")
    for axes, name in zip(grid[-1], names, strict=True):
        axes.set_xlabel(name)
    figure.legend(
        handles=_unique(figure.axes), loc="outside lower center", ncols=min(len(costs), _LEGEND_COLUMNS)
    )
    return figure


def _point(axes: Axes, cost: NetworkCost, look: int, x: float, y: float) -> None:
    fill = "none" if cost.is_onnx else "full"
    marker = _MARKERS[look % len(_MARKERS)]
    axes.plot(
        [x], [y], marker, color=f"C{look}", fillstyle=fill, markersize=8, label=cost.label, clip_on=False
    )


def _unique(panels: Sequence[Axes]) -> list[Line2D]:
    """Return a point of each network, for the legend."""
    points = {line.get_label(): line for axes in panels for line in axes.lines}
    return list(points.values())
