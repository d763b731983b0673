"""A derived network as a picture: what it is made of, in order, with the shapes that each part gives."""

from __future__ import annotations

import copy
import html
from collections.abc import Mapping, Sequence
from itertools import groupby, pairwise

import graphviz
import torch
from torch import nn

from autoreid.models import count_macs, count_parameters
from autoreid.reporting.osnet_graph import blocks_graph
from autoreid.spaces.osnet_ain.derived import DerivedOSNet
from autoreid.spaces.reid_cell.derived import DerivedNetwork
from autoreid.spaces.space import Derived

_PAGE = {"rankdir": "LR", "ranksep": "0.2", "nodesep": "0.2", "bgcolor": "white", "dpi": "100", "pad": "0.15"}
_PAGE |= {"labelloc": "t", "fontname": "Helvetica", "fontsize": "16", "newrank": "true"}
_BOX = {"shape": "box", "style": "rounded,filled", "color": "#263238", "fontname": "Helvetica"}
_BOX |= {"fontsize": "13", "margin": "0.12,0.06", "fillcolor": "#f5f5f5"}
_STAGE = {"style": "rounded,filled", "color": "#b0bec5", "fillcolor": "#fafafa", "fontsize": "13"}
_STAGE |= {"fontname": "Helvetica", "margin": "10"}
_FILL = {"normal": "#e3f2fd", "reduce": "#ffe0b2", "input": "white", "head": "#c8e6c9"}
#: A cell's older input is drawn fainter, so that the row of cells is what is seen.
_OLDER = {"color": "#b0bec5", "style": "dashed", "arrowsize": "0.6"}


def network_graph(network: Derived, height: int, width: int, caption: str) -> graphviz.Digraph:
    """The graph of a whole derived network for images of height × width pixels, left to right.

    Each box says what it is and the (C, H, W) that it gives. Above stand the caption, all parameters but the
    classifier's, and multiply-accumulates. Nothing is computed: shapes come from the meta device.
    """
    size = (
        f"{_count(count_parameters(network))} parameters, {_count(count_macs(network, height, width))} MACs"
    )
    shapes = _output_shapes(network, height, width)
    if isinstance(network, DerivedOSNet):
        return blocks_graph(network.genotype, f"{caption}   {size}", shapes)
    assert isinstance(network, DerivedNetwork)  # noqa: S101 (there are two spaces)
    return _cells_graph(network, shapes, caption, size)


def _cells_graph(
    network: DerivedNetwork, shapes: Mapping[str, str], caption: str, size: str
) -> graphviz.Digraph:
    """A frame around each stage says its parameters; solid arrows lead to a cell from the last one, dashed ones
    from the one before.
    """
    title = f'<b>{html.escape(caption)}</b><font color="#546e7a">   {size}</font>'
    graph = graphviz.Digraph(
        "network", graph_attr=_PAGE | {"label": f"<{title}>"}, node_attr=_BOX, edge_attr={"arrowsize": "0.8"}
    )
    graph.node("images", f"images\n{shapes['']}", fillcolor=_FILL["input"])
    with _stage(graph, "stem", [network.stem]) as stem:
        stem.node("stem", f"stem\n{shapes['stem']}")
    for stage, members in groupby(range(len(network.plans)), key=lambda index: network.plans[index].stage):
        indices = list(members)
        with _stage(graph, f"stage {stage + 1}", [network.cells[index] for index in indices]) as frame:
            for index in indices:
                kind = network.plans[index].kind
                frame.node(f"cell{index}", f"{kind}\n{shapes[f'cells.{index}']}", fillcolor=_FILL[kind])
    with _stage(graph, "head", [network.neck]) as head:
        head.node("embedding", f"average\n{network.embedding_size}", fillcolor=_FILL["head"])
        head.node("neck", f"BNNeck\n{network.embedding_size}", fillcolor=_FILL["head"])
    _connect(graph, network)
    return graph


def _output_shapes(network: nn.Module, height: int, width: int) -> dict[str, str]:
    """C × H × W of what each module gives, by its name; of the images under ""."""
    shapes_only = copy.deepcopy(network).to("meta").eval()
    shapes: dict[str, str] = {}

    def note(name: str, output: torch.Tensor) -> None:
        shapes[name] = " × ".join(map(str, output.shape[1:]))

    for name, module in shapes_only.named_modules():
        if name:
            module.register_forward_hook(lambda _module, _inputs, output, name=name: note(name, output))
    images = torch.empty(1, 3, height, width, device="meta")
    note("", images)
    with torch.no_grad():
        shapes_only(images)
    return shapes


def _stage(graph: graphviz.Digraph, name: str, modules: Sequence[nn.Module]) -> graphviz.graphs.Digraph:
    """A frame around the boxes that are added to it, with the parameters of what it holds."""
    parameters = _count(sum(count_parameters(module) for module in modules))
    return graph.subgraph(name=f"cluster {name}", graph_attr=_STAGE | {"label": f"{name} · {parameters}"})


def _connect(graph: graphviz.Digraph, network: DerivedNetwork) -> None:
    names = ["images", "stem", *(f"cell{index}" for index in range(len(network.cells))), "embedding", "neck"]
    for last, name in pairwise(names):
        graph.edge(last, name, weight="20")
    # The first cell takes the stem twice, the second one the stem and the first cell.
    for older, cell in zip(["stem", *names[1:-4]], names[2:-2], strict=True):
        graph.edge(older, cell, **_OLDER)
    if network.auxiliary is not None:
        name = f"auxiliary head\n{_count(count_parameters(network.auxiliary))}, training only"
        graph.node("auxiliary", name, style="rounded,dashed")
        graph.edge(f"cell{network.auxiliary_after}", "auxiliary", style="dashed")


def _count(number: int) -> str:
    """Three figures, as papers give sizes: 638 k, 9.12 M."""
    for unit, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= unit:
            return f"{number / unit:.3g} {letter}"
    return str(number)
