"""What a run says while it goes: a log file for each rank, rank 0's console, progress bars and plain lines."""

from __future__ import annotations

import datetime
import logging
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from tqdm import tqdm

from autoreid.errors import ConfigError
from autoreid.files import make_folder

_log = logging.getLogger(__name__)
_FORMAT = logging.Formatter("%(asctime)s %(levelname)s %(message)s", datefmt="%Y-%m-%d %H:%M:%S")


def start_logging(folder: Path, rank: int) -> None:
    """Sends what the package logs to `rank<rank>.log` in a folder, and on rank 0 to the console (stderr) as well.

    The file is appended to, so that a resumed run goes on in it; it takes debug messages and tracebacks, the
    console neither. Called again, it replaces what an earlier call set up.

    Raises ConfigError when the file cannot be opened.
    """
    make_folder(folder, "set output_dir to a folder that can be written")
    path = folder / f"rank{rank}.log"
    try:
        file: logging.Handler = logging.FileHandler(path, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot write the log: {error.strerror}; set output_dir") from error
    file.setFormatter(_FORMAT)
    handlers = [file, _Console()] if rank == 0 else [file]
    logger = logging.getLogger("autoreid")
    for old in [
        handler for handler in logger.handlers if isinstance(handler, logging.FileHandler | _Console)
    ]:
        logger.removeHandler(old)
        old.close()
    for handler in handlers:
        logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)


def progress_bar(total: int, initial: int, description: str, enabled: bool) -> tqdm:
    """A progress bar on stderr, with `initial` of `total` steps already done.

    It is silent unless `enabled` (rank 0) and stderr is a terminal: in a file it would be a line without end.
    """
    shown = enabled and sys.stderr.isatty()
    return tqdm(
        total=total, initial=initial, desc=description, disable=not shown, dynamic_ncols=True, leave=False
    )


class PeriodicLine:
    """A plain line in the log every so many seconds, where a file or a batch job has no progress bar:
    "epoch 3 step 40/120 loss 2.31 12.3 images/s eta 0:03:10".
    """

    def __init__(
        self, total: int, initial: int, every_seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Starts the clock with `initial` of `total` steps done; speeds count from the line before."""
        self.total = total
        self._every_seconds = every_seconds
        self._clock = clock
        self._restart(initial)

    def update(
        self, description: str, step: int, images: int, values: Callable[[], Mapping[str, float]]
    ) -> bool:
        """Counts the images of one step and, when it is time, logs a line; says whether it did.

        `step` is the number of steps done; `values` is called for a line alone, so that it may wait for a GPU.
        """
        self._images += images
        seconds = self._clock() - self._since
        if seconds < self._every_seconds or step <= self._step:
            return False
        eta = datetime.timedelta(seconds=round((self.total - step) * seconds / (step - self._step)))
        shown = "".join(f" {name} {value:.4g}" for name, value in values().items())
        speed = self._images / seconds
        line = f"{description} step {step}/{self.total}{shown} {speed:.1f} images/s eta {eta}"
        _log.info("%s", line, extra={"instead_of_bar": True})
        self._restart(step)
        return True

    def _restart(self, step: int) -> None:
        self._since, self._step, self._images = self._clock(), step, 0


class _Console(logging.Handler):
    """Rank 0's stderr: one line a message, written above a progress bar rather than through it."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "instead_of_bar", False) and sys.stderr.isatty():
            return
        prefix = f"{record.levelname.lower()}: " if record.levelno > logging.INFO else ""
        tqdm.write(prefix + record.getMessage(), file=sys.stderr)
