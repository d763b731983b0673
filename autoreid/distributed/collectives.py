"""The collectives of a run. Each one sends a single flat tensor."""

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

from autoreid.distributed.gpus import name_ranks
from autoreid.errors import AutoreidError, DisagreementError, PeerError

Anything = TypeVar("Anything")


def world_size() -> int:
    """Return the number of ranks, which is 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This process's rank, 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def gather_objects(value: Anything) -> list[Anything]:
    """Every rank's value, in order of ranks, on every rank. For small things, once an epoch or less."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def average_and_agree(tensors: Sequence[Tensor], flags: Sequence[bool] = ()) -> tuple[list[Tensor], Tensor]:
    """Average tensors over the ranks and combine flags with a logical or, in one all-reduce of one flat tensor.

    Args:
        tensors: tensors, such as gradients, with the same shapes, dtype and device on every rank; may be empty.
        flags: flags of this rank, such as whether it has received a stop signal.

    Returns:
        The averages (on a single rank the tensors themselves), and a boolean tensor (flags,) that says for each flag
        whether any rank has set it. With several GPUs it is on the device: reading it synchronises.
    """
    if world_size() == 1:
        return list(tensors), torch.tensor(flags, dtype=torch.bool)
    like = tensors[0] if tensors else torch.zeros((), device=_collective_device())
    # Filled on the device: a copy from the host would synchronise.
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
    """Raise an error unless every rank has the same digest.

    Args:
        what: name of the compared values for the message, such as "alphas".
        digest: a digest, such as SHA-256, with the same length on every rank.
        step: the step after which the digests are compared.

    Raises:
        DisagreementError: on every rank; the message names the step and the ranks that differ from the majority.
    """
    if world_size() == 1:
        return
    local = torch.frombuffer(bytearray(digest), dtype=torch.uint8).to(_collective_device())
    gathered = [torch.empty_like(local) for _ in range(world_size())]
    dist.all_gather(gathered, local)
    digests = [bytes(tensor.tolist()) for tensor in gathered]
    majority = Counter(digests).most_common(1)[0][0]
    different = [rank for rank, other in enumerate(digests) if other != majority]
    if different:
        raise DisagreementError(
            f"step {step}: the {what} of {name_ranks(different)} differ from those of the other ranks"
        )


class _SumOverRanks(Function):
    """A differentiable all-reduce. Its gradient is again a sum over ranks, so it can be differentiated twice."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:  # noqa: ARG004
        total = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:  # noqa: ARG004
        return _SumOverRanks.apply(gradients[0])


class _Gather(Function):
    """A differentiable all-gather along dim 0, which can be differentiated twice."""

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
    """Concatenate the rows (B, ...) of all ranks to one tensor (world size · B, ...), differentiably.

    The gradient of a rank's own rows is the sum over the losses of all ranks. Parameter gradients averaged over the
    ranks then equal those of a single process with the whole batch.
    """
    if world_size() == 1:
        return tensor
    gathered: Tensor = _Gather.apply(tensor)
    return gathered


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Return the sum of the tensors of all ranks, which can be differentiated any number of times."""
    if world_size() == 1:
        return tensor
    total: Tensor = _SumOverRanks.apply(tensor)
    return total


def on_main(action: Callable[[], Anything]) -> Anything:
    """Call a function on rank 0, and return its result or raise its error on every rank.

    No rank waits for a rank 0 that has failed.

    Raises:
        AutoreidError: raised by the function, on every rank. Any other error is raised unchanged on rank 0, and as a
            PeerError on the other ranks.
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
            outcome[1] = PeerError(f"rank 0 failed: {type(unknown).__name__}: {unknown}")
    dist.broadcast_object_list(outcome, src=0)
    if error is not None:
        raise error
    if outcome[1] is not None:
        outcome[1].is_reported = True
        raise outcome[1]
    result: Anything = outcome[0]
    return result


def data_parallel(
    module: nn.Module, broadcast_buffers: bool, parts_unused: bool = False, in_rank_order: bool = False
) -> nn.Module:
    """Wrap a module in DistributedDataParallel, which averages its gradients over the ranks.

    Without a process group the module itself is returned.

    Args:
        module: module with the same parameters on every rank.
        broadcast_buffers: whether each forward pass begins by copying the buffers (running statistics) of rank 0.
            Without statistics that are shared by the ranks, this makes what rank 0 saves hold for every rank.
        parts_unused: whether a step may leave parameters without a gradient, the same ones on every rank.
        in_rank_order: whether gradients are added in rank order. An all-reduce adds them in an order that depends on
            their position in DDP's buckets, which DDP rebuilds after the first step. With three or more ranks, a
            resumed run would then round differently from an uninterrupted one.
    """
    if world_size() == 1:
        return module
    with warnings.catch_warnings():
        # torch 2.15 renames broadcast_buffers; older versions do not have the new name.
        warnings.simplefilter("ignore", FutureWarning)
        wrapped = DistributedDataParallel(
            module,
            broadcast_buffers=broadcast_buffers,
            gradient_as_bucket_view=True,
            find_unused_parameters=parts_unused,
        )
    if in_rank_order and world_size() > 2:  # a sum of two numbers does not depend on their order
        # A lambda, because DDP compares the annotations of a function, which are strings here, with types.
        wrapped.register_comm_hook(None, lambda state, bucket: _average_in_rank_order(bucket.buffer()))  # noqa: ARG005
    return wrapped


def _average_in_rank_order(bucket: Tensor) -> torch.futures.Future[Tensor]:
    """Average the gradients of a bucket over the ranks: gather them, and add them in rank order."""
    gathered = [torch.empty_like(bucket) for _ in range(world_size())]
    work = dist.all_gather(gathered, bucket, async_op=True)

    def average(_: object) -> Tensor:
        total, *others = gathered
        for other in others:
            total.add_(other)
        return total.div_(world_size())

    future: torch.futures.Future[Tensor] = work.get_future().then(average)
    return future


def averaging(module: nn.Module | None, now: bool) -> AbstractContextManager[None]:
    """Return a context for a forward and backward pass through a module from `data_parallel`.

    Args:
        now: whether this pass averages the gradients over the ranks. If not, they are accumulated, and the next pass
            that averages them includes them.
    """
    if isinstance(module, DistributedDataParallel) and not now:
        return module.no_sync()
    return nullcontext()


def broadcast_buffers(module: nn.Module) -> None:
    """Copy the buffers of rank 0 to every rank, before an evaluation or the end of a run."""
    if world_size() > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)
