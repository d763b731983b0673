"""Reads YAML by a schema: what a key takes decides what its text means.

In YAML 1.1, 010 is 8, 1:30 is 90, a date is no text, and a task name of digits is a number.
"""

from __future__ import annotations

import re
import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel

from autoreid.config.run import DECIMAL, EXPONENTIAL
from autoreid.errors import ConfigError

_CORE = "tag:yaml.org,2002:"
_HEXADECIMAL = re.compile(r"^[-+]?0x[0-9a-fA-F_]+$")
_FLOAT = re.compile(
    r"^([-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"
)
#: Tags that a plain text gets from its form alone.
_BY_FORM = {_CORE + name for name in ("int", "float", "bool", "null", "str")}
_DIGITS = list("-+.0123456789")


class _Loader(yaml.SafeLoader):
    """YAML in which numbers are decimal, 1e-3 is one, a date is text, and a duplicate key is an error."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (as in the base class)
        first: [
            pair
            for pair in resolvers
            if pair[0] not in {_CORE + name for name in ("timestamp", "int", "float")}
        ]
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

    def construct_int(self, node: yaml.ScalarNode) -> int:
        text = str(self.construct_scalar(node))
        return int(text, 16 if "x" in text else 10)


for _name, _pattern in (("int", DECIMAL), ("int", _HEXADECIMAL), ("float", _FLOAT), ("float", EXPONENTIAL)):
    _Loader.add_implicit_resolver(_CORE + _name, _pattern, _DIGITS)
_Loader.add_constructor(_CORE + "int", _Loader.construct_int)


def parse_tree(text: str, schema: Any, where: str) -> Any:
    """Return the content of a YAML file.

    Args:
        text: the file's content.
        schema: the type of the content; where it wants text, digits and words such as `on` are text.
        where: the file, for messages.

    Raises:
        ConfigError: it is not valid YAML.
    """
    try:
        return _load(text, schema)[0]
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f"{where}:{mark.line + 1}" if mark else where
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        raise ConfigError(f"{line}: not valid YAML: {problem}") from error


def parse_value(text: str, where: str, schema: Any = Any) -> Any:
    """Return the value that a text on the command line stands for.

    Args:
        text: if text is wanted, it is taken as it is, unless it is quoted; otherwise it is YAML.
        where: what the value is for, for messages.
        schema: the type that is wanted.

    Raises:
        ConfigError: it is not YAML, or contains a comment.
    """
    kinds = _kinds(schema)
    plain = text.strip()
    if _wants_text(kinds) and plain[:1] not in ("'", '"'):
        return None if type(None) in kinds and plain.lower() in ("", "~", "null", "none") else plain
    try:
        value, end = _load(text, schema)
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{where}: {text!r} is not a YAML value: {error}".replace("\n", " ")) from error
    if text[end:].strip():
        raise ConfigError(f"{where}: {text!r}: # begins a comment in YAML; put the value in quotes")
    return value


def split_values(text: str, where: str) -> list[str]:
    """Return the texts of the YAML values in a list such as `3e-4,[1,2],"a,b"`, which commas separate.

    Args:
        text: the values, as between the brackets of a YAML list.
        where: what the values are for, for messages.

    Raises:
        ConfigError: it is not a list of YAML values, or it is empty.
    """
    loader = _Loader(f"[{text}]")
    try:
        node = loader.get_single_node()
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or str(error)
        raise ConfigError(
            f"{where}: {text!r} is not a list of YAML values: {problem}; expected values with commas between "
            f"them, such as 1,2 or [1,2],[3,4]"
        ) from error
    finally:
        loader.dispose()
    if not isinstance(node, yaml.SequenceNode) or node.end_mark.index != len(text) + 2:
        raise ConfigError(f"{where}: {text!r}: # begins a comment in YAML; put the value in quotes")
    if not node.value:
        raise ConfigError(f"{where}: no value; expected values with commas between them, such as 1,2")
    return [text[item.start_mark.index - 1 : item.end_mark.index - 1].strip() for item in node.value]


def _load(text: str, schema: Any) -> tuple[Any, int]:
    """Return a YAML text's value, and where it ends in the text."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None, 0
        _give_types(node, schema)
        return loader.construct_document(node), node.end_mark.index
    finally:
        loader.dispose()


def _give_types(node: yaml.Node, schema: Any) -> None:
    """Change the types of plain texts below a node to those that the schema wants."""
    kinds = _kinds(schema)
    if isinstance(node, yaml.ScalarNode):
        if node.style is None and node.tag in _BY_FORM:
            _give_type(node, kinds)
    elif isinstance(node, yaml.SequenceNode):
        inner = next((get_args(kind) for kind in kinds if get_origin(kind) is tuple), (Any,))
        for place, item in enumerate(node.value):
            _give_types(item, inner[0 if inner[-1] is Ellipsis else min(place, len(inner) - 1)])
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            section = next(
                (kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None
            )
            named = next((get_args(kind) for kind in kinds if get_origin(kind) is dict), None)
            if section is not None:
                field = section.model_fields.get(key.value)
                _give_types(value, Any if field is None else field.annotation)
            elif named is not None:
                _give_types(key, named[0])
                _give_types(value, named[1])


def _give_type(node: yaml.ScalarNode, kinds: list[Any]) -> None:
    words = {word for kind in kinds if get_origin(kind) is Literal for word in get_args(kind)}
    if type(None) in kinds and (
        node.tag == _CORE + "null" or (node.value.lower() == "none" and "none" not in words)
    ):
        node.tag, node.value = _CORE + "null", "null"
    elif _wants_text(kinds) and node.value:
        node.tag = _CORE + "str"


def _wants_text(kinds: list[Any]) -> bool:
    """Return whether a value must be text, a path or one of some words, and never a number."""
    return not {int, float, bool} & {*kinds} and any(
        kind in (str, Path) or get_origin(kind) is Literal for kind in kinds
    )


def _kinds(schema: Any) -> list[Any]:
    """Return the types that a type allows, without annotations."""
    if get_origin(schema) is Annotated:
        return _kinds(get_args(schema)[0])
    if get_origin(schema) in (Union, types.UnionType):
        return [kind for part in get_args(schema) for kind in _kinds(part)]
    return [schema]


def schema_of(section: type[BaseModel], key: str) -> Any:
    """Return the type that a key such as `data.root` takes, or Any if there is no such key."""
    kinds: list[Any] = [section]
    for name in key.split("."):
        fields = [
            kind.model_fields for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)
        ]
        named = [get_args(kind)[1] for kind in kinds if get_origin(kind) is dict]
        if fields and name in fields[0]:
            kinds = _kinds(fields[0][name].annotation)
        elif named:
            kinds = _kinds(named[0])
        else:
            return Any
    return Union[tuple(kinds)]  # noqa: UP007
