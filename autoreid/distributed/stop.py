"""The stop signal. The handler only sets a flag, on which the ranks agree after the current step."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any

from autoreid.distributed.collectives import average_and_agree

#: Slurm sends SIGUSR2 before the time limit (`--signal`), and SIGTERM at a preemption or scancel.
STOP_SIGNALS = (signal.SIGUSR2, signal.SIGTERM)


class StopSignal:
    """Handles stop signals for the duration of a `with` block.

    Attributes:
        received: name of the first stop signal that this process has received, or None.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignal:
        for number in STOP_SIGNALS:
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        # Only the first counts: Slurm sends SIGTERM after SIGUSR2, at the time limit itself.
        self.received = self.received or signal.Signals(number).name


class Interrupted(Exception):  # noqa: N818 (a stop is no error)
    """A stop signal has arrived on any rank during work that cannot be saved halfway."""


def check_stop(stop: StopSignal) -> None:
    """Raise Interrupted on all ranks if a stop signal has arrived on any of them. All ranks call it together."""
    _, agreed = average_and_agree((), (stop.received is not None,))
    if agreed.item():
        raise Interrupted


def ignore_stop_signals() -> None:
    """Ignore stop signals in a data loader worker, so that a signal to all processes does not lose its batch."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
