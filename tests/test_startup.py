"""What a command does before it needs PyTorch, whose import takes seconds: help, printed configs, and mistakes."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from autoreid.recipes import load_config, parse_config
from tests.helpers.commands import ROOT

#: Packages that take long to import.
HEAVY = ("torch", "torchvision", "tensorboardX", "matplotlib", "onnxruntime", "scipy", "wandb", "mlflow")
TRAIN, DERIVE = ["--train", "configs/quickstart_train.yaml"], ["--config", "configs/quickstart_train.yaml"]
STUDY = [
    *TRAIN,
    "--searches",
    "1",
    "--random",
    "1",
    "--output",
    "none",
    "--search",
    "configs/quickstart.yaml",
]
GENOTYPE = "searched_genotypes/published/auto_reid.json"
#: A mistake in the config or the command line, for each command that can see one, and what it is told.
MISTAKES = {
    "autoreid/train.py": (
        ["--config", "configs/quickstart.yaml", "training.epoch=3"],
        "did you mean training.epochs?",
    ),
    "autoreid/derive.py": ([GENOTYPE, *DERIVE, "--output", "none", "data.width=x"], "data.width"),
    "autoreid/tournament.py": ([GENOTYPE, *DERIVE, "--output", "none", "data.width=x"], "data.width"),
    "autoreid/study.py": ([*STUDY, "search.order=third"], "search.order"),
    "autoreid/slurm/study_part.py": ([*STUDY, "--table", "search.order=third"], "search.order"),
    "autoreid/evaluate.py": (["--checkpoint", "none", "--data", "tests"], "--checkpoint none: no such file"),
    "autoreid/export.py": (["none", "--output", "none", "--model", "pcb", "--option", "x"], "KEY=VALUE"),
    "autoreid/mirror.py": (["runs", "--to", "mlflow", "--online"], "--online is for --to wandb"),
    "jobs/submit_search.py": (["--config", "configs/quickstart.yaml", "seed=x"], "seed"),
    "jobs/submit_train.py": (["--config", "configs/quickstart.yaml"], "submit it with jobs/submit_search.py"),
    "jobs/submit_study.py": ([*STUDY, "search.order=third"], "search.order"),
    "jobs/submit_pipeline.py": (
        ["--config", "configs/quickstart.yaml", "--train-config", "configs/baseline_pcb.yaml"],
        "model.name: derived",
    ),
    "jobs/submit_evaluate.py": (["--", "--checkpoint", "tests", "--data", "tests"], "--output: required"),
}
#: Calls that print a config, with its recipe and overrides.
PRINTED = [
    ("configs/darts_triplet.yaml", "training.epochs=300"),
    ("configs/retrain.yaml", f"model.options.genotype={GENOTYPE}"),
]

#: Runs commands in one process, in which heavy packages cannot be imported. Prints the status and the output of each.
SCRIPT = """
import contextlib, io, json, runpy, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in HEAVY:
            raise ImportError(f"imports {name}")

def run(command, arguments):
    sys.argv, out, err = [command, *arguments], io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            runpy.run_path(command, run_name="__main__")
        except SystemExit as end:
            return [end.code, out.getvalue(), err.getvalue()]
        except ImportError as error:
            return [None, out.getvalue(), str(error)]
    return [None, out.getvalue(), err.getvalue()]

HEAVY, calls = json.loads(sys.argv[1])
sys.meta_path.insert(0, Refuse())
results = [run(*call) for call in calls]
print(json.dumps(results))
"""


def commands() -> list[str]:
    """The files of all commands; tests cannot forget a new one."""
    files = [*ROOT.glob("autoreid/**/*.py"), *ROOT.glob("jobs/*.py"), *ROOT.glob("scripts/*.py")]
    paths = [path.relative_to(ROOT) for path in files if '__name__ == "__main__"' in path.read_text()]
    return sorted(map(str, paths))


@pytest.fixture(scope="module")
def results():
    """Status, stdout and stderr of each call, by its command and arguments."""
    calls = [(command, ["--help"]) for command in commands()]
    calls += [(command, arguments) for command, (arguments, _) in MISTAKES.items()]
    calls += [
        ("autoreid/train.py", ["--config", recipe, override, "--print-config"])
        for recipe, override in PRINTED
    ]
    line = [sys.executable, "-c", SCRIPT, json.dumps([HEAVY, calls])]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True)
    answers = map(tuple, json.loads(done.stdout))
    return {
        (command, *arguments): answer for (command, arguments), answer in zip(calls, answers, strict=True)
    }


def test_there_are_commands():
    assert {"autoreid/train.py", "autoreid/slurm/resume.py", "jobs/submit_study.py"} < {*commands()}


@pytest.mark.parametrize("command", commands())
def test_help_needs_no_heavy_package(results, command):
    status, out, err = results[command, "--help"]
    assert (status, err) == (0, "")
    assert "--help" in out


@pytest.mark.parametrize("command", MISTAKES)
def test_a_mistake_is_named_in_one_line_without_a_heavy_package(results, command):
    arguments, said = MISTAKES[command]
    status, out, err = results[(command, *arguments)]
    assert (status, out) == (2, "")
    assert said in err
    assert err.startswith("autoreid: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(("recipe", "override"), PRINTED)
def test_a_config_is_printed_without_a_heavy_package(results, recipe, override):
    status, out, err = results["autoreid/train.py", "--config", recipe, override, "--print-config"]
    assert (status, err) == (0, "")
    printed, loaded = parse_config(out, "printed"), load_config(ROOT / recipe, [override])
    assert printed.training == loaded.training
    # The genotype is part of the printed config.
    if "genotype" in loaded.model.options:
        text = (ROOT / GENOTYPE).read_text()
        assert json.loads(printed.model.options["genotype"]) == json.loads(text)
