"""The run folder: whose it is, metrics over kills and resumes, files written whole."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from autoreid.config import Config
from autoreid.errors import ConfigError, RunError
from autoreid.files import write_atomically
from autoreid.recipes import load_config
from autoreid.reporting import environment
from autoreid.reporting.run_folder import RunFolder
from autoreid.spaces.genotype import Genotype
from autoreid.spaces.reid_cell.genotype import CellGenotype
from tests.helpers.commands import run_python


def config_of(**sections) -> Config:
    tree = {"task_name": "demo", "data": {"root": "data", "workers": 2}, "losses": {"margin": 0.3}}
    return Config.model_validate_json(json.dumps(tree | sections))


@contextmanager
def disk_of(limit_bytes: int):
    """Writes past so many bytes of a file fail as on a full disk."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)


def test_claim_makes_the_layout_and_claims_again(tmp_path):
    folder = RunFolder(tmp_path / "runs" / "demo")
    for _ in range(2):
        folder.claim(config_of())
        assert load_config(tmp_path / "runs/demo/config.yaml") == config_of()
    names = {path.name for path in folder.root.iterdir()}
    assert names == {"config.yaml", "checkpoints", "tensorboard", "logs"}


def begun(root: Path, config: Config) -> RunFolder:
    """The folder of a run that has saved a checkpoint: from here on there is something to lose."""
    folder = RunFolder(root)
    folder.claim(config)
    (folder.checkpoints / "step-00000001.pt").touch()
    return folder


def test_a_fixed_config_replaces_one_that_never_got_to_a_checkpoint(tmp_path):
    folder = RunFolder(tmp_path / "demo")
    folder.claim(config_of())
    folder.claim(config_of(seed=3))
    assert load_config(folder.config) == config_of(seed=3)


def test_claim_refuses_another_config_and_names_the_keys(tmp_path):
    folder = begun(tmp_path / "demo", config_of())
    other = config_of(
        data={"root": "data", "batch_size": 32, "workers": 4},
        losses={"margin": None},
        seed=3,
        model={"options": {"last_stride": 1}},
    )
    with pytest.raises(ConfigError) as caught:
        folder.claim(other, may_differ=["data.workers"])
    assert str(caught.value) == (
        f"{folder.root} belongs to a run of another config: data.batch_size was 64, is now 32; "
        "losses.margin was 0.3, is now null; model.options was {}, is now not set and 2 more; "
        "give another task_name, or delete the folder to start over"
    )
    assert load_config(folder.config) == config_of()


def test_true_is_not_1(tmp_path):
    one, true = (config_of(model={"options": {"last_stride": value}}) for value in (1, True))
    with pytest.raises(ConfigError, match=r"model\.options\.last_stride was 1, is now true; give"):
        begun(tmp_path / "demo", one).claim(true)


def test_a_run_from_before_a_key_goes_on_with_its_default(tmp_path):
    recipe = Path(__file__).parents[1] / "configs/quickstart.yaml"
    now = load_config(recipe)
    before = now.model_dump(mode="json")
    del before["search"]["reid_cell"]["partial_channels"], before["training"]["channels_last"]
    folder = begun(tmp_path / "run", now)
    folder.config.write_text(yaml.safe_dump(before))
    folder.claim(now)
    other = load_config(recipe, ["search.reid_cell.partial_channels=2"])
    with pytest.raises(ConfigError, match=r"search\.reid_cell\.partial_channels was 1, is now 2; give"):
        folder.claim(other)


def test_a_run_begun_when_spaces_had_no_sections_resumes_and_keeps_its_file(tmp_path):
    configs = Path(__file__).parent / "data/flat_configs"
    old = (configs / "osnet_ain_run.yaml").read_text()
    # The recipe that it began with. That it has the loss of its time is now said by a key.
    now = load_config(configs / "osnet_ain_quickstart.yaml", ["losses.normalise=false"])
    folder = begun(tmp_path / "run", now)
    folder.config.write_text(old)
    folder.claim(now)
    assert folder.config.read_text() == old
    folder.config.write_text(old.replace("width: 0.25", "width: 0.5"))
    with pytest.raises(ConfigError, match=r"search\.osnet_ain\.width was 0\.5, is now 0\.25; give"):
        folder.claim(now)
    folder.config.write_text(old)
    with pytest.raises(ConfigError, match=r"losses\.normalise was false, is now null"):
        folder.claim(load_config(configs / "osnet_ain_quickstart.yaml"))


def test_claim_takes_new_values_of_keys_that_may_differ(tmp_path):
    folder = begun(tmp_path / "demo", config_of())
    other = config_of(data={"root": "data", "batch_size": 32, "workers": 4})
    for keys in (["data"], ["data.workers", "data.batch_size"]):
        folder.claim(other, may_differ=keys)
        assert load_config(folder.config) == other
        folder.claim(config_of(), may_differ=keys)
    for keys in (["dat"], ["data.work"], ["data.workers"], []):
        with pytest.raises(ConfigError, match=r"data\.batch_size was 64, is now 32"):
            folder.claim(other, may_differ=keys)


CONFIGS = st.fixed_dictionaries(
    {},
    optional={
        "seed": st.integers(0, 1),
        "losses": st.fixed_dictionaries({}, optional={"margin": st.sampled_from([None, 0.3, 0.5])}),
        "model": st.builds(
            lambda options: {"options": options},
            st.dictionaries(st.sampled_from("ab"), st.sampled_from([0, 1, False, True, 1.0, "1"])),
        ),
    },
)


@settings(max_examples=40, deadline=None)
@given(old=CONFIGS, new=CONFIGS)
def test_claim_agrees_exactly_when_the_configs_resolve_to_the_same_text(tmp_path_factory, old, new):
    folder = begun(tmp_path_factory.mktemp("runs") / "demo", config_of(**old))
    tree = yaml.safe_load(folder.config.read_text())
    folder.config.write_text(yaml.safe_dump(tree, sort_keys=True))
    folder.claim(config_of(**old))
    texts = [yaml.safe_dump(config_of(**sections).model_dump(mode="json")) for sections in (old, new)]
    if texts[0] == texts[1]:
        folder.claim(config_of(**new))
    else:
        with pytest.raises(ConfigError) as caught:
            folder.claim(config_of(**new))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["a: [1", "", "- 1", "task_name: demo\ndata: {root: data, rot: 1}\n"])
def test_claim_of_a_folder_with_a_broken_config_says_so(tmp_path, text):
    folder = begun(tmp_path, config_of())
    folder.config.write_text(text)
    with pytest.raises(ConfigError, match=r"config\.yaml:.*; give another task_name, or delete") as caught:
        folder.claim(config_of())
    assert "\n" not in str(caught.value)


def test_a_folder_that_cannot_be_made_is_named_with_its_key(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        ConfigError, match=r"file/demo: cannot create the folder: Not a directory; set output_dir"
    ):
        RunFolder(tmp_path / "file" / "demo").create()


def test_a_read_only_folder_is_named_with_its_key(tmp_path, monkeypatch):
    (tmp_path / "demo").mkdir(mode=0o555)
    if os.geteuid() == 0:  # whom modes do not stop
        monkeypatch.setattr(os, "access", lambda path, mode: not (mode & os.W_OK) and path.exists())
    with pytest.raises(ConfigError, match=r"demo: .*(not writable|Permission denied); set output_dir"):
        RunFolder(tmp_path / "demo").create()


@settings(max_examples=40, deadline=None)
@given(
    steps=st.lists(st.one_of(st.integers(0, 30), st.none()), max_size=12),
    after=st.integers(0, 30),
    torn=st.sampled_from(["", "{", '{"step": 3, "lo', "\x00\x00", "3"]),
)
def test_resuming_keeps_whole_records_up_to_the_step(tmp_path_factory, steps, after, torn):
    folder = RunFolder(tmp_path_factory.mktemp("runs"))
    records = [
        {"loss": 0.1 * place} | ({} if step is None else {"step": step}) for place, step in enumerate(steps)
    ]
    for record in records:
        folder.append_metrics(record)
    with folder.metrics.open("a") as file:
        file.write(torn)
    folder.truncate_metrics(after)
    folder.append_metrics({"step": 31})
    expected = [record for record in records if record.get("step", 0) <= after]
    read = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    assert read == [*expected, {"step": 31}]


def test_truncating_metrics_that_are_not_there_makes_no_file(tmp_path):
    RunFolder(tmp_path).truncate_metrics(3)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_metric_is_in_the_file_even_if_the_process_is_killed_next(tmp_path):
    code = (
        "import os, signal; from pathlib import Path; from autoreid.reporting.run_folder import RunFolder;"
        "RunFolder(Path('.')).append_metrics({'step': 1}); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = run_python("-c", code, folder=tmp_path)
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n'


def test_result_and_environment_are_json(tmp_path):
    folder = RunFolder(tmp_path)
    folder.write_result({"map": 0.412, "genotype": {"space": "reid_cell"}})
    folder.write_environment(environment.describe_environment() | {"images": 12})
    assert json.loads(folder.result.read_text()) == {"map": 0.412, "genotype": {"space": "reid_cell"}}
    found = json.loads(folder.environment.read_text())
    assert found["torch"] == torch.__version__
    assert found["world_size"] == 1
    assert found["images"] == 12
    assert found["argv"] == sys.argv
    assert found["python"] == ".".join(str(part) for part in sys.version_info[:3])


def test_git_commit_is_that_of_a_checkout_and_of_no_repository_above(tmp_path, monkeypatch):
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    assert environment._git_commit(tmp_path) is None
    git("init", "-q")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-qm", "first")
    git("tag", "-am", "release", "v1")
    (tmp_path / "site-packages").mkdir()
    assert environment._git_commit(tmp_path) == git("rev-parse", "HEAD")
    assert environment._git_commit(tmp_path / "site-packages") is None
    (tmp_path / "file").write_text("2")
    assert environment._git_commit(tmp_path) == git("rev-parse", "HEAD") + "-dirty"
    monkeypatch.setenv("PATH", "")
    assert environment._git_commit(tmp_path) is None


def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "result.json"
    write_atomically(path, b"old")
    with disk_of(1000), pytest.raises(RunError, match=r"result\.json: cannot write the file: File too large"):
        write_atomically(path, b"n" * 2000)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_processes_may_write_a_file_at_the_same_time(tmp_path):
    """As two calls of jobs/sweep.py write the same table; threads do it here, because they are faster to start."""
    path = tmp_path / "table.md"
    contents = [bytes([number]) * 10_000 for number in range(8)]
    with ThreadPoolExecutor(len(contents)) as pool:
        list(pool.map(lambda content: write_atomically(path, content), contents * 10))
    assert path.read_bytes() in contents
    assert list(tmp_path.iterdir()) == [path]


def test_saving_a_genotype_to_a_missing_folder_names_the_file(tmp_path):
    edges = (("part_aware", 0), ("skip_connect", 1))
    genotype = CellGenotype(normal=(edges,), reduce=(edges,))
    with pytest.raises(RunError, match=r"none/found\.json: cannot write the file: No such file or directory"):
        genotype.save(tmp_path / "none" / "found.json")
    genotype.save(tmp_path / "found.json")
    assert Genotype.load(tmp_path / "found.json") == genotype


def test_metrics_on_a_full_disk_fail_with_the_path(tmp_path):
    folder = RunFolder(tmp_path)
    with (
        disk_of(100),
        pytest.raises(RunError, match=r"metrics\.jsonl: cannot write the metrics: File too large"),
    ):
        folder.append_metrics({"text": "x" * 200})


def test_file_names_that_are_not_utf_8_can_be_written(tmp_path):
    folder = RunFolder(tmp_path)
    folder.write_environment({"weights": os.fsdecode(b"caf\xe9.pth")})
    assert os.fsencode(json.loads(folder.environment.read_text())["weights"]) == b"caf\xe9.pth"
