"""A description of the machine, for the heading of the table."""

from __future__ import annotations

import contextlib
import datetime
import os
import platform
import subprocess
from collections.abc import Iterator
from pathlib import Path

import torch

from autoreid.diagnosis.machine import check_packages, versions
from benchmarks.gpu.harness import ROOT, Case, Check, Figures


def cases(check: Check) -> Iterator[Case]:
    """Yield one case, with versions and device."""
    yield Case("versions", lambda: host() | device(check.device))


def host() -> Figures:
    """Return packages, processor and commit."""
    commit = _ask("git", "rev-parse", "--short", "HEAD")
    changed = _ask("git", "status", "--porcelain", "--untracked-files=no")
    return {
        "date": datetime.date.today().isoformat(),
        "commit": f"{commit} with changes" if changed else commit,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "packages": versions(),
        "findings": str(check_packages()),
        "cpu": _processor(),
        "cores": len(os.sched_getaffinity(0)),
    }


def device(used: torch.device) -> Figures:
    """Return the GPU, its driver and its libraries."""
    if used.type != "cuda":
        return {"gpu": "no GPU (dry run)"}
    properties = torch.cuda.get_device_properties(used)
    return {
        "gpu": properties.name,
        "gpus": torch.cuda.device_count(),
        "driver": _ask("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "nccl": ".".join(map(str, torch.cuda.nccl.version())),
        "memory_gb": round(properties.total_memory / 1e9, 1),
        "free_gb": round(torch.cuda.mem_get_info(used)[0] / 1e9, 1),
        "multiprocessors": properties.multi_processor_count,
    }


def _ask(*command: str) -> str:
    """Return the output of a program, or an empty string if it is missing or fails."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=True
        ).stdout.strip()
    return ""


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
