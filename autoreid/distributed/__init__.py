"""Process groups, collectives and the stop signal.

Knows nothing of re-ID. Every function works without a process group as well, so that callers never branch.
"""

from autoreid.distributed.collectives import (
    average_and_agree,
    averaging,
    barrier,
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
from autoreid.distributed.device import naming_nondeterminism
from autoreid.distributed.process_group import World, setup
from autoreid.distributed.stop import StopSignal, ignore_stop_signals

__all__ = [
    "StopSignal",
    "World",
    "average_and_agree",
    "averaging",
    "barrier",
    "broadcast_buffers",
    "check_agreement",
    "data_parallel",
    "gather",
    "gather_objects",
    "ignore_stop_signals",
    "naming_nondeterminism",
    "on_main",
    "rank",
    "setup",
    "sum_over_ranks",
    "world_size",
]
