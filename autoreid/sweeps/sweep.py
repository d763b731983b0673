"""A sweep: its folder, its keys, and the values of each of its runs."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoreid.config import MAY_DIFFER, Config
from autoreid.errors import ConfigError, DataError
from autoreid.files import make_folder, write_atomically
from autoreid.recipes import parse_config
from autoreid.reporting.history import FILE as HISTORY
from autoreid.reporting.run_folder import SWEEP_FILE, RunFolder, differences
from autoreid.sweeps.swept_key import MAX_RUNS, SweptKey, SweptValue, key_names

_ANEW = "give another task_name, or delete the folder to start over"
#: The longest name of a run that is not shortened; a task name has at most 200 characters.
_LONGEST_NAME = 200
#: Values of the swept keys, by key.
Combination = Mapping[str, SweptValue]


def combinations(keys: Sequence[SweptKey]) -> list[Combination]:
    """Return the product of the values of all keys; the values of the last key change first.

    Raises:
        ConfigError: there are too many.
    """
    count = math.prod(len(swept.values) for swept in keys)
    if count > MAX_RUNS:
        raise ConfigError(f"command line: --sweep: {count} combinations; expected at most {MAX_RUNS}")
    names = [swept.key for swept in keys]
    product = itertools.product(*(swept.values for swept in keys))
    return [dict(zip(names, values, strict=True)) for values in product]


def in_words(combination: Combination) -> str:
    """Return a combination as text, such as `seed=0, training.learning_rate=0.01`."""
    return ", ".join(f"{key}={value.label}" for key, value in combination.items())


def run_name(combination: Combination) -> str:
    """Return the name of a run, such as `learning_rate-0.01__seed-0`; one that is too long ends with a digest."""
    names = key_names(list(combination))
    name = "__".join(f"{key}-{value.name}" for key, value in zip(names, combination.values(), strict=True))
    if len(name) <= _LONGEST_NAME:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{name[: _LONGEST_NAME - 9]}-{digest}"


@dataclass(frozen=True)
class Sweep:
    """A sweep, as its file stores it.

    Attributes:
        folder: folder of the sweep, which has the run folders.
        config: of one of the runs; the others differ from it in the swept keys only.
        keys: the swept keys.
        runs: the value of each swept key, by the name of the run.
    """

    folder: Path
    config: Config
    keys: tuple[str, ...]
    runs: Mapping[str, Mapping[str, Any]]

    def run_folder(self, name: str) -> RunFolder:
        """Return the folder of a run."""
        return RunFolder(self.folder / name)

    def is_finished(self, name: str) -> bool:
        """Return whether a run has its result."""
        return self.run_folder(name).result.exists()

    def added_to_stored(self) -> Sweep:
        """Return the sweep together with the runs of an earlier one in the same folder.

        Raises:
            ConfigError: the folder belongs to something else: a run, or a sweep of other keys or another config.
        """
        if not (self.folder / SWEEP_FILE).exists():
            if (self.folder / HISTORY).exists():
                raise ConfigError(f"{self.folder} is the folder of a single run; {_ANEW}")
            return self
        stored = read_sweep(self.folder)
        if stored.keys != self.keys:
            raise ConfigError(f"{self.folder} has a sweep of {' and '.join(stored.keys)}; {_ANEW}")
        differing = differences(stored.config, self.config, [*MAY_DIFFER, *self.keys, "task_name"])
        if differing is not None:
            raise ConfigError(f"{self.folder} has a sweep of another config: {differing}; {_ANEW}")
        return Sweep(self.folder, self.config, self.keys, {**stored.runs, **self.runs})

    def save(self) -> None:
        """Write the sweep's file, with the runs that another call has added to it in the meantime.

        Raises:
            ConfigError, RunError: it cannot be written, or the folder belongs to something else by now.
        """
        runs = self.added_to_stored().runs
        make_folder(self.folder, "set output_dir to a folder that can be written")
        content = {
            "keys": list(self.keys),
            "runs": dict(runs),
            "config": self.config.model_dump(mode="json"),
        }
        write_atomically(self.folder / SWEEP_FILE, (json.dumps(content, indent=1) + "\n").encode())


def read_sweep(folder: Path) -> Sweep:
    """Read the sweep of a folder.

    Raises:
        ConfigError: the folder has no sweep, or its config is not valid.
        DataError: the file is damaged.
    """
    path = folder / SWEEP_FILE
    try:
        content = json.loads(path.read_bytes())
        keys, runs, config = tuple(content["keys"]), dict(content["runs"]), json.dumps(content["config"])
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot read the sweep: {error.strerror}; expected the folder of a sweep, such as runs/NAME"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: damaged: {error!r}; delete it, and submit the sweep again") from error
    return Sweep(folder, parse_config(config, str(path)), keys, runs)
