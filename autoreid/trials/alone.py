"""The process group of commands that share their work through a folder instead of among ranks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from autoreid import distributed
from autoreid.config import Distributed
from autoreid.distributed import World
from autoreid.errors import ConfigError


@contextmanager
def single_process(settings: Distributed, command: str) -> Iterator[World]:
    """Set up the device of a command that runs as one process.

    Raises:
        ConfigError: this process is one of several ranks.
    """
    with distributed.setup_for(settings) as world:
        if world.size > 1:
            raise ConfigError(
                f"{command} runs as one process, not as {world.size} ranks; start it several times with the same "
                f"--output to share the work"
            )
        yield world
