"""A folder of results that grows line by line: a benchmark that is interrupted resumes where it was."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autoreid.errors import ConfigError


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
            path.write_text(json.dumps(settings, indent=1) + "\n")
        found = json.loads(path.read_text())
        for key, value in settings.items():
            if found.get(key) != value:
                raise ConfigError(
                    f"{path}: {key} is {found.get(key)}, not {value}; name another --folder for other settings"
                )

    def read(self, name: str) -> list[dict[str, Any]]:
        """Return the lines of a file; none if it does not exist. A line that was cut short is left out."""
        path = self.root / name
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def append(self, name: str, line: Mapping[str, Any]) -> None:
        """Append a line to a file; it replaces a last line that was cut short when its writer was killed."""
        path = self.root / name
        text = path.read_text() if path.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            path.write_text(whole)
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")
