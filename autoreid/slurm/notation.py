"""How sbatch writes time limits and generic resources."""

from __future__ import annotations

import re

_TIMES = (
    re.compile(r"(?P<minutes>\d+)(:(?P<seconds>\d+))?"),
    re.compile(r"(?P<hours>\d+):(?P<minutes>\d+):(?P<seconds>\d+)"),
    re.compile(r"(?P<days>\d+)-(?P<hours>\d+)(:(?P<minutes>\d+)(:(?P<seconds>\d+))?)?"),
)
_IN_SECONDS = {"days": 86_400, "hours": 3_600, "minutes": 60, "seconds": 1}


def parse_seconds(text: str) -> int:
    """Return the seconds of a time limit in sbatch's notation, or 0 if `text` is not a time limit."""
    for pattern in _TIMES:
        match = pattern.fullmatch(text)
        if match:
            parts = {unit: int(value) for unit, value in match.groupdict().items() if value}
            return sum(_IN_SECONDS[unit] * value for unit, value in parts.items())
    return 0


def gres_gpus(gres: str | None) -> int | None:
    """Return the number of GPUs in a list of generic resources, such as gpu:a100:8,nvme:1; None if it has none."""
    counts = [
        int(count[1]) if count else 1
        for resource in (gres or "").split(",")
        if re.match(r"(gres[:/])?gpu\b", resource)
        for count in [re.search(r"[:=](\d+)(\(.*\))?$", resource)]
    ]
    return sum(counts) if counts else None
