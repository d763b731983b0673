"""What a search shows while it runs and leaves behind: bar, log, TensorBoard, pictures, metrics and result."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from types import TracebackType

from torch import Tensor
from torchvision.utils import make_grid

from autoreid.config import Config
from autoreid.data.transforms import denormalise
from autoreid.distributed import World
from autoreid.files import make_folder
from autoreid.reporting.board import Board
from autoreid.reporting.genotype_graph import draw_genotype
from autoreid.reporting.logs import PeriodicLine, progress_bar
from autoreid.reporting.run_folder import RunFolder
from autoreid.search.alphas import entropies
from autoreid.search.genotype import CellGenotype
from autoreid.search.loop import METRICS, EpochResult, SearchState
from autoreid.search.reid_cell import ReidCellSpace

_log = logging.getLogger(__name__)


def open_report(
    config: Config, space: ReidCellSpace, folder: RunFolder, world: World, state: SearchState
) -> SearchReport | Silence:
    """Rank 0's report, and silence on every other rank."""
    return SearchReport(config, space, folder, state) if world.is_main else Silence()


class Silence:
    """The report of a rank that says nothing."""

    def __enter__(self) -> Silence:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def start_epoch(self, state: SearchState) -> None:
        """Says nothing."""

    def step(self, state: SearchState, metrics: Tensor, learning_rate: float) -> None:
        """Says nothing."""

    def end_epoch(self, state: SearchState, result: EpochResult) -> None:
        """Says nothing."""

    def finish(self, state: SearchState, genotype: CellGenotype) -> None:
        """Says nothing."""


class SearchReport:
    """Everything that rank 0 tells of a search, from the state's step on: what an earlier start told beyond it goes."""

    def __init__(self, config: Config, space: ReidCellSpace, folder: RunFolder, state: SearchState) -> None:
        self.config = config
        self.space = space
        self.folder = folder
        self.images_per_step = 2 * config.data.batch_size
        self.pictures = config.genotype_dir / config.task_name
        make_folder(self.pictures, "set genotype_dir to a folder that can be written")
        folder.truncate_metrics(state.step)
        folder.write_environment({"restarts": state.restarts})
        self.board = Board(folder.tensorboard, state.step)
        if state.step == 0:
            self._show_start(state)

    def _show_start(self, state: SearchState) -> None:
        self.board.text("config", f"```yaml\n{self.config.to_yaml()}```")
        images = denormalise(state.weight_stream.preview().images[:64])
        sheet = make_grid(images, nrow=2 * self.config.data.images_per_identity, pad_value=255)
        self.board.picture("training images", sheet.permute(1, 2, 0).numpy(), 0)
        self.board.flush()

    def __enter__(self) -> SearchReport:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.board.close()

    def start_epoch(self, state: SearchState) -> None:
        """Starts the epoch's progress bar, and the clock of its plain lines."""
        steps, done = state.steps_per_epoch, state.step_in_epoch
        self.name = f"epoch {state.epoch + 1}/{self.config.training.epochs}"
        self.bar = progress_bar(steps, done, self.name, enabled=True)
        self.line = PeriodicLine(steps, done, self.config.reporting.every_seconds)
        self.started = (state.step, state.seconds)

    def step(self, state: SearchState, metrics: Tensor, learning_rate: float) -> None:
        """Moves the bar; now and then a plain line and a point on each curve, of rank 0's share of the batch."""

        def values() -> dict[str, float]:
            return dict(zip(METRICS, metrics.tolist(), strict=True))

        self.line.update(self.name, state.step_in_epoch, self.images_per_step, values)
        if state.step % self.config.reporting.every_steps == 0:
            self.bar.set_postfix_str(f"loss {values()['loss']:.3f}", refresh=False)
            curves = {f"step/{name}": value for name, value in values().items()}
            curves |= {
                "step/weight_learning_rate": learning_rate,
                "step/alpha_learning_rate": self.config.search.alpha_learning_rate,
                "step/images_per_second": self._speed(state),
            }
            self.board.scalars(curves, state.step)
        self.bar.update()

    def _speed(self, state: SearchState) -> float:
        """Training images a second since the epoch began here, weights' and alphas' together."""
        step, seconds = self.started
        return (state.step - step) * self.images_per_step / max(state.seconds - seconds, 1e-9)

    def end_epoch(self, state: SearchState, result: EpochResult) -> None:
        """Saves and draws the genotype, and adds the epoch to log, metrics and TensorBoard."""
        self.bar.close()
        values = result.metrics | {"images_per_second": self._speed(state)}
        if result.retrieval is not None:
            rates = {f"rank{rank}": rate for rank, rate in result.retrieval.cmc.items()}
            values |= {"map": result.retrieval.map, "minp": result.retrieval.minp, **rates}
        self.board.scalars({f"epoch/{name}": value for name, value in values.items()}, state.step)
        self._show_alphas(state, result.probabilities)
        self._draw(state, result)
        self.board.flush()
        self.folder.append_metrics({"epoch": result.epoch, "step": state.step, **values})
        _log.info("%s: %s", self.name, _in_words(result))

    def _show_alphas(self, state: SearchState, probabilities: Mapping[str, Tensor]) -> None:
        labels = self.space.choice_labels()
        operations = self.config.search.operations
        for group, entropy in entropies(probabilities).items():
            curves = {
                f"entropy_{group}/{label}": v
                for label, v in zip(labels[group], entropy.tolist(), strict=True)
            }
            for label, row in zip(labels[group], probabilities[group].tolist(), strict=True):
                named = zip(operations, row, strict=True)
                curves |= {f"alphas_{group}/{label}/{operation}": value for operation, value in named}
            self.board.scalars(curves, state.step)

    def _draw(self, state: SearchState, result: EpochResult) -> None:
        stem = f"EP{result.epoch:02d}"
        caption = f"{self.config.task_name} · epoch {result.epoch}"
        if result.retrieval is not None:
            caption += f" · mAP {100 * result.retrieval.map:.1f} %"
        result.genotype.save(self.pictures / f"{stem}.json")
        for picture in draw_genotype(result.genotype, self.pictures, stem, caption):
            kind = picture.stem.removeprefix(f"{stem}-")
            self.board.picture(f"genotype/{kind}", picture, state.step)

    def finish(self, state: SearchState, genotype: CellGenotype) -> None:
        """Writes result.json and says where everything is."""
        retrieval = state.retrieval or {}
        self.folder.write_result(
            {
                "genotype": genotype.model_dump(mode="json"),
                "alpha_sha256": state.alphas.digest().hex(),
                "map": retrieval.get("map"),
                "cmc": retrieval.get("cmc"),
                "best_map": state.best_map,
                "epochs": state.epoch,
                "steps": state.step,
                "images_per_second": state.step * self.images_per_step / max(state.seconds, 1e-9),
                "seconds": state.seconds,
                "restarts": state.restarts,
            }
        )
        _log.info("genotypes: %s", self.pictures)
        _log.info("result: %s", self.folder.result)
        _log.info("TensorBoard: tensorboard --samples_per_plugin images=1000 --logdir %s", self.folder.root.parent)


def _in_words(result: EpochResult) -> str:
    metrics = result.metrics
    text = f"loss {metrics['loss']:.3f}, accuracy {100 * metrics['accuracy']:.1f} %"
    if result.retrieval is not None:
        text += f", mAP {100 * result.retrieval.map:.1f} %, rank-1 {100 * result.retrieval.cmc[1]:.1f} %"
        text += " (best)" if result.is_best else ""
    entropy = [
        f"{name.split('/')[0]} {value:.3f}" for name, value in metrics.items() if name.endswith("/entropy")
    ]
    return f"{text}, entropy {', '.join(entropy)}"
