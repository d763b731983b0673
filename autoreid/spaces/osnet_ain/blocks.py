"""OSNet-AIN's four candidate blocks at one position, computed together (arXiv 1910.06827, section 3.3).

All four share their input and differ only in their last norms. Up to these they are computed as one wide block: one
1×1 convolution for the first ones of all blocks, and one light convolution per depth for all streams that reach that
depth. Weights and statistics belong to four ordinary `models.osnet.OSBlock`s; each forward pass concatenates them.
On a CPU, large maps are faster if the blocks and their streams are computed one after the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from autoreid.layers import cpu
from autoreid.layers.batch_norm import normalise
from autoreid.layers.pointwise import pointwise
from autoreid.models.osnet import OSBLOCKS, STREAMS, OSBlock
from autoreid.spaces.osnet_ain.genotype import OSNET_BLOCKS


class MixedBlock(nn.ModuleDict):
    """The weighted sum of the four blocks at one position. No block's norms have a learned scale.

    Attributes:
        shares_statistics: whether batch statistics are those of the batch over all ranks.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            {name: OSBlock(in_channels, out_channels, *OSBLOCKS[name], affine=False) for name in OSNET_BLOCKS}
        )
        self.shares_statistics = False

    def forward(self, x: Tensor, mixing: Tensor | None, column: int | None = None) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H, W).

        Args:
            x: the input of all blocks.
            mixing: weights of the blocks, (O,).
            column: computes only the block in this column of the alphas; its weight is 1 without `mixing`.
        """
        if column is not None:
            chosen: Tensor = self[OSNET_BLOCKS[column]](x)
            return chosen if mixing is None else mixing[column] * chosen
        assert mixing is not None  # noqa: S101
        # Any, because mypy does not know the type of a ModuleDict's values.
        blocks: Sequence[Any] = list(self.values())
        channels = blocks[0].conv1.conv.out_channels
        if cpu.uses_cpu_form(x) and cpu.fills_cache(x, channels):
            outputs = [output for block in blocks for output in self._outputs(x, [block])]
        else:
            outputs = self._outputs(x, blocks)
        return _weighted_sum(outputs, mixing)

    def _outputs(self, x: Tensor, blocks: Sequence[Any]) -> list[Tensor]:
        """Map (B, in_channels, H, W) to each block's output, (B, out_channels, H, W)."""
        narrow = F.relu(self._conv_norm(x, [block.conv1 for block in blocks]))
        gated = (
            [self._stream_by_stream(narrow, *blocks)] if len(blocks) == 1 else self._streams(narrow, blocks)
        )
        shortcuts: Sequence[Tensor] = [x] * len(blocks)
        if not isinstance(blocks[0].downsample, nn.Identity):
            wide = self._conv_norm(x, [block.downsample for block in blocks])
            shortcuts = wide.unflatten(1, (len(blocks), -1)).unbind(1)
        outputs = []
        for block, streams, shortcut in zip(blocks, gated, shortcuts, strict=True):
            residual = block.norm_inside(self._conv_norm(streams, [block.conv3]))
            outputs.append(F.relu(block.norm_after(residual + shortcut)))
        return outputs

    def _stream_by_stream(self, x: Tensor, block: Any) -> Tensor:
        """Map (B, C, H, W) to a block's gated sum of its streams, (B, C, H, W)."""
        ended: list[Tensor] = []
        for stream in block.streams:
            y = x
            for conv in stream:
                y = _narrow_then_depthwise(y, conv.conv1.weight, conv.conv2.weight, groups=1)
                y = F.relu_(self._norm(y, [conv.bn]))
            ended.append(y)
        return _weighted_sum(ended, [block.gate.scales(y) for y in ended])

    def _streams(self, x: Tensor, blocks: Sequence[Any]) -> Sequence[Tensor]:
        """Map (B, O·C, H, W) to each block's gated sum of its streams, (B, C, H, W).

        At each depth one stream of every block ends.
        """
        ended: list[Tensor] = []
        for depth in range(STREAMS):
            reached = STREAMS - depth
            convs = [stream[depth] for block in blocks for stream in block.streams[depth:]]
            # At the first depth all streams of a block share their input.
            groups = len(blocks) if depth == 0 else len(convs)
            narrow = torch.cat([conv.conv1.weight for conv in convs])
            depthwise = torch.cat([conv.conv2.weight for conv in convs])
            y = _light_convs(x, narrow, depthwise, groups)
            y = self._norm(y, [conv.bn for conv in convs]).unflatten(1, (len(blocks), reached, -1))
            last, others = y.split([1, reached - 1], dim=2)
            ended.append(F.relu(last.squeeze(2)))
            x = F.relu(others).flatten(1, 3)
        return _gate(ended, [block.gate for block in blocks]).unbind(1)

    def _conv_norm(self, x: Tensor, layers: Sequence[Any]) -> Tensor:
        """Apply several 1×1 convolutions, each with its norm if it has one: (B, C, H, W) -> (B, O·C', H, W)."""
        y = pointwise(x, torch.cat([layer.conv.weight for layer in layers]))
        return y if isinstance(layers[0].bn, nn.Identity) else self._norm(y, [layer.bn for layer in layers])

    def _norm(self, x: Tensor, norms: Sequence[Any]) -> Tensor:
        """Apply several batch norms, each to its share of the channels (B, O·C, H, W)."""
        first = norms[0]
        mean, variance = (
            torch.cat([getattr(norm, name) for norm in norms]) for name in ("running_mean", "running_var")
        )
        use_running = first.track_running_stats or not self.training
        y = normalise(
            x,
            mean if use_running else None,
            variance if use_running else None,
            None,
            None,
            self.training,
            first.momentum,
            first.eps,
            self.shares_statistics,
        )
        if self.training and first.track_running_stats:
            torch._foreach_copy_([norm.running_mean for norm in norms], mean.split(first.num_features))
            torch._foreach_copy_([norm.running_var for norm in norms], variance.split(first.num_features))
        return y


def _light_convs(x: Tensor, narrow: Tensor, depthwise: Tensor, groups: int) -> Tensor:
    """Apply light convolutions without their norms; the backward pass recomputes the output of the 1×1 convolutions."""
    compute = partial(_narrow_then_depthwise, groups=groups)
    if not torch.is_grad_enabled():
        return compute(x, narrow, depthwise)
    y: Tensor = checkpoint(compute, x, narrow, depthwise, use_reentrant=False, preserve_rng_state=False)
    return y


def _narrow_then_depthwise(x: Tensor, narrow: Tensor, depthwise: Tensor, groups: int) -> Tensor:
    return F.conv2d(pointwise(x, narrow, groups=groups), depthwise, padding=1, groups=len(depthwise))


def _gate(streams: Sequence[Tensor], gates: Sequence[Any]) -> Tensor:
    """Sum each block's streams, weighted by its gate; every stream and the sum are (B, O, C, H, W)."""
    vectors = torch.stack([stream.mean(dim=(3, 4)) for stream in streams], dim=2)  # B, O, streams, C
    for layer, activate in (("fc1", F.relu), ("fc2", torch.sigmoid)):
        layers = [getattr(gate, layer) for gate in gates]
        weight = torch.stack([conv.weight.flatten(1) for conv in layers])
        bias = torch.stack([conv.bias for conv in layers])
        vectors = activate(vectors @ weight.transpose(1, 2) + bias[:, None])
    return _weighted_sum(streams, vectors[..., None, None].unbind(2))


def _weighted_sum(maps: Sequence[Tensor], weights: Iterable[Tensor]) -> Tensor:
    first, *others = zip(maps, weights, strict=True)
    total = first[0] * first[1]
    for values, weight in others:
        total = torch.addcmul(total, values, weight)
    return total
