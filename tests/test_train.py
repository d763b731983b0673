"""The train command in real runs: its output, files and errors."""

import hashlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import IMAGES, EventAccumulator

from autoreid import train
from autoreid.checkpoint import load_checkpoint
from autoreid.recipes import load_config, option_names
from autoreid.reporting import dot, genotype_graph
from autoreid.reporting.history import read_history
from autoreid.spaces.genotype import Genotype
from tests.helpers.commands import run_python
from tests.helpers.runs import run_processes, run_train
from tests.helpers.tiny import OSNET, TINY, tiny_config, write_tiny


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A folder in which the tiny search has finished in a single process."""
    folder = tmp_path_factory.mktemp("finished")
    assert train.main(["--config", str(write_tiny(folder))]) == 0
    return folder


def test_the_content_of_the_run_folder(finished):
    run = finished / "runs" / "tiny"
    result = json.loads((run / "result.json").read_text())
    state = load_checkpoint(run / "checkpoints" / "step-00000006.pt")["state"]
    assert result["epochs"] == 2
    assert result["steps"] == 6
    assert result["restarts"] == 0
    assert result["images_per_second"] == pytest.approx(6 * 2 * 16 / result["seconds"])
    assert 0 < result["map"] <= 1
    assert set(result["cmc"]) == {"1", "5", "10", "20"}
    digest = hashlib.sha256()
    for name in ("groups.normal", "groups.reduce"):
        digest.update(state["alphas"][name].numpy().tobytes())
    assert result["alpha_sha256"] == digest.hexdigest()
    assert result["genotype"] == Genotype.load(finished / "genotypes/tiny/EP02.json").model_dump(mode="json")
    environment = json.loads((run / "environment.json").read_text())
    assert environment["torch"] == torch.__version__
    assert load_config(run / "config.yaml") == load_config(finished / "tiny.yaml")
    log = (run / "logs" / "rank0.log").read_text()
    assert "epoch 2/2" in log
    for line in (f"run folder: {run}", "search in reid_cell: 2 epochs of 3 steps", "device: CPU"):
        assert f"INFO {line}\n" in log
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [(line["epoch"], line["step"]) for line in metrics] == [(1, 3), (2, 6)]
    assert metrics[-1]["map"] == result["map"]
    assert metrics[0]["normal/none_share"] == pytest.approx(1 / 7, abs=0.02)


def test_tensorboard_shows_pictures_curves_and_config(finished):
    events = EventAccumulator(str(finished / "runs/tiny/tensorboard"), size_guidance={IMAGES: 0}).Reload()
    pictures = finished / "genotypes" / "tiny"
    for kind in ("normal", "reduce"):
        shown = events.Images(f"genotype/{kind}")
        assert [image.step for image in shown] == [3, 6], "one tag, a step an epoch"
        last = Image.open(io.BytesIO(shown[-1].encoded_image_string))
        assert last.tobytes() == Image.open(pictures / f"EP02-{kind}.png").convert("RGB").tobytes()
    (sheet,) = events.Images("training_images")
    assert sheet.width > 8 * 16
    scalars = events.Tags()["scalars"]
    wanted = [
        "step/loss",
        "step/weight_learning_rate",
        "step/accuracy",
        "epoch/map",
        "epoch/images_per_second",
    ]
    wanted += [
        "epoch/normal/entropy",
        "entropy_normal/node0_from_c_k-2",
        "alphas_reduce/node1_from_node0/part_conv",
    ]
    assert not set(wanted) - set(scalars)
    assert [event.step for event in events.Scalars("step/loss")] == [1, 2, 3, 4, 5, 6]
    probabilities = [
        events.Scalars(tag)[-1].value for tag in scalars if tag.startswith("alphas_normal/node0_from_c_k-1/")
    ]
    assert len(probabilities) == 7
    assert sum(probabilities) == pytest.approx(1, abs=1e-5)
    config = events.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "task_name: tiny" in config


@pytest.mark.slow
def test_targets_are_evaluated_separately_and_reported_with_their_mean(tmp_path):
    people = TINY["data"]["synthetic"]["people"]
    changes = {
        "data__synthetic": {
            name: people | {"domain": domain} for domain, name in enumerate(("people", "winter", "fog"))
        },
        "data__targets": ["winter", "fog"],
        "evaluation__split": "test",
        "training__epochs": 1,
    }
    assert train.main(["--config", str(write_tiny(tmp_path, **changes))]) == 0
    run = tmp_path / "runs/tiny"
    result = json.loads((run / "result.json").read_text())
    (line,) = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    of_each = result["targets"]
    assert list(of_each) == ["winter", "fog"]
    assert of_each["winter"]["map"] != of_each["fog"]["map"]
    assert result["map"] == line["map"] == pytest.approx(sum(one["map"] for one in of_each.values()) / 2)
    for rank in ("1", "5", "10", "20"):
        assert result["cmc"][rank] == pytest.approx(sum(one["cmc"][rank] for one in of_each.values()) / 2)
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    for name, figures in of_each.items():
        curves = {"map": figures["map"], "minp": figures["minp"], "rank1": figures["cmc"]["1"]}
        for figure, value in curves.items():
            assert line[f"retrieval/{figure}/{name}"] == value
            (event,) = events.Scalars(f"retrieval/{figure}/{name}")
            assert event.value == pytest.approx(value)
    # The galleries are separate: each target alone gives the same result.
    alone = [f"task_name={name}" for name in of_each]
    for override, name in zip(alone, of_each, strict=True):
        words = ["--config", str(tmp_path / "tiny.yaml"), override, f"data.targets=[{name}]"]
        assert train.main(words) == 0
        alone_result = json.loads((tmp_path / f"runs/{name}/result.json").read_text())
        assert alone_result["map"] == of_each[name]["map"]
        assert "targets" not in alone_result


def test_a_finished_search_is_not_changed(finished, capsys):
    before = (finished / "runs/tiny/result.json").stat().st_mtime_ns
    assert train.main(["--config", str(finished / "tiny.yaml")]) == 0
    assert (finished / "runs/tiny/result.json").stat().st_mtime_ns == before
    assert "finished" in capsys.readouterr().err


def test_another_config_with_the_same_name_is_rejected(finished, capsys):
    assert train.main(["--config", str(finished / "tiny.yaml"), "training.epochs=3"]) == 2
    assert "training.epochs was 2, is now 3" in capsys.readouterr().err


def assert_same_search(one: Path, two: Path) -> None:
    """Compare two finished runs of a search, with one and with two processes."""
    assert {file.name for file in (two / "logs").iterdir()} == {"rank0.log", "rank1.log"}
    alone, shared = (json.loads((run / "result.json").read_text()) for run in (one, two))
    assert alone["genotype"] == shared["genotype"]
    assert alone["map"] == pytest.approx(shared["map"], abs=1e-9)
    last = f"checkpoints/step-{alone['steps']:08d}.pt"
    expected, found = (load_checkpoint(run / last)["state"]["alphas"] for run in (one, two))
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, rtol=0, atol=1e-6)


def two_recipes(folder: Path, **changes: Any) -> list[Path]:
    """Write the config files of two runs of a search in separate folders."""
    for name in ("one", "two"):
        (folder / name).mkdir()
    return [write_tiny(folder / name, **changes) for name in ("one", "two")]


@pytest.mark.slow
def test_torchrun_gives_the_result_of_one_process(tmp_path):
    one, two = two_recipes(tmp_path)
    assert run_processes(run_train, one, float64=True) == [0]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    launcher = ["torchrun", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, "-m", "tests.helpers.float64", "--config", two]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=root, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "8 on each of 2 ranks" in done.stderr
    assert done.stderr.count("; evaluated on ") == 1, "rank 0 alone talks"
    assert_same_search(one.parent / "runs/tiny", two.parent / "runs/tiny")


@pytest.mark.slow
def test_two_ranks_give_the_result_of_one_process_in_osnet_ain(tmp_path):
    # Few steps, because instance norm over four pixels multiplies rounding errors by a hundred in each.
    few = {"training__epochs": 1, "data__synthetic__people__train_identities": 6}
    one, two = two_recipes(tmp_path, **OSNET | few)
    assert run_processes(run_train, one, float64=True) == [0]
    assert run_processes(run_train, two, ranks=2, float64=True) == [0, 0]
    assert_same_search(one.parent / "runs/tiny", two.parent / "runs/tiny")


def test_print_config_prints_a_loadable_config_with_overrides(tmp_path, capsys):
    path = write_tiny(tmp_path)
    assert (
        train.main(["--config", str(path), "training.epochs=7", "losses.margin=null", "--print-config"]) == 0
    )
    text = capsys.readouterr().out
    (tmp_path / "again.yaml").write_text(text)
    config = load_config(tmp_path / "again.yaml")
    assert config.training.epochs == 7
    assert config.losses.margin is None
    assert yaml.safe_load(text)["data"]["images_per_identity"] == 4
    assert not (tmp_path / "runs").exists(), "the run must not start"


def test_help_names_every_key(capsys):
    with pytest.raises(SystemExit) as left:
        train.main(["--help"])
    assert left.value.code == 0
    text = capsys.readouterr().out
    assert not [name for name in option_names() if name not in text]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["data.batch_sise=8"],
            "command line: data.batch_sise = 8: unknown key; did you mean data.batch_size?",
        ),
        (["training.epochs=many"], 'command line: training.epochs = "many": '),
        (
            ["data.images_per_identity=3"],
            "data.batch_size: 16 is not a multiple of data.images_per_identity (3)",
        ),
        (["data.batch_size=128"], "data.batch_size 128"),
        (["data.batch_size=90", "data.images_per_identity=9"], "9"),
        (["data.root=/nowhere", "data.synthetic={}"], "/nowhere"),
        (["output_dir=/proc/autoreid"], "/proc/autoreid"),
        (["genotype_dir=/proc/autoreid"], "/proc/autoreid"),
        (
            ["search.reid_cell.parts=17"],
            "search.reid_cell.parts: 17 parts do not fit into the last cell's 16 rows",
        ),
    ],
)
def test_bad_input_is_one_line_and_status_2(tmp_path, capsys, overrides, message):
    tiny_config(tmp_path)
    assert train.main(["--config", str(tmp_path / "tiny.yaml"), *overrides]) == 2
    complaint = capsys.readouterr().err.splitlines()[-1]
    assert complaint.startswith("autoreid: ")
    assert message in complaint
    assert not list(tmp_path.glob("runs/*/checkpoints/*")), "no partial run"


def test_a_missing_config_and_a_bad_option_are_status_2(tmp_path, capsys):
    assert train.main(["--config", str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml" in capsys.readouterr().err
    with pytest.raises(SystemExit) as left:
        train.main(["--confg", "x"])
    assert left.value.code == 2


def test_a_truncated_jpeg_is_named_and_the_last_checkpoint_stays(tmp_path, capsys):
    config = tiny_config(tmp_path, data__held_out_fraction=0.0, evaluation__split="test")
    assert train.main(["--config", str(tmp_path / "tiny.yaml"), "training.epochs=1", "task_name=good"]) == 0
    # All training images are truncated: the first one that is read is named.
    for path in sorted((config.data.root / "people/bounding_box_train").iterdir()):
        path.write_bytes(path.read_bytes()[:300])
    # While the cache is created, and without a cache in the first step.
    for cache in (".image_cache", "null"):
        assert train.main(["--config", str(tmp_path / "tiny.yaml"), f"data.cache={cache}"]) == 2
        complaint = capsys.readouterr().err.splitlines()[-1]
        assert "bounding_box_train/" in complaint
        assert "cannot read this image" in complaint
    assert not list((tmp_path / "runs/tiny/checkpoints").iterdir())


def test_a_truncated_query_is_named(tmp_path, capsys):
    config = tiny_config(tmp_path, evaluation__split="test")
    broken = sorted((config.data.root / "people/query").iterdir())[0]
    broken.write_bytes(broken.read_bytes()[:200])
    assert train.main(["--config", str(tmp_path / "tiny.yaml"), "training.epochs=1"]) == 2
    assert str(broken) in capsys.readouterr().err.splitlines()[-1]


def test_weights_that_explode_stop_the_run_naming_step_and_parameter(tmp_path, capsys):
    path = write_tiny(tmp_path, training__learning_rate=1e30, training__gradient_clip=None)
    assert train.main(["--config", str(path)]) == 1
    complaint = capsys.readouterr().err.splitlines()[-1]
    assert complaint.startswith("autoreid: step 2: the gradient of ")
    assert "is not finite" in complaint
    assert "Traceback" in (tmp_path / "runs/tiny/logs/rank0.log").read_text()


_FULL_DISK = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
from autoreid import train
sys.exit(train.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_full_disk_keeps_the_last_checkpoint_from_which_the_run_resumes(tmp_path):
    path = write_tiny(tmp_path, checkpoint__every_steps=1)
    stopped = train.main(["--config", str(path), "training.epochs=2", "search.reid_cell.stop_at_skips=null"])
    assert stopped == 0
    checkpoints = tmp_path / "runs/tiny/checkpoints"
    (checkpoints / "step-00000006.pt").unlink()
    (tmp_path / "runs/tiny/result.json").unlink()
    good = {file.name: file.read_bytes() for file in checkpoints.iterdir()}
    assert "step-00000005.pt" in good
    done = run_python("-c", _FULL_DISK, "--config", path)
    assert done.returncode == 1, done.stderr
    assert "step-00000006.pt: cannot write the file: File too large" in done.stderr.splitlines()[-1]
    assert {file.name: file.read_bytes() for file in checkpoints.iterdir()} == good
    assert train.main(["--config", str(path)]) == 0
    assert (checkpoints / "step-00000006.pt").exists()


def test_the_stop_rule_ends_a_search_that_collapses(tmp_path):
    path = write_tiny(
        tmp_path, search__reid_cell__stop_at_skips=1, search__reid_cell__operations=["none", "skip_connect"]
    )
    assert train.main(["--config", str(path), "training.epochs=5"]) == 0
    assert json.loads((tmp_path / "runs/tiny/result.json").read_text())["epochs"] == 2


def test_a_search_runs_without_dot(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert train.main(["--config", str(write_tiny(tmp_path))]) == 0
    drawn = {file.suffix for file in (tmp_path / "genotypes/tiny").iterdir()}
    assert drawn == {".gv", ".json"}
    assert capsys.readouterr().err.count("autoreid.render") == 1


def test_a_signal_while_dot_hangs_ends_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(dot, "SECONDS", 0.5)
    monkeypatch.setattr(genotype_graph, "_hangs", False)  # restored at the end: other tests draw
    program = tmp_path / "bin" / "dot"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\nkill -TERM $PPID\n/bin/sleep 1000\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    assert train.main(["--config", str(write_tiny(tmp_path))]) == 0
    stopped = read_history(tmp_path / "runs/tiny")[-1]
    # The genotype is drawn after each epoch, which has three steps.
    assert (stopped.kind, stopped.step, stopped.reason) == ("stopped", 4, "SIGTERM")


def test_bfloat16_and_channels_last_give_similar_losses(finished, tmp_path):
    changes = {"training__precision": "bfloat16", "training__channels_last": True}
    assert train.main(["--config", str(write_tiny(tmp_path, **changes))]) == 0
    exact, rough = (
        [json.loads(line) for line in (folder / "runs/tiny/metrics.jsonl").read_text().splitlines()]
        for folder in (finished, tmp_path)
    )
    for one, other in zip(exact, rough, strict=True):
        assert one["loss"] != other["loss"], "bfloat16 rounds"
        assert one["loss"] == pytest.approx(other["loss"], rel=0.05)
    state = load_checkpoint(tmp_path / "runs/tiny/checkpoints/step-00000006.pt")["state"]
    kinds = {value.dtype for part in ("network", "alphas") for value in state[part].values()}
    assert kinds == {torch.float32, torch.int64}, "weights, alphas and statistics stay float32"


def test_the_cache_changes_no_results_and_the_wait_for_data_is_logged(tmp_path, caplog):
    tiny_config(tmp_path)
    results = []
    for name, cache in (("cached", ".image_cache"), ("decoded", "null")):
        line = ["--config", str(tmp_path / "tiny.yaml"), f"task_name={name}", f"data.cache={cache}"]
        assert train.main(line) == 0
        results.append(json.loads((tmp_path / f"runs/{name}/result.json").read_text()))
        metrics = (tmp_path / f"runs/{name}/metrics.jsonl").read_text().splitlines()
        assert all(0 < json.loads(epoch)["data_wait"] < 1 for epoch in metrics)
        assert "of the time waiting for data" in (tmp_path / f"runs/{name}/logs/rank0.log").read_text()
    for key in ("alpha_sha256", "map", "genotype"):
        assert results[0][key] == results[1][key]
    assert [path.name.rpartition("-")[0] for path in (tmp_path / ".image_cache").iterdir()] == [
        "people-train-32x16"
    ]


def test_broken_images_may_be_skipped(tmp_path):
    config = tiny_config(tmp_path)
    broken = sorted((config.data.root / "people/bounding_box_train").iterdir())[3]
    broken.write_bytes(b"")
    line = ["--config", str(tmp_path / "tiny.yaml"), "data.on_broken_image=skip", "training.epochs=1"]
    assert train.main(line) == 0
    log = (tmp_path / "runs/tiny/logs/rank0.log").read_text()
    assert f"WARNING skipped: {broken}: cannot read this image: the file is empty" in log
