"""Which GPU each rank computes on, and whether they fit together."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import torch

#: What to compute on, as a config says it.
Device = Literal["auto", "cpu", "cuda"]

_ONE_EACH = "start one task for each GPU of a node (--ntasks-per-node = --gpus-per-node, or torchrun --nproc-per-node)"


class Placement(NamedTuple):
    """Where one rank computes.

    Attributes:
        host: its node.
        local_rank: its number among the node's ranks.
        visible: how many GPUs torch sees there; 0 where the rank computes on the CPU.
        gpu: UUID of the GPU that it computes on; None on a CPU, or if there are fewer GPUs than tasks. Slices of one
            GPU (MIG) have UUIDs of their own.
    """

    host: str
    local_rank: int
    visible: int = 0
    gpu: str | None = None

    @property
    def device(self) -> torch.device:
        """The rank's device; a task that Slurm shows a single GPU computes on that one."""
        if not self.visible:
            return torch.device("cpu")
        return torch.device("cuda", 0 if self.visible == 1 else self.local_rank)


def place_rank(setting: Device, local_rank: int) -> Placement:
    """The place of this rank, whose GPU becomes torch's current one; `placement_error` says whether it will do."""
    seat = Placement(socket.gethostname(), local_rank)
    if setting == "cpu" or not torch.cuda.is_available():
        return seat
    seat = seat._replace(visible=torch.cuda.device_count())
    index = seat.device.index
    if index >= seat.visible:
        return seat
    # Before CUDA is asked about it: else every rank would take some memory of the first GPU.
    torch.cuda.set_device(index)
    return seat._replace(gpu=str(torch.cuda.get_device_properties(index).uuid))


def placement_error(seats: Sequence[Placement], setting: Device = "auto") -> tuple[str, str] | None:
    """Why ranks cannot compute at their seats, and what to do about it; None if they can.

    Args:
        seats: of all ranks, in their order.
        setting: what the config wants them to compute on.
    """
    without = [rank for rank, seat in enumerate(seats) if not seat.visible]
    if setting == "cuda" and without:
        where = " ".join(sorted({seats[rank].host for rank in without}))
        return f"distributed.device = cuda: torch sees no GPU on {where}", "use auto or cpu"
    if 0 < len(without) < len(seats):
        text = f"ranks {_listed(without)} compute on the CPU, the others on GPUs"
        return text, "give every task one (--gpus-per-node = --ntasks-per-node)"
    left_out = [rank for rank, seat in enumerate(seats) if seat.visible and seat.gpu is None]
    if left_out:
        here = [rank for rank in left_out if seats[rank].host == seats[left_out[0]].host]
        return f"ranks {_listed(here)} find no GPU left on {_crowd(seats, here[0])}", _ONE_EACH
    return _shared_gpu(seats)


def _shared_gpu(seats: Sequence[Placement]) -> tuple[str, str] | None:
    owners: dict[str, list[int]] = {}
    for rank, seat in enumerate(seats):
        if seat.gpu is not None:
            owners.setdefault(seat.gpu, []).append(rank)
    for gpu, ranks in owners.items():
        if len(ranks) > 1:
            text = f"ranks {_listed(ranks)} share the GPU {gpu} on {_crowd(seats, ranks[0])}"
            return text, f"{_ONE_EACH}, and leave CUDA_VISIBLE_DEVICES to Slurm"
    return None


def _crowd(seats: Sequence[Placement], rank: int) -> str:
    """A rank's node, with its tasks and its GPUs."""
    seat = seats[rank]
    tasks = [other for other in seats if other.host == seat.host]
    gpus = f"{seat.visible} GPU{'' if seat.visible == 1 else 's'}"
    return f"{seat.host}, where {len(tasks)} tasks run and torch sees {gpus}"


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))
