"""Weights of networks: random initialisation, and loading from a local file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autoreid.errors import DataError
from autoreid.models.network import Network


@dataclass(frozen=True)
class LoadReport:
    """Which entries of a file and of a network matched.

    Attributes:
        loaded: the network's entries that were loaded from the file.
        skipped: the file's entries that were not loaded, by their names in the network -> the reason.
        missing: the network's entries that the file does not have; they keep their values.
    """

    loaded: tuple[str, ...]
    skipped: dict[str, str]
    missing: tuple[str, ...]

    def __str__(self) -> str:
        skipped = ", ".join(f"{key} ({reason})" for key, reason in self.skipped.items()) or "none"
        return f"{len(self.loaded)} entries loaded; {len(self.missing)} not in the file; skipped: {skipped}"


def initialise(network: nn.Module) -> None:
    """Initialise convolutions with Kaiming's normal distribution (fan out) and linear layers with N(0, 0.01²).

    Biases become 0. As in torch and in the published networks, the fan out of a depthwise convolution is not
    divided by its groups. Norms keep torch's scale 1 and shift 0.
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


def load_weights(network: Network, path: Path) -> LoadReport:
    """Load a local file: published weights such as torchvision's and torchreid's, or a training checkpoint.

    The file contains a state dict, directly or under the key "state_dict", with or without DDP's prefix "module.";
    or it is a checkpoint of `python -m autoreid.train`. A classifier for another number of identities is skipped,
    and so are entries that the network does not have.

    Raises:
        DataError: the file is missing or has another format, none of its weights belong to this network, or an
            entry other than the classifier has another shape.
    """
    return fill(network, state_dict_of(read_weights(path), path), path)


def fill(network: Network, weights: Mapping[str, Tensor], path: Path) -> LoadReport:
    """Load those weights of a file that a network has; raises the same errors as `load_weights`."""
    ours = network.state_dict()
    found: dict[str, Tensor] = {}
    skipped: dict[str, str] = {}
    weights = network.renamed({key.removeprefix("module."): value for key, value in weights.items()})
    for name, value in weights.items():
        if name not in ours:
            skipped[name] = "not in the network"
        elif value.shape == ours[name].shape:
            found[name] = value
        elif "classifier" in name.split("."):
            skipped[name] = f"shape {tuple(value.shape)}, not {tuple(ours[name].shape)}"
        else:
            raise DataError(
                f"{path}: {name} has shape {tuple(value.shape)}, but that of this network has "
                f"{tuple(ours[name].shape)}: the weights are for another network"
            )
    # A matching classifier or batch counter alone does not mean that the weights are for this network.
    if not any(value.dim() > 1 and "classifier" not in name.split(".") for name, value in found.items()):
        example = next(iter(skipped), "nothing")
        raise DataError(
            f"{path}: no weights for this network: the file has {example}, not {next(iter(ours))}"
        )
    network.load_state_dict(found, strict=False)
    return LoadReport(tuple(found), skipped, tuple(name for name in ours if name not in found))


def rename(
    network: nn.Module, weights: Mapping[str, Tensor], rules: Sequence[tuple[str, str]]
) -> dict[str, Tensor]:
    """Rename weights by the first rule (pattern, replacement) that gives the name of one of a network's entries."""
    ours = network.state_dict().keys()
    found = {}
    for key, value in weights.items():
        names = (key, *(re.sub(pattern, new, key) for pattern, new in rules))
        found[next((name for name in names if name in ours), key)] = value
    return found


def read_weights(path: Path) -> Any:
    """Return the content of a weights file without running code from it; raises DataError if it cannot be read."""
    # torchreid's checkpoints contain the best rank-1 as a numpy scalar, whose constructor has been renamed in numpy.
    make_scalar: Any = np.float64(0).__reduce__()[0]
    scalar_types: list[Any] = [type(np.dtype(name)) for name in ("float32", "float64", "int64")]
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    allowed = [np.dtype, *scalar_types, *((make_scalar, name) for name in names)]
    try:
        with torch.serialization.safe_globals(allowed):
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise DataError(f"{path}: cannot read the weights: {error.strerror or error}") from error
    except Exception as error:  # on damaged files, torch raises almost any exception
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise DataError(f"{path}: not a weights file that torch can read safely: {reason}") from error


def state_dict_of(content: Any, path: Path) -> Mapping[str, Tensor]:
    """Return the weights by name from a file's content; raises DataError, naming the file, if there are none."""
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if isinstance(state, dict) and isinstance(state.get("state"), dict):
        return trained_weights(state["state"])
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise DataError(
            f'{path}: contains no weights: expected tensors by name, directly or under "state_dict"'
        )
    return state


def trained_weights(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the weights from a training state: the moving average if there is one, else the network's own."""
    averaged = state.get("ema")
    if averaged is None:
        return dict(state["network"])
    # torch's AveragedModel stores them under `module`, next to a counter.
    return {
        name.removeprefix("module."): value for name, value in averaged.items() if name.startswith("module.")
    }
