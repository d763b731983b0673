"""Loads the weights of a network from a local file, also under the names of other programs."""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autoreid.errors import DataError
from autoreid.models.network import Network
from autoreid.models.weights_file import find_weights, read_weights

#: Names of the neck in other programs, for `rename`: the bag of tricks (arXiv 1903.07071) and fast-reid.
_NECKS = ((r"^(heads\.)?bottleneck\.(0\.)?", "neck.norm."),)
#: Parts of names that come from wrappers: DDP, torch.compile, FSDP, activation checkpointing.
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
#: Entries of a file that have no effect on embeddings: classifiers, and constants of the normalisation of images.
_NO_PART_OF_EMBEDDING = re.compile(r"(^|\.)(classifiers?\b.*|(fc|heads?)\.(weight|bias)|pixel_(mean|std))$")
#: End of the names of batch norms' counters.
COUNTER = "num_batches_tracked"
_UNKNOWN = "not in the network"


@dataclass(frozen=True)
class LoadReport:
    """Which entries of a file and of a network matched.

    Attributes:
        path: the file.
        place: where in the file the weights are, such as "state_dict: backbone."; empty if directly.
        loaded: the network's entries that were loaded from the file.
        skipped: the file's entries that were not loaded, by their names in the network -> the reason.
        missing: the network's entries that the file does not have; they keep their values.
    """

    path: Path
    place: str
    loaded: tuple[str, ...]
    skipped: dict[str, str]
    missing: tuple[str, ...]

    def __str__(self) -> str:
        unused = [f"{key} ({reason})" if reason != _UNKNOWN else key for key, reason in self.skipped.items()]
        place = f" ({self.place})" if self.place else ""
        return (
            f"weights of {self.path}{place}: {len(self.loaded)} entries loaded; {len(self.missing)} missing in the file"
            f"{_named(self.missing)}; {len(unused)} unused{_named(unused)}"
        )

    def as_plain(self) -> dict[str, Any]:
        """Return the content for JSON."""
        return {
            "file": str(self.path),
            "place": self.place,
            "loaded": len(self.loaded),
            "missing": list(self.missing),
            "unused": self.skipped,
        }


def load_weights(network: Network, path: Path) -> LoadReport:
    """Load a local file: weights of torchvision, torchreid or another program, or a checkpoint of a training.

    The file is one of torch.save or safetensors. It contains tensors by name, directly or under a key such as
    "state_dict" or "model". Names may have a prefix such as "module." or "backbone.". A classifier for another number
    of identities is skipped, and so are entries that belong to another head than the network's.

    Raises:
        DataError: the file is missing or has another format, or its weights are for another network: an entry other
            than the classifier has another shape, or the file lacks a layer of the network's trunk, or has one that
            the network lacks.
    """
    return load_trunk(network, read_weights(path), path)


def load_trunk(network: Network, content: Any, path: Path) -> LoadReport:
    """Load the weights in the content of a file, see `load_weights`; everything but the head must be in it."""
    place, weights = find_weights(content, path)
    return fill(network, weights, path, place, whole_trunk=True)


def fill(
    network: Network, weights: Mapping[str, Tensor], path: Path, place: str = "", whole_trunk: bool = False
) -> LoadReport:
    """Load those weights of a file that a network has.

    Args:
        path: the file, for messages.
        place: where in the file the weights are.
        whole_trunk: whether the file must have exactly the layers of the network's trunk.

    Raises:
        DataError: as `load_weights`; the network is not changed.
    """
    ours = network.state_dict()
    prefix = _prefix(network, weights)
    plain, skipped = _without_prefix(weights, prefix)
    found: dict[str, Tensor] = {}
    for name, value in _renamed(network, plain).items():
        if name not in ours:
            skipped[name] = _UNKNOWN
        elif name.endswith(COUNTER) and value.numel() == 1:  # of shape (1,) in some files
            found[name] = value.reshape(())
        elif value.shape == ours[name].shape:
            found[name] = _checked(value, ours[name], name, path)
        elif "classifier" in name.split("."):
            skipped[name] = f"shape {tuple(value.shape)}, not {tuple(ours[name].shape)}"
        else:
            raise DataError(
                f"{path}: {name} has shape {tuple(value.shape)}, but that of this network has "
                f"{tuple(ours[name].shape)}: the weights are for another network"
            )
    # A matching classifier or batch counter alone does not mean that the weights are for this network.
    if not any(value.dim() > 1 and "classifier" not in name.split(".") for name, value in found.items()):
        example = next(iter(weights), "nothing")
        raise DataError(
            f"{path}: no weights for this network: the file has {example}, not {next(iter(ours))}"
        )
    found = {name: found[name] for name in ours if name in found}
    missing = tuple(name for name in ours if name not in found)
    if whole_trunk:
        unknown = [name for name, reason in skipped.items() if reason == _UNKNOWN]
        _check_trunk(network, missing, unknown, path)
    network.load_state_dict(found, strict=False)
    where = ": ".join(filter(None, [place, prefix]))
    return LoadReport(path, where, tuple(found), skipped, missing)


def check_embedding(network: Network, report: LoadReport, height: int, width: int) -> None:
    """Check that a file has everything that embeddings of images of height × width pixels depend on.

    Raises:
        DataError: entries of the file that may belong to the embedding were not loaded, or the file lacks weights of
            the head that the embedding depends on.
    """
    unused = [key for key in report.skipped if not _NO_PART_OF_EMBEDDING.search(key)]
    if unused:
        raise DataError(
            f"{report.path}: the network has no {_first_of(unused)}; without it, embeddings would differ from those "
            f"of the network that the file was written for"
        )
    absent = [name for name in _embedding_weights(network, height, width) if name in report.missing]
    if absent:
        raise DataError(
            f"{report.path}: the file has no {_first_of(_layers(absent))}; embeddings would depend on random weights"
        )


def _embedding_weights(network: Network, height: int, width: int) -> list[str]:
    """Return the names of the matrices and kernels that embeddings depend on; computes only shapes.

    Norms are not among them: one that the file lacks keeps its scale of 1 and shift of 0.
    """
    shapes_only = copy.deepcopy(network).to("meta").eval()
    shapes_only(torch.empty(1, 3, height, width, device="meta")).sum().backward()
    weights = shapes_only.named_parameters()
    return [name for name, value in weights if value.dim() > 1 and value.grad is not None]


def _check_trunk(network: Network, missing: Collection[str], unused: Collection[str], path: Path) -> None:
    """Raise DataError if the trunk's layers in the network and in the file are not the same."""
    heads = {*network.head()}
    head = tuple(f"{name}." for name, module in network.named_modules() if module in heads)
    absent = [name for name in missing if not name.startswith(head) and not name.endswith(COUNTER)]
    if absent:
        raise DataError(
            f"{path}: the weights are for another network: the file has no {_first_of(_layers(absent))}, which would "
            f"stay as initialised"
        )
    trunk = {name for name, module in network.named_children() if module not in heads}
    foreign = [key for key in unused if key.split(".")[0] in trunk]
    if foreign:
        raise DataError(
            f"{path}: the weights are for another network: it has no {_first_of(_layers(foreign))}, which the file has"
        )


def _layers(entries: Collection[str]) -> list[str]:
    """Return the names of the layers that entries such as "layer1.0.conv1.weight" belong to, each once."""
    return list(dict.fromkeys(entry.rpartition(".")[0] or entry for entry in entries))


def _first_of(names: Collection[str]) -> str:
    """List the first names, and the number of others."""
    first = ", ".join(list(names)[:3])
    return f"{first} and {len(names) - 3} more" if len(names) > 3 else first


def _named(names: Collection[str]) -> str:
    return f": {_first_of(names)}" if names else ""


def _checked(value: Tensor, ours: Tensor, key: str, path: Path) -> Tensor:
    """Return a value of a file; raise DataError if it is no number of the kind that the network's entry has."""
    if value.is_floating_point() != ours.is_floating_point():
        raise DataError(
            f"{path}: {key} has type {value.dtype}, not {ours.dtype}, for example of quantised weights"
        )
    if value.is_floating_point() and not value.isfinite().all():
        raise DataError(f"{path}: {key} has values that are not finite (NaN or infinity)")
    return value


def _unwrapped(key: str) -> str:
    return ".".join(part for part in key.split(".") if part not in _WRAPPERS)


def _prefixes(key: str) -> list[str]:
    """Return all prefixes of a name that end with a dot, shortest first."""
    return [f"{prefix}." for prefix in accumulate(key.split(".")[:-1], "{}.{}".format)]


def _without(prefix: str, key: str) -> str:
    """Return a file's name without wrappers, and without as much of the prefix as it has."""
    key = _unwrapped(key)
    return key.removeprefix(
        next((part for part in reversed(_prefixes(f"{prefix}x")) if key.startswith(part)), "")
    )


def _without_prefix(weights: Mapping[str, Tensor], prefix: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return a file's weights by their names without the prefix, and the entries that lose their names to others."""
    plain: dict[str, Tensor] = {}
    skipped = {}
    # Names outside of the prefix come last: they must not replace others.
    for key in sorted(weights, key=lambda key: not _unwrapped(key).startswith(prefix)):
        name = _without(prefix, key)
        if name in plain:
            skipped[key] = f"{name} is in the file twice"
        else:
            plain[name] = weights[key]
    return plain, skipped


def _prefix(network: Network, weights: Mapping[str, Tensor]) -> str:
    """Return the prefix, such as "backbone.", without which most names of a file are the network's."""
    ours = network.state_dict().keys()
    unwrapped = {_unwrapped(key): value for key, value in weights.items()}
    counts = Counter(prefix for key in unwrapped for prefix in _prefixes(key))
    enough = min(len(ours), len(unwrapped)) / 2
    candidates = ["", *(prefix for prefix, count in counts.items() if count >= enough)]

    def matches(prefix: str) -> int:
        inside = {
            key.removeprefix(prefix): value for key, value in unwrapped.items() if key.startswith(prefix)
        }
        return len(ours & _renamed(network, inside).keys())

    return max(candidates, key=matches)


def _renamed(network: Network, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return rename(network, network.renamed(weights), _NECKS)


def rename(
    network: nn.Module, weights: Mapping[str, Tensor], rules: Sequence[tuple[str, str]]
) -> dict[str, Tensor]:
    """Rename weights by the first rule (pattern, replacement) that gives the name of one of a network's entries.

    Entries that have such a name already keep it; others do not take it from them.
    """
    ours = network.state_dict().keys()
    found = {name: value for name, value in weights.items() if name in ours}
    for key, value in weights.items():
        if key not in ours:
            names = (re.sub(pattern, new, key) for pattern, new in rules)
            found[next((name for name in names if name in ours and name not in found), key)] = value
    return found
