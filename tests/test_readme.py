"""Every command of the README, run as it stands there, on smaller data and for fewer epochs."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from autoreid.data.datasets import read_dataset
from autoreid.data.synthetic_people import SyntheticPeople, write_synthetic_people
from tests.helpers import miniatures
from tests.helpers.archives import pack

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
COMMANDS = [
    line
    for block in re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    for line in block.splitlines()
]
SMALL = [
    "training.epochs=1",
    "search.cells_per_stage=[1,1]",
    "search.channels=2",
    "search.nodes=2",
    "search.warmup_epochs=0",
    "data.height=32",
    "data.width=16",
    "data.batch_size=16",
    "data.workers=0",
    "search.parts=2",
    "evaluation.every_epochs=1",
]


#: The same for a search of the other space, whose supernet has no cells.
SMALL_OSNET = [
    *(key for key in SMALL if not key.startswith("search.") and key != "data.width=16"),
    "data.width=32",
    *(
        f"data.synthetic.people_{name}={{domain: {domain}, train_identities: 6, test_identities: 4}}"
        for domain, name in enumerate("abc", start=1)
    ),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder like a fresh checkout, with a data set in Market-1501's layout, after the demo."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in (
        "configs",
        "scripts",
        "autoreid",
        "jobs",
        "Makefile",
        "setup.cfg",
        "pyproject.toml",
        "README.md",
        "benchmarks",
    ):
        (folder / name).symlink_to(ROOT / name)
    people = SyntheticPeople(
        train_identities=12, test_identities=4, images_per_identity=8, height=48, width=24
    )
    write_synthetic_people(folder / "data/market1501", people)
    write_synthetic_people(folder / "data/synthetic_people", SyntheticPeople())
    miniatures.dukemtmc(folder / "duke")
    pack(folder / "duke", folder / "DukeMTMC-reID.zip")
    return folder


def run(command: list[str], folder: Path, outside: Mapping[str, str] = os.environ) -> str:
    environment = dict(outside) | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),  # installed
    }
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def the_command(beginning: str) -> list[str]:
    (command,) = [command for command in COMMANDS if command.startswith(beginning)]
    return shlex.split(command)


@pytest.fixture(scope="module")
def demo(place) -> str:
    """What the demo printed: what make would run, with the environment that runs this test for its own."""
    printed = run(["make", "-n", *the_command("make demo")[1:]], place)
    (command,) = [line for line in printed.splitlines() if "scripts/demo.sh" in line]
    _, *words = shlex.split(command)
    return run(["env", f"PYTHON={sys.executable}", *words, *SMALL], place)


def test_make_demo_goes_the_whole_way_and_says_where_everything_is(place, demo):
    for line in demo.splitlines():
        if line.startswith(("genotypes: ", "result: ")):
            assert (place / line.split(": ")[1]).exists()
    assert (place / "searched_genotypes/quickstart/EP01-normal.png").exists()
    assert "tensorboard --samples_per_plugin images=1000 --logdir runs" in demo
    table = demo[demo.index("+ python -m autoreid.evaluate") :]
    assert all(
        name in table for name in ("quickstart_found", "quickstart_random", "quickstart_resnet50", "people")
    )
    for name in ("derived/quickstart_found/network.png", "runs/quickstart_evaluation/result.json"):
        assert (place / name).exists()


def test_make_test_runs_linters_types_and_tests(place):
    printed = run(["make", "-n", *the_command("make test")[1:]], place)
    assert all(name in printed for name in ("ruff check .", "ruff format --check .", "bin/mypy", "-m pytest"))


@pytest.fixture(scope="module")
def prepared(place) -> str:
    """What preparing a data set printed."""
    return run(the_command("python scripts/prepare_dataset.py dukemtmc"), place)


def test_prepare_and_check(place, prepared):
    assert "11 images: all can be read" in prepared
    assert len(read_dataset(place / "data", "dukemtmc").train) == 4
    assert "images: all can be read" in run(
        the_command("python scripts/prepare_dataset.py market1501"), place
    )


@pytest.mark.parametrize(
    "command",
    [command for command in COMMANDS if "autoreid.train --config" in command and "derived/" not in command],
)
def test_train_commands(place, prepared, command):
    words = shlex.split(command)
    name = f"readme{COMMANDS.index(command)}"
    small = SMALL_OSNET if "configs/osnet_ain_quickstart.yaml" in words else SMALL
    run([*words, *small, f"task_name={name}", "distributed.device=cpu"], place)
    assert "--print-config" in words or (place / "runs" / name / "result.json").exists()


def test_derive_and_train(place, demo):
    small = ["model.options.channels=2", "model.options.cells_per_stage=[1, 1]", *SMALL]
    run([*the_command("python -m autoreid.derive"), *small], place)
    run([*the_command("python -m autoreid.train --config derived/"), *small], place)
    assert (place / "runs/found/result.json").exists()


def test_help(place):
    assert "training.epochs (50)" in run(the_command("python -m autoreid.train --help"), place)


def test_evaluate(place, demo):
    output = run(the_command("python -m autoreid.evaluate"), place)
    assert "quickstart_found" in output
    assert (place / "runs/evaluation/result.json").exists()


def test_python_and_export(place, demo):
    (snippet,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert "(1, " in run(
        [sys.executable, "-c", snippet + "\nprint(tuple(features.shape), features.dtype)"], place
    )
    run(the_command("python -m autoreid.export"), place)
    assert (place / "found.onnx").exists()


def test_render_draws_again(place, demo):
    folder = place / "searched_genotypes" / "quickstart"
    for picture in folder.glob("*.png"):
        picture.unlink()
    run(the_command("python -m autoreid.render"), place)
    assert (folder / "EP01-normal.png").exists()


def test_tensorboard_command_is_understood(place, demo):
    _, *options = the_command(".venv/bin/tensorboard")
    shown = run([str(Path(sys.executable).parent / "tensorboard"), "--inspect", *options], place)
    assert "genotype/normal" in shown


def test_the_cluster_section_from_submission_to_cancellation(place, demo, slurm_cluster):
    """As a new user would, line by line, on the local cluster; ranks compute on CPUs, its GPUs are declared only."""
    jobs = [command for command in COMMANDS if command.startswith("python jobs/")]
    used = []

    def call(beginning: str, *more: str, **replaced: str) -> str:
        (command,) = [command for command in jobs if command.startswith(f"python jobs/{beginning}")]
        used.append(command)
        for old, new in replaced.items():
            command = re.sub(rf"--{old} \d+", f"--{old} {new}", command)
        return run([*shlex.split(command), *more], place, slurm_cluster.environment)

    small = [*SMALL, "distributed.device=cpu"]
    (search,) = [job for job in jobs if job.endswith("darts_triplet.yaml")]
    script = call(
        "submit_search.py --nodes 2 --gpus 8 --config configs/darts_triplet.yaml --dry-run", *small, gpus="1"
    )
    assert "#SBATCH --nodes=2" in script
    used.append(search)
    words = shlex.split(search.replace("--gpus 8", "--gpus 1 --cpus-per-task 1"))
    job = run([*words, *small], place, slurm_cluster.environment).split()[1].rstrip(":")
    trained = call("submit_train", *small, "--cpus-per-task", "1", "training.learning_rate=0.001", gpus="1")
    assert "run folder: " in trained
    assert "darts_triplet" in call("status")
    slurm_cluster.wait_for(job, "COMPLETED", timeout=300)
    assert "no job in the queue (finished)" in call("cancel")
    assert "global batch" in run(
        shlex.split(next(c for c in jobs if "logs.py" in c).replace("--rank 3", "--rank 0")),
        place,
        slurm_cluster.environment,
    )
    used.append(next(c for c in jobs if "logs.py" in c))
    pipeline = call("submit_pipeline", "--dry-run", *small, gpus="1")
    assert "# ---- evaluate ----" in pipeline
    evaluation = call("submit_evaluate")
    assert "on_market" in evaluation
    slurm_cluster.wait_for(evaluation.split()[1].rstrip(":"), "COMPLETED", timeout=300)
    assert (place / "runs/on_market/result.json").exists()
    assert sorted(used) == sorted(jobs)


def test_doctor_in_a_login_shell(place):
    assert "ok" in run(the_command("python -m autoreid.doctor"), place)


def test_no_command_is_left_out():
    known = (
        "make demo",
        "make test",
        "python -m autoreid.",
        "python jobs/",
        "python scripts/prepare_dataset.py ",
        ".venv/bin/tensorboard",
        "torchrun --nproc-per-node 2 -m",
    )
    assert [command for command in COMMANDS if not command.startswith(known)] == []
