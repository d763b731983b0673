"""Options of a job, named as sbatch's."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from autoreid.slurm.notation import parse_seconds

Count = Annotated[int, Field(ge=1)]


class JobOptions(BaseModel):
    """The options of a job; sbatch gets only the options that are set."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    nodes: Count = 1
    """Number of nodes."""
    gpus: Annotated[int, Field(ge=0)] = 1
    """GPUs per node, with one Slurm task for each; 0 computes on CPUs."""
    tasks: Count | None = None
    """Slurm tasks per node; only with --gpus 0."""
    cpus_per_task: Count = 4
    """CPU cores per Slurm task, for its main process and its data loader workers."""
    mem: Annotated[str, Field(pattern=r"^\d+[KMGT]?$")] | None = None
    """Memory per node, such as 64G."""
    time: str | None = None
    """Time limit, in minutes or as [D-]HH:MM:SS; a job that reaches it is requeued and resumes."""
    partition: str | None = None
    """Partition."""
    account: str | None = None
    """Account to charge."""
    qos: str | None = None
    """Quality of service."""
    constraint: str | None = None
    """Features that the nodes must have."""
    nodelist: str | None = None
    """Nodes to use."""
    exclude: str | None = None
    """Nodes to exclude."""
    gres: str | None = None
    """Generic resources per node, such as gpu:a100:8; replaces the plain number of GPUs."""
    array_limit: Count | None = None
    """Maximum number of array tasks that run at the same time."""
    dependency: str | None = None
    """Jobs to wait for, such as afterok:1234."""
    comment: str | None = None
    """Comment stored with the job."""
    mail_user: str | None = None
    """Address for Slurm's e-mails."""
    mail_type: str | None = None
    """Events that send an e-mail, such as END,FAIL."""
    setup: tuple[str, ...] = ()
    """Shell command to run before srun, such as 'module load cuda'; can be repeated."""
    python: str | None = None
    """Python interpreter of the job, with its container command if it needs one (default: this interpreter)."""
    slurm: dict[str, str] = {}
    """Any other option of sbatch, as key=value, or key alone for a flag such as exclusive; can be repeated."""
    signal_lead: Count | None = None
    """Seconds between the stop signal and the time limit; must be longer than the longest step."""
    max_restarts: Annotated[int, Field(ge=0)] = 100
    """Maximum number of times that the job is requeued."""

    @field_validator("time")
    @classmethod
    def _check_time(cls, value: str | None) -> str | None:
        if value is not None and not parse_seconds(value):
            raise ValueError("expected minutes, HH:MM:SS or D-HH:MM:SS, and more than 0 seconds")
        return value

    @field_validator("mem", mode="before")
    @classmethod
    def _as_slurm_writes_it(cls, value: Any) -> Any:
        """Return 64GB and 64g as 64G; sbatch takes all three."""
        found = re.fullmatch(r"(\d+[KMGT])B?", str(value).upper())
        return value if found is None else found[1]

    @property
    def tasks_per_node(self) -> int:
        """Slurm tasks per node: the number of GPUs, or `tasks` (by default 1) without GPUs."""
        return self.gpus or self.tasks or 1

    @property
    def ranks(self) -> int:
        """The number of ranks, which is the number of Slurm tasks on all nodes."""
        return self.nodes * self.tasks_per_node

    @property
    def seconds(self) -> int | None:
        """The time limit in seconds, or None."""
        return None if self.time is None else parse_seconds(self.time)

    @property
    def lead_seconds(self) -> int:
        """Seconds between the stop signal and the time limit.

        By default a quarter of the time limit, but at least 20 and at most 180 seconds.
        """
        if self.signal_lead is not None:
            return self.signal_lead
        return 180 if self.seconds is None else max(20, min(180, self.seconds // 4))
