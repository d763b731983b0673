"""Read what TensorBoard's HParams tab shows, with the code of TensorBoard that serves it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from google.protobuf import json_format
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import api_pb2, get_experiment, list_session_groups
from tensorboard.plugins.hparams.backend_context import Context


def read_hparams(folder: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Return the columns of hyperparameters with their types, and the rows.

    Returns:
        The type and the different values of each hyperparameter, by name; and for each session, by its name, `hparams`,
        `metrics` (by the names of the columns) and `status`.
    """
    events = EventMultiplexer()
    events.AddRunsFromDirectory(str(folder))
    events.Reload()
    provider = MultiplexerDataProvider(events, str(folder))
    context, request = Context(TBContext(data_provider=provider)), RequestContext()
    experiment = get_experiment.Handler(
        request,
        context,
        "",
        api_pb2.GetExperimentRequest(),
    ).run()
    columns = {
        info.name: (api_pb2.DataType.Name(info.type), json_format.MessageToDict(info.domain_discrete))
        for info in experiment.hparam_infos
    }
    titles = {(info.name.group, info.name.tag): info.display_name for info in experiment.metric_infos}
    asked = api_pb2.ListSessionGroupsRequest(
        start_index=0, slice_size=1000, allowed_statuses=list(api_pb2.Status.values())
    )
    for name in columns:
        asked.col_params.add(hparam=name)
    for group, tag in titles:
        asked.col_params.add().metric.MergeFrom(api_pb2.MetricName(group=group, tag=tag))
    found = list_session_groups.Handler(request, context, "", asked).run()
    rows = {}
    for group in found.session_groups:
        (session,) = group.sessions
        rows[session.name] = {
            "hparams": {key: json_format.MessageToDict(value) for key, value in group.hparams.items()},
            "metrics": {
                titles[metric.name.group, metric.name.tag]: metric.value for metric in session.metric_values
            },
            "status": api_pb2.Status.Name(session.status),
        }
    return columns, rows
