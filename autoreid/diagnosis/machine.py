"""Checks that a single process can make: packages, programs, GPU, Slurm, shared memory."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from packaging.requirements import Requirement

from autoreid.distributed.gpus import Placement, place_rank

#: Where loader processes put their batches.
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108
#: How much the default recipe's loaders use there on a node: 2 streams, 4 workers, 2 batches ahead, 64 images of
#: 3 × 256 × 128 uint8 over all ranks; rounded up.
LOADERS_BYTES = 2**27
#: Exists if the NVIDIA driver is loaded and visible in the container.
DRIVER = Path("/dev/nvidiactl")


class Finding(NamedTuple):
    """The result of one check; `fix` says how to fix the problem."""

    grade: Literal["ok", "warn", "FAIL"]
    what: str
    text: str
    fix: str = ""

    def __str__(self) -> str:
        return f"{self.grade:<4} {self.what}: {self.text}" + (f"; {self.fix}" if self.fix else "")


def check_packages() -> Finding:
    """Check that the required packages are installed, in versions with which autoreid was tested."""
    wrong = []
    try:
        for needed in _requirements():
            try:
                version = metadata.version(needed.name)
            except metadata.PackageNotFoundError:
                wrong.append(f"{needed} is not installed")
            else:
                if not needed.specifier.contains(version, prereleases=True):
                    wrong.append(f"{needed} is required, but {version} is installed")
    except metadata.PackageNotFoundError:
        text = f"autoreid is not installed in {sys.executable}, so its requirements cannot be checked"
        return Finding("warn", "packages", text, "python -m pip install --editable . in the checkout")
    if wrong:
        return Finding("FAIL", "packages", ", ".join(wrong), "python -m pip install . in the checkout")
    return Finding("ok", "packages", "all required packages are installed")


def versions() -> dict[str, str]:
    """Return the versions of Python, torch and all required packages."""
    found = {}
    with contextlib.suppress(metadata.PackageNotFoundError):
        found = {needed.name: metadata.version(needed.name) for needed in _requirements()}
    # torch.__version__ also says for which CUDA torch was built.
    return found | {"python": platform.python_version(), "torch": torch.__version__}


def _requirements() -> list[Requirement]:
    """Return autoreid's requirements on this platform, without its extras."""
    listed = [Requirement(text) for text in metadata.requires("autoreid") or ()]
    return [needed for needed in listed if needed.marker is None or needed.marker.evaluate({"extra": ""})]


def check_dot() -> Finding:
    """Check that genotypes can be drawn."""
    if shutil.which("dot"):
        return Finding("ok", "dot", "can draw genotypes")
    text = "program not found; genotypes are saved as .gv files, without pictures"
    return Finding("warn", "dot", text, "install graphviz (apt install graphviz, conda install graphviz)")


def check_shared_memory() -> Finding:
    """Check that there is enough shared memory for the batches of loader processes."""
    free = shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else 0
    if free >= LOADERS_BYTES:
        return Finding("ok", str(SHARED_MEMORY), "large enough for the loaders' batches")
    text = f"{free >> 20} MiB free, but the default recipe's loaders use up to {LOADERS_BYTES >> 20}"
    return Finding(
        "warn", str(SHARED_MEMORY), text, "give the container more (--shm-size), or reduce data.workers"
    )


def check_slurm() -> Finding:
    """Check for the Slurm programs that are needed: sbatch to submit jobs, scontrol inside jobs."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        if shutil.which("sbatch"):
            return Finding("ok", "Slurm", "jobs can be submitted")
        fix = "submit from a machine with Slurm's programs, or use --local"
        return Finding("warn", "Slurm", "sbatch not found, so jobs cannot be submitted", fix)
    if shutil.which("scontrol") is None:
        text = "scontrol not found, which a job needs to find its first node and to requeue itself"
        return Finding("FAIL", "Slurm", text, "add Slurm's programs to PATH, or to the container")
    status, output = _ask("scontrol", "show", "job", job)
    if status:
        fix = "a container also needs Slurm's configuration (/etc/slurm) and munge's socket (/run/munge)"
        return Finding("FAIL", "Slurm", f"`scontrol show job {job}` fails: {output}", fix)
    return Finding("ok", "Slurm", "jobs can find their nodes and requeue themselves")


def check_device(local_rank: int) -> tuple[Finding, Placement]:
    """Check whether torch can use the node's GPUs; also returns the device of this rank."""
    seat = place_rank("auto", local_rank)
    if not seat.visible:
        return _why_no_gpu(), seat
    return Finding("ok", "GPU", f"torch {torch.__version__} with CUDA {torch.version.cuda} can use it"), seat


def _why_no_gpu() -> Finding:
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if shutil.which("nvidia-smi"):
        _, driver = _ask("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    elif DRIVER.exists():
        driver = "version unknown"
    elif given:
        text = f"CUDA_VISIBLE_DEVICES={given}, but no driver was found, so ranks run on the CPU"
        return Finding(
            "warn", "GPU", text, "make it visible in the container (apptainer --nv, docker --gpus all)"
        )
    else:
        return Finding("ok", "GPU", "none found, ranks run on the CPU")
    built = f"torch {torch.__version__}"
    if torch.version.cuda is None:
        fix = "install torch's CUDA build (https://pytorch.org/get-started/locally)"
        return Finding("FAIL", "GPU", f"{built} is built without CUDA, but there is a driver ({driver})", fix)
    reason = _cuda_error()
    if "No CUDA GPUs" in reason:
        text = f"no GPU is visible to this process (CUDA_VISIBLE_DEVICES={given})"
        return Finding(
            "warn", "GPU", text, "request GPUs from Slurm (--gpus-per-node), or unset the variable"
        )
    text = f"{built} for CUDA {torch.version.cuda} cannot use the driver ({driver}): {reason}"
    return Finding("FAIL", "GPU", text, "update the driver, or install torch for an older CUDA")


def _cuda_error() -> str:
    try:
        torch.cuda.init()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return "no GPU found"


def _ask(*command: str) -> tuple[int, str]:
    """Run a program; returns its exit status (1 if it cannot be run) and the first line of its output."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        return 1, str(error)
    return done.returncode, (done.stderr + done.stdout).strip().split("\n")[0]
