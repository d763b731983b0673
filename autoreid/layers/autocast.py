"""Autocast contexts that also work where there is no autocast, such as on the meta device."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def current_autocast(device_type: str) -> AbstractContextManager[Any]:
    """The autocast state that is in force now, to be entered again later, as in a backward pass."""
    if not torch.amp.is_autocast_available(device_type):
        return nullcontext()
    enabled = torch.is_autocast_enabled(device_type)
    return torch.autocast(device_type, torch.get_autocast_dtype(device_type), enabled)


def without_autocast(device_type: str) -> AbstractContextManager[Any]:
    """Switches autocast off, for what needs the precision of its inputs."""
    if not torch.amp.is_autocast_available(device_type):
        return nullcontext()
    return torch.autocast(device_type, enabled=False)
