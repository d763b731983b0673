"""The files of a study, as tests compare them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def content_of(folder: Path) -> dict[str, Any]:
    """Return the content of study.json without the times."""
    content: dict[str, Any] = json.loads((folder / "study/study.json").read_text())
    del content["cost"]
    for network in content["found"] + content["random"]:
        del network["seconds"]
        network.pop("search_seconds", None)
    content["equal_cost"] = {
        kind: [best for _, best in content["equal_cost"][kind]] for kind in ("found", "random")
    }
    return content
