"""The folder of one run: its config, checkpoints, logs, metrics, environment and result."""

from __future__ import annotations

import fcntl
import json
import logging
import platform
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision

from autoreid.config import Config
from autoreid.errors import ConfigError, RunError
from autoreid.files import make_folder, write_atomically
from autoreid.recipes import parse_config

_log = logging.getLogger(__name__)
_REMEDY = "set output_dir to a folder that can be written"
_ANEW = "give another task_name, or delete the folder to start anew"
#: A requeued job may start before the last of its old processes has left.
LOCK_WAIT_SECONDS = 60.0


class RunFolder:
    """`runs/<task_name>/`, written by rank 0."""

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

    def create(self) -> None:
        """Makes the folders; raises ConfigError naming the folder and `output_dir` when it cannot."""
        for folder in (self.root, self.checkpoints, self.tensorboard, self.logs):
            make_folder(folder, _REMEDY)

    def claim(self, config: Config, may_differ: Collection[str] = ()) -> None:
        """Creates the folders and writes the run's resolved config, or checks that the run there has the same one.

        Args:
            config: of the run.
            may_differ: dotted keys whose values, and all below them, may be new; the file then gets the new ones.

        Raises:
            ConfigError: the folder holds checkpoints of another config; names the first keys that differ.
        """
        self.create()
        stored = self._check(config, may_differ)
        # An equal one stays as it was written, in whatever layout the keys had then.
        if stored is None or _values(stored) != _values(config):
            write_atomically(self.config, config.to_yaml().encode())

    def check_claim(self, config: Config, may_differ: Collection[str] = ()) -> None:
        """Raises what `claim` would raise; writes nothing."""
        self._check(config, may_differ)

    def _check(self, config: Config, may_differ: Collection[str]) -> Config | None:
        """The stored config of a run that has begun, once it is known to agree; None if no run has begun."""
        # A run that died before its first checkpoint has nothing to lose: the fixed config replaces its own.
        if not self.config.exists() or not any(self.checkpoints.glob("*.pt")):
            return None
        stored = _stored_config(self.config)
        old, new = _values(stored), _values(config)
        differing = [
            f"{key} was {old.get(key, 'not set')}, is now {new.get(key, 'not set')}"
            for key in sorted(old.keys() | new.keys())
            if old.get(key) != new.get(key) and not _is_below(key, may_differ)
        ]
        if differing:
            more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
            raise ConfigError(
                f"{self.root} belongs to a run of another config: {'; '.join(differing[:3])}{more}; {_ANEW}"
            )
        return stored

    @contextmanager
    def lock(self, wait_seconds: float = LOCK_WAIT_SECONDS) -> Iterator[None]:
        """Keeps every other process from running this run for the length of a `with` block.

        The lock is the operating system's, so it ends with the process that holds it, however that ends.

        Args:
            wait_seconds: how long to wait for a process that is about to leave.

        Raises:
            ConfigError: another process holds it.
        """
        with (self.root / "lock").open("a") as file:
            deadline = time.monotonic() + wait_seconds
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as error:
                    if time.monotonic() > deadline:
                        raise ConfigError(
                            f"{self.root}: another process is running this run; give another task_name"
                        ) from error
                    time.sleep(0.2)
                except OSError as error:  # a file system without locks
                    _log.warning("%s: cannot be locked: %s", self.root, error.strerror)
                    break
            yield

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Adds one line of JSON to metrics.jsonl; raises RunError when it cannot."""
        try:
            with self.metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise RunError(f"{self.metrics}: cannot write the metrics: {error.strerror}") from error

    def truncate_metrics(self, after_step: int) -> None:
        """Drops the records of steps after `after_step`, which a resumed run does again.

        Lines cut off by a kill are dropped too, and counted in the log.
        """
        if not self.metrics.exists() or not self.metrics.stat().st_size:
            return
        lines = _read_text(self.metrics).removesuffix("\n").split("\n")
        records = [_record(line) for line in lines]
        torn = sum(record is None for record in records)
        if torn:
            _log.warning("%s: dropped %d lines that are not whole", self.metrics, torn)
        kept = [
            line + "\n"
            for line, record in zip(lines, records, strict=True)
            if record is not None and record.get("step", after_step) <= after_step
        ]
        write_atomically(self.metrics, "".join(kept).encode())

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Writes result.json in one step."""
        write_atomically(self.result, _json(result))

    def write_progress(self, progress: Mapping[str, Any]) -> None:
        """Writes progress.json, for those who watch; a failure is logged, and costs nothing else."""
        try:
            write_atomically(self.progress, _json(progress))
        except RunError as error:
            _log.warning("%s", error)

    def write_environment(self, extra: Mapping[str, Any]) -> None:
        """Writes environment.json: what the run runs on, and `extra`."""
        write_atomically(self.environment, _json(describe_environment() | dict(extra)))


def describe_environment() -> dict[str, Any]:
    """Versions, git commit, host, devices of this process, world size and command line."""
    # A run on CPUs does not open a GPU that happens to be there.
    gpus = range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0)
    in_group = torch.distributed.is_available() and torch.distributed.is_initialized()
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
        "numpy": np.__version__,
        "cuda": torch.version.cuda,
        "git_commit": _git_commit(Path(__file__).resolve().parents[2]),
        "hostname": platform.node(),
        "platform": platform.platform(),
        "devices": [torch.cuda.get_device_name(index) for index in gpus] or ["cpu"],
        "world_size": torch.distributed.get_world_size() if in_group else 1,
        "argv": sys.argv,
    }


def _git_commit(checkout: Path) -> str | None:
    """The commit of the package's checkout, with "-dirty" if files differ from it; None outside a checkout."""
    # Not any repository above: an installed package may lie inside its user's own.
    if not (checkout / ".git").exists():
        return None
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()


def _record(line: str) -> dict[str, Any] | None:
    """A line of metrics; None if it is not whole."""
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
    return {key: json.dumps(value) for key, value in _flatten(config.model_dump(mode="json"), "")}


def _flatten(section: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in section.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _is_below(key: str, sections: Collection[str]) -> bool:
    return any(key == section or key.startswith(f"{section}.") for section in sections)
