"""What a mirror copies of a run folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoreid.config import Config
from autoreid.errors import ConfigError
from autoreid.recipes import parse_config
from autoreid.reporting.history import FILE, read_history
from autoreid.reporting.run_folder import RunFolder, flatten, run_name


@dataclass(frozen=True)
class RunContent:
    """The content of a run folder at one time.

    Attributes:
        folder: the run folder.
        config: the resolved config.
        records: the records of metrics.jsonl by their steps, in order. A run that is killed at the end of an epoch can
            record it twice; the first record counts.
        result: the content of result.json; empty while the run has not finished.
        environment: the content of environment.json.
    """

    folder: Path
    config: Config
    records: Mapping[int, Mapping[str, Any]]
    result: Mapping[str, Any]
    environment: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The name of the run's folder, with the sweep's in front if it is part of one."""
        return run_name(self.folder)

    def parameters(self) -> dict[str, Any]:
        """Return the values of the config by dotted key."""
        return dict(flatten(self.config.model_dump(mode="json"), ""))

    @property
    def genotypes(self) -> Path:
        """The folder of a search's genotypes.

        A relative `genotype_dir` begins where a relative `output_dir` does: in the folder that the run was started in,
        which is known if the run folder still ends with `output_dir`. Otherwise, it begins in the current folder.
        """
        config, folder = self.config, self.folder.absolute()
        inside = (config.output_dir / config.task_name).parts
        is_in_place = not config.output_dir.is_absolute() and folder.parts[-len(inside) :] == inside
        start = folder.parents[len(inside) - 1] if is_in_place else Path()
        return start / config.genotype_dir / config.task_name

    def pictures(self, epoch: int) -> dict[str, Path]:
        """Return the pictures of a search's genotype after an epoch by their names, such as "genotype/normal"."""
        stem = f"EP{epoch:02d}-"
        found = sorted(self.genotypes.glob(f"{stem}*.png"))
        return {f"genotype/{path.stem.removeprefix(stem)}": path for path in found}


def read_run(folder: Path) -> RunContent:
    """Read a run folder; raises ConfigError if its config is missing or not valid."""
    paths = RunFolder(folder)
    try:
        config = parse_config(paths.config.read_text(encoding="utf-8"), str(paths.config))
    except OSError as error:
        raise ConfigError(f"{paths.config}: cannot read the config: {error.strerror}") from error
    records: dict[int, Mapping[str, Any]] = {}
    for line in _read(paths.metrics).splitlines():
        record = _parse(line)
        if "step" in record:
            records.setdefault(record["step"], record)
    return RunContent(folder, config, records, _parse(_read(paths.result)), _parse(_read(paths.environment)))


def is_over(folder: Path) -> bool:
    """Return whether a run has finished, or failed with an error that would happen again."""
    events = read_history(folder)
    return bool(events) and events[-1].kind in ("finished", "failed")


def find_run_folders(folder: Path) -> list[Path]:
    """Return the folder if it is that of a run, or else all run folders below it, such as those of a study or sweep.

    Runs that have not started yet are left out.

    Raises:
        ConfigError: there are none.
    """
    found = _below(folder) if folder.is_dir() else []
    if not found:
        raise ConfigError(
            f"{folder}: not the folder of a run that has started, and none below it; it would contain config.yaml and "
            f"{FILE}"
        )
    return found


def _below(folder: Path) -> list[Path]:
    if (folder / FILE).exists():
        return [folder] if RunFolder(folder).config.exists() else []
    return [run for child in sorted(folder.iterdir()) if child.is_dir() for run in _below(child)]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the file: {error.strerror}") from error


def _parse(text: str) -> dict[str, Any]:
    """Return the JSON object in a text; an empty one if it is incomplete, as the last line of a killed process."""
    try:
        content = json.loads(text)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}
