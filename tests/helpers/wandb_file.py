"""Read the files that wandb writes offline, independently of wandb except for the messages in them."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

#: Sizes of LevelDB's log format, in bytes: a block, the header of a file, and the header of a record.
BLOCK, FILE_HEADER, RECORD_HEADER = 32768, 7, 7
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def messages(path: Path) -> Iterator[bytes]:
    """Return the messages of a file in LevelDB's log format."""
    data = path.read_bytes()
    assert data[:4] == b":W&B"
    place, message = FILE_HEADER, b""
    while place < len(data):
        left = BLOCK - place % BLOCK
        if left < RECORD_HEADER:
            place += left
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)
        place += RECORD_HEADER
        message += data[place : place + length]
        place += length
        if kind in (FULL, LAST):
            yield message
            message = b""


def read_runs(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Return what each run id has, part by part: history, summary, config, name, and the folder of its files."""
    from wandb.proto.wandb_internal_pb2 import Record

    runs: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("wandb/offline-run-*/run-*.wandb")):
        part: dict[str, Any] = {"history": [], "summary": {}, "config": {}, "folder": path.parent / "files"}
        for message in messages(path):
            record = Record.FromString(message)
            match record.WhichOneof("record_type"):
                case "history":
                    part["history"].append(_items(record.history.item))
                case "summary":
                    part["summary"] |= _items(record.summary.update)
                case "config":
                    part["config"] |= _items(record.config.update)
                case "run":
                    part["id"], part["name"] = record.run.run_id, record.run.display_name
                    part["config"] |= _items(record.run.config.update)
        runs.setdefault(part["id"], []).append(part)
    return runs


def _items(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
