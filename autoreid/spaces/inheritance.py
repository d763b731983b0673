"""Loads the initial weights of a training. A derived network can inherit the weights of its supernet."""

from __future__ import annotations

from pathlib import Path

from autoreid.errors import DataError
from autoreid.models import Network
from autoreid.models.weights import LoadReport, fill, load_trunk
from autoreid.models.weights_file import read_weights
from autoreid.recipes import parse_config
from autoreid.spaces.build import build_space
from autoreid.spaces.space import Derived


def load_start(network: Network, path: Path) -> LoadReport:
    """Load the initial weights of a training, from a file of weights like `load_weights` or from a search's checkpoint.

    From a search's checkpoint, a derived network inherits the weights of the candidates in its genotype and all
    weights that the candidates share. The norms of most supernets have no scale and shift; those of the network then
    start at 1 and 0.

    Raises:
        DataError: as `load_weights`; or the checkpoint is that of a search and the network is not derived, or differs
            from the supernet in its space, layout or size; or the search used partial channels.
    """
    content = read_weights(path)
    state = content.get("state") if isinstance(content, dict) else None
    if not isinstance(state, dict) or "alphas" not in state:
        return load_trunk(network, content, path)
    if not isinstance(network, Derived):
        raise DataError(f"{path}: the checkpoint of a search needs model.name: derived")
    search = parse_config(content["config"], f"{path}: config").search
    if search.space != network.genotype.space:
        raise DataError(
            f"{path}: the checkpoint of a search of {search.space} needs a genotype of {search.space}, not of "
            f"{network.genotype.space}"
        )
    try:
        weights = build_space(search).inherited(state["network"], network.genotype)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    report = fill(network, weights, path, "the supernet")
    head = {value for module in network.head() for value in module.parameters()}
    layers = {name for name, value in network.named_parameters() if value.dim() > 1 and value not in head}
    absent = [name for name in report.missing if name in layers]
    if absent:
        raise DataError(
            f"{path}: the search's supernet has no {absent[0]}: its layout or operations differ from the network's"
        )
    return report
