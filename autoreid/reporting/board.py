"""Write scalars, images and texts of a run for TensorBoard."""

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

#: Seconds after which the next write flushes buffered values.
_FLUSH_SECONDS = 30.0


class Board:
    """Writes an event file for TensorBoard, on rank 0.

    The file is written directly instead of with tensorboardX's SummaryWriter, whose thread dies on a full disk and then
    blocks the training for ever. Here an error is logged, nothing more is written, and the run continues. All values of
    a run must count the same steps, because TensorBoard hides the values of a resumed run by step.
    """

    def __init__(self, folder: Path, after_step: int = -1) -> None:
        """Create a new event file in a folder, which is created if it does not exist.

        Args:
            folder: folder of the event files.
            after_step: step of the checkpoint from which the run resumes. TensorBoard hides later steps in existing
                event files of the folder. By default, these files are deleted: TensorBoard shows no pictures of any run
                if it hides all pictures of a tag.
        """
        make_folder(folder, "set output_dir to a writable folder")
        existing = list(folder.glob("events.out.tfevents.*"))
        self._writer: EventsWriter | None = None
        self._folder = folder
        self._flushed = time.monotonic()
        try:
            for path in existing if after_step < 0 else ():
                path.unlink()
            # TensorBoard sorts files by name. The time in the name only has a resolution of seconds, hence the number.
            self._writer = EventsWriter(str(folder / "events"), f".{len(existing):04d}")
        except OSError as error:
            self._disable(error)
        self._write(Event(session_log=SessionLog(status=SessionLog.START)), after_step + 1)
        self.flush()

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Add a point to the curve of each tag."""
        for tag, value in values.items():
            self._write(Event(summary=summary.scalar(tag, value)), step)

    def picture(self, tag: str, picture: Path | np.ndarray, step: int) -> None:
        """Add a picture to a tag; TensorBoard has a slider for the steps of a tag.

        Args:
            picture: image file, or uint8 array (H, W, 3).
        """
        if isinstance(picture, Path):
            with Image.open(picture) as image:
                picture = np.asarray(image.convert("RGB"))
        self._write(Event(summary=summary.image(tag, picture, dataformats="HWC")), step)

    def text(self, tag: str, markdown: str, step: int = 0) -> None:
        """Add a text, which TensorBoard shows as Markdown."""
        self._write(Event(summary=summary.text(tag, markdown)), step)

    def flush(self) -> None:
        """Write buffered values to the file, where TensorBoard can read them."""
        self._flushed = time.monotonic()
        if self._writer is not None:
            try:
                self._writer.flush()
            except OSError as error:
                self._disable(error)

    def close(self) -> None:
        """Write buffered values and close the file; later calls do nothing."""
        if self._writer is not None:
            try:
                self._writer.close()
            except OSError as error:
                self._disable(error)
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
            self._disable(error)
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self.flush()

    def _disable(self, error: OSError) -> None:
        """Stop writing: TensorBoard cannot read beyond a truncated record."""
        self._writer = None
        logger.warning("%s: cannot write for TensorBoard any more: %s", self._folder, error.strerror)
