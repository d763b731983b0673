"""What a job asks of Slurm: options known from sbatch, with defaults from the user's file and environment."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from autoreid.errors import ConfigError

#: Prefix of environment variables that give defaults, such as AUTOREID_SLURM_PARTITION.
PREFIX = "AUTOREID_SLURM_"

_TIMES = (
    re.compile(r"(?P<minutes>\d+)(:(?P<seconds>\d+))?"),
    re.compile(r"(?P<hours>\d+):(?P<minutes>\d+):(?P<seconds>\d+)"),
    re.compile(r"(?P<days>\d+)-(?P<hours>\d+)(:(?P<minutes>\d+)(:(?P<seconds>\d+))?)?"),
)
_IN_SECONDS = {"days": 86_400, "hours": 3_600, "minutes": 60, "seconds": 1}

Count = Annotated[int, Field(ge=1)]


class JobRequest(BaseModel):
    """One job: what each field says goes to sbatch; what is not given is left to the cluster."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    nodes: Count = 1
    """Nodes."""
    gpus: Annotated[int, Field(ge=0)] = 1
    """GPUs a node, with a task for each; 0 runs on CPUs over gloo."""
    tasks: Count | None = None
    """Tasks a node, where there is no GPU to count them by."""
    cpus_per_task: Count = 4
    """CPU cores a task: its own thread and its loader processes."""
    mem: Annotated[str, Field(pattern=r"^\d+[KMGT]?$")] | None = None
    """Memory a node, such as 64G."""
    time: str | None = None
    """Time limit: minutes or [D-]HH:MM:SS; the job is requeued when it comes to it."""
    partition: str | None = None
    """Partition."""
    account: str | None = None
    """Account to charge."""
    qos: str | None = None
    """Quality of service."""
    constraint: str | None = None
    """Features that nodes must have."""
    nodelist: str | None = None
    """Nodes to use."""
    exclude: str | None = None
    """Nodes not to use."""
    gres: str | None = None
    """Generic resources, such as gpu:a100:8, in place of plain GPUs a node."""
    array_limit: Count | None = None
    """How many elements of an array run at a time."""
    dependency: str | None = None
    """What to wait for, such as afterok:1234."""
    comment: str | None = None
    """Comment."""
    mail_user: str | None = None
    """Whom to write to."""
    mail_type: str | None = None
    """When to write, such as END,FAIL."""
    setup: tuple[str, ...] = ()
    """Shell lines to run before the tasks, such as 'module load cuda'; may stand several times."""
    python: str | None = None
    """Interpreter, or container prefix and interpreter, of the tasks; default: the one that submits."""
    slurm: dict[str, str] = {}
    """Any other option of sbatch as key=value; may stand several times."""
    signal_lead: Count | None = None
    """Seconds before the time limit at which the job is told to stop; must exceed its longest step."""
    max_restarts: Annotated[int, Field(ge=0)] = 100
    """How often the job may come back."""

    @field_validator("time")
    @classmethod
    def _check_time(cls, value: str | None) -> str | None:
        if value is not None and not parse_seconds(value):
            raise ValueError("expected minutes, HH:MM:SS or D-HH:MM:SS, and more than none")
        return value

    @property
    def tasks_per_node(self) -> int:
        """One for each GPU; without GPUs as many as asked for."""
        return self.gpus or self.tasks or 1

    @property
    def ranks(self) -> int:
        """Tasks on all nodes."""
        return self.nodes * self.tasks_per_node

    @property
    def seconds(self) -> int | None:
        """The time limit."""
        return None if self.time is None else parse_seconds(self.time)

    @property
    def lead_seconds(self) -> int:
        """How long before its limit the job is told to stop: a quarter of it, within 20 to 180 seconds."""
        if self.signal_lead is not None:
            return self.signal_lead
        return 180 if self.seconds is None else max(20, min(180, self.seconds // 4))


def parse_seconds(text: str) -> int:
    """Seconds of a time limit as sbatch writes it; 0 if it is none."""
    for pattern in _TIMES:
        match = pattern.fullmatch(text)
        if match:
            parts = {unit: int(value) for unit, value in match.groupdict().items() if value}
            return sum(_IN_SECONDS[unit] * value for unit, value in parts.items())
    return 0


def add_options(parser: argparse.ArgumentParser) -> None:
    """Gives a parser an option for each field; what the user does not type is absent from the result."""
    group = parser.add_argument_group(
        "Slurm",
        f"defaults: environment variables such as {PREFIX}PARTITION, then the file {defaults_file()} (YAML)",
    )
    for name, field in JobRequest.model_fields.items():
        option = "--" + name.replace("_", "-")
        default = "" if field.default in (None, (), {}) else f" (default {field.default})"
        settings: dict[str, Any] = {"help": f"{field.description}{default}", "default": argparse.SUPPRESS}
        if name in ("setup", "slurm"):
            settings["action"] = "append"
        group.add_argument(option, metavar="KEY=VALUE" if name == "slurm" else name.upper(), **settings)


def defaults_file() -> Path:
    """The user's defaults."""
    folder = os.environ.get("XDG_CONFIG_HOME") or Path("~/.config").expanduser()
    return Path(folder) / "autoreid" / "slurm.yaml"


def read_request(options: Mapping[str, Any]) -> JobRequest:
    """The request of a command line, over the environment, over the user's file.

    Args:
        options: parsed by a parser of `add_options`; keys that are not fields are ignored.

    Raises:
        ConfigError: a value is wrong; names where it is from.
    """
    layers = {
        str(defaults_file()): _from_file(defaults_file()),
        "environment": _from_environment(),
        "command line": {name: options[name] for name in JobRequest.model_fields if name in options},
    }
    merged: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for where, layer in layers.items():
        for name, value in layer.items():
            value = _as_mapping(value, where) if name == "slurm" else value
            merged[name] = {**merged.get(name, {}), **value} if name == "slurm" else value
            origin[name] = where
    try:
        request = JobRequest.model_validate(merged)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else "job"
        message = first["msg"].removeprefix("Value error, ")
        option = "--" + name.replace("_", "-") if origin.get(name) == "command line" else name
        raise ConfigError(
            f"{origin.get(name, 'command line')}: {option} = {first['input']!r}: {message}"
        ) from error
    return _checked(request)


def _checked(request: JobRequest) -> JobRequest:
    if request.gpus and request.tasks:
        raise ConfigError("command line: --tasks: there is a task for each GPU; give it with --gpus 0 only")
    if request.seconds is not None and request.lead_seconds >= request.seconds:
        raise ConfigError(
            f"command line: --signal-lead {request.lead_seconds}: must be less than the time limit of "
            f"{request.seconds} s"
        )
    return request


def _from_file(path: Path) -> dict[str, Any]:
    try:
        # All values are text: to YAML 12:00:00 is the number 43200.
        content = yaml.load(path.read_text(encoding="utf-8"), yaml.BaseLoader)  # noqa: S506
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot read the defaults: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected lines such as 'partition: gpu'")
    return content


def _from_environment() -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name in JobRequest.model_fields:
        value = os.environ.get(PREFIX + name.upper())
        if value:
            values[name] = value.split(";") if name in ("setup", "slurm") else value
    return values


def _as_mapping(value: Any, where: str) -> dict[str, str]:
    """Options given as key=value, or as a mapping in the file."""
    if isinstance(value, Mapping):
        return {str(key): str(item) for key, item in value.items()}
    pairs = [str(item).partition("=") for item in value]
    wrong = next((key for key, equals, _ in pairs if not equals or not key), None)
    if wrong is not None:
        raise ConfigError(f"{where}: --slurm {wrong}: expected key=value")
    return {key: text for key, _, text in pairs}
