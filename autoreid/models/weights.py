"""How a network's weights start: drawn as the papers draw them, or read from a local file."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autoreid.errors import DataError

# torchreid's names -> ours, where they differ; a renaming counts if the network has the entry it leads to.
_RENAMED = (
    (r"^conv([23])\.2\.", r"pool\1."),  # OSNet keeps the transition within the stage, OSNet-AIN beside it
    (r"\.conv2a\.", ".streams.0.0."),  # OSNet's stream of one light convolution has no index
    (r"\.conv2b\.", ".streams.1."),
    (r"\.conv2c\.", ".streams.2."),
    (r"\.conv2d\.", ".streams.3."),
    (r"\.conv2\.(\d)\.layers\.", r".streams.\1."),  # OSNet-AIN's streams
    (r"\.IN\.", ".norm_inside."),
    (r"\.IN\.", ".norm_after."),
    (r"^conv5\.layers\.", "reduce."),  # PCB
)


@dataclass(frozen=True)
class LoadReport:
    """What became of a file's entries and of the network's.

    Attributes:
        loaded: the network's entries that now hold the file's values.
        skipped: the file's entries that were left out, each with the reason.
        missing: the network's entries that the file does not give, which stay as they were.
    """

    loaded: tuple[str, ...]
    skipped: dict[str, str]
    missing: tuple[str, ...]

    def __str__(self) -> str:
        skipped = ", ".join(f"{key} ({reason})" for key, reason in self.skipped.items()) or "none"
        return f"{len(self.loaded)} entries loaded; {len(self.missing)} stay as they were; skipped: {skipped}"


def initialise(network: nn.Module) -> None:
    """Draws convolutions from Kaiming's normal distribution (fan out), linear layers from N(0, 0.01²); biases are 0.

    Fan out is counted as torch does and as the published networks were drawn: a depthwise convolution's groups do
    not lower it. Norms start at scale 1 and shift 0, as torch makes them.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def load_weights(network: nn.Module, path: Path) -> LoadReport:
    """Loads a local file of weights: torchvision's ImageNet ones, torchreid's published ones, or a training's.

    The file holds a state dict, plain or under the key "state_dict", with or without DDP's "module." before each
    name; or it is a checkpoint of `python -m autoreid.train`. A classifier of another number of identities is
    skipped, as are entries that the network does not have.

    Raises:
        DataError: the file is missing or is not such a file, none of it belongs to this network, or an entry
            other than the classifier has another shape, as it has in the weights of another network.
    """
    return fill(network, state_dict_of(read_weights(path), path), path)


def fill(network: nn.Module, weights: Mapping[str, Tensor], path: Path) -> LoadReport:
    """Gives a network those of a file's weights that it has; raises as `load_weights` does."""
    ours = network.state_dict()
    found: dict[str, Tensor] = {}
    skipped: dict[str, str] = {}
    for key, value in weights.items():
        name = _our_name(key.removeprefix("module."), ours)
        if name is None:
            skipped[key] = "the network has no such entry"
        elif value.shape == ours[name].shape:
            found[name] = value
        elif "classifier" in name.split("."):
            skipped[key] = f"shape {tuple(value.shape)}, not {tuple(ours[name].shape)}"
        else:
            raise DataError(
                f"{path}: {key} has shape {tuple(value.shape)}, this network's {name} has "
                f"{tuple(ours[name].shape)}: these are weights of another network"
            )
    # A classifier or a counter that happens to fit does not make these the weights of this network.
    if not any(value.dim() > 1 and "classifier" not in name.split(".") for name, value in found.items()):
        example = next(iter(skipped), "nothing")
        raise DataError(f"{path}: no weights of this network: the file has {example}, not {next(iter(ours))}")
    network.load_state_dict(found, strict=False)
    return LoadReport(tuple(found), skipped, tuple(name for name in ours if name not in found))


def _our_name(key: str, ours: Collection[str]) -> str | None:
    """The network's name for an entry that a file calls `key`."""
    if key in ours:
        return key
    renamed = (re.sub(pattern, name, key) for pattern, name in _RENAMED)
    return next((name for name in renamed if name in ours), None)


def read_weights(path: Path) -> Any:
    """What a file of weights holds, read without running code of it; raises DataError when it cannot be."""
    # torchreid's checkpoints keep the best rank-1 as numpy's scalar; newer numpy calls its maker by another name.
    make_scalar: Any = np.float64(0).__reduce__()[0]
    scalar_types: list[Any] = [type(np.dtype(name)) for name in ("float32", "float64", "int64")]
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    allowed = [np.dtype, *scalar_types, *((make_scalar, name) for name in names)]
    try:
        with torch.serialization.safe_globals(allowed):
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise DataError(f"{path}: cannot read the weights: {error.strerror or error}") from error
    except Exception as error:  # torch raises whatever the damage leads it to
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise DataError(f"{path}: not a file of weights that torch can read safely: {reason}") from error


def state_dict_of(content: Any, path: Path) -> Mapping[str, Tensor]:
    """The weights by name in what a file holds; raises DataError, naming the file, when there are none."""
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if isinstance(state, dict) and isinstance(state.get("state"), dict):
        return trained_weights(state["state"])
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise DataError(f'{path}: holds no weights: expected tensors by name, plain or under "state_dict"')
    return state


def trained_weights(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights in a training's state: its moving average if it kept one, else the network's own."""
    averaged = state.get("ema")
    if averaged is None:
        return dict(state["network"])
    # torch's AveragedModel keeps them below `module`, beside a counter.
    return {
        name.removeprefix("module."): value for name, value in averaged.items() if name.startswith("module.")
    }
