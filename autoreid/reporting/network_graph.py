"""Draw a derived network: its parts in order, with their output shapes."""

from __future__ import annotations

import copy

import graphviz
import torch
from torch import nn

from autoreid.models import count_macs, count_parameters
from autoreid.reporting.genotype_graph import as_graph
from autoreid.spaces.drawing import abbreviate
from autoreid.spaces.space import Derived


def network_graph(network: Derived, height: int, width: int, caption: str) -> graphviz.Digraph:
    """Return the graph of a derived network for images of height × width pixels.

    Each box has the name and the output shape C × H × W of a part. The title has the caption, the number of parameters
    without the classifier, and the multiply-accumulates. The shapes are computed on the meta device.
    """
    size = f"{abbreviate(count_parameters(network))} parameters, {abbreviate(count_macs(network, height, width))} MACs"
    shapes = _output_shapes(network, height, width)
    return as_graph(network.drawing(shapes, caption, size))


def _output_shapes(network: nn.Module, height: int, width: int) -> dict[str, str]:
    """Return the output shape C × H × W of each module, by its name; the shape of the images under ""."""
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
