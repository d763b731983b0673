"""Choose the GPU of each rank, and check that the choices of all ranks are consistent."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch

#: Values of the config key distributed.device.
Device = Literal["auto", "cpu", "cuda"]

_ONE_EACH = "start one rank for each GPU of a node (--ntasks-per-node = --gpus-per-node, or torchrun --nproc-per-node)"


class Placement(NamedTuple):
    """The node and device of one rank.

    Attributes:
        host: name of its node.
        local_rank: its index among the ranks of the node.
        visible: number of GPUs that PyTorch sees; 0 if the rank computes on the CPU.
        gpu: UUID of the rank's GPU; None on the CPU, or if there are fewer GPUs than ranks. The slices of a GPU with
            MIG have different UUIDs.
    """

    host: str
    local_rank: int
    visible: int = 0
    gpu: str | None = None

    @property
    def device(self) -> torch.device:
        """The rank's device. If Slurm makes only one GPU visible to each task, that one; else the local rank's."""
        if not self.visible:
            return torch.device("cpu")
        return torch.device("cuda", 0 if self.visible == 1 else self.local_rank)


def place_rank(setting: Device, local_rank: int) -> Placement:
    """Return the placement of this rank and make its GPU PyTorch's current device.

    `placement_error` then checks the placements of all ranks.
    """
    placement = Placement(socket.gethostname(), local_rank)
    if setting == "cpu" or not torch.cuda.is_available():
        return placement
    placement = placement._replace(visible=torch.cuda.device_count())
    index = placement.device.index
    if index >= placement.visible:
        return placement
    # Set before any query: otherwise every rank would allocate some memory on the first GPU.
    torch.cuda.set_device(index)
    return placement._replace(gpu=str(torch.cuda.get_device_properties(index).uuid))


def placement_error(placements: Sequence[Placement], setting: Device = "auto") -> tuple[str, str] | None:
    """Return why the ranks cannot compute with their placements, and the remedy; None if they can.

    Args:
        placements: placements of all ranks, in rank order.
        setting: the config key distributed.device.
    """
    without = [rank for rank, placement in enumerate(placements) if not placement.visible]
    if setting == "cuda" and without:
        where = " ".join(sorted({placements[rank].host for rank in without}))
        return f"distributed.device = cuda: torch sees no GPU on {where}", "use auto or cpu"
    if 0 < len(without) < len(placements):
        text = f"torch sees no GPU on {name_ranks(without)}, but does on the other ranks"
        return text, "give each rank a GPU (--gpus-per-node = --ntasks-per-node)"
    left_out = [rank for rank, placement in enumerate(placements) if placement.visible and not placement.gpu]
    if left_out:
        ranks = [rank for rank in left_out if placements[rank].host == placements[left_out[0]].host]
        return f"no GPU left for {name_ranks(ranks)} on {_describe_node(placements, ranks[0])}", _ONE_EACH
    return _shared_gpu(placements)


def idle_gpus(hosts: Sequence[str]) -> str | None:
    """Return a line about the GPUs of this node that no rank computes on, and the remedy; None if there are none.

    Args:
        hosts: names of the nodes of all ranks.
    """
    here, visible = hosts.count(socket.gethostname()), torch.cuda.device_count()
    if visible <= max(here, 1):  # with one GPU visible, each rank may have another one
        return None
    ranks = "1 rank computes" if here == 1 else f"{here} ranks compute"
    return f"torch sees {visible} GPUs on {socket.gethostname()}, but {ranks} there; {_ONE_EACH}"


def _shared_gpu(placements: Sequence[Placement]) -> tuple[str, str] | None:
    owners: dict[str, list[int]] = {}
    for rank, placement in enumerate(placements):
        if placement.gpu is not None:
            owners.setdefault(placement.gpu, []).append(rank)
    for gpu, ranks in owners.items():
        if len(ranks) > 1:
            text = f"{name_ranks(ranks)} share the GPU {gpu} on {_describe_node(placements, ranks[0])}"
            return text, f"{_ONE_EACH}, and do not set CUDA_VISIBLE_DEVICES, which Slurm sets"
    return None


def _describe_node(placements: Sequence[Placement], rank: int) -> str:
    """Return the node of a rank, with its numbers of ranks and visible GPUs."""
    placement = placements[rank]
    ranks = [other for other in placements if other.host == placement.host]
    gpus = f"{placement.visible} GPU{'' if placement.visible == 1 else 's'}"
    return f"{placement.host} (ranks: {len(ranks)}, torch sees {gpus})"


def name_ranks(ranks: Sequence[int]) -> str:
    """Return "rank 3" or "ranks 1, 2"."""
    return f"rank{'' if len(ranks) == 1 else 's'} {', '.join(map(str, ranks))}"
