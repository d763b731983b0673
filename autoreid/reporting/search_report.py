"""The report of a search, which adds genotypes as files and pictures, and the alphas as curves."""

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
from autoreid.search.signs import entropies
from autoreid.search.state import SearchResult
from autoreid.search.task import SearchTask
from autoreid.training.loop import EpochResult

_log = logging.getLogger(__name__)


class SearchReport(RunReport):
    """The report of a search on rank 0."""

    def __init__(self, config: Config, folder: RunFolder, task: SearchTask) -> None:
        self.task = task
        self.pictures = config.genotype_dir / config.task_name
        make_folder(self.pictures, "set genotype_dir to a writable folder")
        # The images of the weights, and in a bilevel search those of the alphas.
        batches = 1 if task.state.alpha_stream is None else 2
        super().__init__(config, folder, task.state, batches * config.data.batch_size)

    def learning_rates(self, weights: float) -> dict[str, float]:
        """Return the learning rates of weights and alphas, and the scheduled values of the relaxation."""
        alphas = self.task.state.alpha_optimizer.param_groups[0]["lr"]
        scheduled = self.task.relaxation.scheduled(self.state.step - 1)
        return super().learning_rates(weights) | {"alpha_learning_rate": alphas} | scheduled

    def end_epoch(self, result: EpochResult) -> None:
        """Also save and draw the genotype."""
        if isinstance(result, SearchResult):
            self._show_alphas(result.probabilities)
            self._draw(result)
        super().end_epoch(result)

    def _show_alphas(self, probabilities: Mapping[str, Tensor]) -> None:
        choices = self.task.space.choices()
        for group, entropy in entropies(probabilities).items():
            names, columns = choices[group].rows, choices[group].columns
            family = choices[group].family or group
            rows = zip(names, entropy.tolist(), probabilities[group].tolist(), strict=True)
            for label, nats, row in rows:
                curves = {
                    f"alphas_{family}/{label}/{candidate}": probability
                    for candidate, probability in zip(columns, row, strict=True)
                }
                curves[f"entropy_{family}/{label}"] = nats
                self.board.scalars(curves, self.state.step)

    def _draw(self, result: SearchResult) -> None:
        stem = f"EP{result.epoch:02d}"
        caption = f"{self.config.task_name} · epoch {result.epoch}"
        if result.retrieval is not None:
            caption += f" · mAP {100 * result.retrieval.map:.1f} %"
        count, total = self._open_choices()
        caption += f" · undecided: {count} of {total} choices" if count else ""
        result.genotype.save(self.pictures / f"{stem}.json")
        for picture in draw_genotype(result.genotype, self.pictures, stem, caption):
            part = picture.stem.removeprefix(f"{stem}-")
            self.board.picture(f"genotype/{part}", picture, self.state.step)

    def _open_choices(self) -> tuple[int | None, int]:
        """The number of undecided choices after the last epoch, None if no alphas are trained; and of all choices."""
        total = sum(len(group.rows) for group in self.task.space.choices().values())
        if not self.task.relaxation.learns_alphas:
            return None, total
        return sum(self.task.state.progress.undecided.values()), total

    def finish(self) -> None:
        """Also log how far the search has decided, and the folder of the genotypes."""
        count, total = self._open_choices()
        if count:
            _log.warning(
                "%d of %d choices are undecided: another seed may well choose differently; see docs/search.md",
                count,
                total,
            )
        _log.info("genotypes: %s", self.pictures)
        super().finish()

    def result(self) -> dict[str, Any]:
        """Return the content of result.json, with the genotype, the digest of the alphas and the open choices."""
        task = self.task
        count, total = self._open_choices()
        found: dict[str, Any] = {
            "genotype": task.genotype().model_dump(mode="json"),
            "alpha_sha256": task.state.alphas.digest().hex(),
            "undecided": count,
            "choices": total,
            "signs": task.state.progress.signs,
        }
        if task.state.cost is not None:
            found["cost"] = task.state.cost.of(task.genotype())
        if self.config.search.read_out != "argmax":
            found["read_out_seconds"] = task.state.read_out_seconds
        return found | super().result()
