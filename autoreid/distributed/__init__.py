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
    sum_over_ranks,
    world_size,
)
from autoreid.distributed.device import explain_nondeterminism
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
    "explain_nondeterminism",
    "on_main",
    "setup",
    "sum_over_ranks",
    "world_size",
]
