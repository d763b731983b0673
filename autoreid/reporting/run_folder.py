"""The folder of a run, with its config, checkpoints, logs, metrics, environment and result."""

from __future__ import annotations

import fcntl
import json
import logging
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from autoreid.config import Config
from autoreid.errors import ConfigError, RunError
from autoreid.files import make_folder, write_atomically
from autoreid.recipes import parse_config

_log = logging.getLogger(__name__)
_REMEDY = "set output_dir to a folder that can be written"
_ANEW = "give another task_name, or delete the folder to start over"
#: The file that makes a folder that of a sweep, whose subfolders are run folders.
SWEEP_FILE = "sweep.json"
#: A restarted job can begin before all processes of its last start have exited.
LOCK_WAIT_SECONDS = 60.0


class RunFolder:
    """The folder `runs/<task_name>/`, which rank 0 writes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.config = root / "config.yaml"
        self.checkpoints = root / "checkpoints"
        self.tensorboard = root / "tensorboard"
        self.logs = root / "logs"
        self.metrics = root / "metrics.jsonl"
        self.result = root / "result.json"
        self.environment = root / "environment.json"
        self.progress = root / "progress.json"
        self.used_images = root / "used_images.csv"

    def create(self) -> None:
        """Create the folders; raise ConfigError if that is not possible, or if the folder is that of a sweep."""
        self._check_no_sweep()
        for folder in (self.root, self.checkpoints, self.tensorboard, self.logs):
            make_folder(folder, _REMEDY)

    def claim(self, config: Config, may_differ: Collection[str] = ()) -> None:
        """Create the folders and write the run's resolved config, or check that the run there has the same one.

        Args:
            config: of the run.
            may_differ: dotted keys whose values, and all below them, may be new; the file then gets the new ones.

        Raises:
            ConfigError: the folder is that of a sweep, or holds checkpoints of another config; names the first keys
            that differ.
        """
        self.create()
        stored = self._check(config, may_differ)
        # An equal one stays as it was written, in whatever layout the keys had then.
        if stored is None or _values(stored) != _values(config):
            write_atomically(self.config, config.to_yaml().encode())

    def check_claim(self, config: Config, may_differ: Collection[str] = ()) -> None:
        """Raise what `claim` would raise; write nothing."""
        self._check_no_sweep()
        self._check(config, may_differ)

    def _check_no_sweep(self) -> None:
        if (self.root / SWEEP_FILE).exists():
            raise ConfigError(f"{self.root} is the folder of a sweep; give another task_name")

    def _check(self, config: Config, may_differ: Collection[str]) -> Config | None:
        """The stored config of a run that has begun, once it is known to agree; None if no run has begun."""
        # A run that died before its first checkpoint has nothing to lose: the fixed config replaces its own.
        if not self.config.exists() or not any(self.checkpoints.glob("*.pt")):
            return None
        stored = _stored_config(self.config)
        differing = differences(stored, config, may_differ)
        if differing is not None:
            raise ConfigError(f"{self.root} belongs to a run of another config: {differing}; {_ANEW}")
        return stored

    @contextmanager
    def lock(self, wait_seconds: float = LOCK_WAIT_SECONDS) -> Iterator[None]:
        """Lock the run for the duration of a `with` block, so that no other process can run it.

        The operating system releases the lock when the process ends, also if it is killed.

        Args:
            wait_seconds: how long to wait for a process that holds the lock.

        Raises:
            ConfigError: another process holds the lock, or its file cannot be opened.
        """
        path = self.root / "lock"
        try:
            opened = path.open("a")
        except OSError as error:
            raise ConfigError(f"{path}: cannot open the lock: {error.strerror}; {_REMEDY}") from error
        with opened as file:
            deadline = time.monotonic() + wait_seconds
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as error:
                    if time.monotonic() > deadline:
                        raise ConfigError(
                            f"{self.root}: this run is already running in another process; set another task_name"
                        ) from error
                    time.sleep(0.2)
                except OSError as error:  # the file system has no locks
                    _log.warning("%s: cannot lock the run folder: %s", self.root, error.strerror)
                    break
            yield

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Append one line of JSON to metrics.jsonl; raise RunError if that is not possible."""
        try:
            with self.metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise RunError(f"{self.metrics}: cannot write the metrics: {error.strerror}") from error

    def truncate_metrics(self, after_step: int) -> None:
        """Remove the records of steps after `after_step`, which a resumed run computes again.

        Incomplete lines, left by a process that was killed, are removed as well and logged.
        """
        if not self.metrics.exists() or not self.metrics.stat().st_size:
            return
        lines = _read_text(self.metrics).removesuffix("\n").split("\n")
        records = [_record(line) for line in lines]
        torn = sum(record is None for record in records)
        if torn:
            _log.warning("%s: removed incomplete lines: %d", self.metrics, torn)
        kept = [
            line + "\n"
            for line, record in zip(lines, records, strict=True)
            if record is not None and record.get("step", after_step) <= after_step
        ]
        write_atomically(self.metrics, "".join(kept).encode())

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write result.json atomically."""
        write_atomically(self.result, _json(result))

    def write_progress(self, progress: Mapping[str, Any]) -> None:
        """Write progress.json for jobs/status.py. A failure is only logged."""
        try:
            write_atomically(self.progress, _json(progress))
        except RunError as error:
            _log.warning("%s", error)

    def write_environment(self, environment: Mapping[str, Any]) -> None:
        """Write environment.json; see `autoreid.reporting.environment`."""
        write_atomically(self.environment, _json(environment))


def steps_seconds(result: Mapping[str, Any]) -> float:
    """Return how long the steps of a run took, by its result.json, and its read-out if that measures networks."""
    return float(result["seconds"] + result.get("read_out_seconds", 0.0))


def differences(stored: Config, config: Config, may_differ: Collection[str]) -> str | None:
    """Return the first keys in which a config differs from a stored one, as text; None if it does not.

    Args:
        may_differ: dotted keys whose values, and all below them, may differ.
    """
    old, new = _values(stored), _values(config)
    differing = [
        f"{key} was {old.get(key, 'not set')}, is now {new.get(key, 'not set')}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not _is_below(key, may_differ)
    ]
    more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
    return f"{'; '.join(differing[:3])}{more}" if differing else None


def _json(content: Mapping[str, Any]) -> bytes:
    # A file name that is not UTF-8 has lone surrogates; as backslash escapes, they are valid JSON.
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode(errors="backslashreplace")


def _record(line: str) -> dict[str, Any] | None:
    """Parse a line of metrics.jsonl; return None if it is not complete."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the file: {error.strerror}") from error


def _stored_config(path: Path) -> Config:
    """A run's config, with the defaults of keys that it does not have yet."""
    try:
        return parse_config(_read_text(path), str(path))
    except ConfigError as error:
        raise ConfigError(f"{error}; {_ANEW}") from error


def _values(config: Config) -> dict[str, str]:
    """The values of a config by dotted key, as JSON, in which true is not 1."""
    return {key: json.dumps(value) for key, value in flatten(config.model_dump(mode="json"), "")}


def run_name(folder: Path) -> str:
    """Return the name of a run folder, with the sweep's in front if the run is part of one."""
    folder = folder.absolute()
    of_sweep = (folder.parent / SWEEP_FILE).exists()
    return f"{folder.parent.name}/{folder.name}" if of_sweep else folder.name


def flatten(section: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """Return the values of nested mappings by dotted key; empty mappings count as values."""
    for name, value in section.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _is_below(key: str, sections: Collection[str]) -> bool:
    return any(key == section or key.startswith(f"{section}.") for section in sections)
