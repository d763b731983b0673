"""Read configs from YAML, with `section.key=value` overrides. Each error is one line that names file, key and value."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from autoreid.config import Config
from autoreid.errors import ConfigError
from autoreid.yaml_values import parse_tree, parse_value, schema_of

#: Keys that older recipes, runs and checkpoints have directly below `search`, and the sections they belong to now.
_FLAT_KEYS = {
    "operations": "reid_cell",
    "stem": "reid_cell",
    "channels": "reid_cell",
    "partial_channels": "reid_cell",
    "cells_per_stage": "reid_cell",
    "nodes": "reid_cell",
    "parts": "reid_cell",
    "stop_at_skips": "reid_cell",
    "width": "osnet_ain",
}


#: The default operations of the `reid_cell` space in older versions. Every run stores them, even a training.
_OLDER_OPERATIONS = [
    "none",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "dil_conv_3x3",
    "part_aware",
]


def parse_config(text: str, where: str) -> Config:
    """Return the config in a text, such as that of a checkpoint.

    Args:
        text: YAML.
        where: where the text comes from, for error messages.

    Raises:
        ConfigError: it is not a valid config; one line that names `where`, key and value.
    """
    tree = _parse(text, where)
    losses = tree.get("losses")
    if tree.get("task") == "search" and isinstance(losses, dict):
        # What searches did before the key existed; null means something else today.
        losses.setdefault("normalise", False)
    return _validate(tree, where, ())


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read a recipe and apply overrides such as `training.epochs=3`.

    Raises:
        ConfigError: the file cannot be read, or a key or value is invalid; one line that names file, key, value and
            the nearest valid key.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot read the config: {error}") from error
    tree = _parse(text, str(path))
    overrides = [full_key(override) for override in overrides]
    for override in overrides:
        _apply(tree, override)
    _move_flat_keys(tree, "command line")  # of an override such as search={channels: 8}
    return _validate(tree, str(path), overrides)


def override_of(key: str, value: str | Path) -> str:
    """Return the override that sets a key to a text, even if YAML would read the text as a number or a comment."""
    return f"{key}={json.dumps(str(value), ensure_ascii=False)}"


def full_key(key: str) -> str:
    """Return a key, or an override of it, with the section of its space if it is flat."""
    section, _, rest = key.partition(".")
    name = re.split(r"[.=]", rest, maxsplit=1)[0]
    return f"search.{_FLAT_KEYS[name]}.{rest}" if section == "search" and name in _FLAT_KEYS else key


def _move_flat_keys(tree: dict[str, Any], where: str) -> None:
    """Move flat keys into the section of their space; raise ConfigError if it already has such a key."""
    search = tree.get("search")
    if not isinstance(search, dict):
        return
    for key in [key for key in _FLAT_KEYS if key in search]:
        section = _FLAT_KEYS[key]
        inner = {} if search.get(section) is None else search[section]
        if not isinstance(inner, dict):
            continue
        if key in inner:
            raise ConfigError(
                f"{where}: search.{key} and search.{section}.{key} are the same key; remove one"
            )
        search[section] = {**inner, key: search.pop(key)}


def _drop_unused_operations(tree: dict[str, Any]) -> None:
    """Drop operations that an older run stored although it does not search the `reid_cell` space."""
    search = tree.get("search")
    if not isinstance(search, dict) or not isinstance(search.get("reid_cell"), dict):
        return
    searches_cells = tree.get("task") != "train" and search.get("space", "reid_cell") == "reid_cell"
    if not searches_cells and search["reid_cell"].get("operations") == _OLDER_OPERATIONS:
        del search["reid_cell"]["operations"]


def _parse(text: str, where: str) -> dict[str, Any]:
    """Parse YAML into sections, with flat keys in the section of their space."""
    tree = parse_tree(text, Config, where)
    if not isinstance(tree, dict):
        raise ConfigError(f"{where}: expected sections of keys such as data: and training:, found {tree!r}")
    _move_flat_keys(tree, where)
    _drop_unused_operations(tree)
    return tree


def _validate(tree: dict[str, Any], where: str, overrides: Sequence[str]) -> Config:
    """Check all values; an error caused by an override blames the command line instead of `where`."""
    try:
        text = json.dumps(tree)
    except (TypeError, ValueError) as error:  # !!binary, say, or a list that holds itself
        raise ConfigError(f"{where}: a value is not a number, text, list or section: {error}") from error
    try:
        # In JSON mode, strict types still accept a list as a tuple and a string as a path.
        return Config.model_validate_json(text)
    except ValidationError as error:
        overridden = {override.partition("=")[0] for override in overrides}
        raise ConfigError(_explain(error, where, overridden)) from error


def _apply(tree: dict[str, Any], override: str) -> None:
    """Set the value of `section.key=value` in a tree of sections."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"command line: {override!r} is not of the form section.key=value")
    *sections, last = key.split(".")
    for section in sections:
        inner = tree.setdefault(section, {})
        if inner is None:
            inner = tree[section] = {}
        if not isinstance(inner, dict):
            raise ConfigError(f"command line: {key}: {section} is a value, not a section")
        tree = inner
    tree[last] = parse_value(text, f"command line: {key}", schema_of(Config, key))


def _explain(error: ValidationError, where: str, overridden: set[str]) -> str:
    """Describe the first problem in one line, with the number of others."""
    first, *rest = error.errors()
    key = ".".join(str(part) for part in first["loc"])
    value = json.dumps(first["input"], ensure_ascii=False, default=str)
    value = value if len(value) <= 80 else value[:77] + "..."
    if first["type"] == "extra_forbidden":
        hint = nearest_key(key)
        text = f"{key} = {value}: unknown key; {f'did you mean {hint}?' if hint else '--help lists the keys'}"
    elif first["type"] == "missing":
        text = f"{key}: missing, and it has no default"
    elif first["type"] == "value_error":
        # A check over several keys names the key itself, relative to its section.
        text = ".".join(filter(None, [key, str(first["ctx"]["error"])]))
    else:
        text = f"{key} = {value}: {first['msg'][0].lower()}{first['msg'][1:]}"
        if first["input"] is None and ":" in str(first["loc"][-1]):  # {triplet:1.0} is a key without a value
            text += "; put a space after the colon"
    named = set(re.findall(r"[\w.-]*\w", text))
    # If a check over several keys failed, only the keys that the text names are to blame, not the whole section.
    whole = first["type"] != "value_error"
    blamed = any(
        name in named or key.startswith(name + ".") or (whole and name.startswith(key + "."))
        for name in overridden
    )
    more = f" (and {len(rest)} more)" if rest else ""
    return f"{'command line' if blamed else where}: {text}{more}"


def nearest_key(key: str) -> str | None:
    """Return the valid key or section that is most similar to an unknown one, or None if none is similar."""
    names = list(option_names())
    sections = {name.rpartition(".")[0] for name in names} - {""}
    flat = [f"search.{name}" for name in _FLAT_KEYS]
    nearest = difflib.get_close_matches(key, [*names, *sections, *flat], n=1, cutoff=0.5)
    return full_key(nearest[0]) if nearest else None


def _subsection(annotation: Any) -> type[BaseModel] | None:
    """Return the class of a field's section, if its value is a section, a dictionary of sections or may be one."""
    for kind in get_args(annotation) or (annotation,):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def option_names(section: type[BaseModel] = Config, prefix: str = "") -> Iterator[str]:
    """Yield every key of the schema, such as `data.root`, in order."""
    for name, field in section.model_fields.items():
        inner = _subsection(field.annotation)
        if inner is None:
            yield prefix + name
        else:
            yield from option_names(inner, f"{prefix}{_below(name, field.annotation)}.")


def _below(name: str, annotation: Any) -> str:
    """Return a field's name as a prefix of keys; NAME is that of a section in a dictionary."""
    return f"{name}.NAME" if get_origin(annotation) is dict else name


def describe_options() -> str:
    """Return the schema as text for --help: a line for each key, with its default and meaning."""
    return "\n".join(_describe(Config, ""))


def _describe(section: type[BaseModel], prefix: str) -> Iterator[str]:
    """Yield the lines of a section: its own keys first, then its sections, each below a heading."""
    inner = {name: _subsection(field.annotation) for name, field in section.model_fields.items()}
    for name, field in section.model_fields.items():
        if inner[name] is None:
            default = "required" if field.is_required() else _shown(field.default)
            yield f"  {prefix}{name} ({default}): {_one_line(field.description)}"
    for name, subsection in inner.items():
        if subsection is not None:
            described = section.model_fields[name].description
            meaning = _one_line(described) or (subsection.__doc__ or "").splitlines()[0]
            below = prefix + _below(name, section.model_fields[name].annotation)
            yield f"\n{below}: {meaning}"
            yield from _describe(subsection, f"{below}.")


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())


def _shown(value: Any) -> str:
    if isinstance(value, Path):
        return str(value)
    return json.dumps(value)
