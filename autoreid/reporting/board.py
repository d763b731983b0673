"""What TensorBoard shows of a run: scalars, pictures and texts in an event file."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import numpy as np
from PIL import Image
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

from autoreid.files import make_folder

logger = logging.getLogger(__name__)

#: Longest time in seconds that a value waits in memory while others follow it.
_FLUSH_SECONDS = 30.0


class Board:
    """Writes one event file of a run; rank 0's alone.

    tensorboardX's SummaryWriter hands events to a thread, which dies on a full disk and leaves the training
    to wait for it forever. Here its event file is written to directly: on an error the board warns and
    falls silent, and the run goes on. All calls of a run count the same step, since a resume hides by step.
    """

    def __init__(self, folder: Path, after_step: int = -1) -> None:
        """Starts a new event file in a folder, made where it is missing.

        Of earlier files in the folder, TensorBoard goes on to show the steps up to `after_step`, the last
        one that the checkpoint holds; the steps after it come again. By default it hides all of them.
        """
        make_folder(folder, "set output_dir to a folder that can be written")
        # TensorBoard reads files in the order of their names, whose time has whole seconds: number them.
        number = sum(1 for _ in folder.glob("events.out.tfevents.*"))
        self._writer: EventsWriter | None = None
        self._folder = folder
        self._flushed = time.monotonic()
        try:
            self._writer = EventsWriter(str(folder / "events"), f".{number:04d}")
        except OSError as error:
            self._fall_silent(error)
        self._write(Event(session_log=SessionLog(status=SessionLog.START)), after_step + 1)
        self.flush()

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Adds a point to the curve of each tag."""
        for tag, value in values.items():
            self._write(Event(summary=summary.scalar(tag, value)), step)

    def picture(self, tag: str, picture: Path | np.ndarray, step: int) -> None:
        """Adds a picture, a file or uint8 (H, W, 3), to a tag; TensorBoard's slider walks through its steps."""
        if isinstance(picture, Path):
            with Image.open(picture) as image:
                picture = np.asarray(image.convert("RGB"))
        self._write(Event(summary=summary.image(tag, picture, dataformats="HWC")), step)

    def text(self, tag: str, markdown: str, step: int = 0) -> None:
        """Adds a text, shown as Markdown."""
        self._write(Event(summary=summary.text(tag, markdown)), step)

    def flush(self) -> None:
        """Hands all that was added to the operating system, where TensorBoard finds it."""
        self._flushed = time.monotonic()
        if self._writer is not None:
            try:
                self._writer.flush()
            except OSError as error:
                self._fall_silent(error)

    def close(self) -> None:
        """Writes what is left and closes the file; the board takes nothing more."""
        if self._writer is not None:
            try:
                self._writer.close()
            except OSError as error:
                self._fall_silent(error)
        self._writer = None

    def __enter__(self) -> Board:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, event: Event, step: int) -> None:
        if self._writer is None:
            return
        event.step, event.wall_time = step, time.time()
        try:
            self._writer.write_event(event)
        except OSError as error:
            self._fall_silent(error)
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self.flush()

    def _fall_silent(self, error: OSError) -> None:
        """Stops writing: what follows a record that was cut off could not be read anyway."""
        self._writer = None
        logger.warning("%s: TensorBoard gets no more of this run: %s", self._folder, error.strerror)
