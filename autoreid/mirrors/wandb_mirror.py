"""The mirror in Weights & Biases, in local files for `wandb sync`, or online."""

from __future__ import annotations

import os
import time
import uuid
from pathlib import Path

from autoreid.errors import ConfigError
from autoreid.files import make_folder
from autoreid.mirrors.content import RunContent
from autoreid.mirrors.mirror import Mirror, Update


class WandbMirror(Mirror):
    """Writes runs for Weights & Biases.

    Offline, each update is a folder `wandb/offline-run-TIME-ID`. `wandb sync` uploads those of the same id as one run,
    in the order of their times.

    Args:
        project: name of the project.
        folder: where the folder `wandb` is created.
        online: whether to upload the runs.

    Raises:
        ConfigError: wandb is not installed, or the folder cannot be written.
    """

    def __init__(self, project: str, folder: Path, online: bool) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        try:
            import wandb  # noqa: F401 (only to know early)
        except ImportError as error:
            raise ConfigError("--to wandb requires wandb: pip install 'autoreid[wandb]'") from error
        make_folder(folder, "choose another --store")
        self.project, self.folder, self.online = project, folder.absolute(), online
        self.destination = f"wandb online {project}" if online else f"wandb {self.folder} {project}"

    def create(self, run: RunContent) -> str:  # noqa: ARG002
        """Choose an id; W&B creates a run when it is first written to."""
        return uuid.uuid4().hex

    def write(self, run_id: str, run: RunContent, update: Update) -> None:
        """Add to a run."""
        import wandb

        self._wait_for_own_folder(run_id)
        settings = wandb.Settings(
            console="off",
            silent=True,
            disable_git=True,
            save_code=False,
            x_disable_stats=True,
            x_disable_meta=True,
        )
        with wandb.init(
            mode="online" if self.online else "offline",
            project=self.project,
            dir=self.folder,
            id=run_id,
            resume="allow",
            name=run.name,
            job_type=run.config.task,
            config={**run.config.model_dump(mode="json"), "environment": dict(run.environment)},
            allow_val_change=True,
            settings=settings,
        ) as opened:
            for point in update.points:
                pictures = {name: wandb.Image(str(path)) for name, path in point.pictures.items()}
                opened.log({**point.values, **pictures}, step=point.step)
            opened.summary.update({f"result/{key}": value for key, value in update.result.items()})

    def _wait_for_own_folder(self, run_id: str) -> None:
        """Wait until no earlier update has the same folder; the time in its name has a resolution of seconds."""
        while list(self.folder.glob(f"wandb/*run-{time.strftime('%Y%m%d_%H%M%S')}-{run_id}")):
            time.sleep(0.1)
