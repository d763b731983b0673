"""Reads files of weights, of torch and of safetensors, without running code from them."""

from __future__ import annotations

import argparse
import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autoreid.errors import DataError, first_line
from autoreid.files import damage_of_archive

#: Keys under which training programs save the weights. If a file has several of them, the first one counts.
_CONTAINERS = (
    "state_dict",
    "model_state_dict",
    "model",
    "network",
    "net",
    "teacher",
    "student",
    "model_ema",
    "ema",
    "weights",
    "params",
)
#: How a file that is not a weights file begins -> what it is, and the remedy.
_IMPOSTORS = (
    (
        rb"version https://git-lfs",
        "a Git LFS pointer, not the weights: run `git lfs pull`, or download the file",
    ),
    (rb"\s*<", "a web page, not the weights: download the file itself, for example with a browser"),
    (rb"\s*\{", "JSON text, not the weights: download the file that it describes"),
    (
        rb"\x1f\x8b|BZh|\xfd7zXZ|7z\xbc\xaf|Rar!",
        "a compressed archive: unpack it, and give the weights file in it",
    ),
    (rb"\x89HDF", "an HDF5 file: convert its weights to safetensors, or save them with torch.save"),
    (rb"\Z", "an empty file: download it again"),
)
_RESAVE = (
    "save the weights alone, with torch.save(network.state_dict(), FILE), in the program that wrote the file"
)


def read_weights(path: Path) -> Any:
    """Return the content of a weights file: tensors by name, or what a training program saved together with them.

    Raises:
        DataError: the file cannot be read, is damaged, or contains objects that could run code.
    """
    try:
        with path.open("rb") as file:
            start = file.read(64)
            size = file.seek(0, os.SEEK_END)
    except OSError as error:
        raise DataError(f"{path}: cannot read the weights: {error.strerror or error}") from error
    # A safetensors file begins with the length of its header, which is JSON.
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < size:
        return _read_safetensors(path)
    for beginning, what in _IMPOSTORS:
        if re.match(beginning, start):
            raise DataError(f"{path}: this is {what}")
    return _read_torch(path)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise DataError(
            f"{path}: reading it requires safetensors: pip install 'autoreid[safetensors]'"
        ) from error
    try:
        return load_file(path)
    except Exception as error:  # safetensors has an exception of its own, and lets torch's pass
        raise DataError(
            f"{path}: damaged safetensors file: {first_line(error)}; download it again"
        ) from error


def _read_torch(path: Path) -> Any:
    damage = damage_of_archive(path)
    if damage is not None:
        raise DataError(f"{path}: the file is damaged: {damage}; download or copy it again")
    try:
        with torch.serialization.safe_globals(_harmless_objects()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of TorchScript, which is refused
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # on damaged files, torch raises almost any exception
        raise DataError(f"{path}: {_explain(error)}") from error


def _harmless_objects() -> list[Any]:
    """Return what may be in a file besides tensors and plain values: command lines, numpy's scalars and arrays."""
    # torchreid's checkpoints contain the best rank-1 as a numpy scalar. numpy has renamed the constructors.
    constructors: list[Any] = [np.float64(0).__reduce__()[0], np.zeros(0).__reduce__()[0]]
    named = [
        (make, f"{module}.multiarray.{make.__name__}")
        for make in constructors
        for module in ("numpy.core", "numpy._core")
    ]
    numbers = [type(np.dtype(code)) for code in np.typecodes["AllInteger"] + np.typecodes["AllFloat"] + "?"]
    return [argparse.Namespace, np.dtype, np.ndarray, *dict.fromkeys(numbers), *named]


def _explain(error: Exception) -> str:
    """Describe why torch does not read a file. Its own messages advise to read the file unsafely."""
    text = str(error)
    if "TorchScript" in text:
        return f"this is a TorchScript program, not weights: {_RESAVE}"
    if "file in archive" in text or "data.pkl" in text:
        return "this is a zip archive without torch's data: unpack it, and give the weights file in it"
    if ".tar format" in text:
        return "this is a tar archive: unpack it, and give the weights file in it"
    unsafe = re.search(r"GLOBAL ([\w.]+)", text)
    if unsafe:
        return f"it contains the Python object {unsafe[1]}, which could run code when it is loaded: {_RESAVE}"
    reason = f": {first_line(error)}" if isinstance(error, RuntimeError | EOFError) else ""
    return f"not a file of torch.save or safetensors, or damaged{reason}"


def find_weights(content: Any, path: Path) -> tuple[str, Mapping[str, Tensor]]:
    """Find the weights in the content of a file.

    Returns:
        The keys that lead to them, such as "state_dict", and the weights by name.

    Raises:
        DataError: there are none.
    """
    if isinstance(content, dict) and isinstance(content.get("state"), dict) and "network" in content["state"]:
        return "state", trained_weights(content["state"])
    keys: list[str] = []
    inner = content
    while isinstance(inner, dict):
        found = [key for key in _CONTAINERS if isinstance(inner.get(key), dict)]
        if not found:
            break
        keys.append(found[0])
        inner = inner[found[0]]
    tensors = inner if isinstance(inner, dict) else {}
    tensors = {str(name): value for name, value in tensors.items() if isinstance(value, Tensor)}
    if not tensors:
        has = f"the keys {', '.join(map(str, list(content)[:8]))}" if isinstance(content, dict) else ""
        raise DataError(
            f'{path}: contains no weights: expected tensors by name, directly or under "state_dict" or "model"; the '
            f"file has {has or f'a {type(content).__name__}'}"
        )
    return ".".join(keys), tensors


def trained_weights(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the weights from a training state: the moving average if there is one, else the network's own."""
    averaged = state.get("ema")
    if averaged is None:
        return dict(state["network"])
    # torch's AveragedModel stores them under `module`, next to a counter.
    return {
        name.removeprefix("module."): value for name, value in averaged.items() if name.startswith("module.")
    }
