"""Process groups, collectives and the stop signal.

Nothing here depends on re-identification. Every function also works without a process group, so that callers need no
special case for a single process.
"""

from autoreid.distributed.collectives import (
    average_and_agree,
    averaging,
    broadcast_buffers,
    check_agreement,
    data_parallel,
    gather,
    gather_objects,
    on_main,
    rank,
    sum_over_ranks,
    world_size,
)
from autoreid.distributed.device import explain_nondeterminism
from autoreid.distributed.process_group import World, setup, setup_for
from autoreid.distributed.stop import Interrupted, StopSignal, check_stop, ignore_stop_signals

__all__ = [
    "Interrupted",
    "StopSignal",
    "World",
    "average_and_agree",
    "averaging",
    "broadcast_buffers",
    "check_agreement",
    "check_stop",
    "data_parallel",
    "explain_nondeterminism",
    "gather",
    "gather_objects",
    "ignore_stop_signals",
    "on_main",
    "rank",
    "setup",
    "setup_for",
    "sum_over_ranks",
    "world_size",
]
