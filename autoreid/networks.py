"""Loads networks to use: from checkpoints of trainings, and from weights of other programs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from autoreid.architecture import Architecture
from autoreid.checkpoint import BEST
from autoreid.config import Config
from autoreid.errors import ConfigError, DataError
from autoreid.models import LoadReport, check_input_size
from autoreid.models.weights import check_embedding, load_trunk
from autoreid.models.weights_file import read_weights, trained_weights
from autoreid.recipes import parse_config
from autoreid.spaces.build import build_model

#: What a checkpoint of autoreid contains.
_CHECKPOINT = {"state", "config", "num_identities"}


class LoadedNetwork(NamedTuple):
    """A network in evaluation mode, on the CPU.

    Attributes:
        config: the config of its training; for weights of another program, `Architecture.config`.
        report: which weights of another program were loaded; None for a checkpoint of a training, which has all.
    """

    network: nn.Module
    config: Config
    report: LoadReport | None


def load_network(
    path: Path, architecture: Architecture | None = None, may_be_trained: bool = False
) -> LoadedNetwork:
    """Load the network of a training's checkpoint, or a network with weights of another program.

    If the training kept a moving average of the weights, the network has the averaged weights.

    Args:
        path: a checkpoint, a run folder, whose best checkpoint is used, or a file as for `models.load_weights`.
        architecture: the network, for a file that is not a checkpoint of a training.
        may_be_trained: whether the architecture is ignored for a checkpoint of a training; otherwise it is an error.

    Raises:
        DataError: there is no such file, it cannot be read, or it belongs to a search; or it is not a training's, and
            there is no architecture, or its weights are for another one.
        ConfigError: the checkpoint's config is not valid in this version, there is no such architecture, or it is given
            for a checkpoint of a training.
    """
    path = _file_of(path)
    content = read_weights(path)
    if isinstance(content, dict) and content.keys() >= _CHECKPOINT:
        if architecture is not None and not may_be_trained:
            raise ConfigError(
                f"model {architecture.name}: {path} is a checkpoint of a training, which names its own network"
            )
        return _load_trained(content, path)
    if architecture is None:
        raise DataError(
            f"{path}: not a checkpoint of python -m autoreid.train: it contains no config; for weights of another "
            f"program, name their network, such as --model osnet_x1_0"
        )
    config = architecture.config()
    network = build_model(config.model.name, 1, **config.model.options)
    check_input_size(network, config.data.height, config.data.width)
    report = load_trunk(network, content, path)
    check_embedding(network, report, config.data.height, config.data.width)
    return LoadedNetwork(network.eval(), config, report)


def _load_trained(checkpoint: Mapping[str, Any], path: Path) -> LoadedNetwork:
    config = parse_config(checkpoint["config"], f"{path}: config")
    if config.task == "search":
        raise DataError(
            f"{path}: the checkpoint of a search contains a supernet, not a network: derive a network from the "
            f"genotype found by the search (python -m autoreid.derive) and train it"
        )
    network = build_model(config.model.name, checkpoint["num_identities"], **config.model.options)
    try:
        network.load_state_dict(trained_weights(checkpoint["state"]))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"{path}: the weights do not match the network {config.model.name}: {reason}"
        ) from error
    return LoadedNetwork(network.eval(), config, None)


def _file_of(path: Path) -> Path:
    """Return the file: of a run folder, its best checkpoint."""
    if path.is_dir():
        best = path / "checkpoints" / BEST
        if not best.exists():
            raise DataError(f"{path}: not the folder of a trained run: it contains no checkpoints/{BEST}")
        return best
    if not path.exists():
        raise DataError(f"{path}: no such checkpoint; expected a run folder or a file in its checkpoints/")
    return path
