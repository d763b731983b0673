"""Studies: searches against random networks, resumed, shared by processes, and planned."""

import json
import os
import signal
from contextlib import nullcontext
from statistics import fmean

import pytest
import torch
from PIL import Image

from autoreid import distributed, study
from autoreid.commands import study as work
from autoreid.config import Distributed
from autoreid.distributed import World
from autoreid.errors import ConfigError, DivergedError
from autoreid.models import count_parameters
from autoreid.recipes import load_config
from autoreid.search.task import SearchTask
from autoreid.spaces.build import build_model
from autoreid.spaces.genotype import Genotype
from autoreid.training.task import TrainTask
from autoreid.trials.alone import single_process
from autoreid.trials.comparison import as_table, compare
from tests.helpers.ranks import forkserver
from tests.helpers.studies import content_of
from tests.helpers.tiny import DERIVED_TRAINING, write_tiny


def write_recipes(folder):
    folder.mkdir(exist_ok=True)
    search = write_tiny(folder).rename(folder / "search.yaml")
    train = write_tiny(folder, **DERIVED_TRAINING).rename(folder / "train.yaml")
    return ["--search", str(search), "--train", str(train), "--output", str(folder / "study")]


def call(folder, *more, searches=2, random=2):
    line = [*write_recipes(folder), "--searches", str(searches), "--random", str(random), *more]
    return study.main(line)


def trial_lines(folder):
    return [json.loads(line) for line in (folder / "study/trials.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of an uninterrupted study."""
    folder = tmp_path_factory.mktemp("whole")
    torch.set_num_threads(1)
    assert call(folder) == 0
    return folder


@pytest.mark.slow
def test_a_study_compares_found_networks_with_random_ones(whole, capsys):
    content = content_of(whole)
    found, random = content["found"], content["random"]
    assert [network["name"] for network in found + random] == ["search0", "search1", "random0", "random1"]
    options = load_config(whole / "train.yaml").model.options
    for number, network in enumerate(found):
        run = json.loads((whole / f"study/runs/search{number}/result.json").read_text())
        assert network["genotype"] == run["genotype"]
        assert load_config(whole / f"study/runs/search{number}/config.yaml").seed == number
    for network, like in zip(random, found, strict=True):
        assert network["genotype"] not in [one["genotype"] for one in found]
        genotype = Genotype.parse(json.dumps(network["genotype"]), "")
        assert network["parameters"] == count_parameters(
            build_model("derived", 1, **options, genotype=genotype)
        )
        assert network["parameters"] == pytest.approx(like["parameters"], rel=0.1)
    values = content["statistics"]
    means = [fmean(100 * network["map"] for network in networks) for networks in (found, random)]
    assert values["difference"] == pytest.approx(means[0] - means[1])
    assert values["relative_improvement"] == pytest.approx(100 * (means[0] - means[1]) / means[1])
    assert len(trial_lines(whole)) == 4
    with Image.open(whole / "study/study.png") as picture:
        assert len(picture.getcolors(1 << 20)) > 20
    # Again, nothing is trained or searched.
    before = (whole / "study/trials.jsonl").stat().st_mtime_ns
    assert call(whole) == 0
    assert "rank among random" in capsys.readouterr().out
    assert (whole / "study/trials.jsonl").stat().st_mtime_ns == before
    assert content_of(whole) == content


def interrupt(monkeypatch, kind, at):
    """Send this process a signal in the step `at`, counted over all tasks of a kind."""
    original, steps = kind.step, []

    def step(task, stop):
        steps.append(task.state.step)
        if len(steps) == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(task, stop)

    monkeypatch.setattr(kind, "step", step)
    return steps


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "at"), [(SearchTask, 8), (TrainTask, 13)])
def test_an_interrupted_study_ends_as_an_uninterrupted_one(whole, tmp_path, monkeypatch, capsys, kind, at):
    """In the second of two searches, and in the second of four trainings: 6 and 10 steps each."""
    steps = interrupt(monkeypatch, kind, at)
    folder = tmp_path / "folder"
    assert call(folder) == 0
    assert "stopped by SIGTERM; to resume, repeat the same command" in capsys.readouterr().err
    assert not (folder / "study/study.json").exists()
    assert call(folder) == 0
    total = {SearchTask: 2 * 6, TrainTask: 4 * 10}[kind]
    assert len(steps) == total, "steps were done again"
    assert content_of(folder) == content_of(whole)


@pytest.mark.slow
def test_more_networks_are_added_to_those_that_are_there(whole, tmp_path):
    folder = tmp_path / "folder"
    assert call(folder, searches=1, random=1) == 0
    first = trial_lines(folder)
    assert call(folder) == 0
    assert trial_lines(folder)[:2] == first
    assert len(trial_lines(folder)) == 4
    assert content_of(folder) == content_of(whole)


def _call(folder):
    torch.set_num_threads(1)
    raise SystemExit(call(folder))


@pytest.mark.slow
def test_two_processes_share_a_study(whole, tmp_path):
    folder = tmp_path / "folder"
    write_recipes(folder)
    context = forkserver()
    processes = [context.Process(target=_call, args=(folder,)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(trial_lines(folder)) == 4 == len({line["key"] for line in trial_lines(folder)})
    for number in range(2):
        history = (folder / f"study/runs/search{number}/history.jsonl").read_text()
        assert history.count('"started"') == 1
    assert content_of(folder) == content_of(whole)


def test_a_search_that_diverges_does_not_hold_up_the_others(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "folder"
    original = work.run_search

    def run_search(config, world, folder, stop):
        if config.seed == 0:
            raise DivergedError("step 3: the gradient of stem is not finite")
        original(config, world, folder, stop)

    with monkeypatch.context() as patch:
        patch.setattr(work, "run_search", run_search)
        assert call(folder) == 1
    complaint = capsys.readouterr().err.splitlines()[-1]
    assert "2 of 4 trainings have no result: found0, random0" in complaint
    assert "searches that have not finished: search0" in complaint
    content = json.loads((folder / "study/study.json").read_text())
    assert [network["name"] for network in content["found"] + content["random"]] == ["search1", "random1"]
    assert content["missing"] == ["found0", "random0"]


@pytest.mark.slow
def test_the_cost_of_a_search_includes_its_read_out(tmp_path):
    paths = ["search.level=single", "search.relaxation=uniform", "search.read_out=one_shot"]
    small = "search.one_shot={population: 2, generations: 1}"
    assert call(tmp_path, *paths, small, searches=1, random=1) == 0
    result = json.loads((tmp_path / "study/runs/search0/result.json").read_text())
    (network,) = json.loads((tmp_path / "study/study.json").read_text())["found"]
    assert result["read_out_seconds"] > 0
    assert network["search_seconds"] == result["seconds"] + result["read_out_seconds"]


@pytest.mark.slow
def test_the_plan_counts_what_is_left_and_leaves_nothing_behind(whole, tmp_path, capsys):
    folder = tmp_path / "folder"
    assert call(folder, "--plan", searches=3, random=8) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("searches:  3, 0 of them finished; 0:00:")
    assert lines[1].startswith("trainings: 11, 0 of them finished; 0:00:")
    assert not (folder / "study").exists()
    assert call(whole, "--plan", searches=4, random=3) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("searches:  4, 2 of them finished")
    assert lines[1].startswith("trainings: 7, 4 of them finished")


def test_the_folder_of_a_study_may_have_any_name(tmp_path):
    """YAML would read #3 as a comment."""
    line = [*write_recipes(tmp_path), "--searches", "1", "--random", "1", "--output", str(tmp_path / "a #3")]
    searches, _ = study.read_recipes(study.parse(line))
    assert searches["search0"].output_dir == tmp_path / "a #3" / "runs"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["task=train"], "expected task: search"),
        (
            ["--train-set", "model.name=resnet50", "model.options={}"],
            "must have task: train and model.name: derived",
        ),
        (["--train-set", "model.options.chanels=3"], "chanels"),
        (["--train-set", "model.options.parts=33"], "too small for the network"),
        (["--train-set", "data.sources=[nowhere]"], "nowhere"),
        (["--searches", "0"], "--searches 0: must be at least 1"),
        (["trainin.epochs=1"], "did you mean training"),
    ],
)
def test_errors_are_one_line_and_status_2_before_the_first_search(tmp_path, capsys, more, message):
    assert call(tmp_path, *more) == 2
    (complaint,) = capsys.readouterr().err.splitlines()
    assert message in complaint
    assert not (tmp_path / "study").exists()


def test_a_folder_with_other_searches_is_refused(whole, capsys):
    assert call(whole, "training.epochs=3") == 2
    (complaint,) = capsys.readouterr().err.splitlines()
    assert "the study there has other searches" in complaint
    assert "training.epochs was 2, is now 3" in complaint


def test_several_ranks_are_refused():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            distributed, "setup_for", lambda *settings: nullcontext(World(0, 2, 0, torch.device("cpu")))
        )
        with pytest.raises(ConfigError, match="a study runs as one process, not as 2 ranks"):
            single_process(Distributed(), "a study").__enter__()


def test_a_failed_training_is_listed_and_not_counted():
    def result(key, value):
        return {"key": key, "map": value, "rank1": value, "parameters": 10, "macs": 20, "seconds": 2.0}

    found = {"search0": result("a", 0.5), "search1": result("b", None) | {"failed": "step 3: not finite"}}
    random = {"random0": result("c", 0.4), "random1": result("d", 0.6), "random2": result("c", 0.4)}
    content = compare(found, random, {"search0": 7.0, "search1": 8.0})
    assert content["statistics"]["mean_found"] == pytest.approx(50)
    assert [one["rank_among_random"] for one in content["found"]] == [2, None]
    assert content["statistics"]["runs_to_show"] is None
    assert content["cost"] == {"search_seconds": 15.0, "training_seconds": {"found": 4.0, "random": 4.0}}
    # Two searches and trainings for 19 seconds have given one network; three random ones cost 6 seconds.
    assert content["equal_cost"]["found"] == [(19.0, 50.0)]
    table = as_table(content)
    assert "a found network cost as much as 10 random ones" in table
    assert "failed" in table
    assert "too few runs" in table
