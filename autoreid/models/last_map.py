"""The last feature map of a network, for terms of the loss that compare feature maps."""

from __future__ import annotations

from torch import Tensor, nn

from autoreid.models.network import Network


class LastMap:
    """Keeps the last feature map of each pass in training until it is taken.

    Args:
        network: one whose `last_map` names a submodule.
    """

    def __init__(self, network: Network) -> None:
        self._network = network
        self._map: Tensor | None = None
        module = network.last_map()
        assert module is not None  # noqa: S101
        module.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: object, output: Tensor) -> None:  # noqa: ARG002
        # Not the module's own mode, which is that of evaluation if the backbone is frozen.
        self._map = output if self._network.training else None

    def take(self) -> Tensor:
        """Return the map (B, C, h, w) of the last pass, which is then no longer kept."""
        kept, self._map = self._map, None
        assert kept is not None  # noqa: S101
        return kept
