"""Hyperparameters of runs for the HParams tab of TensorBoard, which compares the runs of a folder.

TensorBoard calls a run with hyperparameters a session. Its event file is in the run folder itself; the metrics are the
curves in the subfolder `tensorboard`, which the run writes.
"""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from tensorboardX.proto.api_pb2 import DataType, Experiment, HParamInfo, MetricInfo, MetricName, Status
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData, SessionEndInfo, SessionStartInfo
from tensorboardX.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboardX.record_writer import masked_crc32c

from autoreid.files import make_folder, write_atomically

#: Names of the metrics in TensorBoard, and their curves.
_METRICS = {"mAP": "epoch/map", "rank-1": "epoch/rank1", "loss": "epoch/loss"}
#: Names of the event files; TensorBoard reads the files of a folder in alphabetical order.
_START, _END = "events.out.tfevents.hparams", "events.out.tfevents.hparams-end"


def write_experiment(folder: Path, values: Mapping[str, Sequence[Any]]) -> None:
    """Write which hyperparameters and metrics TensorBoard shows for the runs in a folder; replaces an earlier file.

    Args:
        values: the different values of each hyperparameter.

    Raises:
        RunError: the file cannot be written.
    """
    infos = []
    for key, different in values.items():
        info = HParamInfo(name=key, type=_kind(different))
        info.domain_discrete.extend([_as_kind(value, info.type) for value in different])
        infos.append(info)
    metrics = [
        MetricInfo(name=MetricName(group="tensorboard", tag=tag), display_name=name)
        for name, tag in _METRICS.items()
    ]
    experiment = Experiment(hparam_infos=infos, metric_infos=metrics, time_created_secs=time.time())
    _write(folder / _START, "_hparams_/experiment", HParamsPluginData(experiment=experiment))


def write_session(
    run: Path, values: Mapping[str, Any], different: Mapping[str, Sequence[Any]], is_finished: bool
) -> None:
    """Write the hyperparameters of a run, and whether it has finished, unless its folder has them already.

    They are written again if their types have changed, because other runs have got values of another kind.

    Args:
        values: of the hyperparameters of this run.
        different: the different values of each hyperparameter in all runs, which determine its type.

    Raises:
        RunError: a file cannot be written.
    """
    before = _read(run / _START).session_start_info
    start = SessionStartInfo(start_time_secs=before.start_time_secs or time.time())
    for key, value in values.items():
        shown = _as_kind(value, _kind(different[key]))
        field = {bool: "bool_value", float: "number_value", str: "string_value"}[type(shown)]
        setattr(start.hparams[key], field, shown)
    if start != before:
        _write(run / _START, "_hparams_/session_start_info", HParamsPluginData(session_start_info=start))
    if is_finished and not (run / _END).exists():
        end = SessionEndInfo(status=Status.STATUS_SUCCESS, end_time_secs=time.time())
        _write(run / _END, "_hparams_/session_end_info", HParamsPluginData(session_end_info=end))


def _kind(values: Sequence[Any]) -> int:
    """Return TensorBoard's type of a hyperparameter with these values."""
    if all(isinstance(value, bool) for value in values):
        return int(DataType.DATA_TYPE_BOOL)
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return int(DataType.DATA_TYPE_FLOAT64)
    return int(DataType.DATA_TYPE_STRING)


def _as_kind(value: Any, kind: int) -> bool | float | str:
    """Return a value as one of TensorBoard's types; lists and other values are text."""
    if kind == DataType.DATA_TYPE_BOOL:
        return bool(value)
    if kind == DataType.DATA_TYPE_FLOAT64:
        return float(value)
    return value if isinstance(value, str) else json.dumps(value)


def _read(path: Path) -> HParamsPluginData:
    """Return the content of a file of `_write`; empty if there is no such file, or it is damaged."""
    content = HParamsPluginData()
    try:
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack_from("<Q", data)
            for value in Event.FromString(data[12 : 12 + length]).summary.value:
                content.MergeFromString(value.metadata.plugin_data.content)
            data = data[16 + length :]
    except (OSError, struct.error, DecodeError):
        return HParamsPluginData()
    return content


def _write(path: Path, tag: str, content: HParamsPluginData) -> None:
    """Write an event file with a single value of the HParams plugin."""
    plugin = SummaryMetadata.PluginData(plugin_name="hparams", content=content.SerializeToString())
    summary = Summary(value=[Summary.Value(tag=tag, metadata=SummaryMetadata(plugin_data=plugin))])
    make_folder(path.parent, "set output_dir to a folder that can be written")
    events = (Event(file_version="brain.Event:2"), Event(summary=summary))
    data = b""
    for event in events:
        event.wall_time = time.time()
        data += _record(event.SerializeToString())
    write_atomically(path, data)


def _record(content: bytes) -> bytes:
    """Return a record of an event file: length (8 bytes), checksum (4), content, and its checksum (4)."""
    length = struct.pack("<Q", len(content))
    checksums = [struct.pack("<I", masked_crc32c(part)) for part in (length, content)]
    return length + checksums[0] + content + checksums[1]
