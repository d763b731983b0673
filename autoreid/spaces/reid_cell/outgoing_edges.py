"""The outgoing edges of a node, each a mixture of all candidates (DARTS, arXiv 1806.09055, eq. 2)."""

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
    """All outgoing edges of a node or of an input of the cell. They have the same input and lead to later nodes."""

    def __init__(self, operations: Sequence[str], edges: int, channels: int, stride: int, parts: int) -> None:
        super().__init__()
        self.edges, self.stride = edges, stride
        self.operations = tuple(operations)
        # `none` has a mixing weight but contributes nothing.
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
        """The candidates that compute one map for all edges."""
        return {name: one for name, one in self.candidates.items() if isinstance(one, Shared)}

    def middle_norms(self, x: Tensor, rectified: Tensor) -> dict[str, Norm]:
        """Return the middle norms of the candidates that have one, by the candidate's name.

        Args:
            x: (B, C, H, W).
            rectified: ReLU(x).
        """
        inputs = EdgeInputs(x, rectified)
        norms = {name: candidate.middle(inputs) for name, candidate in self.weighted.items()}
        return {name: norm for name, norm in norms.items() if norm is not None}

    def last_norms(
        self, x: Tensor, rectified: Tensor, middle_outputs: Mapping[str, Tensor], scales: Mapping[str, Tensor]
    ) -> dict[str, Norm]:
        """Return the last norms of the candidates that have one, by the candidate's name.

        Args:
            x: (B, C, H, W).
            rectified: ReLU(x).
            middle_outputs: outputs of the middle norms, by the candidate's name.
            scales: mixing weights of each candidate, expanded to the channels of its norm, (E·C,).
        """
        inputs = EdgeInputs(x, rectified)
        found = {
            name: candidate.last(inputs._replace(middle=middle_outputs.get(name), scale=scales[name]))
            for name, candidate in self.weighted.items()
        }
        for name, one in self.shared.items():
            if one.norm is not None:
                found[name] = one.norm.of(one.shared_map(x))
        return found

    def combine(self, x: Tensor, last_outputs: Mapping[str, Tensor], mixing_EK: Tensor) -> Tensor:
        """Compute the output of each edge, (B, E, C, ⌈H/stride⌉, ⌈W/stride⌉).

        Args:
            x: (B, C, H, W).
            last_outputs: outputs of the last norms, by the candidate's name.
            mixing_EK: mixing weights of the K candidates that compute one map for all edges.
        """
        parts = [last_outputs[name].flatten(1).unflatten(1, (self.edges, -1)) for name in self.weighted]
        maps = [
            last_outputs[name] if name in last_outputs else one.shared_map(x)
            for name, one in self.shared.items()
        ]
        if maps:
            total = keep_inputs(SharedMixture(), mixing_EK, *maps)
        else:
            # A new tensor, so that the others can be added in place.
            total = parts.pop() + parts.pop() if len(parts) > 1 else parts.pop()
        for part in parts:
            # In place, because no backward pass needs the sum.
            total = total.add_(part)
        size = next(iter(last_outputs.values())).shape[2:] if last_outputs else x.shape[2:]
        return total.unflatten(2, (x.shape[1], *size))

    def sampled(
        self, x: Tensor, columns: Sequence[int], weights: Sequence[Tensor] | None = None
    ) -> list[Tensor]:
        """Compute only one operation on each edge. A map that edges share is computed once.

        Args:
            x: (B, C, H, W).
            columns: the column of the operation for each edge. NOTHING has the same effect as `none`.
            weights: a factor () for each edge. None for 1.

        Returns:
            The output of each edge, (B, C, ⌈H/stride⌉, ⌈W/stride⌉).
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
        """Select the weights of an operation on one edge, as the state dict of an operation with a single edge.

        Args:
            name: name of the operation.
            edge: index of the edge among the outgoing edges.
            prefix: prefix of this module's entries in `state`.
            state: the state dict of the supernet.
        """
        before = f"{prefix}candidates.{name}."
        entries = {key.removeprefix(before): value for key, value in state.items() if key.startswith(before)}
        candidate = self.weighted.get(name)
        return entries if candidate is None else candidate.state_of_edge(entries, edge, self.edges)
