"""The keys of a sweep and their values, as `--sweep KEY=VALUE,VALUE,...` gives them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from autoreid.config import Config
from autoreid.errors import ConfigError
from autoreid.recipes import full_key
from autoreid.yaml_values import parse_value, schema_of, split_values

#: A sweep with more runs is taken for a mistake.
MAX_RUNS = 10_000
#: Keys that have the same value in all runs, or that the sweep itself sets.
_NOT_SWEPT = {
    "task": "a sweep has runs of one task",
    "task_name": "a sweep names its runs by their values",
    "output_dir": "all runs of a sweep are in its folder",
    "genotype_dir": "all runs of a sweep are in its folder",
}
_RANGE = re.compile(r"([-+]?\d+)\.\.([-+]?\d+)")
#: What a folder's name may have.
_PLAIN = re.compile(r"[A-Za-z0-9._-]+")
_LONGEST_NAME = 40


@dataclass(frozen=True)
class SweptValue:
    """A value of a swept key.

    Attributes:
        text: YAML, as the command line has it.
        value: what the text stands for.
    """

    text: str
    value: Any

    @property
    def label(self) -> str:
        """The value in tables: equal values have equal labels, however they were written."""
        return self.value if isinstance(self.value, str) else json.dumps(self.value, ensure_ascii=False)

    @property
    def name(self) -> str:
        """The value as a part of a folder's name; it has a digest where a character or the end was left out."""
        parts = self.value if isinstance(self.value, list) else [self.value]
        labels = [str(SweptValue("", part).label).replace("e+", "e") for part in parts]
        name = "-".join(labels)
        if all(map(_PLAIN.fullmatch, labels)) and len(name) <= _LONGEST_NAME:
            return name
        digest = hashlib.sha256(self.label.encode(errors="backslashreplace")).hexdigest()[:6]
        return f"{_plain(self.label)[: _LONGEST_NAME - 7].strip('-')}-{digest}".lstrip("-")


@dataclass(frozen=True)
class SweptKey:
    """A key of the config, such as `training.learning_rate`, and the values that it has in a sweep."""

    key: str
    values: tuple[SweptValue, ...]


def parse_swept_keys(sweeps: Sequence[str], overrides: Sequence[str]) -> list[SweptKey]:
    """Parse the values of --sweep, such as `training.learning_rate=0.01,3e-4` and `seed=0..4`.

    The keys are in alphabetical order, with the seed at the end, so that runs have the same names however a sweep is
    written.

    Args:
        overrides: of all runs, which must not set a swept key.

    Raises:
        ConfigError: a text is not of this form, or a key is given twice or cannot be swept.
    """
    keys = sorted(map(_parse, sweeps), key=lambda swept: (swept.key == "seed", swept.key))
    fixed = [full_key(override).partition("=")[0] for override in overrides]
    for place, swept in enumerate(keys):
        for other in keys[:place]:
            if _overlap(swept.key, other.key):
                raise ConfigError(
                    f"command line: --sweep {swept.key} and --sweep {other.key} set the same key; expected one --sweep "
                    f"with all values"
                )
        clash = next((key for key in fixed if _overlap(swept.key, key)), None)
        if clash is not None:
            raise ConfigError(f"command line: {clash} is set, but --sweep {swept.key} sweeps it; remove one")
    return keys


def _parse(sweep: str) -> SweptKey:
    key, _, text = sweep.partition("=")
    key = full_key(key)
    if not key or not text:
        raise ConfigError(
            f"command line: --sweep {sweep!r}: expected section.key=VALUE,VALUE,... or, for whole numbers, "
            f"section.key=FIRST..LAST"
        )
    if key in _NOT_SWEPT:
        raise ConfigError(f"command line: --sweep {key}: {_NOT_SWEPT[key]}; sweep another key")
    where = f"command line: --sweep {key}"
    schema = schema_of(Config, key)
    texts = [one for item in split_values(text, where) for one in _expand(item, where)]
    return SweptKey(key, tuple(SweptValue(one, _json_value(one, where, schema)) for one in texts))


def _expand(item: str, where: str) -> Iterator[str]:
    """Yield the numbers of a range such as 0..4, or else the item itself."""
    found = _RANGE.fullmatch(item)
    if found is None:
        yield item
        return
    first, last = int(found[1]), int(found[2])
    if first > last:
        raise ConfigError(
            f"{where}: {item}: the first number must not exceed the last; expected {last}..{first}"
        )
    if last - first >= MAX_RUNS:
        raise ConfigError(f"{where}: {item}: {last - first + 1} values; expected at most {MAX_RUNS}")
    yield from map(str, range(first, last + 1))


def _json_value(text: str, where: str, schema: Any) -> Any:
    value = parse_value(text, where, schema)
    try:
        json.dumps(value)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {text!r} is not a number, text, list or section: {error}") from error
    return value


def key_names(keys: Sequence[str]) -> list[str]:
    """Return the keys as parts of folders' names: without their sections, unless two keys would be the same."""
    last = [key.rpartition(".")[2] for key in keys]
    return [_plain(key if last.count(name) > 1 else name) for key, name in zip(keys, last, strict=True)]


def _plain(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-")


def _overlap(one: str, other: str) -> bool:
    """Return whether one key is the other, or a section that contains it."""
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")
