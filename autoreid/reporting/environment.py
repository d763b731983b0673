"""The environment of a run: versions, machine and devices."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision


def describe_environment() -> dict[str, Any]:
    """Return versions, git commit, host, devices of this process, world size and command line."""
    # Not torch.cuda.is_available(): a run on CPUs must not initialise a GPU.
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
    """Return the commit of a checkout, with "-dirty" if files differ from it; None if it is not a checkout."""
    # Do not search parent folders: an installed package may be inside a repository of its user.
    if not (checkout / ".git").exists():
        return None
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
