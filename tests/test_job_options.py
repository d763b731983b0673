"""Options of jobs: time limits, precedence of defaults, and errors that name the option and its origin."""

from __future__ import annotations

import argparse

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoreid.errors import ConfigError
from autoreid.slurm.executor import JobExecutor, check_log_folder, parameters
from autoreid.slurm.job_options import JobOptions
from autoreid.slurm.notation import gres_gpus, parse_seconds
from autoreid.slurm.read_options import add_options, read_job_options


def parse(*line):
    parser = argparse.ArgumentParser()
    add_options(parser)
    return read_job_options(vars(parser.parse_args(line)))


@pytest.fixture(autouse=True)
def _no_defaults(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))


@given(st.integers(0, 9), st.integers(0, 23), st.integers(0, 59), st.integers(0, 59))
def test_time_limits_as_sbatch_reads_them(days, hours, minutes, seconds):
    total = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    assert parse_seconds(f"{days}-{hours:02}:{minutes:02}:{seconds:02}") == total
    assert parse_seconds(f"{24 * days + hours}:{minutes:02}:{seconds:02}") == total
    assert parse_seconds(f"{days}-{hours}:{minutes}") == total - seconds
    assert parse_seconds(f"{days}-{hours}") == (days * 24 + hours) * 3600
    assert parse_seconds(f"{minutes}") == 60 * minutes
    assert parse_seconds(f"{minutes}:{seconds:02}") == 60 * minutes + seconds


@pytest.mark.parametrize("text", ["", "1h", "1-", "-5", "1:2:3:4", "1-2:3:4:5", "0", "00:00:00"])
def test_invalid_time_limits_are_rejected(text):
    with pytest.raises(ConfigError, match="command line: --time"):
        parse("--time", text)


def test_the_command_line_overrides_the_environment_which_overrides_the_file(monkeypatch, tmp_path):
    file = tmp_path / "autoreid" / "slurm.yaml"
    file.parent.mkdir()
    file.write_text(
        "partition: of_file\naccount: of_file\ntime: 12:00:00\nsetup: [module load a]\nslurm: {x: 1, y: 1}\n"
    )
    monkeypatch.setenv("AUTOREID_SLURM_PARTITION", "of_environment")
    monkeypatch.setenv("AUTOREID_SLURM_NODES", "3")
    options = parse("--nodes", "4", "--slurm", "y=2", "--slurm", "z=3=4")
    assert (options.nodes, options.partition, options.account) == (4, "of_environment", "of_file")
    assert options.seconds == 12 * 3600
    assert options.setup == ("module load a",)
    assert options.slurm == {"x": "1", "y": "2", "z": "3=4"}


def test_the_error_of_a_wrong_default_names_its_origin(monkeypatch, tmp_path):
    monkeypatch.setenv("AUTOREID_SLURM_GPUS", "many")
    with pytest.raises(ConfigError, match="environment: gpus = 'many'"):
        parse()
    monkeypatch.delenv("AUTOREID_SLURM_GPUS")
    file = tmp_path / "autoreid" / "slurm.yaml"
    file.parent.mkdir()
    file.write_text("partitoin: gpu\n")
    with pytest.raises(ConfigError, match=r"slurm\.yaml: partitoin"):
        parse()


@pytest.fixture
def users_file(tmp_path):
    """Writes the user's file with defaults."""

    def write(text):
        file = tmp_path / "autoreid" / "slurm.yaml"
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)

    return write


@pytest.mark.parametrize("text", ["", "\n", "# partition: gpu\n", "---\n", "setup:\npartition:\n"])
def test_an_empty_file_sets_nothing(users_file, text):
    users_file(text)
    assert parse() == JobOptions()


def test_one_value_is_a_list_of_one(users_file):
    users_file("setup: module load cuda/12 gcc\nslurm: reservation=night\n")
    options = parse()
    assert options.setup == ("module load cuda/12 gcc",)
    assert options.slurm == {"reservation": "night"}


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("tasks: 4", ["--gpus", "2"], r"slurm\.yaml: tasks: only allowed with --gpus 0"),
        (
            "signal_lead: 600",
            ["--time", "5"],
            r"slurm\.yaml: signal_lead: the stop signal comes 600 s before",
        ),
        ("time: 0:10", [], r"slurm\.yaml: time: the stop signal comes 20 s before the time limit of 10 s"),
        (
            "",
            ["--time", "0:10"],
            r"command line: --time: the stop signal comes 20 s before the time limit of 10 s",
        ),
        ("slurm: --hold", [], r"slurm\.yaml: --slurm --hold: expected an option of sbatch without dashes"),
        (
            "slurm: {--hold: true}",
            [],
            r"slurm\.yaml: --slurm --hold=: expected an option of sbatch without dashes",
        ),
        (
            "nodse: 3",
            [],
            r"slurm\.yaml: nodse = '3': unknown option; did you mean nodes\? Other options of sbatch go",
        ),
        ("mem: lots", [], r"slurm\.yaml: mem = 'lots'"),
    ],
)
def test_an_impossible_combination_names_where_it_was_set(users_file, text, line, message):
    users_file(text)
    with pytest.raises(ConfigError, match=message):
        parse(*line)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["--nodes", "0"], "--nodes = '0'"),
        (["--mem", "4 GB"], "--mem = '4 GB'"),
        (["--mem", "64B"], "--mem = '64B'"),
        (["--slurm", "=hint"], "--slurm =hint: expected an option of sbatch without dashes"),
        (["--slurm=--hold"], "--slurm --hold: expected an option of sbatch without dashes"),
        (["--gres", "gpu:a100:8"], "--gres gpu:a100:8: 8 GPUs per node, but --gpus is 1.*; add --gpus 8"),
        (["--gpus", "8", "--gres", "gpu:4"], "--gres gpu:4: 4 GPUs per node, but --gpus is 8"),
        (["--gpus", "0", "--gres", "gpu:a100:4"], "4 GPUs per node, but --gpus is 0"),
        (["--slurm", "gpus-per-node=8"], "--slurm gpus-per-node: use --nodes, --gpus, --gres, --tasks and"),
        (["--slurm", "cpus-per-task=4"], "--slurm cpus-per-task: use"),
        (["--slurm", "ntasks_per_node=8"], "--slurm ntasks-per-node: use"),
        (["--slurm", "gres=gpu:8"], "--slurm gres: use"),
        (
            ["--slurm", "array=0-3"],
            "--slurm array: cannot be changed; --seeds or --sweep submit several runs",
        ),
        (["--slurm", "signal=USR1@60"], "--slurm signal: cannot be changed; use --signal-lead"),
        (["--slurm", "no_requeue"], "--slurm no-requeue: cannot be changed; use --max-restarts 0"),
        (
            ["--slurm", "time=3"],
            "--slurm time: cannot be changed; use --time, which the time of the stop signal",
        ),
        (["--slurm", "job_name=x"], "--slurm job-name: cannot be changed; a job has the name of its run"),
        (["--slurm", "dependency=afterok:1"], "--slurm dependency: cannot be changed; use --dependency"),
        (["--slurm", "test-only"], "--slurm test-only: cannot be changed; use --test-only"),
        (["--slurm", "output=x.log"], "--slurm output: cannot be changed; logs are in the folder of the run"),
        (["--gpus", "2", "--tasks", "4"], "--tasks: only allowed with --gpus 0"),
        (
            ["--time", "2", "--signal-lead", "120"],
            "command line: --signal-lead: the stop signal comes 120 s before",
        ),
    ],
)
def test_wrong_options_are_rejected(line, message):
    with pytest.raises(ConfigError, match=message):
        parse(*line)


@pytest.mark.parametrize(
    ("gres", "gpus"),
    [
        (None, None),
        ("", None),
        ("nvme:1", None),
        ("gpu", 1),
        ("gpu:8", 8),
        ("gpu:a100", 1),
        ("gpu:a100:8", 8),
        ("gpu:1g.5gb:2", 2),
        ("nvme:20,gpu:a100:4", 4),
        ("gpu:a100:2,gpu:v100:2", 4),
        ("gpu:tesla:2(S:0-1)", 2),
        ("gpumem:8", None),
    ],
)
def test_the_gpus_of_generic_resources(gres, gpus):
    assert gres_gpus(gres) == gpus


def test_other_generic_resources_do_not_replace_the_gpus():
    asked = parameters(parse("--gpus", "8", "--gres", "nvme:1"), "name")
    assert (asked["gpus_per_node"], asked["gres"]) == (8, "nvme:1")
    named = parameters(parse("--gpus", "8", "--gres", "nvme:1,gpu:a100:8"), "name")
    assert "gpus_per_node" not in named


@pytest.mark.parametrize(("given", "mem"), [("64GB", "64G"), ("1g", "1G"), ("64gb", "64G"), ("500", "500")])
def test_memory_is_taken_as_sbatch_takes_it(given, mem):
    assert parse("--mem", given).mem == mem


def test_flags_of_sbatch(monkeypatch, tmp_path):
    line = ("--slurm", "exclusive", "--slurm", "hold", "--slurm", "hint=nomultithread")
    assert parse(*line).slurm == {"exclusive": "", "hold": "", "hint": "nomultithread"}
    script = JobExecutor(parse("--gpus", "0", *line), tmp_path, "name").script()
    for text in ("--exclusive\n", "--hold\n", "--hint=nomultithread\n", "--requeue\n"):
        assert f"#SBATCH {text}" in script
    monkeypatch.setenv("AUTOREID_SLURM_SLURM", "contiguous;exclusive=user")
    file = tmp_path / "autoreid" / "slurm.yaml"
    file.parent.mkdir()
    file.write_text("partition: null\nslurm: {exclusive: true, oversubscribe: , hold: false}\n")
    assert parse().slurm == {"exclusive": "user", "oversubscribe": "", "contiguous": ""}


def test_a_user_without_a_home_directory_has_no_file(monkeypatch):
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    assert parse().nodes == 1


@pytest.mark.parametrize("name", ["a\\b", "50%%", "a%jb", "%4t"])
def test_folders_whose_names_slurm_would_replace_are_refused(tmp_path, name):
    with pytest.raises(ConfigError, match="Slurm cannot write its logs here"):
        check_log_folder(tmp_path / name)


@pytest.mark.parametrize("name", ["50%", "a b", "a%-b", "ü", "a'b", '"', "$HOME", "a&b"])
def test_folders_with_other_odd_names_are_not(tmp_path, name):
    check_log_folder(tmp_path / name)


@pytest.mark.parametrize(
    ("line", "ranks"),
    [
        ([], 1),
        (["--nodes", "2", "--gpus", "8"], 16),
        (["--nodes", "2", "--gpus", "0", "--tasks", "2"], 4),
        (["--gpus", "0"], 1),
    ],
)
def test_there_is_one_rank_for_each_gpu_or_slurm_task(line, ranks):
    assert parse(*line).ranks == ranks


@pytest.mark.parametrize(("time", "lead"), [("1", 20), ("4", 60), ("10", 150), ("1-00:00:00", 180)])
def test_the_stop_signal_of_short_jobs_leaves_time_to_compute(time, lead):
    assert parse("--time", time).lead_seconds == lead
