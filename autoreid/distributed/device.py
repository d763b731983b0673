"""Process-wide settings of PyTorch and of CUDA's libraries."""

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
#: The workspace settings with which cuBLAS is deterministic; the first is faster and needs more memory.
_CUBLAS_DETERMINISTIC = (":4096:8", ":16:8")


@contextmanager
def device_settings(
    device: Device = "auto",
    cudnn_benchmark: bool = True,
    expandable_segments: bool = True,
    deterministic: bool = False,
) -> Iterator[None]:
    """Apply settings for the duration of the `with` block, which must begin before CUDA is first used.

    Environment variables stay set afterwards, because the libraries read them only once.

    Args:
        device: device of the run; with "cpu" no CUDA settings are changed.
        cudnn_benchmark: whether cuDNN measures its algorithms for each new shape and uses the fastest.
        expandable_segments: whether PyTorch's CUDA allocator uses expandable segments. If the user has set
            PYTORCH_CUDA_ALLOC_CONF or PYTORCH_ALLOC_CONF, that takes precedence.
        deterministic: whether equal inputs give equal bits on GPUs of the same model. This turns `cudnn_benchmark`
            off. Operations without a deterministic implementation raise RuntimeError; see `explain_nondeterminism`.

    Raises:
        ConfigError: cuBLAS is configured through the environment in a way that is not deterministic.
    """
    cudnn: Any = torch.backends.cudnn
    fill: Any = torch.utils.deterministic
    before = cudnn.benchmark, torch.get_deterministic_debug_mode(), fill.fill_uninitialized_memory
    if device != "cpu":
        _set_environment(expandable_segments, deterministic)
        cudnn.benchmark = cudnn_benchmark and not deterministic
    if deterministic:
        torch.use_deterministic_algorithms(True)
        # Filling new tensors only helps to find reads of uninitialised memory, and costs a kernel for each tensor.
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
            f"environment: {_CUBLAS}={given} is not deterministic, which distributed.deterministic = true requires; "
            f"unset it, or set it to {right}"
        )
    # NVLink SHARP adds inside the switches between GPUs, in no fixed order.
    os.environ.setdefault("NCCL_NVLS_ENABLE", "0")


@contextmanager
def explain_nondeterminism() -> Iterator[None]:
    """Turn PyTorch's error about an operation without a deterministic implementation into a one-line ConfigError.

    Raises:
        ConfigError: names the operation, and the config key to change.
    """
    try:
        yield
    except RuntimeError as error:
        found = re.search(r"(\S+) does not have a deterministic implementation", str(error))
        if found is None:
            raise
        raise ConfigError(
            f"distributed.deterministic = true: the operation {found[1]} has no deterministic implementation on this "
            f"device; set the key to false, or do not use the operation"
        ) from error
