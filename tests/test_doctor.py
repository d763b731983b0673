"""Each problem that the doctor looks for is caused and must be found."""

import socket
import sys
import threading
from importlib import metadata

import pytest
import torch
from torch.distributed import HashStore

from autoreid import doctor
from autoreid.diagnosis import machine
from autoreid.diagnosis import ranks as together
from autoreid.diagnosis.machine import Finding
from autoreid.diagnosis.meeting import Meeting, meet
from autoreid.diagnosis.ranks import Rank
from autoreid.distributed.gpus import Placement
from autoreid.errors import ConfigError, PeerError, RunError
from tests.helpers.commands import run_python_on_two_ranks
from tests.helpers.ranks import free_port

LAUNCH = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "SLURM_STEP_ID", "SLURM_JOB_ID")


@pytest.fixture(autouse=True)
def login_shell(monkeypatch):
    for name in [*LAUNCH, "CUDA_VISIBLE_DEVICES"]:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def programs(monkeypatch, tmp_path):
    """A PATH that contains only the scripts given to `programs(name=script)`."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def add(**scripts):
        for name, script in scripts.items():
            program = folder / name.replace("_", "-")
            program.write_text(f"#!/bin/sh\n{script}\n")
            program.chmod(0o755)

    return add


def lines(text):
    """Return grade and name of each line, and the whole text."""
    return {line[5:].split(":")[0]: (line[:4].strip(), line) for line in text.splitlines()}


def in_threads(function, size=2):
    """Return what each rank's thread returned; ranks communicate through a store in memory."""
    store, results = HashStore(), [None] * size

    def run(rank):
        results[rank] = function(Meeting(rank, size, rank, store=store, timeout=20.0))

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_login_shell(programs, tmp_path, capsys):
    programs(sbatch="", dot="")
    assert doctor.main(["--folder", str(tmp_path / "runs")]) == 0
    found = lines(capsys.readouterr().out)
    assert found["launch"] == ("ok", f"ok   launch: ranks: 1, nodes: {socket.gethostname()}")
    assert found["dot"][0] == found["Slurm"][0] == found[f"folder {tmp_path / 'runs'}"][0] == "ok"
    assert "process group" not in found
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bin"]


def test_without_dot_and_slurm(programs, tmp_path, capsys):
    assert doctor.main(["--folder", str(tmp_path)]) == 0
    found = lines(capsys.readouterr().out)
    assert found["dot"][0] == "warn"
    assert "apt install graphviz" in found["dot"][1]
    assert found["Slurm"][0] == "warn"
    assert "--local" in found["Slurm"][1]


def test_a_folder_that_cannot_be_written(capsys):
    assert doctor.main(["--folder", "/proc/runs"]) == 1
    assert "cannot write there" in lines(capsys.readouterr().out)["folder /proc/runs"][1]


def test_bad_command_line():
    with pytest.raises(SystemExit) as left:
        doctor.main(["--fodler", "x"])
    assert left.value.code == 2


def test_without_torch(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "autoreid.diagnosis.ranks", None)
    assert doctor.main([]) == 1
    assert capsys.readouterr().out.startswith("FAIL packages: ")


def test_versions_of_packages(monkeypatch, tmp_path):
    information = tmp_path / "autoreid-9.dist-info"
    information.mkdir()
    needs = ["numpy>=1", "torch>=99", "no-such-package>=2", "unseen>=1; python_version < '3'"]
    text = "Metadata-Version: 2.1\nName: autoreid\nVersion: 9\n"
    text += "".join(f"Requires-Dist: {need}\n" for need in [*needs, "extra-thing; extra == 'dev'"])
    (information / "METADATA").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    found = machine.check_packages()
    assert found.grade == "FAIL"
    there = metadata.version("torch")
    assert (
        found.text == f"torch>=99 is required, but {there} is installed, no-such-package>=2 is not installed"
    )
    (information / "METADATA").write_text(
        text.replace("torch>=99", "torch>=1").replace("no-such-package", "pillow")
    )
    assert machine.check_packages().grade == "ok"
    assert {"numpy", "pillow", "python"} < set(machine.versions())
    assert machine.versions()["torch"] == torch.__version__


@pytest.mark.parametrize(
    ("script", "grade"), [("exit 0", "ok"), ("echo munge is down >&2; exit 1", "FAIL"), (None, "FAIL")]
)
def test_scontrol_in_a_job(programs, monkeypatch, script, grade):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    if script:
        programs(scontrol=script)
    found = machine.check_slurm()
    assert found.grade == grade
    assert ("munge is down" in found.text) == (script is not None and grade == "FAIL")


def test_shared_memory(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "LOADERS_BYTES", 2**70)
    assert machine.check_shared_memory().grade == "warn"
    monkeypatch.setattr(machine, "SHARED_MEMORY", tmp_path / "none")
    assert machine.check_shared_memory().text.startswith("0 MiB free")


@pytest.fixture
def no_gpu(monkeypatch, tmp_path):
    """torch without a GPU, on a machine whose driver file is at a path chosen by the test."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(machine, "DRIVER", tmp_path / "nvidiactl")
    return tmp_path / "nvidiactl"


def test_no_gpu_at_all(no_gpu, programs, monkeypatch):
    found, seat = machine.check_device(0)
    assert found == Finding("ok", "GPU", "none found, ranks run on the CPU")
    assert (seat.visible, seat.gpu) == (0, None)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    found, _ = machine.check_device(0)
    assert (found.grade, "CUDA_VISIBLE_DEVICES=0,1" in found.text) == ("warn", True)


def test_torch_without_cuda_beside_a_gpu(no_gpu, programs, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    programs(nvidia_smi="echo 535.183.01")
    found, _ = machine.check_device(0)
    assert found.grade == "FAIL"
    assert "without CUDA" in found.text
    assert "535.183.01" in found.text


@pytest.mark.parametrize(
    ("error", "grade"),
    [
        ("The NVIDIA driver on your system is too old (found version 11040).", "FAIL"),
        ("No CUDA GPUs are available", "warn"),
    ],
)
def test_a_driver_that_torch_cannot_use(no_gpu, programs, monkeypatch, error, grade):
    def init():
        raise RuntimeError(error + "\nmore")

    monkeypatch.setattr(torch.version, "cuda", "13.2")
    monkeypatch.setattr(torch.cuda, "init", init)
    no_gpu.touch()
    found, _ = machine.check_device(0)
    assert found.grade == grade
    assert (error in found.text) == (grade == "FAIL")


def test_findings_name_the_nodes_where_they_hold():
    fine, bad = Finding("ok", "dot", "there"), Finding("warn", "dot", "none")
    same = Finding("ok", "GPU", "none")
    ranks = [rank("n1", findings=[fine, same]), rank("n1", findings=[fine, same])]
    assert list(together.merge(ranks)) == [fine, same]
    found = list(together.merge([*ranks, rank("n2", findings=[bad, same])]))
    assert found == [same, bad._replace(what="dot, on n2")]


def rank(host="n1", findings=(), versions=None, gpu=None, name_means="10.0.0.1", clock=0.0):
    seat = Placement(host, 0, 0 if gpu is None else 2, gpu)
    return Rank(host, list(findings), versions or {"torch": "2.6"}, seat, name_means, clock)


def test_ranks_that_share_a_gpu():
    own = [rank(gpu="a"), rank(gpu="b"), rank("n2", gpu="c")]
    assert together.check_gpus(own).grade == "ok"
    assert together.check_gpus([rank(), rank("n2")]).grade == "ok"
    shared = together.check_gpus([*own, rank("n2", gpu="c")])
    assert shared.grade == "FAIL"
    assert shared.text.startswith("ranks 2, 3 share the GPU c on n2")
    mixed = together.check_gpus([*own, rank("n2")])
    assert (mixed.grade, mixed.text) == ("FAIL", "torch sees no GPU on rank 3, but does on the other ranks")


def test_environments_that_differ():
    assert together.check_versions([rank(), rank("n2")]).grade == "ok"
    found = together.check_versions([rank(), rank("n2", versions={"torch": "2.7", "h5py": "3"})])
    assert (found.grade, found.text) == ("FAIL", "h5py none on n1, 3 on n2; torch 2.6 on n1, 2.7 on n2")


def test_clocks():
    assert together.check_clocks([rank(), rank("n2", clock=1.0)]).grade == "ok"
    found = together.check_clocks([rank(), rank("n2", clock=60.0), rank("n3", clock=30.0)])
    assert (found.grade, "n2's is 60 s ahead of n1's" in found.text) == ("warn", True)


def test_host_names_that_mean_the_host_itself(monkeypatch):
    ranks = [rank(), rank("n2", name_means="127.0.1.1"), rank("n3", name_means="", gpu="a")]
    assert [(found.grade, found.text[:2]) for found in together.check_names(ranks)] == [
        ("FAIL", "n2"),
        ("warn", "n3"),
    ]
    assert not list(together.check_names(ranks[1:2]))
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth0")
    assert not list(together.check_names(ranks))


def test_a_shared_folder_is_left_as_it_was(tmp_path):
    findings = in_threads(lambda meeting: together.check_folder(meeting, tmp_path / "runs"), 3)
    assert [found.grade for found in findings] == ["ok"] * 3
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_shared(tmp_path, monkeypatch):
    monkeypatch.setattr(together, "FILE_WAIT", 0.2)
    for name in "01":
        (tmp_path / name).mkdir()
    findings = in_threads(lambda meeting: together.check_folder(meeting, tmp_path / str(meeting.rank)))
    assert [found.grade for found in findings] == ["FAIL"] * 2
    assert "does not see the files of" in findings[0].text


def test_blocked_ports():
    def check(meeting, address):
        meeting.local_rank = 0  # each on its own node
        meeting.address = address[meeting.rank]
        return together.check_ports(meeting)

    good = in_threads(lambda meeting: check(meeting, ["127.0.0.1", "127.0.0.1"]))
    assert [found.grade for found in good] == ["ok", "ok"]
    # No connection succeeds.
    bad = in_threads(lambda meeting: check(meeting, ["127.0.0.1", "255.255.255.255"]))
    assert [found.grade for found in bad] == ["FAIL", "FAIL"]
    assert "cannot reach" in bad[0].text
    assert "255.255.255.255" in bad[0].text


def test_a_rank_that_never_comes():
    meeting = Meeting(0, 3, 0, store=HashStore(), timeout=0.1)
    meeting.store.set("1/1", "0")
    with pytest.raises(RunError, match="no message from rank 2 within"):
        meeting.exchange("here")


def launched(monkeypatch, rank, **variables):
    launch = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1"}
    for name, value in (launch | {"MASTER_PORT": free_port()} | variables).items():
        monkeypatch.setenv(name, str(value))


@pytest.mark.parametrize("rank", [0, 1])
def test_an_unknown_master_address(monkeypatch, rank):
    launched(monkeypatch, rank, MASTER_ADDR="no-such-host.invalid")
    with pytest.raises(ConfigError, match=r"at no-such-host.invalid, port \d+: unknown host"):
        meet(0.1)


def test_a_master_port_that_is_taken(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as other:
        launched(monkeypatch, 0, MASTER_PORT=other.getsockname()[1])
        with pytest.raises(ConfigError, match="the port is in use; set MASTER_PORT"):
            meet(0.1)


def test_nobody_at_the_master_port(monkeypatch):
    launched(monkeypatch, 1)
    with pytest.raises(PeerError, match="connection refused"):
        meet(0.1)


def test_an_incomplete_launch(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    assert doctor.main([]) == 1
    assert "FAIL launch, on " in capsys.readouterr().out


def test_two_processes(tmp_path):
    first, second = run_python_on_two_ranks("-m", "autoreid.doctor", "--folder", tmp_path)
    assert (first.returncode, second.returncode) == (0, 0)
    found = lines(first.stdout)
    for what in ("launch", f"folder {tmp_path}", "ports", "versions", "process group"):
        assert found[what][0] == "ok"
    assert second.stdout == ""


def on_cluster(cluster, folder, **variables):
    return cluster.call(
        *(
            "srun",
            "-N2",
            "--ntasks-per-node=1",
            "env",
            *(f"{name}={value}" for name, value in variables.items()),
        ),
        *(sys.executable, "-m", "autoreid.doctor", "--folder", folder, "--timeout=10"),
        timeout=120,
        check=False,
    )


def test_on_a_healthy_cluster(slurm_cluster, tmp_path):
    done = on_cluster(slurm_cluster, tmp_path)
    assert done.returncode == 0
    found = lines(done.stdout)
    assert found["launch"][1] == "ok   launch: ranks: 2, nodes: n1 n2"
    for what in (f"folder {tmp_path}", "Slurm", "ports", "process group"):
        assert found[what][0] == "ok"


def test_on_a_sick_cluster(slurm_cluster, tmp_path):
    """n2's host name resolves to itself, /dev/shm is small, the folder is not shared, and no program is installed."""
    hosts = tmp_path / "hosts"
    hosts.write_text(slurm_cluster.on("n2", "sed", "s/.* n2$/127.0.1.1 n2/", "/etc/hosts"))
    memory = str(machine.SHARED_MEMORY)
    slurm_cluster.on("n2", "mount", "--bind", str(hosts), "/etc/hosts")
    slurm_cluster.on("n2", "mount", "-o", "remount,size=64m", memory)
    try:
        done = on_cluster(slurm_cluster, memory, PATH="/nowhere", MASTER_ADDR="n1")
    finally:
        slurm_cluster.on("n2", "umount", "/etc/hosts")
        slurm_cluster.on("n2", "mount", "-o", "remount,size=50%", memory)
    assert done.returncode == 1
    found = lines(done.stdout)
    assert found["dot"][0] == "warn"
    assert found[f"{memory}, on n2"][0] == "warn"
    for what in ("Slurm", "host name", f"folder {memory}"):
        assert found[what][0] == "FAIL"
    assert found["ports"][0] == "ok"


def test_nodes_that_cannot_reach_each_other(slurm_cluster, tmp_path):
    address = slurm_cluster.on("n2", "getent", "hosts", "n1").split()[0]
    slurm_cluster.on("n2", "ip", "route", "add", "unreachable", address)
    try:
        done = on_cluster(slurm_cluster, tmp_path)
    finally:
        slurm_cluster.on("n2", "ip", "route", "delete", "unreachable", address)
    assert done.returncode == 1
    found = lines(done.stdout)
    assert "No route to host" in found["launch, on n2"][1]
    assert "no message from rank 1" in found["launch"][1]
