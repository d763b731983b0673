"""Exported files with other metadata than they were written with."""

from __future__ import annotations

import onnx


def edited(model: bytes, **entries: str | None) -> bytes:
    """Return an ONNX model with some entries of its metadata replaced; those that are None are removed."""
    found = onnx.load_from_string(model)
    kept = {one.key: one.value for one in found.metadata_props} | entries
    del found.metadata_props[:]
    onnx.helper.set_model_props(found, {key: value for key, value in kept.items() if value is not None})
    return found.SerializeToString()
