"""Log files of all ranks, the console of rank 0, progress bars and periodic progress lines."""

from __future__ import annotations

import datetime
import logging
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from tqdm import tqdm

from autoreid.errors import ConfigError
from autoreid.files import make_folder

_log = logging.getLogger(__name__)
_FORMAT = logging.Formatter("%(asctime)s %(levelname)s %(message)s", datefmt="%Y-%m-%d %H:%M:%S")


def start_logging(folder: Path, rank: int) -> None:
    """Log the messages of the package to `rank<rank>.log` in a folder, and on rank 0 also to the console (stderr).

    The file is appended to if it exists. Only the file gets debug messages and tracebacks. A second call replaces the
    handlers of the first one.

    Raises:
        ConfigError: the file cannot be opened.
    """
    make_folder(folder, "set output_dir to a writable folder")
    path = folder / f"rank{rank}.log"
    try:
        file: logging.Handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
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
    """Return a progress bar on stderr, with `initial` of `total` steps completed.

    The bar is only shown if `enabled` is true and stderr is a terminal.
    """
    shown = enabled and sys.stderr.isatty()
    return tqdm(
        total=total, initial=initial, desc=description, disable=not shown, dynamic_ncols=True, leave=False
    )


class PeriodicLine:
    """Logs the progress as a line at regular intervals, for log files and batch jobs, which have no progress bar.

    A line looks like "epoch 3 step 40/120 loss 2.31 12.3 images/s eta 0:03:10".
    """

    def __init__(
        self, total: int, initial: int, every_seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Start the clock, with `initial` of `total` steps completed.

        Args:
            every_seconds: seconds between two lines.
        """
        self.total = total
        self._every_seconds = every_seconds
        self._clock = clock
        self._restart(initial)

    def update(
        self, description: str, step: int, images: int, values: Callable[[], Mapping[str, float]]
    ) -> bool:
        """Add the images of one step, and log a line if it is due; return whether a line was logged.

        Args:
            description: beginning of the line, such as "epoch 3".
            step: number of completed steps.
            images: number of images of the step.
            values: returns metrics for the line; only called if a line is due, because it may synchronise with a GPU.
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
    """Write one line per message to stderr, above the progress bar if there is one."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "instead_of_bar", False) and sys.stderr.isatty():
            return
        prefix = f"{record.levelname.lower()}: " if record.levelno > logging.INFO else ""
        with suppress(OSError):  # the terminal or the reader of a pipe is gone; the log has the message
            tqdm.write(prefix + record.getMessage(), file=sys.stderr)
