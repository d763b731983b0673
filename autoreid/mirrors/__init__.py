"""Mirrors: copies of the metrics of runs in the stores of experiment trackers."""

from __future__ import annotations

from autoreid.config import expand
from autoreid.mirrors.mirror import Mirror
from autoreid.mirrors.mlflow_mirror import MlflowMirror
from autoreid.mirrors.wandb_mirror import WandbMirror

__all__ = ["Mirror", "build_mirror"]


def build_mirror(tracker: str, project: str, store: str | None, online: bool) -> Mirror:
    """Build the mirror of a tracker.

    Args:
        tracker: "wandb" or "mlflow".
        project: W&B's project, or MLflow's experiment.
        store: the folder of W&B's files, or the URI of MLflow's store; None for those in the current folder.
        online: whether W&B uploads the runs; MLflow's URI says where they are written.

    Raises:
        ConfigError: the tracker's package is not installed.
        RunError: the store cannot be opened.
    """
    if tracker == "wandb":
        return WandbMirror(project, expand(store or "."), online)
    return MlflowMirror(project, store or "sqlite:///mlflow.db")
