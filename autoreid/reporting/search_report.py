"""What a search shows beside any run: its genotypes as files and pictures, and its alphas as curves."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from autoreid.config import Config
from autoreid.files import make_folder
from autoreid.reporting.genotype_graph import draw_genotype
from autoreid.reporting.run_folder import RunFolder
from autoreid.reporting.run_report import RunReport
from autoreid.search.signs import DECIDED_RATIO, entropies, undecided
from autoreid.search.task import SearchResult, SearchTask
from autoreid.training.loop import EpochResult

_log = logging.getLogger(__name__)


class SearchReport(RunReport):
    """Everything that rank 0 tells of a search."""

    def __init__(self, config: Config, folder: RunFolder, task: SearchTask) -> None:
        self.task = task
        self.pictures = config.genotype_dir / config.task_name
        make_folder(self.pictures, "set genotype_dir to a folder that can be written")
        # The weights' images, and the alphas' where they have their own.
        batches = 1 if task.state.alpha_stream is None else 2
        super().__init__(config, folder, task.state, batches * config.data.batch_size)

    def learning_rates(self, weights: float) -> dict[str, float]:
        """The weights' and the alphas', and what else the step was done with."""
        alphas = self.task.state.alpha_optimizer.param_groups[0]["lr"]
        scheduled = self.task.relaxation.scheduled(self.state.step - 1)
        return super().learning_rates(weights) | {"alpha_learning_rate": alphas} | scheduled

    def end_epoch(self, result: EpochResult) -> None:
        """Saves and draws the genotype too."""
        if isinstance(result, SearchResult):
            self._show_alphas(result.probabilities)
            self._draw(result)
        super().end_epoch(result)

    def _show_alphas(self, probabilities: Mapping[str, Tensor]) -> None:
        choices = self.task.space.choices()
        for group, entropy in entropies(probabilities).items():
            names, columns, shown = (
                choices[group].rows,
                choices[group].columns,
                choices[group].family or group,
            )
            rows = zip(names, entropy.tolist(), probabilities[group].tolist(), strict=True)
            for label, nats, row in rows:
                curves = {
                    f"alphas_{shown}/{label}/{candidate}": probability
                    for candidate, probability in zip(columns, row, strict=True)
                }
                curves[f"entropy_{shown}/{label}"] = nats
                self.board.scalars(curves, self.state.step)

    def _draw(self, result: SearchResult) -> None:
        stem = f"EP{result.epoch:02d}"
        caption = f"{self.config.task_name} · epoch {result.epoch}"
        if result.retrieval is not None:
            caption += f" · mAP {100 * result.retrieval.map:.1f} %"
        caption += self._undecided(result)
        result.genotype.save(self.pictures / f"{stem}.json")
        for picture in draw_genotype(result.genotype, self.pictures, stem, caption):
            part = picture.stem.removeprefix(f"{stem}-")
            self.board.picture(f"genotype/{part}", picture, self.state.step)

    def _undecided(self, result: SearchResult) -> str:
        """Says how many choices are undecided, for the caption; nothing if all are decided."""
        counts = undecided(result.probabilities, self.task.space.choices())
        total = sum(len(values) for values in result.probabilities.values())
        count = sum(counts.values())
        return f" · undecided: {count} of {total} choices" if count else ""

    def finish(self) -> None:
        """Says how far the search has decided, and where the pictures are."""
        result = self.result()
        if result["undecided"]:
            _log.warning(
                "%d of %d choices are undecided: the best candidate is less than %g times as probable as the second; "
                "train longer, or with another search.alpha_learning_rate",
                result["undecided"],
                result["choices"],
                DECIDED_RATIO,
            )
        _log.info("genotypes: %s", self.pictures)
        super().finish()

    def result(self) -> dict[str, Any]:
        """With the genotype, the digest of the alphas, and how far the search has decided."""
        task = self.task
        choices = task.space.choices()
        open_choices = undecided(task.relaxation.probabilities(task.state.alphas), choices)
        found = {
            "genotype": task.genotype().model_dump(mode="json"),
            "alpha_sha256": task.state.alphas.digest().hex(),
            "undecided": sum(open_choices.values()),
            "choices": sum(len(group.rows) for group in choices.values()),
            "signs": task.state.progress.signs,
        }
        return found | super().result()
