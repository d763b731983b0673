"""Checkpoints: written whole or not at all, the last few and the best kept, read without unpickling code."""

from __future__ import annotations

import io
import logging
import os
import re
from pathlib import Path
from typing import Any

import torch

from autoreid.errors import RunError
from autoreid.files import write_atomically

_log = logging.getLogger(__name__)
_NAME = re.compile(r"step-(\d+)\.pt")
BEST = "best.pt"


class CheckpointFolder:
    """The checkpoints of one run, `step-<steps done>.pt` and `best.pt`; rank 0 alone writes here."""

    def __init__(self, folder: Path, keep_last: int) -> None:
        self.folder = folder
        self.keep_last = keep_last

    def steps(self) -> list[int]:
        """Steps of which there is a checkpoint, in order."""
        found = (_NAME.fullmatch(path.name) for path in self.folder.glob("step-*.pt"))
        return sorted(int(match[1]) for match in found if match)

    def path(self, step: int) -> Path:
        """Where the checkpoint after so many steps is."""
        return self.folder / f"step-{step:08d}.pt"

    def save(self, step: int, state: dict[str, Any], is_best: bool) -> None:
        """Writes a checkpoint (temporary file, fsync, rename), then drops those that are too old.

        Raises:
            RunError: it cannot be written; the earlier ones are as they were.
        """
        buffer = io.BytesIO()
        torch.save(state, buffer)
        path = self.path(step)
        write_atomically(path, buffer.getvalue())
        if is_best:
            self._name_best(path)
        # Later steps are damaged checkpoints that this run had to go back behind.
        steps = self.steps()
        kept = [kept for kept in steps if kept <= step][-self.keep_last :]
        for old in set(steps) - set(kept):
            self.path(old).unlink()

    def _name_best(self, path: Path) -> None:
        """A second name for the same bytes; the rename replaces the old best in one step."""
        partial = self.folder / f"{BEST}.partial"
        partial.unlink(missing_ok=True)
        try:
            os.link(path, partial)
        except OSError:  # a file system without hard links
            write_atomically(self.folder / BEST, path.read_bytes())
        else:
            partial.replace(self.folder / BEST)

    def load_latest(self) -> dict[str, Any] | None:
        """The newest checkpoint that can be read, on the CPU; None if there is none.

        A damaged one is skipped with a warning that names it.

        Raises:
            RunError: there are checkpoints, and none can be read.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                return load_checkpoint(self.path(step))
            except RunError as error:
                _log.warning("%s; trying an earlier one", error)
        if steps:
            raise RunError(
                f"{self.folder}: none of the {len(steps)} checkpoints can be read; delete them to start anew"
            )
        return None


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Reads one checkpoint to the CPU, tensors and plain values only.

    Raises:
        RunError: it is missing or damaged.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever the damage leads it to
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RunError(f"{path}: cannot read the checkpoint: {reason}") from error
    return state
