"""The jobs of a pipeline: searches (one per array task), a tournament, derive, train, evaluate."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from autoreid.config import Config
from autoreid.recipes import load_config, override_of
from autoreid.slurm.job_options import JobOptions
from autoreid.slurm.planning import PlannedRun, check_not_queued, plan_runs
from autoreid.slurm.stages import Stage
from autoreid.slurm.submit import seed_overrides
from autoreid.slurm.tasks import PackageCommand
from autoreid.trials.trial import require_derived

#: Fraction of identities that a tournament holds out if neither recipe says it.
_HELD_OUT = 0.2


@dataclass(frozen=True)
class Pipeline:
    """The jobs of a pipeline, each of which reads what the one before it has written.

    Attributes:
        options: the command line of jobs/submit_pipeline.py.
        job_options: resources of the searches and of the training.
        searches: the planned searches.
        recipe: the recipe of the training, whose task name names all results.
        here: the folder that commands run in.
    """

    options: argparse.Namespace
    job_options: JobOptions
    searches: list[PlannedRun]
    recipe: Config
    here: Path

    @classmethod
    def plan(cls, options: argparse.Namespace, job_options: JobOptions) -> Pipeline:
        """Plan the jobs, and check configs, run folders and queue. `commands.pipeline.check` does the rest.

        Raises:
            ConfigError: an error in any of the stages.
        """
        recipe, overrides = options.config, options.overrides
        seeds = seed_overrides(recipe, overrides, options.seeds)
        searches = plan_runs(recipe, [[*overrides, *seed] for seed in seeds], "search", job_options)
        name = options.name or f"{load_config(recipe, overrides).task_name}_found"
        training = load_config(options.train_config, [override_of("task_name", name), *options.train])
        require_derived(training, options.train_config)
        pipeline = cls(options, job_options, searches, training, Path.cwd())
        check_not_queued([pipeline.run])
        if pipeline.tournament is not None:
            load_config(options.train_config, pipeline.held_out)  # raises now what the tournament would
        return pipeline

    @property
    def run(self) -> Path:
        """The run folder of the training."""
        return (self.recipe.output_dir / self.recipe.task_name).absolute()

    @property
    def derived(self) -> Path:
        """The folder of the derived network."""
        return self.here / "derived" / self.recipe.task_name

    @property
    def tournament(self) -> Path | None:
        """The folder of the tournament, which is needed if there are several networks."""
        several = len(self.searches) > 1 or self.options.random > 0
        return self.here / "tournaments" / self.recipe.task_name if several else None

    @property
    def held_out(self) -> list[str]:
        """The overrides with which a tournament measures on held-out identities instead of test images."""
        if self.recipe.evaluation.split == "held_out":
            return [*self.options.train]
        searched = self.searches[0].config.data.held_out_fraction
        fraction = self.recipe.data.held_out_fraction or searched or _HELD_OUT
        held_out = ["evaluation.split=held_out", f"data.held_out_fraction={fraction}", "data.targets=[]"]
        return [*self.options.train, *held_out]

    def freeze(self) -> None:
        """Write the copies of the configs that the searches read."""
        for search in self.searches:
            search.freeze()

    def stages(self) -> Iterator[Stage]:
        """Yield the jobs in order."""
        yield self._search()
        if self.tournament is not None:
            yield self._tournament(self.tournament)
        yield self._derive()
        yield self._train()
        if self.options.data:
            yield self._evaluate()

    def _search(self) -> Stage:
        folders = [search.folder for search in self.searches]
        commands = [search.command() for search in self.searches]
        return Stage("search", commands, self.job_options, folders[0] / "slurm", folders)

    def _tournament(self, folder: Path) -> Stage:
        arguments = [str(search.folder) for search in self.searches]
        arguments += ["--random", str(self.options.random)]
        arguments += ["--config", str(self.options.train_config.absolute()), "--output", str(folder)]
        arguments += [*self.held_out, *self._device()]
        # afterany: the pipeline continues if the search of one seed fails.
        return self._single("tournament", arguments, folder, self._one_gpu(), "afterany")

    def _derive(self) -> Stage:
        arguments = [str(self.tournament or self.searches[0].folder), *self.options.train]
        arguments += ["--config", str(self.options.train_config.absolute()), "--output", str(self.derived)]
        small = {"nodes": 1, "gpus": 0, "tasks": 1, "gres": None, "array_limit": None}
        return self._single("derive", arguments, self.derived, self.job_options.model_copy(update=small))

    def _train(self) -> Stage:
        arguments = ["--config", str(self.derived / "config.yaml"), *self._device()]
        command = PackageCommand("train", arguments, self.here)
        return Stage("train", [command], self.job_options, self.run / "slurm", [self.run], "afterok")

    def _evaluate(self) -> Stage:
        arguments = ["--checkpoint", str(self.run)]
        for folder in self.options.data:
            arguments += ["--data", str(folder)]
        if self.recipe.evaluation.keep_same_camera:
            arguments.append("--keep-same-camera")
        output = self.run.with_name(f"{self.recipe.task_name}_evaluation")
        return self._single("evaluate", [*arguments, "--output", str(output)], output, self._one_gpu())

    def _single(
        self,
        name: str,
        arguments: list[str],
        folder: Path,
        job_options: JobOptions,
        waits_for: str = "afterok",
    ) -> Stage:
        """Return a stage of one job that has no run folder."""
        command = PackageCommand(name, arguments, self.here)
        return Stage(name, [command], job_options, folder / "slurm", (), waits_for)

    def _one_gpu(self) -> JobOptions:
        gpus = min(self.job_options.gpus, 1)
        return self.job_options.model_copy(update={"nodes": 1, "gpus": gpus, "tasks": None, "gres": None})

    def _device(self) -> list[str]:
        """The override with which a job with GPUs fails rather than computes on CPUs."""
        on_gpus = self.job_options.gpus and self.recipe.distributed.device == "auto"
        return ["distributed.device=cuda"] if on_gpus else []
