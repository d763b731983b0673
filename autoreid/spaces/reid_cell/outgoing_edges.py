"""The edges of a cell that leave one node, each a mixture of all candidates (DARTS, arXiv 1806.09055, eq. 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from autoreid.layers.batch_norm import Norm
from autoreid.layers.mixture import SharedMixture
from autoreid.layers.recompute import keep_inputs
from autoreid.spaces.reid_cell.candidate import Candidate, EdgeInputs, Shared
from autoreid.spaces.reid_cell.operations import build_operation
from autoreid.spaces.space import NOTHING


class OutgoingEdges(nn.Module):
    """All edges that leave one node, or one input of the cell. They have the same input and lead to later nodes."""

    def __init__(self, operations: Sequence[str], edges: int, channels: int, stride: int, parts: int) -> None:
        super().__init__()
        self.edges, self.stride = edges, stride
        self.operations = tuple(operations)
        # `none` takes a share of the weight and contributes nothing.
        self.candidates = nn.ModuleDict(
            {
                name: build_operation(name, channels, stride, affine=False, parts=parts, edges=edges)
                for name in operations
                if name != "none"
            }
        )

    @property
    def weighted(self) -> dict[str, Candidate]:
        """The candidates that have separate weights for each edge."""
        return {name: one for name, one in self.candidates.items() if isinstance(one, Candidate)}

    @property
    def shared(self) -> dict[str, Shared]:
        """The candidates whose map is the same on each edge."""
        return {name: one for name, one in self.candidates.items() if isinstance(one, Shared)}

    def middles(self, x: Tensor, rectified: Tensor) -> dict[str, Norm]:
        """Returns the norms halfway, of the candidates that have one.

        Args:
            x: (B, C, H, W).
            rectified: ReLU(x).
        """
        inputs = EdgeInputs(x, rectified)
        norms = {name: candidate.middle(inputs) for name, candidate in self.weighted.items()}
        return {name: norm for name, norm in norms.items() if norm is not None}

    def lasts(
        self, x: Tensor, rectified: Tensor, middles: Mapping[str, Tensor], scales: Mapping[str, Tensor]
    ) -> dict[str, Norm]:
        """Returns the norms at the end, of the candidates that have one.

        Args:
            x: (B, C, H, W).
            rectified: ReLU(x).
            middles: outputs of the norms halfway.
            scales: the mixing weights of each candidate, for the channels of its norm, (E·C,).
        """
        inputs = EdgeInputs(x, rectified)
        found = {
            name: candidate.last(inputs._replace(middle=middles.get(name), scale=scales[name]))
            for name, candidate in self.weighted.items()
        }
        for name, one in self.shared.items():
            if one.norm is not None:
                found[name] = one.norm.of(one.shared_map(x))
        return found

    def combine(self, x: Tensor, lasts: Mapping[str, Tensor], mixing_EK: Tensor) -> Tensor:
        """Returns what each edge contributes to its node, (B, E, C, ⌈H/stride⌉, ⌈W/stride⌉).

        Args:
            x: (B, C, H, W).
            lasts: outputs of the norms at the end.
            mixing_EK: weights of the K candidates whose map all edges share.
        """
        parts = [lasts[name].flatten(1).unflatten(1, (self.edges, -1)) for name in self.weighted]
        maps = [lasts[name] if name in lasts else one.shared_map(x) for name, one in self.shared.items()]
        if maps:
            total = keep_inputs(SharedMixture(), mixing_EK, *maps)
        else:
            # A new tensor, to which the others can be added in place.
            total = parts.pop() + parts.pop() if len(parts) > 1 else parts.pop()
        for part in parts:
            # In place: no backward pass needs the sum.
            total = total.add_(part)
        size = next(iter(lasts.values())).shape[2:] if lasts else x.shape[2:]
        return total.unflatten(2, (x.shape[1], *size))

    def sampled(
        self, x: Tensor, columns: Sequence[int], weights: Sequence[Tensor] | None = None
    ) -> list[Tensor]:
        """Computes one operation for each edge; those without weights once for all edges that chose them.

        Args:
            x: (B, C, H, W).
            columns: the operation of each edge; NOTHING is like `none`.
            weights: a factor () for each edge; None for 1.
        """
        outputs: list[Tensor] = []
        shared: dict[str, Tensor] = {}
        for edge, column in enumerate(columns):
            name = "none" if column == NOTHING else self.operations[column]
            if name == "none":
                outputs.append(torch.zeros_like(x[:, :, :: self.stride, :: self.stride]))
                continue
            if name not in self.shared:
                output = self.candidates[name](x, slice(edge, edge + 1))
            else:
                output = shared[name] = shared[name] if name in shared else self.candidates[name](x)
            outputs.append(output if weights is None else weights[edge] * output)
        return outputs

    def weights_of(self, name: str, edge: int, prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Selects one edge's state dict of an operation, as an operation with a single edge has it.

        Args:
            prefix: of this module's entries in `state`.
        """
        before = f"{prefix}candidates.{name}."
        entries = {key.removeprefix(before): value for key, value in state.items() if key.startswith(before)}
        candidate = self.weighted.get(name)
        return entries if candidate is None else candidate.state_of_edge(entries, edge, self.edges)
