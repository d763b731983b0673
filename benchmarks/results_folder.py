"""A folder of results that grows line by line: a benchmark that is interrupted resumes where it was."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autoreid.errors import ConfigError
from autoreid.files import write_atomically
from autoreid.trials.trial_file import append_line, read_lines


class ResultsFolder:
    """A folder with files of JSON lines, all made with the same settings.

    Args:
        root: the folder; it is created if it does not exist.
        settings: everything that determines the results.

    Raises:
        ConfigError: the folder holds results of other settings.
    """

    def __init__(self, root: Path, settings: Mapping[str, Any]) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)
        path = root / "settings.json"
        if not path.exists():
            write_atomically(path, (json.dumps(settings, indent=1) + "\n").encode())
        found = json.loads(path.read_text())
        for key, value in settings.items():
            if found.get(key) != value:
                raise ConfigError(
                    f"{path}: {key} is {found.get(key)}, not {value}; name another --folder for other settings"
                )

    def read(self, name: str) -> list[dict[str, Any]]:
        """Return the lines of a file; none if it does not exist. A line that was cut short is left out."""
        return read_lines(self.root / name)

    def append(self, name: str, line: Mapping[str, Any]) -> None:
        """Append a line to a file. Several processes may do so."""
        append_line(self.root / name, line)
