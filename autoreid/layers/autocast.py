"""Autocast contexts that also work on devices without autocast, such as the meta device."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def current_autocast(device_type: str) -> AbstractContextManager[Any]:
    """Return a context with the current autocast state, to enter again later, for example in a backward pass."""
    if not torch.amp.is_autocast_available(device_type):
        return nullcontext()
    enabled = torch.is_autocast_enabled(device_type)
    return torch.autocast(device_type, torch.get_autocast_dtype(device_type), enabled)


def without_autocast(device_type: str) -> AbstractContextManager[Any]:
    """Return a context without autocast, for code that needs the precision of its inputs."""
    if not torch.amp.is_autocast_available(device_type):
        return nullcontext()
    return torch.autocast(device_type, enabled=False)
