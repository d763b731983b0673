"""The few collectives that a run needs, each one call over one flat tensor."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.autograd import Function
from torch.nn.parallel import DistributedDataParallel

from autoreid.errors import AutoreidError, DisagreementError, RunError

Anything = TypeVar("Anything")


def world_size() -> int:
    """The number of ranks; 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This process's rank, 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def barrier() -> None:
    """Waits until every rank is here."""
    if world_size() > 1:
        dist.barrier()


def gather_objects(value: Anything) -> list[Anything]:
    """Every rank's value, in order of ranks, on every rank. For small things, once an epoch or less."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def average_and_agree(tensors: Sequence[Tensor], flags: Sequence[bool] = ()) -> tuple[list[Tensor], Tensor]:
    """Averages tensors over the ranks and agrees on flags, all in one all-reduce of one flat tensor.

    Args:
        tensors: gradients of equal shapes, dtype and device on every rank; may be empty.
        flags: what this rank has seen, such as a stop signal.

    Returns:
        The averages, which on a single rank are the tensors themselves, and (flags,) booleans: whether any rank
        raised each flag. On several GPUs they are on the device, and reading them waits for it.
    """
    if world_size() == 1:
        return list(tensors), torch.tensor(flags, dtype=torch.bool)
    like = tensors[0] if tensors else torch.zeros((), device=_collective_device())
    # Filled on the device: a copy from the host would wait.
    raised = [like.new_full((1,), float(flag)) for flag in flags]
    flat = torch.cat([*(tensor.reshape(-1) for tensor in tensors), *raised])
    dist.all_reduce(flat)
    sizes = [tensor.numel() for tensor in tensors]
    *sums, agreed = (flat / world_size()).split([*sizes, len(flags)])
    averages = [mean.view_as(tensor) for mean, tensor in zip(sums, tensors, strict=True)]
    return averages, agreed > 0


def _collective_device() -> torch.device:
    return (
        torch.device("cuda", torch.cuda.current_device())
        if dist.get_backend() == "nccl"
        else torch.device("cpu")
    )


def check_agreement(what: str, digest: bytes, step: int) -> None:
    """Stops the run unless every rank holds the same digest.

    Args:
        what: what the digest is of, for the message, such as "alphas".
        digest: equal length on every rank; a SHA-256 will do.
        step: the step after which they are compared.

    Raises:
        DisagreementError: on every rank, naming the step and the ranks that differ from most others.
    """
    if world_size() == 1:
        return
    mine = torch.frombuffer(bytearray(digest), dtype=torch.uint8).to(_collective_device())
    everyone = [torch.empty_like(mine) for _ in range(world_size())]
    dist.all_gather(everyone, mine)
    digests = [bytes(theirs.tolist()) for theirs in everyone]
    usual = Counter(digests).most_common(1)[0][0]
    different = [str(rank) for rank, theirs in enumerate(digests) if theirs != usual]
    if different:
        raise DisagreementError(
            f"step {step}: the {what} of rank {', '.join(different)} differ from the others'"
        )


class _SumOverRanks(Function):
    """All-reduce that can be differentiated, twice if need be: the gradient of a sum over ranks is a sum."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:  # noqa: ARG004
        total = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:  # noqa: ARG004
        return _SumOverRanks.apply(gradients[0])


class _Gather(Function):
    """All-gather along dim 0 that can be differentiated, twice if need be."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        ctx.rows = tensor.shape[0]
        pieces = [
            torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(world_size())
        ]
        dist.all_gather(pieces, tensor.contiguous())
        return torch.cat(pieces)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        start = dist.get_rank() * ctx.rows
        # Every rank's loss may depend on this rank's rows.
        return _SumOverRanks.apply(gradients[0])[start : start + ctx.rows]


def gather(tensor: Tensor) -> Tensor:
    """Every rank's rows (B, ...) as one tensor (world size · B, ...), differentiable.

    Each rank's gradient for its own rows is the sum of what all ranks' losses ask of them, so that averaging
    parameter gradients over the ranks gives those of one process on the whole batch.
    """
    if world_size() == 1:
        return tensor
    gathered: Tensor = _Gather.apply(tensor)
    return gathered


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """The sum of every rank's tensor, differentiable any number of times."""
    if world_size() == 1:
        return tensor
    total: Tensor = _SumOverRanks.apply(tensor)
    return total


def on_main(action: Callable[[], Anything]) -> Anything:
    """Rank 0 acts, and every rank has its result, or raises its error: no rank is left waiting for one that failed.

    Raises:
        AutoreidError: what the action raised, on every rank. Any other error stays itself on rank 0 and is a
            RunError elsewhere.
    """
    if world_size() == 1:
        return action()
    outcome: list[Any] = [None, None]
    error: BaseException | None = None
    if dist.get_rank() == 0:
        try:
            outcome[0] = action()
        except AutoreidError as known:
            error = outcome[1] = known
        except Exception as unknown:
            error = unknown
            outcome[1] = RunError(f"rank 0 failed: {type(unknown).__name__}: {unknown}")
    dist.broadcast_object_list(outcome, src=0)
    if error or outcome[1]:
        raise error or outcome[1]
    result: Anything = outcome[0]
    return result


def data_parallel(
    module: nn.Module, broadcast_buffers: bool, parts_unused: bool = False, in_rank_order: bool = False
) -> nn.Module:
    """Wraps a module so that its gradients are averaged over the ranks in buckets; alone, the module itself.

    Args:
        module: holds the same parameters on every rank.
        broadcast_buffers: whether each forward pass starts from rank 0's running statistics; needed where they
            are not shared, so that what rank 0 saves is what every rank holds.
        parts_unused: whether a step may leave parameters without a gradient; the same ones on every rank.
        in_rank_order: whether gradients are added rank by rank. An all-reduce adds them in an order that depends on
            where a gradient lies in DDP's buckets, which changes after the first step: a resumed run of three or more
            ranks would then round otherwise than one that went on.
    """
    if world_size() == 1:
        return module
    with warnings.catch_warnings():
        # torch 2.15 renames broadcast_buffers; older ones do not know the new name.
        warnings.simplefilter("ignore", FutureWarning)
        wrapped = DistributedDataParallel(
            module,
            broadcast_buffers=broadcast_buffers,
            gradient_as_bucket_view=True,
            find_unused_parameters=parts_unused,
        )
    if in_rank_order and world_size() > 2:  # the sum of two numbers has one order
        # In a lambda, for DDP compares annotations, which are text here, with types.
        wrapped.register_comm_hook(None, lambda state, bucket: _average_in_rank_order(bucket.buffer()))  # noqa: ARG005
    return wrapped


def _average_in_rank_order(mine: Tensor) -> torch.futures.Future[Tensor]:
    """The mean of a bucket's gradients over the ranks: gathers them, and adds them rank by rank."""
    everyone = [torch.empty_like(mine) for _ in range(world_size())]
    gathered = dist.all_gather(everyone, mine, async_op=True)

    def average(_: object) -> Tensor:
        total, *others = everyone
        for other in others:
            total.add_(other)
        return total.div_(world_size())

    future: torch.futures.Future[Tensor] = gathered.get_future().then(average)
    return future


def averaging(module: nn.Module | None, now: bool) -> AbstractContextManager[None]:
    """For a forward and backward pass through what `data_parallel` gave.

    Args:
        now: whether this pass averages the gradients over the ranks; if not, the next that does averages the sums.
    """
    if isinstance(module, DistributedDataParallel) and not now:
        return module.no_sync()
    return nullcontext()


def broadcast_buffers(module: nn.Module) -> None:
    """Gives every rank rank 0's buffers, before an evaluation or the end of a run."""
    if world_size() > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)
