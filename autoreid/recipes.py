"""Reads configs from YAML with `section.key=value` overrides; every error is a line naming file, key and value."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from autoreid.config import Config
from autoreid.errors import ConfigError

#: Keys that were directly below `search` before each space had a section of its own, with that section. Older
#: recipes, runs and checkpoints have them there.
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


class _Loader(yaml.SafeLoader):
    """YAML as people write it: 1e-3 is a number, a date is text, and a duplicate key is an error."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (as in the base class)
        first: [pair for pair in resolvers if pair[0] != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = []
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"duplicate key {key.value!r}", problem_mark=key.start_mark
                )
            seen.append(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def parse_config(text: str, where: str) -> Config:
    """Reads a resolved config from its text, such as a checkpoint's.

    Raises:
        ConfigError: it is not one; names `where` it is from.
    """
    return _validate(_parse(text, where), where, ())


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Reads a recipe and applies overrides such as `training.epochs=3`.

    Raises:
        ConfigError: the file cannot be read, or a key or value is wrong; one line that names file, key, value
            and the nearest valid key.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot read the config: {error}") from error
    tree = _parse(text, str(path))
    overrides = [_current(override) for override in overrides]
    for override in overrides:
        _apply(tree, override)
    _move_flat_keys(tree, "command line")
    return _validate(tree, str(path), overrides)


def _current(key: str) -> str:
    """A key, perhaps with a value after it, as it is called since spaces have sections."""
    section, _, rest = key.partition(".")
    name = re.split(r"[.=]", rest, maxsplit=1)[0]
    return f"search.{_FLAT_KEYS[name]}.{rest}" if section == "search" and name in _FLAT_KEYS else key


def _move_flat_keys(tree: dict[str, Any], where: str) -> None:
    """Moves keys of older configs into their space's section."""
    search = tree.get("search")
    if not isinstance(search, dict):
        return
    for key in [key for key in _FLAT_KEYS if key in search]:
        section = _FLAT_KEYS[key]
        inner = search.get(section) or {}
        if not isinstance(inner, dict):
            continue
        if key in inner:
            raise ConfigError(
                f"{where}: search.{key} and search.{section}.{key} are the same key; remove one"
            )
        search[section] = {**inner, key: search.pop(key)}


def _parse(text: str, where: str) -> dict[str, Any]:
    try:
        tree = yaml.load(text, _Loader)  # noqa: S506 (a SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"{where}:{mark.line + 1}" if mark else where
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        raise ConfigError(f"{line}: not valid YAML: {problem}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{where}: expected sections of keys such as data: and training:, found {tree!r}")
    _move_flat_keys(tree, where)
    return tree


def _validate(tree: dict[str, Any], where: str, overrides: Sequence[str]) -> Config:
    try:
        text = json.dumps(tree)
    except (TypeError, ValueError) as error:  # !!binary, say, or a list that holds itself
        raise ConfigError(f"{where}: a value is neither number, text, list nor section: {error}") from error
    try:
        # JSON mode: strict about types, yet a list is a tuple and a string a path.
        return Config.model_validate_json(text)
    except ValidationError as error:
        overridden = {override.partition("=")[0] for override in overrides}
        raise ConfigError(_explain(error, where, overridden)) from error


def _apply(tree: dict[str, Any], override: str) -> None:
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
    try:
        tree[last] = yaml.load(text, _Loader)  # noqa: S506 (a SafeLoader)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"command line: {key}: {text!r} is not a YAML value: {error}".replace("\n", " ")
        ) from error


def _explain(error: ValidationError, where: str, overridden: set[str]) -> str:
    """One line for the first problem, and how many more there are."""
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
        # Checks over several keys name those themselves, within their section.
        text = ".".join(filter(None, [key, str(first["ctx"]["error"])]))
    else:
        text = f"{key} = {value}: {first['msg'][0].lower()}{first['msg'][1:]}"
    named = set(re.findall(r"[\w.-]*\w", text))
    # In a check over several keys, a section is to blame only as far as the text names its keys.
    whole = first["type"] != "value_error"
    blamed = any(
        name in named or key.startswith(name + ".") or (whole and name.startswith(key + "."))
        for name in overridden
    )
    more = f" (and {len(rest)} more)" if rest else ""
    return f"{'command line' if blamed else where}: {text}{more}"


def nearest_key(key: str) -> str | None:
    """The key or section that an unknown one was perhaps meant to be."""
    names = list(option_names())
    sections = {name.rpartition(".")[0] for name in names} - {""}
    flat = [f"search.{name}" for name in _FLAT_KEYS]
    nearest = difflib.get_close_matches(key, [*names, *sections, *flat], n=1, cutoff=0.5)
    return _current(nearest[0]) if nearest else None


def _subsection(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds, or may hold; None for a plain value."""
    for kind in get_args(annotation) or (annotation,):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def option_names(section: type[BaseModel] = Config, prefix: str = "") -> Iterator[str]:
    """Every key of the schema, dotted, in order."""
    for name, field in section.model_fields.items():
        inner = _subsection(field.annotation)
        if inner is None:
            yield prefix + name
        else:
            yield from option_names(inner, f"{prefix}{_below(name, field.annotation)}.")


def _below(name: str, annotation: Any) -> str:
    """A field's name in the keys of its section, or of its sections, which have names of their own."""
    return f"{name}.NAME" if get_origin(annotation) is dict else name


def describe_options() -> str:
    """The schema as text for --help: a line a key, with default and meaning."""
    return "\n".join(_describe(Config, ""))


def _describe(section: type[BaseModel], prefix: str) -> Iterator[str]:
    """Plain keys first, so that each stands below its own section's heading."""
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
