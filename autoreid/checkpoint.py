"""Checkpoints: written atomically, the last few and the best are kept, and read without unpickling code."""

from __future__ import annotations

import io
import logging
import os
import re
from pathlib import Path
from typing import Any

import torch

from autoreid.errors import RunError
from autoreid.files import damage_of_archive, write_atomically

_log = logging.getLogger(__name__)
_NAME = re.compile(r"step-(\d+)\.pt")
BEST = "best.pt"


class CheckpointFolder:
    """The checkpoints of a run, `step-<steps done>.pt` and `best.pt`; only rank 0 writes them."""

    def __init__(self, folder: Path, keep_last: int) -> None:
        self.folder = folder
        self.keep_last = keep_last

    def steps(self) -> list[int]:
        """Return the steps that have a checkpoint, in ascending order."""
        found = (_NAME.fullmatch(path.name) for path in self.folder.glob("step-*.pt"))
        return sorted(int(match[1]) for match in found if match)

    def path(self, step: int) -> Path:
        """Return the path of the checkpoint after `step` steps."""
        return self.folder / f"step-{step:08d}.pt"

    def save(self, step: int, state: dict[str, Any], is_best: bool) -> None:
        """Write a checkpoint (temporary file, fsync, rename), then delete those that are too old.

        Raises:
            RunError: it cannot be written; earlier checkpoints are not changed.
        """
        buffer = io.BytesIO()
        torch.save(state, buffer)
        path = self.path(step)
        write_atomically(path, buffer.getvalue())
        for partial in self.folder.glob("*.partial"):  # of a process that was killed
            partial.unlink()
        if is_best:
            self._name_best(path)
        # Later steps are damaged checkpoints, before which this run had to resume.
        steps = self.steps()
        kept = [kept for kept in steps if kept <= step][-self.keep_last :]
        for old in set(steps) - set(kept):
            self.path(old).unlink()

    def _name_best(self, path: Path) -> None:
        """Link the checkpoint as the best one; the rename replaces the old link atomically."""
        partial = self.folder / f"{BEST}.partial"
        try:
            os.link(path, partial)
        except OSError:  # a file system without hard links
            write_atomically(self.folder / BEST, path.read_bytes())
        else:
            partial.replace(self.folder / BEST)

    def load_latest(self) -> dict[str, Any] | None:
        """Return the newest readable checkpoint, on the CPU; None if there are no checkpoints.

        Damaged checkpoints are skipped with a warning.

        Raises:
            RunError: there are checkpoints, but none can be read, or the newest must not be.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                return load_checkpoint(self.path(step))
            except RunError as error:
                if isinstance(error.__cause__, PermissionError):
                    # It may be whole: an earlier one would cost the steps since then.
                    raise RunError(f"{error}; change its permissions") from error
                _log.warning("%s; trying an earlier one", error)
        if steps:
            raise RunError(
                f"{self.folder}: none of the {len(steps)} checkpoints can be read; restore one, or delete them to "
                f"start from scratch"
            )
        return None


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint to the CPU; only tensors and plain values are allowed in it.

    The checksums of all tensors are compared first, because torch ignores them.

    Raises:
        RunError: the file is missing or damaged.
    """
    try:
        damage = damage_of_archive(path)
    except OSError as error:
        raise RunError(f"{path}: cannot read the checkpoint: {error.strerror}") from error
    if damage is not None:
        raise RunError(f"{path}: the checkpoint is damaged: {damage}")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # on damaged files, torch raises almost any exception
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RunError(f"{path}: cannot read the checkpoint: {reason}") from error
    return state
