"""python -m autoreid.study: does a search find better networks than chance, on these data and by these recipes?"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from autoreid.cli import run_command
from autoreid.config import MAY_DIFFER, Config, expand
from autoreid.errors import ConfigError
from autoreid.recipes import load_config, override_of
from autoreid.reporting.run_folder import RunFolder
from autoreid.trials.trial import require_derived

_EXAMPLES = """\
examples:
  python -m autoreid.study --search configs/quickstart.yaml --train configs/quickstart_train.yaml --searches 3 \\
      --random 8 --output studies/quickstart --plan
  python -m autoreid.study --search configs/quickstart.yaml --train configs/quickstart_train.yaml --searches 3 \\
      --random 8 --output studies/quickstart search.order=second --train-set training.epochs=6

Runs S searches with the seeds 0 to S-1, trains each found network once, and R random networks of the same sizes and
operations. The folder gets study.json, study.png, trials.jsonl, and the run folders of the searches. The same command
resumes, and more searches or random networks are added to those that are there. Several processes with the same
--output share the work. jobs/submit_study.py submits a study to Slurm.
"""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m autoreid.study",
        description="Compare networks that a search finds with random ones.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_options(parser)
    parser.add_argument(
        "--plan",
        action="store_true",
        help="time a step of a search and of a training, and print the total cost",
    )
    options = parser.parse_intermixed_args(arguments)
    check_options(options)
    return options


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what a study consists of to a parser."""
    add = parser.add_argument
    add("--search", type=expand, required=True, metavar="FILE", help="recipe of the searches")
    add("--train", type=expand, required=True, metavar="FILE", help="recipe that trains the networks")
    add("--searches", type=int, required=True, metavar="S", help="number of searches")
    add("--random", type=int, required=True, metavar="R", help="number of random networks")
    add("--output", type=expand, required=True, metavar="FOLDER", help="folder of the study")
    add(
        "--train-set",
        nargs="+",
        action="extend",
        default=[],
        metavar="section.key=value",
        help="values that replace those of the training's recipe",
    )
    add("overrides", nargs="*", metavar="section.key=value", help="values that replace the search recipe's")


def check_options(options: argparse.Namespace) -> None:
    """Raise ConfigError if a number of networks is out of range."""
    for name in ("searches", "random"):
        if getattr(options, name) < 1:
            raise ConfigError(f"command line: --{name} {getattr(options, name)}: must be at least 1")


def search_overrides(folder: Path, seed: int) -> list[str]:
    """Return the overrides that make a search that of a study."""
    folders = {"output_dir": folder / "runs", "genotype_dir": folder / "genotypes"}
    own = [override_of(key, value) for key, value in folders.items()]
    return [f"seed={seed}", f"task_name=search{seed}", *own]


def read_recipes(options: argparse.Namespace) -> tuple[dict[str, Config], Config]:
    """Read the recipes, and check that they agree with what the folder has.

    Returns:
        The config of each search, by name, and the recipe of the trainings.

    Raises:
        ConfigError: a recipe is wrong, or the folder belongs to another study.
    """
    folder: Path = options.output
    searches = {
        f"search{seed}": load_config(options.search, [*options.overrides, *search_overrides(folder, seed)])
        for seed in range(options.searches)
    }
    recipe = load_config(options.train, options.train_set)
    if searches["search0"].task != "search":
        raise ConfigError(
            f"{options.search}: task: train; expected task: search, such as configs/quickstart.yaml"
        )
    require_derived(recipe, options.train)
    for name, config in searches.items():
        try:
            RunFolder(config.output_dir / name).check_claim(config, MAY_DIFFER)
        except ConfigError as error:
            raise ConfigError(f"--output {folder}: the study there has other searches: {error}") from error
    return searches, recipe


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""

    def command() -> int:
        options = parse(sys.argv[1:] if arguments is None else arguments)
        searches, recipe = read_recipes(options)
        from autoreid.commands.study import execute

        execute(options, searches, recipe)
        return 0

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
