"""OSNet-AIN's four candidate blocks at one place, computed together (arXiv 1910.06827, section 3.3).

All four see the same input and differ only in the norms at their end. Up to there they are one wide block: their
first 1×1 convolutions are one, and so are all light convolutions of one depth, over the candidates' streams that
reach it. Weights are those of four `models.osnet.OSBlock`s, one below the other: rows (candidate, stream, channel).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from autoreid.models.osnet import OSBLOCKS, OSBlock
from autoreid.models.weights import initialise
from autoreid.search.edge_norm import EdgeNorm
from autoreid.search.genotype import OSNET_BLOCKS
from autoreid.search.pointwise import Pointwise, map_vectors, pointwise, rows_of

#: N.
CANDIDATES = len(OSNET_BLOCKS)
#: Of each candidate; stream s ends after s light convolutions.
STREAMS = 4


class WidePointwise(nn.Module):
    """The candidates' 1×1 convolutions of one input, each with a batch norm."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, CANDIDATES * channels, 1, bias=False)
        self.bn = EdgeNorm(channels, CANDIDATES, affine=False)

    def forward(self, x: Tensor, chosen: slice) -> Tensor:
        """(B, C_in, H, W) -> (B, N·C, H, W)."""
        output: Tensor = self.bn(pointwise(x, rows_of(self.conv.weight, CANDIDATES, chosen)), None, chosen)
        return output


class WideLightConv(nn.Module):
    """The light convolutions of one depth, 1×1 then depthwise 3×3, of S streams of each candidate, with their norms.

    Between forward and backward pass the 1×1's output is not kept, but made again.
    """

    def __init__(self, channels: int, streams: int) -> None:
        super().__init__()
        wide = CANDIDATES * streams * channels
        # At the first depth a candidate's streams have one input between them.
        self.inputs = 1 if streams == STREAMS else streams
        self.conv1 = nn.Conv2d(channels, wide, 1, bias=False)
        self.conv2 = nn.Conv2d(1, wide, 3, bias=False)
        self.bn = EdgeNorm(streams * channels, CANDIDATES, affine=False)

    def forward(self, x: Tensor, chosen: slice) -> Tensor:
        """(B, N·S·C, H, W), or (B, N·C, H, W) at the first depth -> (B, N·S·C, H, W), before the ReLU."""
        narrow = rows_of(self.conv1.weight, CANDIDATES, chosen)
        depthwise = rows_of(self.conv2.weight, CANDIDATES, chosen)
        compute = partial(_light_conv, groups=self.inputs * len(range(CANDIDATES)[chosen]))
        if torch.is_grad_enabled():
            # Weights as arguments: the architect swaps them for the length of a forward pass only.
            y = checkpoint(compute, x, narrow, depthwise, use_reentrant=False, preserve_rng_state=False)
        else:
            y = compute(x, narrow, depthwise)
        output: Tensor = self.bn(y, None, chosen)
        return output


def _light_conv(x: Tensor, narrow: Tensor, depthwise: Tensor, groups: int) -> Tensor:
    return F.conv2d(pointwise(x, narrow, groups=groups), depthwise, padding=1, groups=len(depthwise))


class WideGate(nn.Module):
    """Each candidate's aggregation gate, which its streams share (section 3.2 of OSNet)."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        hidden = channels // reduction
        self.fc1 = nn.Conv2d(channels, CANDIDATES * hidden, 1)
        self.fc2 = nn.Conv2d(hidden, CANDIDATES * channels, 1)

    def forward(self, streams: Sequence[Tensor], chosen: slice) -> Tensor:
        """The sum of a candidate's gated streams: for each stream (B, N, C, H, W) -> (B, N, C, H, W)."""
        pooled_BNSC = torch.stack([stream.mean(dim=(3, 4)) for stream in streams], dim=2)
        hidden = F.relu(map_vectors(self.fc1, pooled_BNSC, CANDIDATES, chosen))
        gates = map_vectors(self.fc2, hidden, CANDIDATES, chosen).sigmoid()[..., None, None].unbind(2)
        total = streams[0] * gates[0]
        for stream, gate in zip(streams[1:], gates[1:], strict=True):
            total = torch.addcmul(total, stream, gate)
        return total


class End(nn.Module):
    """A candidate's own end: the 1×1 convolution back to all channels, its norms and the addition."""

    def __init__(self, channels: int, out_channels: int, in_inside: bool, in_after: bool) -> None:
        super().__init__()
        norm = nn.Identity() if in_inside else nn.BatchNorm2d(out_channels, affine=False)
        self.conv3 = nn.Sequential(
            OrderedDict(conv=Pointwise(channels, out_channels, 1, bias=False), bn=norm)
        )
        self.norm_inside = nn.InstanceNorm2d(out_channels) if in_inside else nn.Identity()
        self.norm_after = nn.InstanceNorm2d(out_channels) if in_after else nn.Identity()

    def forward(self, gated: Tensor, shortcut: Tensor) -> Tensor:
        """The gated streams (B, C, H, W) and the shortcut (B, C_out, H, W) -> (B, C_out, H, W)."""
        return F.relu(self.norm_after(self.norm_inside(self.conv3(gated)) + shortcut))


class MixedBlock(nn.Module):
    """The weighted sum of the four blocks at one place; norms go without learned scale in each alike."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        middle = out_channels // 4
        self.conv1 = WidePointwise(in_channels, middle)
        self.depths = nn.ModuleList(WideLightConv(middle, STREAMS - depth) for depth in range(STREAMS))
        self.gate = WideGate(middle)
        self.downsample = WidePointwise(in_channels, out_channels) if in_channels != out_channels else None
        self.ends = nn.ModuleDict({name: End(middle, out_channels, *OSBLOCKS[name]) for name in OSNET_BLOCKS})

    def forward(self, x: Tensor, mixing: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H, W).

        Args:
            mixing: (N,) weights, or () the column of the one block that counts.
        """
        chosen = slice(None) if mixing.dim() else slice(int(mixing), int(mixing) + 1)
        names = OSNET_BLOCKS[chosen]
        gated = self._streams(F.relu(self.conv1(x, chosen)), len(names), chosen)
        shortcuts: Sequence[Tensor] = [x] * len(names)
        if self.downsample is not None:
            shortcuts = self.downsample(x, chosen).unflatten(1, (len(names), -1)).unbind(1)
        ends = zip(names, gated.unbind(1), shortcuts, strict=True)
        outputs = [self.ends[name](streams, shortcut) for name, streams, shortcut in ends]
        if not mixing.dim():
            return outputs[0]
        total: Tensor = outputs[0] * mixing[0]
        for output, weight in zip(outputs[1:], mixing[1:], strict=True):
            total = torch.addcmul(total, output, weight)
        return total

    def _streams(self, x: Tensor, candidates: int, chosen: slice) -> Tensor:
        """(B, N·C, H, W) -> (B, N, C, H, W): at each depth one stream of every candidate ends."""
        ended: list[Tensor] = []
        for depth, convs in enumerate(self.depths):
            y = convs(x, chosen).unflatten(1, (candidates, STREAMS - depth, -1))
            last, others = y.split([1, STREAMS - depth - 1], dim=2)
            ended.append(F.relu(last.squeeze(2)))
            x = F.relu(others).flatten(1, 3)
        return self.gate(ended, chosen)

    def weights_of(self, name: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """One candidate's share of a state of this module, by the names of `models.osnet.OSBlock`; views."""
        index = OSNET_BLOCKS.index(name)
        found = {}
        for key, value in state.items():
            part, rest = key.split(".", 1)
            if part == "ends":
                candidate, rest = rest.split(".", 1)
                if candidate == name:
                    found[rest] = value
                continue
            rows = value.unflatten(0, (CANDIDATES, -1))[index] if value.dim() else value
            if part != "depths":
                found[key] = rows
                continue
            depth, rest = rest.split(".", 1)
            streams = range(int(depth), STREAMS)
            parts = rows.unflatten(0, (len(streams), -1)) if rows.dim() else [rows] * len(streams)
            found |= {f"streams.{s}.{depth}.{rest}": part for s, part in zip(streams, parts, strict=True)}
        return found

    @torch.no_grad()
    def initialise(self) -> None:
        """Draws each candidate's weights as a block's of its own are drawn."""
        state = self.state_dict()
        for name in OSNET_BLOCKS:
            block = OSBlock(self.in_channels, self.out_channels, *OSBLOCKS[name], affine=False)
            initialise(block)
            drawn = block.state_dict()
            for key, value in self.weights_of(name, state).items():
                value.copy_(drawn[key])
