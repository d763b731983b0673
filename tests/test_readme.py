"""Run the commands of README.md and docs/ as written, with smaller data and fewer epochs."""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from configparser import ConfigParser
from pathlib import Path

import pytest
from PIL import Image

from autoreid.config import SyntheticPeople
from autoreid.data.datasets import read_dataset
from autoreid.data.synthetic.people import write_synthetic_people
from tests.helpers import miniatures
from tests.helpers.archives import pack
from tests.helpers.commands import run_python

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    """Return the code blocks of a page in one language."""
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


#: All commands, without duplicates.
COMMANDS = list(
    dict.fromkeys(line for page in PAGES for block in blocks(page, "bash") for line in block.splitlines())
)
_INSTALLS = "installs packages from the network; `make demo` and `make test` do so on a fresh machine"
_CLUSTER = "the fixture slurm_cluster and tests/test_local_slurm.py run it"
#: Commands that no test in this module runs, with the reason.
NOT_RUN = {
    "python3 -m venv .venv": _INSTALLS,
    "source .venv/bin/activate": _INSTALLS,
    "pip install --editable '.[tensorboard,plots,export,mat]'": _INSTALLS,
    "python -m autoreid.evaluate --checkpoint osnet_x1_0_market.pth --model osnet_x1_0 --data data/market1501": (
        "needs torchreid's file; tests/test_evaluate.py and tests/test_embedder.py do the same with other weights"
    ),
    "python -m autoreid.mirror runs/quickstart runs/quickstart_found --to wandb": (
        "the extra dev does not have wandb; tests/test_mirror.py runs it where it is installed"
    ),
    "trtexec --onnx=found_fp16.onnx --saveEngine=found.engine --minShapes=images:1x3x256x128 "
    "--optShapes=images:16x3x256x128 --maxShapes=images:64x3x256x128": "needs TensorRT and a GPU",
    "scripts/local_slurm.sh start": _CLUSTER,
    "scripts/local_slurm.sh stop": _CLUSTER,
}
#: Commands that a test in this module has run.
ran: set[str] = set()

#: The people of the quickstart, but fewer of them.
PEOPLE = SyntheticPeople(train_identities=20, test_identities=4, images_per_identity=8, height=48, width=24)
FEW_PEOPLE = f"data.synthetic.synthetic_people={PEOPLE.model_dump_json(exclude_unset=True)}"
SMALL = [
    FEW_PEOPLE,
    "training.epochs=1",
    "search.reid_cell.cells_per_stage=[1,1]",
    "search.reid_cell.channels=2",
    "search.reid_cell.nodes=2",
    "search.warmup_epochs=0",
    "data.height=32",
    "data.width=16",
    "data.batch_size=16",
    "data.workers=0",
    "search.reid_cell.parts=2",
    "evaluation.every_epochs=1",
]
#: The same for a search in the msinet space.
SMALL_MSINET = [key for key in SMALL if not key.startswith("search.reid_cell.")]
#: The same for a search in the osnet_ain space.
SMALL_OSNET = [
    *(key for key in SMALL_MSINET if key not in ("search.warmup_epochs=0", "data.width=16")),
    "data.width=32",
    *(
        f"data.synthetic.people_{name}={{domain: {domain}, train_identities: 6, test_identities: 4}}"
        for domain, name in enumerate("abc", start=1)
    ),
]
#: The same for trainings of what such a search finds.
SMALL_TRAINING = [
    FEW_PEOPLE,
    "training.epochs=1",
    "data.height=32",
    "data.width=16",
    "data.batch_size=16",
    "model.options.channels=2",
    "model.options.parts=2",
]
SMALL_DERIVED = ["model.options.channels=2", "model.options.cells_per_stage=[1, 1]", *SMALL]


def check_out(folder: Path) -> Path:
    """Turn a folder into a fresh checkout, and return it."""
    for name in ("configs", "scripts", "autoreid", "jobs", "Makefile", "setup.cfg", "pyproject.toml"):
        (folder / name).symlink_to(ROOT / name)
    for name in ("README.md", "LICENSE", "docs", "benchmarks"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "searched_genotypes").mkdir()  # searches write there
    (folder / "searched_genotypes" / "published").symlink_to(ROOT / "searched_genotypes" / "published")
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A checkout with downloaded archives and the demo's data set."""
    folder = check_out(tmp_path_factory.mktemp("checkout"))
    write_synthetic_people(folder / "market/Market-1501-v15.09.15", PEOPLE)
    pack(folder / "market", folder / "Market-1501-v15.09.15.zip")
    write_synthetic_people(folder / "data/synthetic_people", PEOPLE)
    miniatures.dukemtmc(folder / "duke")
    pack(folder / "duke", folder / "DukeMTMC-reID.zip")
    return folder


def run(command: list[str], folder: Path, outside: Mapping[str, str] = os.environ) -> str:
    environment = dict(outside) | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),  # installed
    }
    if command[0] == "python":
        done = run_python(*command[1:], folder=folder, environment=environment)
    else:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600
        )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def the_command(beginning: str, ending: str = "") -> list[str]:
    """Return the only command with this beginning and ending, and record it as run."""
    (command,) = [
        command for command in COMMANDS if command.startswith(beginning) and command.endswith(ending)
    ]
    ran.add(command)
    return shlex.split(command)


@pytest.fixture(scope="module")
def demo(place) -> str:
    """The output of the demo: the command of `make demo`, with the Python environment of this test."""
    printed = run(["make", "-n", *the_command("make demo")[1:]], place)
    (command,) = [line for line in printed.splitlines() if "scripts/demo.sh" in line]
    _, *words = shlex.split(command)
    return run(["env", f"PYTHON={sys.executable}", *words, *SMALL], place)


def test_make_demo_runs_the_whole_pipeline_and_prints_the_paths_of_its_results(place, demo):
    paths = re.findall(r"^(?:genotypes|result): (.*)$", demo, re.MULTILINE)
    assert len(paths) == 5, "genotypes and result of the search, and three trainings"
    for path in paths:
        assert (place / path).exists()
    assert (place / "searched_genotypes/quickstart/EP01-normal.png").exists()
    assert shlex.join(the_command("tensorboard")) in demo
    for name in ("derived/quickstart_found/network.png", "runs/quickstart_evaluation/result.json"):
        assert (place / name).exists()


def test_the_demo_ends_with_the_table_that_the_readme_shows(demo):
    (shown,) = blocks(ROOT / "README.md", "text")
    rows = [line.split()[0] for line in shown.splitlines()]
    printed = [line.split()[0] for line in demo.splitlines() if line.strip()]
    assert [word for word in printed if word in rows] == rows, demo


def test_make_test_runs_linters_types_and_tests(place):
    printed = run(["make", "-n", *the_command("make test")[1:]], place)
    assert all(name in printed for name in ("ruff check .", "ruff format --check .", "bin/mypy", "-m pytest"))


def test_what_pip_is_asked_for_exists():
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    asked = re.findall(
        r"pip install --editable '\.\[([\w,]+)\]'", "".join(page.read_text() for page in PAGES)
    )
    assert asked
    assert {extra for extras in asked for extra in extras.split(",")} <= set(setup["options.extras_require"])


@pytest.fixture(scope="module")
def prepared(place) -> dict[str, str]:
    """What preparing each data set printed."""
    return {
        name: run(the_command(f"python scripts/prepare_dataset.py {name} --archive"), place)
        for name in ("market1501", "dukemtmc")
    }


def test_prepare_and_check(place, prepared):
    assert "11 images: all can be read" in prepared["dukemtmc"]
    assert len(read_dataset(place / "data", "dukemtmc").train) == 4
    assert read_dataset(place / "data", "market1501").train.num_identities == PEOPLE.train_identities
    assert "images: all can be read" in run(
        the_command("python scripts/prepare_dataset.py market1501 --check"), place
    )


def test_from_a_data_set_to_a_found_network(place, prepared):
    cpu = "distributed.device=cpu"
    run([*the_command("python -m autoreid.train --config configs/darts_triplet.yaml"), *SMALL, cpu], place)
    run([*the_command("python -m autoreid.derive runs/darts_triplet"), *SMALL_DERIVED], place)
    run([*the_command("python -m autoreid.train --config derived/"), *SMALL_DERIVED, cpu], place)
    for name in ("runs/darts_triplet/result.json", "derived/found/network.png", "runs/found/result.json"):
        assert (place / name).exists()


def test_a_study_and_a_tournament_of_what_it_found(place):
    device = "distributed.device=cpu"
    plan = the_command("python -m autoreid.study", ending="--output studies/quickstart --plan")
    study = the_command("python -m autoreid.study", ending="--output studies/quickstart")
    fewer = ["--searches", "2", "--random", "1"]
    small = [*SMALL, device, "--train-set", *SMALL_TRAINING, device]
    assert "searches:  2, 0 of them finished" in run([*plan, *fewer, *small], place)
    assert "rank among random" in run([*study, *fewer, *small], place)
    assert (place / "studies/quickstart/study.png").exists()
    tournament = the_command("python -m autoreid.tournament")
    assert "winner: " in run([*tournament, *SMALL_TRAINING, device], place)
    run([*the_command("python -m autoreid.derive tournaments/"), *SMALL_TRAINING], place)
    assert (place / "derived/winner/config.yaml").exists()


def test_a_study_on_a_folder_of_images(place):
    for number in range(12 * 2 * 4):
        folder = place / f"data/mine/person{number // 8}/camera{number // 4 % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 32), (20 * (number // 8), number, 99)).save(folder / f"{number}.jpg")
    plan = the_command("python -m autoreid.study", ending="data.held_out_fraction=0.2 --plan")
    small = [*SMALL, "distributed.device=cpu", "--train-set", *SMALL_TRAINING, "distributed.device=cpu"]
    assert "trainings: 16, 0 of them finished" in run([*plan, *small], place)


@pytest.mark.parametrize(
    "command",
    [
        command
        for command in COMMANDS
        if "autoreid.train --config" in command
        and "derived/" not in command
        and "darts_triplet" not in command
    ],
)
def test_other_trainings(place, prepared, command):
    words = the_command(command)
    name = f"readme{COMMANDS.index(command)}"
    of_recipe = {
        "configs/osnet_ain_quickstart.yaml": SMALL_OSNET,
        "configs/msinet_quickstart.yaml": SMALL_MSINET,
    }
    small = next((changes for recipe, changes in of_recipe.items() if recipe in words), SMALL)
    run([*words, *small, f"task_name={name}", "distributed.device=cpu"], place)
    assert "--print-config" in words or (place / "runs" / name / "result.json").exists()


def test_help(place):
    assert "training.epochs (50)" in run(the_command("python -m autoreid.train --help"), place)


def test_evaluate(place, demo):
    output = run(the_command("python -m autoreid.evaluate --checkpoint runs", "runs/evaluation"), place)
    assert "quickstart_found" in output
    assert (place / "runs/evaluation/result.json").exists()
    output = run(the_command("python -m autoreid.evaluate --checkpoint runs", "_projector"), place)
    assert "TPR at FPR" in output
    assert (place / "runs/evaluation_projector/tensorboard/projector_config.pbtxt").exists()


def test_mirror(place, demo):
    output = run(the_command("python -m autoreid.mirror", ending="--to mlflow"), place)
    assert output.count(f" written to mlflow sqlite:///{place}/mlflow.db autoreid") == 2
    assert (place / "mlartifacts").exists()


#: The picture in the Python examples, which is one of the whole data set; there are fewer people here.
PICTURE = "data/synthetic_people/query/0065_c1s1_001025_00.jpg"


def snippets(place: Path, page: str) -> list[str]:
    """Return the Python examples of a page, with a picture that exists."""
    before = SyntheticPeople().train_identities
    frame = before * SyntheticPeople().images_per_identity + 1
    assert f"query/{before + 1:04}_c1s1_{frame:06}_00.jpg" in PICTURE
    here = next((place / "data/synthetic_people/query").iterdir())
    return [block.replace(PICTURE, str(here)) for block in blocks(ROOT / page, "python")]


@pytest.fixture(scope="module")
def exported(place, demo) -> None:
    """The exported files of docs/deploy.md, in the checkout."""
    exports = [command for command in COMMANDS if command.startswith("python -m autoreid.export")]
    for command in exports:
        assert "onnxruntime agrees" in run(the_command(command), place)


def test_python_and_cost(place, demo, exported):
    (snippet,) = snippets(place, "docs/evaluate.md")
    assert "(1, " in run(["python", "-c", snippet + "\nprint(tuple(features.shape), features.dtype)"], place)
    output = run(the_command("python -m autoreid.evaluate --latency"), place)
    assert "quickstart_found, ONNX" in output
    assert "embeddings differ" not in output
    assert (place / "runs/evaluation_cost/cost.png").exists()


def test_deployment_examples_compute_the_same(place, exported):
    """Each example prints embeddings of the same boxes, in frames of different channel orders."""
    runtime, of_autoreid, of_opencv, of_openvino = snippets(place, "docs/deploy.md")
    shown = "\nprint(*np.round(features[0, :8] / np.linalg.norm(features[0]), 3))"
    boxed = "\nfeatures = embed({}, [(0, 0, frame.shape[1], frame.shape[0])])"
    (loaded,) = re.findall(r"^frame = .*$", of_autoreid, re.MULTILINE)
    opencv = f"from PIL import Image\n{of_opencv}\n{loaded}"
    found = [
        runtime,
        of_autoreid + "\nassert distances.shape == (2, 1)" + boxed.format("frame"),
        opencv + boxed.format("frame[..., ::-1]"),
    ]
    if importlib.util.find_spec("openvino"):  # 180 MB
        found.append(f"{runtime}\n{of_openvino}")
    numbers = [run(["python", "-c", code + shown], place).split()[-8:] for code in found]
    for row in numbers[1:]:
        assert [float(text) for text in row] == pytest.approx([float(text) for text in numbers[0]], abs=0.01)


def test_render_draws_again(place, demo):
    folder = place / "searched_genotypes" / "quickstart"
    for picture in folder.glob("*.png"):
        picture.unlink()
    run(the_command("python -m autoreid.render"), place)
    assert (folder / "EP01-normal.png").exists()


def test_tensorboard_command_is_understood(place, demo):
    _, *options = the_command("tensorboard")
    shown = run([str(Path(sys.executable).parent / "tensorboard"), "--inspect", *options], place)
    assert "genotype/normal" in shown


@pytest.fixture
def login_node(place, prepared, demo, tmp_path) -> Path:
    """A checkout with the data set and the demo's found network, and no other run."""
    folder = check_out(tmp_path)
    (folder / "data").symlink_to(place / "data")
    (folder / "runs").mkdir()
    (folder / "runs/quickstart_found").symlink_to(place / "runs/quickstart_found")
    return folder


def test_the_cluster_commands_from_submission_to_cancellation(login_node, slurm_cluster):
    """As a new user would, line by line, on the local cluster; ranks compute on CPUs, its GPUs are declared only."""
    jobs = [command for command in COMMANDS if command.startswith("python jobs/")]

    def call(command: str, *more: str, **replaced: str) -> str:
        (command,) = [one for one in jobs if one.startswith(f"python jobs/{command}") and one not in ran]
        ran.add(command)
        for old, new in replaced.items():
            command = re.sub(rf"--{old} \d+", f"--{old} {new}", command)
        return run([*shlex.split(command), *more], login_node, slurm_cluster.environment)

    small = [*SMALL, "distributed.device=cpu"]
    script = call(
        "submit_search.py --nodes 2 --gpus 8 --config configs/darts_triplet.yaml --dry-run", *small, gpus="1"
    )
    assert "#SBATCH --nodes=2" in script
    submitted = call("submit_search.py --nodes", "--cpus-per-task", "1", *small, gpus="1")
    job = submitted.split()[1].rstrip(":")
    trained = call("submit_train", *small, "--cpus-per-task", "1", "training.learning_rate=0.001", gpus="1")
    assert "run folder: " in trained
    assert "darts_triplet" in call("status")
    slurm_cluster.wait_for(job, "COMPLETED", timeout=300)
    assert "no job in the queue (the run is finished)" in call("cancel")
    assert "global batch" in call("logs", rank="0")
    pipeline = call("submit_pipeline", "--dry-run", *small, gpus="1")
    assert "# ---- evaluate ----" in pipeline
    study = call("submit_study", "--dry-run", *small, gpus="1")
    assert "# ---- table ----" in study
    sweep = call("submit_search.py --gpus 1", "--slurm", "begin=now+1hour", *small)
    assert len(re.findall(r"^job (\S+):", sweep, re.MULTILINE)) == 6
    assert "finished: 0 of 6 runs" in call("sweep")
    slurm_cluster.run("scancel", sweep.split("job ")[1].partition("_")[0])
    evaluation = call("submit_evaluate")
    assert "on_market" in evaluation
    slurm_cluster.wait_for(evaluation.split()[1].rstrip(":"), "COMPLETED", timeout=300)
    assert (login_node / "runs/on_market/result.json").exists()
    assert [job for job in jobs if job not in ran] == []


def test_doctor_in_a_login_shell(place):
    assert "ok" in run(the_command("python -m autoreid.doctor"), place)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_paths_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    assert [link for link in links if link and not (page.parent / link).exists()] == []
    paths = re.findall(
        r"`((?:configs|scripts|benchmarks|tests|searched_genotypes/published)/[\w/.-]+)`", text
    )
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_every_command_is_run_or_has_its_reason(request):
    assert set(NOT_RUN) <= set(COMMANDS), "a reason for what no page says"
    every = {name for name in globals() if name.startswith("test_")}
    chosen = {item.function.__name__ for item in request.session.items if item.path == Path(__file__)}
    if chosen != every:
        pytest.skip("needs all tests of this file")
    # The cluster's test counts its own, and may be skipped.
    left = [command for command in COMMANDS if command not in ran and not command.startswith("python jobs/")]
    assert sorted(left) == sorted(NOT_RUN)
