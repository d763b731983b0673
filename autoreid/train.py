"""python -m autoreid.train: runs what the config's `task` says, here or as one of many ranks."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from autoreid import distributed
from autoreid.checkpoint import CheckpointFolder
from autoreid.cli import run_command
from autoreid.config import Config, describe_options, load_config
from autoreid.data.loaders import embedding_batches
from autoreid.data.search_data import SearchData, build_search_data
from autoreid.data.synthetic_people import write_synthetic_people
from autoreid.data.transforms import evaluation_transform
from autoreid.distributed import StopSignal, World, on_main
from autoreid.evaluation import RetrievalResult, measure_retrieval
from autoreid.losses import RetrievalLoss
from autoreid.reporting.logs import start_logging
from autoreid.reporting.run_folder import RunFolder
from autoreid.reporting.search_report import SearchReport
from autoreid.search.alphas import Alphas
from autoreid.search.architect import Architect
from autoreid.search.loop import SearchParts, SearchState, search
from autoreid.search.objective import Objective
from autoreid.search.reid_cell import ReidCellSpace
from autoreid.search.relaxations import Softmax
from autoreid.seeding import derive_seed

_log = logging.getLogger(__name__)

#: Keys that a resumed run may change: they say where and how it computes, not what.
MAY_DIFFER = (
    "output_dir",
    "genotype_dir",
    "data.root",
    "data.workers",
    "evaluation.batch_size",
    "distributed.device",
    "distributed.digest_every_steps",
    "distributed.timeout_seconds",
    "checkpoint.every_steps",
    "checkpoint.keep_last",
    "reporting.every_seconds",
    "reporting.every_steps",
)

_EXAMPLES = """\
examples:
  python -m autoreid.train --config configs/quickstart.yaml
  python -m autoreid.train --config configs/darts_triplet.yaml data.root=/data/market1501 training.epochs=100
  torchrun --nproc-per-node 2 -m autoreid.train --config configs/quickstart.yaml
  srun python -m autoreid.train --config configs/darts_triplet.yaml

The same command again goes on where the run stopped. Exit status: 0 done, or stopped by SIGTERM or SIGUSR2 and
saved; 1 the run failed; 2 the command line, config or data is wrong; 3 the ranks disagree.

keys (default): meaning
"""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m autoreid.train",
        description="Searches a network for person re-identification, as a config file says.",
        epilog=_EXAMPLES + describe_options(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config", type=Path, required=True, metavar="FILE", help="YAML recipe, as in configs/"
    )
    parser.add_argument("--print-config", action="store_true", help="show the resolved config and leave")
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="values that replace the recipe's"
    )
    return parser.parse_args(arguments)


def run_search(config: Config, world: World) -> None:
    """Searches, from the last checkpoint if there is one, and writes the run folder."""
    if config.data.synthetic is not None:
        people = config.data.synthetic
        on_main(lambda: write_synthetic_people(config.data.root, people))
    data = build_search_data(config.data, config.seed, config.evaluation.split, world)
    state, parts = build_search(config, data, world)

    folder = RunFolder(config.output_dir / config.task_name)
    on_main(lambda: folder.claim(config.to_yaml(), MAY_DIFFER))
    start_logging(folder.logs, world.rank)
    checkpoints = CheckpointFolder(folder.checkpoints, config.checkpoint.keep_last)
    saved = checkpoints.load_latest()
    if saved is not None:
        state.load_state_dict(saved["state"])
        state.restarts += 1
        _log.info("resumed at step %d, epoch %d", state.step, state.epoch + 1)
    if state.finished and folder.result.exists():
        _log.info("this search is finished: %s", folder.result)
        return
    _log.info("%s", data.summary)
    share = config.data.batch_size // world.size
    _log.info("global batch of %d images: %d on each of %d ranks", config.data.batch_size, share, world.size)

    def save(state: SearchState, is_best: bool) -> None:
        content = {"state": state.state_dict(), "config": config.to_yaml()}
        on_main(lambda: checkpoints.save(state.step, content, is_best))

    with StopSignal() as stop, SearchReport(config, parts.space, folder, world, state) as report:
        done = search(config, state, parts, save, report, world, stop)
        if done:
            report.finish(state)
        else:
            _log.info("stopped at step %d by a signal; the same command goes on", state.step)


def build_search(config: Config, data: SearchData, world: World) -> tuple[SearchState, SearchParts]:
    """Builds everything that a search is made of; equal seeds give equal weights and alphas on every rank."""
    space = ReidCellSpace(config.search)
    torch.manual_seed(derive_seed(config.seed, "weights"))
    supernet = space.build_supernet(data.num_identities)
    if config.distributed.share_batch_statistics:
        distributed.share_batch_statistics(supernet)
    memory_format = torch.channels_last if config.training.channels_last else torch.contiguous_format
    supernet.to(device=world.device, memory_format=memory_format)  # type: ignore[call-overload]
    generator = torch.Generator().manual_seed(derive_seed(config.seed, "alphas"))
    alphas = Alphas(space.alpha_shapes(), generator).to(world.device)
    training, losses, settings = config.training, config.losses, config.search
    state = SearchState(
        supernet,
        alphas,
        torch.optim.SGD(
            supernet.parameters(),
            training.learning_rate,
            training.momentum,
            weight_decay=training.weight_decay,
        ),
        torch.optim.Adam(
            alphas.parameters(),
            settings.alpha_learning_rate,
            settings.alpha_betas,
            weight_decay=settings.alpha_weight_decay,
        ),
        data.weight_stream,
        data.alpha_stream,
        totals=torch.zeros(4, device=world.device),
    )
    loss = RetrievalLoss(
        losses.classification_weight,
        losses.margin,
        losses.label_smoothing,
        distributed.gather if losses.mine_across_ranks else None,
        world.rank,
    )
    objective = Objective(loss, training.precision, world.device)
    relaxation = Softmax()
    architect = Architect(supernet, alphas, relaxation, objective, state.weight_optimizer, settings.order)
    network = distributed.data_parallel(supernet, not config.distributed.share_batch_statistics)
    measure = partial(_measure, config, data, supernet, world)
    return state, SearchParts(space, relaxation, architect, objective, network, measure)


def _measure(
    config: Config, data: SearchData, supernet: torch.nn.Module, world: World, mixing: Mapping[str, Tensor]
) -> RetrievalResult:
    """Ranks the gallery by the supernet's embedding, mixed by the probabilities of the choices."""
    distributed.broadcast_buffers(supernet)
    shape = (config.data.height, config.data.width)
    load = partial(
        embedding_batches,
        transform=evaluation_transform(*shape),
        shape=shape,
        batch_size=config.evaluation.batch_size,
        workers=config.data.workers,
    )
    supernet.eval()
    try:
        return measure_retrieval(
            lambda images: supernet(images, mixing)[0],
            data.query,
            data.gallery,
            load,
            world,
            config.evaluation.metric,
        )
    finally:
        supernet.train()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""

    def command() -> int:
        options = parse(sys.argv[1:] if arguments is None else arguments)
        config = load_config(options.config, options.overrides)
        if options.print_config:
            print(config.to_yaml(), end="")
            return 0
        with distributed.setup(config.distributed.device, config.distributed.timeout_seconds) as world:
            run_search(config, world)
        return 0

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
