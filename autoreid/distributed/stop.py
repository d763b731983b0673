"""The stop signal: the handler only sets a flag; the loop agrees on it at the next step boundary."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any

#: USR2 is what a Slurm job asks to be sent ahead of its time limit; TERM comes with preemption and scancel.
STOP_SIGNALS = (signal.SIGUSR2, signal.SIGTERM)


class StopSignal:
    """Whether this process was asked to stop; listens for the length of a `with` block."""

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
        # The first counts: Slurm follows USR2 with TERM when the time that it gave is over.
        self.received = self.received or signal.Signals(number).name


def ignore_stop_signals() -> None:
    """For loader workers: a signal to the whole process tree must not break the batch in flight."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
