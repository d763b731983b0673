"""Writes a network as an ONNX model."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autoreid.data.transforms import DEVIATION, MEAN
from autoreid.deployment.metadata import Metadata

if TYPE_CHECKING:
    import onnx


class PixelInput(nn.Module):
    """A network with its pre-processing, for uint8 pictures.

    Args:
        network: takes normalised images (B, 3, H, W).
        metadata: which steps precede the network; `preprocessing` must not be "none".
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, network: nn.Module, metadata: Metadata) -> None:
        super().__init__()
        self.network = network
        self.metadata = metadata
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1))
        self.register_buffer("deviation", torch.tensor(DEVIATION).view(3, 1, 1))

    def forward(self, pictures: Tensor) -> Tensor:
        """Embed uint8 pictures (B, h, w, 3); returns (B, D)."""
        pixels = pictures.permute(0, 3, 1, 2)
        if self.metadata.channels == "BGR":
            pixels = pixels.flip(1)
        if self.metadata.preprocessing == "resize":
            # Pillow's filter, which `data.decoding.resize` uses: Keys' with a = -0.5, wider where pictures shrink.
            size = (self.metadata.height, self.metadata.width)
            pixels = F.interpolate(pixels, size, mode="bicubic", antialias=True)
        embedding: Tensor = self.network((pixels.float() / 255 - self.mean) / self.deviation)
        return embedding


def export_onnx(network: nn.Module, metadata: Metadata) -> bytes:
    """Return the ONNX model of a network in evaluation mode, for any number of images.

    Its input `images` is described by `Metadata.preprocessing`; its output `embedding` is (B, D) float32.
    """
    import onnx

    example, sizes = _example(metadata)
    module = network if metadata.preprocessing == "none" else PixelInput(network, metadata)
    with torch.no_grad():  # some layers take another path when gradients are enabled
        program = torch.onnx.export(
            module.eval(),
            (example,),
            input_names=["images"],
            output_names=["embedding"],
            dynamic_shapes=(sizes,),
            dynamo=True,
            verbose=False,
        )
    model: onnx.ModelProto = program.model_proto  # type: ignore[union-attr]
    _drop_traces(model)
    if metadata.precision == "float16":
        model = _in_half_precision(model)
    # Mean and standard deviation are the same in all files.
    statistics = {"mean": str(list(MEAN)), "std": str(list(DEVIATION))}
    onnx.helper.set_model_props(model, metadata.entries() | statistics)
    return model.SerializeToString()


def _example(metadata: Metadata) -> tuple[Tensor, dict[int, Any]]:
    """Return an input, and its dimensions that may have other sizes."""
    # Of size 2 or larger, because torch treats dimensions of size 1 as constant.
    sizes = {0: torch.export.Dim("batch")}
    if metadata.preprocessing == "none":
        return torch.zeros(2, 3, metadata.height, metadata.width), sizes
    if metadata.preprocessing == "resize":
        sizes |= {1: torch.export.Dim("height"), 2: torch.export.Dim("width")}
    return torch.zeros(2, metadata.height, metadata.width, 3, dtype=torch.uint8), sizes


def _drop_traces(model: onnx.ModelProto) -> None:
    """Remove the stack traces that torch stores in each node: paths of this machine, and half of a small file."""
    for part in (*model.graph.node, *model.graph.value_info):
        part.ClearField("metadata_props")


def _in_half_precision(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model with float16 weights and computation; its input and output keep their types."""
    from onnxconverter_common import float16

    with warnings.catch_warnings():
        # Of constants such as 1e-12, which become the smallest number of float16; the check sees whether that matters.
        warnings.simplefilter("ignore", UserWarning)
        half: onnx.ModelProto = float16.convert_float_to_float16(
            model,
            keep_io_types=True,
            # The type to which these nodes cast is an attribute, which the converter does not change. They are given
            # by name, because it adds casts of its own.
            node_block_list=[node.name for node in model.graph.node if node.op_type == "Cast"],
        )
    return half
