"""Weights to start from: a derived network can take over what its supernet learnt."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from autoreid.errors import DataError
from autoreid.models.weights import LoadReport, fill, read_weights, state_dict_of
from autoreid.recipes import parse_config
from autoreid.spaces import build_space
from autoreid.spaces.space import Derived


def load_start(network: nn.Module, path: Path) -> LoadReport:
    """Loads the weights that a training starts from, as `load_weights` does, or out of a search's checkpoint.

    Of a supernet a derived network takes the candidates that its genotype chose and all that they share. The
    supernet's norms have no scale and shift: the network's start at 1 and 0.

    Raises:
        DataError: as `load_weights`; or the network is not derived, or not of the search's space, layout or size;
            or the search's operations have a part of the channels only.
    """
    content = read_weights(path)
    state = content.get("state") if isinstance(content, dict) else None
    if not isinstance(state, dict) or "alphas" not in state:
        return fill(network, state_dict_of(content, path), path)
    if not isinstance(network, Derived):
        raise DataError(f"{path}: the checkpoint of a search: only model.name: derived can start from it")
    search = parse_config(content["config"], f"{path}: config").search
    if search.space != network.genotype.space:
        raise DataError(
            f"{path}: a search of {search.space}: a network of {network.genotype.space} cannot start from it"
        )
    try:
        weights = build_space(search).inherited(state["network"], network.genotype)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    report = fill(network, weights, path)
    heads = ("classifier", "auxiliary")
    layers = {name for name, value in network.named_parameters() if value.dim() > 1}
    absent = [name for name in report.missing if name in layers and not {*name.split(".")} & {*heads}]
    if absent:
        raise DataError(f"{path}: the search's supernet has no {absent[0]}: it has another layout")
    return report
