"""Read the options of a job from the command line, the environment and the user's file."""

from __future__ import annotations

import argparse
import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from autoreid.errors import ConfigError
from autoreid.slurm.job_options import JobOptions
from autoreid.slurm.notation import gres_gpus

#: Prefix of the environment variables with defaults, such as AUTOREID_SLURM_PARTITION.
PREFIX = "AUTOREID_SLURM_"
#: Options that can be repeated, and have a list of values in the user's file.
_REPEATABLE = ("setup", "slurm")
#: Options of sbatch that change the number of tasks or GPUs, for which there are options that fit together.
_SIZES = frozenset(
    (
        "nodes",
        "gres",
        "gpus",
        "gpus-per-node",
        "ntasks",
        "ntasks-per-node",
        "tasks-per-node",
        "ntasks-per-gpu",
        "cpus-per-task",
    )
)
#: Options of sbatch that the commands set themselves, because requeueing, resuming, logs, or the order of several jobs
#: depend on them -> what to use.
_OWN = {
    "array": "--seeds or --sweep submit several runs",
    "signal": "use --signal-lead",
    "no-requeue": "use --max-restarts 0",
    "output": "logs are in the folder of the run",
    "error": "logs are in the folder of the run",
    "open-mode": "logs are appended to",
    "wrap": "use --setup for commands before the run",
    "time": "use --time, which the time of the stop signal depends on",
    "dependency": "use --dependency",
    "job-name": "a job has the name of its run",
    "test-only": "use --test-only",
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add an option for each field of `JobOptions` to a parser; options that are not given stay absent."""
    group = parser.add_argument_group(
        "Slurm",
        f"Defaults come from environment variables such as {PREFIX}PARTITION, then from {defaults_file()} (YAML).",
    )
    for name, field in JobOptions.model_fields.items():
        option = "--" + name.replace("_", "-")
        default = "" if field.default in (None, (), {}) else f" (default: {field.default})"
        description = (field.description or "").removesuffix(".")
        settings: dict[str, Any] = {"help": f"{description}{default}", "default": argparse.SUPPRESS}
        if name in _REPEATABLE:
            settings["action"] = "append"
        group.add_argument(option, metavar="KEY=VALUE" if name == "slurm" else name.upper(), **settings)


def defaults_file() -> Path:
    """Return the path of the user's file with defaults, which does not exist for a user without a home directory."""
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")  # noqa: PTH111 (Path's raises)
    return Path(home) / "autoreid" / "slurm.yaml"


def read_job_options(options: Mapping[str, Any]) -> JobOptions:
    """Merge the job options of the command line, the environment and the user's file, in this order of precedence.

    Args:
        options: what a parser with `add_options` returned; keys that are not job options are ignored.

    Raises:
        ConfigError: a value is wrong; the message says where it comes from.
    """
    layers = {
        str(defaults_file()): _from_file(defaults_file()),
        "environment": _from_environment(),
        "command line": {name: options[name] for name in JobOptions.model_fields if name in options},
    }
    merged: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for where, layer in layers.items():
        for name, value in layer.items():
            value = _as_mapping(value, where) if name == "slurm" else value
            merged[name] = {**merged.get(name, {}), **value} if name == "slurm" else value
            origin[name] = where
    try:
        job_options = JobOptions.model_validate(merged)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else "job"
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            nearest = difflib.get_close_matches(name, JobOptions.model_fields, n=1, cutoff=0)
            message = f"unknown option; did you mean {nearest[0]}? Other options of sbatch go below slurm"
        raise ConfigError(f"{_named(name, origin)} = {first['input']!r}: {message}") from error
    _check_combination(job_options, origin)
    return job_options


def _check_combination(options: JobOptions, origin: Mapping[str, str]) -> None:
    """Check options that depend on each other; `origin` says where each of them was set."""
    if options.gpus and options.tasks:
        raise ConfigError(
            f"{_named('tasks', origin)}: only allowed with --gpus 0; with GPUs there is one Slurm task for each GPU"
        )
    asked = gres_gpus(options.gres)
    if asked is not None and asked != options.gpus:
        raise ConfigError(
            f"{_named('gres', origin)} {options.gres}: {asked} GPUs per node, but --gpus is {options.gpus}, and "
            f"there is one Slurm task for each GPU; add --gpus {asked}"
        )
    given = {key.replace("_", "-") for key in options.slurm}
    for key in sorted(given & _OWN.keys()):
        raise ConfigError(f"{_named('slurm', origin)} {key}: cannot be changed; {_OWN[key]}")
    sizes = sorted(given & _SIZES)
    if sizes:
        raise ConfigError(
            f"{_named('slurm', origin)} {sizes[0]}: use --nodes, --gpus, --gres, --tasks and --cpus-per-task, "
            f"which start one Slurm task for each GPU"
        )
    if options.seconds is not None and options.lead_seconds >= options.seconds:
        # Without signal_lead, the limit itself is too short for the default.
        cause = "signal_lead" if "signal_lead" in origin else "time"
        raise ConfigError(
            f"{_named(cause, origin)}: the stop signal comes {options.lead_seconds} s before the time limit of "
            f"{options.seconds} s, which must be longer"
        )


def _named(name: str, origin: Mapping[str, str]) -> str:
    """Return where an option was set, and its name there."""
    where = origin.get(name, "command line")
    return f"{where}: {'--' + name.replace('_', '-') if where == 'command line' else name}"


def _from_file(path: Path) -> dict[str, Any]:
    try:
        # BaseLoader keeps all values as text: YAML 1.1 reads 12:00:00 as the number 43200.
        content = yaml.load(path.read_text(encoding="utf-8"), yaml.BaseLoader)  # noqa: S506
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot read the defaults: {' '.join(str(error).split())}") from error
    if content in (None, ""):  # nothing but comments
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected a mapping, with lines such as 'partition: gpu'")
    given = {name: value for name, value in content.items() if value not in ("", "null", "~")}
    alone = [name for name in _REPEATABLE if isinstance(given.get(name), str)]
    return given | {name: [given[name]] for name in alone}


def _from_environment() -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name in JobOptions.model_fields:
        value = os.environ.get(PREFIX + name.upper())
        if value:
            values[name] = value.split(";") if name in _REPEATABLE else value
    return values


def _as_mapping(value: Any, where: str) -> dict[str, str]:
    """Return the options of --slurm, given as key=value or key, or as the file's mapping; flags have an empty text."""
    if isinstance(value, Mapping):  # YAML's "exclusive: true" is a flag; false leaves it out
        items = [(str(key), str(item)) for key, item in value.items() if item != "false"]
        pairs = [(key, "=", "" if item == "true" else item) for key, item in items]
    else:
        pairs = [str(item).partition("=") for item in value]
    wrong = next(("".join(pair) for pair in pairs if not re.fullmatch(r"[a-zA-Z][\w-]*", pair[0])), None)
    if wrong is not None:
        raise ConfigError(
            f"{where}: --slurm {wrong}: expected an option of sbatch without dashes, as key=value or key"
        )
    return {key: text for key, _, text in pairs}
