"""The oracle of the fused supernet: one module for each candidate operation of each edge, as in the papers.

Nothing is shared, stacked, recomputed or reordered. `per_edge_cell` copies the weights of a fused cell.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoreid.spaces.reid_cell.cells import SearchCell


class PartAware(nn.Module):
    """Self-attention between horizontal body parts, whose result is added to each pixel of a part.

    1. Average each of the M horizontal parts of x (B, C, H, W) to a vector, as adaptive average pooling does.
    2. Map these vectors linearly to body vectors b (B, M, D), with D = ⌈C/3⌉; the authors' release rounds down.
    3. Apply self-attention between the parts: softmax(q(b)·k(b)ᵀ)·b, without scaling and value projection.
    4. Repeat each part's vector over the rows of the part, concatenate the result with x, and apply ReLU → 1×1 → norm.

    A row belongs to part ⌊row·M/H⌋, which is one of the parts that average over it.
    """

    def __init__(self, channels: int, stride: int, affine: bool, parts: int = 4) -> None:
        super().__init__()
        hidden = -(-channels // 3)
        self.parts = parts
        self.stride = stride
        self.body = nn.Linear(channels, hidden)
        self.query = nn.Linear(hidden, hidden)
        self.key = nn.Linear(hidden, hidden)
        # The two halves of one 1×1 convolution over the concatenation (C + D -> C).
        self.fuse_pixels = nn.Conv2d(channels, channels, 1, stride=stride, bias=False)
        self.fuse_parts = nn.Linear(hidden, channels, bias=False)
        self.norm = nn.BatchNorm2d(channels, affine=affine)
        for half in (self.fuse_pixels, self.fuse_parts):
            # Initialise both halves like one convolution with C + D inputs (PyTorch's default).
            bound = (channels + hidden) ** -0.5
            nn.init.uniform_(half.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, ⌈H/stride⌉, ⌈W/stride⌉).

        Raises:
            ValueError: H is less than the number of parts.
        """
        height = x.shape[2]
        if height < self.parts:
            raise ValueError(f"a map of {height} rows cannot be cut into {self.parts} parts; use fewer parts")
        pooled_BMC = F.adaptive_avg_pool2d(x, (self.parts, 1)).squeeze(3).transpose(1, 2)
        body_BMD = self.body(pooled_BMC)
        attention_BMM = torch.softmax(self.query(body_BMD) @ self.key(body_BMD).transpose(1, 2), dim=2)
        attended_BMD = attention_BMM @ body_BMD
        rows = torch.arange(height, device=x.device) * self.parts // height
        spread = attended_BMD.transpose(1, 2)[:, :, rows, None].expand(-1, -1, -1, x.shape[3])
        weight = torch.cat([self.fuse_pixels.weight, self.fuse_parts.weight[:, :, None, None]], dim=1)
        return self.norm(F.conv2d(F.relu(torch.cat([x, spread], dim=1)), weight, stride=self.stride))


class PartConv(nn.Module):
    """Self-attention between horizontal body parts, each of which has a convolution and a norm of its own.

    As `PartAware`, except for its step 2: ReLU → 1×1 → norm, with separate weights and statistics for each part.
    """

    def __init__(self, channels: int, stride: int, affine: bool, parts: int = 4) -> None:
        super().__init__()
        hidden = -(-channels // 3)
        self.parts = parts
        self.stride = stride
        # The rows of the weight, and the features of the norm, are those of the first part, then of the second, ...
        self.body = nn.Linear(channels, parts * hidden, bias=False)
        self.body_norm = nn.BatchNorm1d(parts * hidden, affine=affine)
        self.query_key = nn.Linear(hidden, 2 * hidden)
        self.fuse_pixels = nn.Conv2d(channels, channels, 1, stride=stride, bias=False)
        self.fuse_parts = nn.Linear(hidden, channels, bias=False)
        self.norm = nn.BatchNorm2d(channels, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, ⌈H/stride⌉, ⌈W/stride⌉)."""
        height = x.shape[2]
        pooled_BCM = F.adaptive_avg_pool2d(x, (self.parts, 1)).squeeze(3)
        weights = self.body.weight.chunk(self.parts)
        vectors = [
            F.relu(pooled_BCM[:, :, part]) @ weight.transpose(0, 1) for part, weight in enumerate(weights)
        ]
        body_BMD = self.body_norm(torch.cat(vectors, dim=1)).view(len(x), self.parts, -1)
        query_BMD, key_BMD = self.query_key(body_BMD).chunk(2, dim=2)
        attention_BMM = torch.softmax(query_BMD @ key_BMD.transpose(1, 2), dim=2)
        attended_BMD = attention_BMM @ body_BMD
        rows = torch.arange(height, device=x.device) * self.parts // height
        spread = attended_BMD.transpose(1, 2)[:, :, rows, None].expand(-1, -1, -1, x.shape[3])
        weight = torch.cat([self.fuse_pixels.weight, self.fuse_parts.weight[:, :, None, None]], dim=1)
        return self.norm(F.conv2d(F.relu(torch.cat([x, spread], dim=1)), weight, stride=self.stride))


class FactorizedReduce(nn.Module):
    """Halve the resolution by two 1×1 convolutions: one of the even pixels, one of the odd pixels.

    Each gives one half of the output channels.
    """

    def __init__(self, in_channels: int, out_channels: int, affine: bool) -> None:
        super().__init__()
        self.even = nn.Conv2d(in_channels, out_channels // 2, 1, stride=2, bias=False)
        self.odd = nn.Conv2d(in_channels, out_channels - out_channels // 2, 1, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(out_channels, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, ⌈H/2⌉, ⌈W/2⌉)."""
        x = F.relu(x)
        # Odd sizes have no last odd pixel: use zeros.
        shifted = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))[:, :, 1:, 1:]
        return self.norm(torch.cat([self.even(x), self.odd(shifted)], dim=1))


def relu_conv_norm(in_channels: int, out_channels: int, affine: bool) -> nn.Sequential:
    """ReLU → 1×1 convolution → norm, which maps an input of a cell to the cell's number of channels."""
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(in_channels, out_channels, 1, bias=False),
        nn.BatchNorm2d(out_channels, affine=affine),
    )


def _depthwise(channels: int, kernel: int, stride: int, dilation: int, affine: bool) -> list[nn.Module]:
    """ReLU → depthwise convolution → 1×1 → norm."""
    padding = dilation * (kernel - 1) // 2
    return [
        nn.ReLU(),
        nn.Conv2d(channels, channels, kernel, stride, padding, dilation, groups=channels, bias=False),
        nn.Conv2d(channels, channels, 1, bias=False),
        nn.BatchNorm2d(channels, affine=affine),
    ]


def _separable(channels: int, kernel: int, stride: int, affine: bool) -> nn.Sequential:
    """Two depthwise blocks, the first of which has the stride."""
    first = _depthwise(channels, kernel, stride, 1, affine)
    return nn.Sequential(*first, *_depthwise(channels, kernel, 1, 1, affine))


def _pool(pool: nn.Module, channels: int, affine: bool) -> nn.Sequential:
    return nn.Sequential(pool, nn.BatchNorm2d(channels, affine=affine))


def build_operation(name: str, channels: int, stride: int, affine: bool, parts: int) -> nn.Module:
    """Build a candidate operation by name.

    Args:
        name: one of `config.CELL_OPERATIONS` except "none".
        channels: C, of input and output.
        stride: 1, or 2 on the edges from the inputs of a reduction cell.
        affine: whether norms learn a scale and shift; False in a search.
        parts: M, of the part-aware operations.
    """
    match name:
        case "max_pool_3x3":
            return _pool(nn.MaxPool2d(3, stride, padding=1), channels, affine)
        case "avg_pool_3x3":
            return _pool(nn.AvgPool2d(3, stride, padding=1, count_include_pad=False), channels, affine)
        case "skip_connect":
            return nn.Identity() if stride == 1 else FactorizedReduce(channels, channels, affine)
        case "sep_conv_3x3":
            return _separable(channels, 3, stride, affine)
        case "sep_conv_5x5":
            return _separable(channels, 5, stride, affine)
        case "dil_conv_3x3":
            return nn.Sequential(*_depthwise(channels, 3, stride, 2, affine))
        case "dil_conv_5x5":
            return nn.Sequential(*_depthwise(channels, 5, stride, 2, affine))
        case "part_aware":
            return PartAware(channels, stride, affine, parts)
        case "part_conv":
            return PartConv(channels, stride, affine, parts)
    raise ValueError(f"unknown operation {name!r}")


class MixedOperation(nn.Module):
    """The weighted sum of all candidate operations of one edge."""

    def __init__(self, operations: Sequence[str], channels: int, stride: int, parts: int) -> None:
        super().__init__()
        self.stride = stride
        # `none` has a weight but adds nothing.
        self.columns = [column for column, name in enumerate(operations) if name != "none"]
        self.candidates = nn.ModuleList(
            build_operation(operations[column], channels, stride, affine=False, parts=parts)
            for column in self.columns
        )

    def forward(self, x: Tensor, mixing: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, ⌈H/stride⌉, ⌈W/stride⌉).

        Args:
            mixing: (O,) weights, or () the column of the one operation that counts.
        """
        if mixing.dim() == 0:
            return self._only(x, int(mixing))
        pairs = zip(self.columns, self.candidates, strict=True)
        total: Tensor = sum(mixing[column] * candidate(x) for column, candidate in pairs)
        return total

    def _only(self, x: Tensor, column: int) -> Tensor:
        if column not in self.columns:
            return torch.zeros_like(x[:, :, :: self.stride, :: self.stride])
        output: Tensor = self.candidates[self.columns.index(column)](x)
        return output


class PartialOperation(MixedOperation):
    """The mixture of the first C/K channels, concatenated with the others and shuffled (PC-DARTS, arXiv 1907.05737)."""

    def __init__(
        self, operations: Sequence[str], channels: int, stride: int, parts: int, partial: int
    ) -> None:
        super().__init__(operations, channels // partial, stride, parts)
        self.partial = partial

    def forward(self, x: Tensor, mixing: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, ⌈H/stride⌉, ⌈W/stride⌉)."""
        mixed = super().forward(x[:, : x.shape[1] // self.partial], mixing)
        channels = [*mixed.unbind(1)]
        for channel in range(mixed.shape[1], x.shape[1]):
            passed = x[:, channel]
            if self.stride == 2:
                # Pad a last odd row or column, so that its maximum is itself.
                padded = F.pad(passed, (0, x.shape[3] % 2, 0, x.shape[2] % 2), value=-torch.inf)
                corners = [padded[:, row::2, column::2] for row in (0, 1) for column in (0, 1)]
                passed = torch.stack(corners).amax(0)
            channels.append(passed)
        # Shuffle: read row by row, write column by column.
        width = mixed.shape[1]
        order = [group * width + place for place in range(width) for group in range(self.partial)]
        return torch.stack([channels[channel] for channel in order], dim=1)


class PerEdgeCell(nn.Module):
    """A cell of N nodes and two inputs, which returns the concatenated nodes (N·C channels)."""

    def __init__(
        self,
        operations: Sequence[str],
        nodes: int,
        parts: int,
        in_channels: tuple[int, int],
        channels: int,
        reduction: bool,
        after_reduction: bool,
        partial: int = 1,
    ) -> None:
        super().__init__()
        self.nodes = nodes
        older, newer = in_channels
        halve = FactorizedReduce if after_reduction else relu_conv_norm
        self.preprocess0 = halve(older, channels, affine=False)
        self.preprocess1 = relu_conv_norm(newer, channels, affine=False)

        def build_edge(stride: int) -> MixedOperation:
            if partial == 1:
                return MixedOperation(operations, channels, stride, parts)
            return PartialOperation(operations, channels, stride, parts, partial)

        self.edges = nn.ModuleList(
            build_edge(2 if reduction and source < 2 else 1)
            for node in range(nodes)
            for source in range(2 + node)
        )

    def forward(
        self,
        x0: Tensor,
        x1: Tensor,
        mixing: Tensor | None,
        weights_E: Tensor | None = None,
        columns: Sequence[int] | None = None,
    ) -> Tensor:
        """The outputs of the two previous cells -> (B, N·C, H', W').

        Args:
            mixing: (E, O) weights of the candidates.
            weights_E: a factor of each edge's output; None for 1.
            columns: the only candidate of each edge; it has weight 1 without `mixing`.
        """
        if columns is not None:
            pairs = enumerate(columns)
            weights_E = (
                None if mixing is None else torch.stack([mixing[edge, column] for edge, column in pairs])
            )
            mixing = torch.tensor(columns)
        assert mixing is not None
        states = [self.preprocess0(x0), self.preprocess1(x1)]
        edge = 0
        for _ in range(self.nodes):
            inputs = list(enumerate(states, start=edge))
            edge += len(states)
            outputs = [self.edges[e](x, mixing[e]) for e, x in inputs]
            if weights_E is not None:
                outputs = [weights_E[e] * output for (e, _), output in zip(inputs, outputs, strict=True)]
            node: Tensor = sum(outputs)
            states.append(node)
        return torch.cat(states[2:], dim=1)


def per_edge_cell(cell: SearchCell, *arguments: Any) -> PerEdgeCell:
    """Build the oracle of a cell from the cell's own arguments, and copy the cell's weights and statistics."""
    oracle = PerEdgeCell(*arguments).to(next(cell.parameters()))
    state = cell.state_dict()
    inputs = {key: value for key, value in state.items() if key.startswith("preprocess")}
    oracle.load_state_dict(inputs, strict=False)
    fans: Any = cell.fans
    mixed: Any = oracle.edges
    for source, (fan, edges) in enumerate(zip(fans, cell.sources, strict=True)):
        for place, edge in enumerate(edges):
            for name, candidate in zip(fan.candidates, mixed[edge].candidates, strict=True):
                values = fan.weights_of(name, place, f"fans.{source}.", state)
                # By position, because names differ: those of the oracle's modules are numbers.
                own = candidate.state_dict()
                assert [value.shape for value in own.values()] == [
                    value.shape for value in values.values()
                ], name
                candidate.load_state_dict(dict(zip(own, values.values(), strict=True)))
    return oracle
