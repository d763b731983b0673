"""Paths of a repeated option by name, as in `--data market=/data/market1501`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from autoreid.config import expand
from autoreid.errors import ConfigError


def named_paths(option: str, values: Sequence[str]) -> dict[str, Path]:
    """Return the paths of a repeated option by name; the name is given as NAME=PATH or taken from the path.

    Raises:
        ConfigError: a path does not exist, or two have the same name.
    """
    paths: dict[str, Path] = {}
    for value in values:
        given = re.fullmatch(r"([A-Za-z0-9][\w.-]*)=(.+)", value)
        path = expand(given[2] if given else value)  # a shell does not expand NAME=~
        if not path.exists():
            # Such as `--data FOLDER training.epochs=2`, where the option takes several values.
            is_override = given and re.fullmatch(r"[a-z_]+(\.[a-z_]+)+", given[1])
            hint = f"; overrides must come before {option}" if is_override else ""
            raise ConfigError(f"{option} {value}: no such file or folder: {path}{hint}")
        of_run = path.parent.name == "checkpoints"
        name = given[1] if given else (path.absolute().parents[1] if of_run else path.resolve()).name
        if name in paths:
            raise ConfigError(f"{option} {value}: the name {name} is already used; give a unique NAME=PATH")
        paths[name] = path
    return paths
