"""Checks that a process makes alone: packages, programs, GPU, Slurm, shared memory."""

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

#: Where loader processes hand over their batches.
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108
#: What the default recipe's loaders take there on a node: 2 streams, 4 workers, 2 batches ahead, 64 images of
#: 3 × 256 × 128 uint8 over all ranks; rounded up.
LOADERS_BYTES = 2**27
#: There where the NVIDIA driver is loaded, and a container lets it be seen.
DRIVER = Path("/dev/nvidiactl")


class Finding(NamedTuple):
    """What one check found; `mend` says what to do about it."""

    grade: Literal["ok", "warn", "FAIL"]
    what: str
    text: str
    mend: str = ""

    def __str__(self) -> str:
        return f"{self.grade:<4} {self.what}: {self.text}" + (f"; {self.mend}" if self.mend else "")


def check_packages() -> Finding:
    """Whether the packages are there, in versions that autoreid was tested with."""
    wrong = []
    try:
        for needed in _requirements():
            try:
                version = metadata.version(needed.name)
            except metadata.PackageNotFoundError:
                wrong.append(f"{needed} is missing")
            else:
                if not needed.specifier.contains(version, prereleases=True):
                    wrong.append(f"{needed} is needed, {version} is there")
    except metadata.PackageNotFoundError:
        text = f"autoreid is not installed in {sys.executable}, nobody checked what it needs"
        return Finding("warn", "packages", text, "python -m pip install --editable . in the checkout")
    if wrong:
        return Finding("FAIL", "packages", ", ".join(wrong), "python -m pip install . in the checkout")
    return Finding("ok", "packages", "all that autoreid needs")


def versions() -> dict[str, str]:
    """The versions of Python, of torch and of every package that autoreid needs."""
    found = {}
    with contextlib.suppress(metadata.PackageNotFoundError):
        found = {needed.name: metadata.version(needed.name) for needed in _requirements()}
    # torch's own word says what it is built for, too.
    return found | {"python": platform.python_version(), "torch": torch.__version__}


def _requirements() -> list[Requirement]:
    """What autoreid needs here, without its extras."""
    listed = [Requirement(text) for text in metadata.requires("autoreid") or ()]
    return [needed for needed in listed if needed.marker is None or needed.marker.evaluate({"extra": ""})]


def check_dot() -> Finding:
    """Whether genotypes can be drawn."""
    if shutil.which("dot"):
        return Finding("ok", "dot", "can draw genotypes")
    text = "no such program, genotypes stay .gv files without pictures"
    return Finding("warn", "dot", text, "install graphviz (apt install graphviz, conda install graphviz)")


def check_shared_memory() -> Finding:
    """Whether there is room for what loader processes hand over."""
    free = shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else 0
    if free >= LOADERS_BYTES:
        return Finding("ok", str(SHARED_MEMORY), "has room for the loaders' batches")
    text = f"{free >> 20} MiB are free, the default recipe's loaders take up to {LOADERS_BYTES >> 20}"
    return Finding(
        "warn", str(SHARED_MEMORY), text, "give the container more (--shm-size), or lower data.workers"
    )


def check_slurm() -> Finding:
    """Whether Slurm's programs are where they are needed: sbatch where jobs are submitted, scontrol in jobs."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        if shutil.which("sbatch"):
            return Finding("ok", "Slurm", "jobs can be submitted")
        mend = "submit where Slurm's programs are, or use --local"
        return Finding("warn", "Slurm", "no sbatch here, so no jobs can be submitted", mend)
    if shutil.which("scontrol") is None:
        text = "no scontrol here, with which a job finds its first node and requeues itself"
        return Finding("FAIL", "Slurm", text, "put Slurm's programs on the PATH, or into the container")
    status, said = _ask("scontrol", "show", "job", job)
    if status:
        mend = "a container needs Slurm's configuration (/etc/slurm) and munge's socket (/run/munge) too"
        return Finding("FAIL", "Slurm", f"`scontrol show job {job}` fails: {said}", mend)
    return Finding("ok", "Slurm", "jobs can find their nodes and requeue themselves")


def check_device(local_rank: int) -> tuple[Finding, Placement]:
    """Whether torch can use the GPUs that are here, and where this rank computes."""
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
        text = f"CUDA_VISIBLE_DEVICES={given}, but no driver is to be seen, so ranks compute on the CPU"
        return Finding("warn", "GPU", text, "let a container see it (apptainer --nv, docker --gpus all)")
    else:
        return Finding("ok", "GPU", "none here, ranks compute on the CPU")
    built = f"torch {torch.__version__}"
    if torch.version.cuda is None:
        mend = "install torch's CUDA build (https://pytorch.org/get-started/locally)"
        return Finding("FAIL", "GPU", f"{built} is built without CUDA, the driver is here ({driver})", mend)
    reason = _cuda_error()
    if "No CUDA GPUs" in reason:
        text = f"this process has none (CUDA_VISIBLE_DEVICES={given})"
        return Finding("warn", "GPU", text, "ask Slurm for some (--gpus-per-node), or unset the variable")
    text = f"{built} for CUDA {torch.version.cuda} cannot use the driver ({driver}): {reason}"
    return Finding("FAIL", "GPU", text, "update the driver, or install torch for an older CUDA")


def _cuda_error() -> str:
    try:
        torch.cuda.init()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return "it finds no GPU"


def _ask(*command: str) -> tuple[int, str]:
    """A program's exit status and the first line that it says; 1 when it does not answer."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        return 1, str(error)
    return done.returncode, (done.stderr + done.stdout).strip().split("\n")[0]
