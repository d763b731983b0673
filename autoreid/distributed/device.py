"""Settings of CUDA's libraries that hold for a whole process."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from autoreid.distributed.gpus import Device
from autoreid.errors import ConfigError

_ALLOCATOR = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
#: The workspaces with which cuBLAS gives the same bits each time, larger and faster first.
_CUBLAS_DETERMINISTIC = (":4096:8", ":16:8")


@contextmanager
def device_settings(
    device: Device = "auto",
    cudnn_benchmark: bool = True,
    expandable_segments: bool = True,
    deterministic: bool = False,
) -> Iterator[None]:
    """Applies settings for the length of the `with` block, which must begin before CUDA is first used.

    What is in the environment stays there afterwards: the libraries read it once.

    Args:
        device: what will be computed on; "cpu" leaves all that concerns CUDA alone.
        cudnn_benchmark: whether cuDNN tries its algorithms on each new shape and takes the fastest.
        expandable_segments: whether PyTorch's allocator grows its segments instead of adding new ones; the user's own
            PYTORCH_CUDA_ALLOC_CONF or PYTORCH_ALLOC_CONF goes before.
        deterministic: whether equal inputs give equal bits on equal GPUs; benchmarking is then off. Operations that
            cannot do that raise RuntimeError, see `explain_nondeterminism`.

    Raises:
        ConfigError: the environment has settings of cuBLAS that are not deterministic.
    """
    cudnn: Any = torch.backends.cudnn
    fill: Any = torch.utils.deterministic
    before = cudnn.benchmark, torch.get_deterministic_debug_mode(), fill.fill_uninitialized_memory
    if device != "cpu":
        _set_environment(expandable_segments, deterministic)
        cudnn.benchmark = cudnn_benchmark and not deterministic
    if deterministic:
        torch.use_deterministic_algorithms(True)
        # It would only show reads of memory that nobody wrote, at the price of a kernel for each new tensor.
        fill.fill_uninitialized_memory = False
    try:
        yield
    finally:
        cudnn.benchmark, mode, fill.fill_uninitialized_memory = before
        torch.set_deterministic_debug_mode(mode)


def _set_environment(expandable_segments: bool, deterministic: bool) -> None:
    if expandable_segments and not any(name in os.environ for name in _ALLOCATOR):
        os.environ[_ALLOCATOR[0]] = "expandable_segments:True"
    if not deterministic:
        return
    given = os.environ.setdefault(_CUBLAS, _CUBLAS_DETERMINISTIC[0])
    if given not in _CUBLAS_DETERMINISTIC:
        right = " or ".join(_CUBLAS_DETERMINISTIC)
        raise ConfigError(
            f"environment: {_CUBLAS}={given} is not deterministic, as distributed.deterministic = true asks for; "
            f"unset it, or set it to {right}"
        )
    # Sums inside the switches between GPUs come in no fixed order.
    os.environ.setdefault("NCCL_NVLS_ENABLE", "0")


@contextmanager
def explain_nondeterminism() -> Iterator[None]:
    """Makes one line of torch's refusal to compute something that has no deterministic form.

    Raises:
        ConfigError: names the operation and the key that forbids it.
    """
    try:
        yield
    except RuntimeError as error:
        found = re.search(r"(\S+) does not have a deterministic implementation", str(error))
        if found is None:
            raise
        raise ConfigError(
            f"distributed.deterministic = true: the operation {found[1]} has no deterministic form on this device; "
            f"set it to false, or do without the operation"
        ) from error
