"""The mirror in MLflow, in a local database or on a server."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from autoreid.errors import ConfigError
from autoreid.mirrors.content import RunContent
from autoreid.mirrors.mirror import Mirror, Update
from autoreid.reporting.run_folder import RunFolder

_SQLITE = "sqlite:///"
#: The longest parameters and tags in characters. MLflow shortens those of more than 6000; the artifacts have them all.
_LONGEST = 6000
#: The number of parameters, tags or metrics that a server takes at once.
_BATCH = 100


class MlflowMirror(Mirror):
    """Writes runs to an MLflow store.

    The config becomes parameters; environment and texts of the result become tags. Pictures, and the complete
    config.yaml, environment.json and result.json, are artifacts.

    Args:
        project: name of the experiment.
        uri: URI of the tracking store. The artifacts of a local SQLite database are in a folder beside it.

    Raises:
        ConfigError: MLflow is not installed.
    """

    def __init__(self, project: str, uri: str) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        # The default of 7 takes minutes before it says that a server cannot be reached.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
        try:
            import sqlalchemy  # noqa: F401 (MLflow needs it for databases)
            from mlflow import MlflowClient
        except ImportError as error:
            raise ConfigError("--to mlflow requires mlflow-skinny: pip install 'autoreid[mlflow]'") from error
        logging.getLogger("mlflow").setLevel(logging.WARNING)  # it reports the tables that it creates
        logging.getLogger("urllib3").setLevel(logging.ERROR)  # it reports each retry
        self.artifacts: str | None = None
        self._database: Path | None = None
        if uri.startswith(_SQLITE):
            name, mark, options = uri.removeprefix(_SQLITE).partition("?")
            self._database = Path(name).absolute()
            self.artifacts = (self._database.parent / "mlartifacts").as_uri()
            uri = f"{_SQLITE}{self._database}{mark}{options}"
        self.project, self.uri = project, uri
        self.destination = f"mlflow {uri} {project}"
        self._connect: Callable[[str], Any] = MlflowClient

    @cached_property
    def _client(self) -> Any:
        if self._database is not None and not self._database.exists():
            self._create(self._database)
        return self._connect(self.uri)

    def _create(self, database: Path) -> None:
        """Create a database under another name, because MLflow cannot continue if it is killed while it does so."""
        partial = database.with_name(f".{database.name}.{uuid.uuid4().hex}.partial")
        try:
            self._connect(f"{_SQLITE}{partial}").search_experiments()
            with contextlib.suppress(FileExistsError):  # another process was faster
                os.link(partial, database)
        finally:
            partial.unlink(missing_ok=True)

    def create(self, run: RunContent) -> str:
        """Create a run, and the experiment if it does not exist."""
        found = self._client.get_experiment_by_name(self.project)
        if found is None:
            experiment = self._client.create_experiment(self.project, artifact_location=self.artifacts)
        else:
            experiment = found.experiment_id
        run_id: str = self._client.create_run(experiment, run_name=run.name).info.run_id
        return run_id

    def write(self, run_id: str, run: RunContent, update: Update) -> None:
        """Add to a run. MLflow stores equal metrics of the same step and time once."""
        from mlflow.entities import Metric, Param, RunTag

        time = round(1000 * update.time)
        # A parameter cannot change. A resumed run may have other values of keys that do not affect what it computes.
        known = self._client.get_run(run_id).data.params
        parameters = {key: value for key, value in run.parameters().items() if key not in known}
        texts = {f"environment.{key}": value for key, value in run.environment.items()}
        texts |= {f"result.{key}": value for key, value in update.result.items() if not _is_number(value)}
        figures = [
            (point.step, name, value) for point in update.points for name, value in point.values.items()
        ]
        figures += [
            (update.step, f"result/{key}", value) for key, value in update.result.items() if _is_number(value)
        ]
        self._log(run_id, "params", [Param(key, text) for key, text in _as_texts(parameters)])
        self._log(run_id, "tags", [RunTag(key, text) for key, text in _as_texts(texts)])
        self._log(run_id, "metrics", [Metric(name, value, time, step) for step, name, value in figures])
        self._log_files(run_id, run, update)
        if update.result:
            self._client.set_terminated(run_id)

    def _log(self, run_id: str, kind: str, items: Sequence[Any]) -> None:
        for first in range(0, len(items), _BATCH):
            self._client.log_batch(run_id, **{kind: items[first : first + _BATCH]})

    def _log_files(self, run_id: str, run: RunContent, update: Update) -> None:
        for point in update.points:
            for picture in point.pictures.values():
                self._client.log_artifact(run_id, str(picture), "genotypes")
        folder = RunFolder(run.folder)
        for path in (folder.config, folder.environment, folder.result):
            if path.exists():
                self._client.log_artifact(run_id, str(path))


def _as_texts(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Return values as texts, those that are not texts as JSON; without those that are too long."""
    for key, value in values.items():
        text = value if isinstance(value, str) else json.dumps(value)
        if len(text) <= _LONGEST:
            yield key, text


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
