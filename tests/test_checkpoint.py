from __future__ import annotations

import errno
import logging
import os
import pickle
import subprocess
import zipfile
from pathlib import Path

import pytest
import torch

from autoreid.checkpoint import CheckpointFolder, load_checkpoint
from autoreid.errors import RunError
from tests.helpers.commands import run_python


def state(step, size=16):
    generator = torch.Generator().manual_seed(step)
    return {
        "weights": {"a.b": torch.randn(size, generator=generator)},
        "step": step,
        "map": 0.1 + step,
        "note": None,
        "random": [torch.get_rng_state(), None],
        "nested": {"tuple": (1, 2.5), "list": ["x"]},
    }


def assert_is_state(found, step):
    expected = state(step)
    assert found.keys() == expected.keys()
    for key in ("step", "map", "note", "nested"):
        assert found[key] == expected[key]
    assert torch.equal(found["weights"]["a.b"], expected["weights"]["a.b"])
    assert torch.equal(found["random"][0], expected["random"][0])


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def test_an_empty_folder_has_no_checkpoint(tmp_path):
    assert CheckpointFolder(tmp_path, 2).load_latest() is None
    assert CheckpointFolder(tmp_path / "missing", 2).load_latest() is None


def test_the_last_few_and_the_best_are_kept(tmp_path):
    checkpoints = CheckpointFolder(tmp_path, keep_last=2)
    for step, is_best in [(1, False), (5, True), (20, False), (100, False)]:
        checkpoints.save(step, state(step), is_best)
        assert_is_state(checkpoints.load_latest(), step)
    assert checkpoints.steps() == [20, 100]
    assert names(tmp_path) == ["best.pt", "step-00000020.pt", "step-00000100.pt"]
    assert_is_state(load_checkpoint(tmp_path / "best.pt"), 5)
    checkpoints.save(123456789, state(7), True)
    assert checkpoints.steps() == [100, 123456789]
    assert_is_state(load_checkpoint(tmp_path / "best.pt"), 7)


def test_a_step_saved_twice_is_replaced(tmp_path):
    checkpoints = CheckpointFolder(tmp_path, 1)
    checkpoints.save(3, state(1), True)
    checkpoints.save(3, state(2), False)
    assert_is_state(checkpoints.load_latest(), 2)
    # best.pt is its own link, which survives when the step's file is replaced.
    assert_is_state(load_checkpoint(tmp_path / "best.pt"), 1)


def test_a_file_system_without_hard_links(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    checkpoints = CheckpointFolder(tmp_path, 1)
    for step in (1, 2):
        checkpoints.save(step, state(step), True)
    assert names(tmp_path) == ["best.pt", "step-00000002.pt"]
    assert_is_state(load_checkpoint(tmp_path / "best.pt"), 2)


def test_what_a_kill_left_behind_is_not_in_the_way(tmp_path):
    for name in ("step-00000004.pt.partial", ".step-00000002.pt.0a1b.partial", "best.pt.partial"):
        (tmp_path / name).write_bytes(b"half")
    checkpoints = CheckpointFolder(tmp_path, 2)
    assert checkpoints.load_latest() is None
    checkpoints.save(4, state(4), True)
    assert names(tmp_path) == ["best.pt", "step-00000004.pt"]


@pytest.mark.parametrize("damage", [truncate, Path.unlink, lambda path: path.write_bytes(b"")])
def test_a_damaged_newest_is_passed_over(tmp_path, caplog, damage):
    checkpoints = CheckpointFolder(tmp_path, 3)
    for step in (1, 2, 3):
        checkpoints.save(step, state(step), False)
    damage(checkpoints.path(3))
    with caplog.at_level(logging.WARNING):
        assert_is_state(checkpoints.load_latest(), 2)
    if checkpoints.path(3).exists():
        (record,) = caplog.records
        assert "step-00000003.pt" in record.getMessage()
        assert "\n" not in record.getMessage()


def test_no_changed_byte_is_loaded(tmp_path):
    """Whatever a flipped bit changes, either loading fails or the state is the same."""
    path = CheckpointFolder(tmp_path, 1).path(1)
    torch.save(state(1), path)
    whole = path.read_bytes()
    refused = 0
    for place in range(0, len(whole), 11):
        damaged = bytearray(whole)
        damaged[place] ^= 0x10
        path.write_bytes(damaged)
        try:
            found = load_checkpoint(path)
        except RunError:
            refused += 1
        else:
            assert_is_state(found, 1)
    assert refused > len(whole) / 11 / 3, "much of the file matters"


@pytest.mark.parametrize("damage", ["a bit", "zeros", "the index"])
def test_damage_that_torch_does_not_notice_leads_to_the_checkpoint_before(tmp_path, caplog, damage):
    checkpoints = CheckpointFolder(tmp_path, 3)
    for step in (1, 2):
        checkpoints.save(step, state(step, 1000), False)
    path = checkpoints.path(2)
    data = bytearray(path.read_bytes())
    weights = data.index(state(2, 1000)["weights"]["a.b"].numpy().tobytes())
    if damage == "a bit":
        data[weights + 1001] ^= 1
    elif damage == "zeros":
        data[weights + 512 : weights + 1024] = bytes(512)
    else:
        data[data.index(b"nested") + 2] ^= 1  # a key of the state
    path.write_bytes(data)
    assert torch.load(path, weights_only=True)["step"] == 2
    with caplog.at_level(logging.WARNING):
        found = checkpoints.load_latest()
    assert torch.equal(found["weights"]["a.b"], state(1, 1000)["weights"]["a.b"])
    (record,) = caplog.records
    assert "step-00000002.pt: the checkpoint is damaged: " in record.getMessage()


@pytest.mark.parametrize("keep_last", [1, 2])
def test_going_on_behind_a_damaged_checkpoint_does_not_lose_new_ones(tmp_path, keep_last):
    """A damaged step 300 must not count as newer than step 250, saved by a run that was resumed at step 200."""
    checkpoints = CheckpointFolder(tmp_path, keep_last)
    checkpoints.save(200, state(200), False)
    checkpoints.path(300).write_bytes(b"damaged")
    assert_is_state(checkpoints.load_latest(), 200)
    checkpoints.save(250, state(250), False)
    assert checkpoints.steps() == [200, 250][-keep_last:]
    assert_is_state(checkpoints.load_latest(), 250)


def test_nothing_but_damaged_ones_is_an_error(tmp_path):
    checkpoints = CheckpointFolder(tmp_path, 2)
    for step in (1, 2):
        checkpoints.save(step, state(step), False)
        truncate(checkpoints.path(step))
    with pytest.raises(
        RunError, match="none of the 2 checkpoints can be read; restore one, or delete them"
    ) as caught:
        checkpoints.load_latest()
    assert str(tmp_path) in str(caught.value)
    assert caught.value.exit_status == 1


def test_a_checkpoint_that_must_not_be_read_is_not_passed_over(tmp_path, monkeypatch):
    checkpoints = CheckpointFolder(tmp_path, 2)
    for step in (1, 2):
        checkpoints.save(step, state(step), False)

    def refuse(path, *arguments, **options):
        if Path(path).name == "step-00000002.pt":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return load(path, *arguments, **options)

    load = torch.load
    monkeypatch.setattr(torch, "load", refuse)
    with pytest.raises(RunError, match=r"step-00000002\.pt.*Permission denied.*; change its permissions"):
        checkpoints.load_latest()


class Hostile:
    """Unpickling this would create a file."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("layout", ["zip", "plain pickle"])
def test_no_code_is_run_from_a_checkpoint(tmp_path, layout):
    mark, path = tmp_path / "ran", tmp_path / "step-00000001.pt"
    if layout == "zip":
        torch.save({"state": Hostile(mark)}, path)
        assert zipfile.is_zipfile(path)
    else:
        path.write_bytes(pickle.dumps(Hostile(mark), protocol=2))
    with pytest.raises(RunError, match=r"step-00000001\.pt: cannot read the checkpoint: ") as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert not mark.exists()
    # The trap works: unpickling without the restriction triggers it.
    if layout == "zip":
        torch.load(path, weights_only=False)
    else:
        pickle.loads(path.read_bytes())  # noqa: S301
    assert mark.exists()


def assert_failed_save_harms_nothing(checkpoints, size):
    before = {path: path.read_bytes() for path in checkpoints.folder.iterdir()}
    with pytest.raises(RunError, match=r"step-00000003\.pt: cannot write the file: ") as caught:
        checkpoints.save(3, state(3, size), True)
    assert caught.value.exit_status == 1
    assert "\n" not in str(caught.value)
    assert {path: path.read_bytes() for path in checkpoints.folder.iterdir()} == before
    assert_is_state(checkpoints.load_latest(), 2)
    return str(caught.value)


def with_two_checkpoints(folder):
    checkpoints = CheckpointFolder(folder, 2)
    checkpoints.save(1, state(1), True)
    checkpoints.save(2, state(2), False)
    return checkpoints


@pytest.mark.parametrize("call", ["fsync", "write", "replace"])
def test_a_failed_write_leaves_the_earlier_ones(tmp_path, monkeypatch, call):
    checkpoints = with_two_checkpoints(tmp_path)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    if call == "fsync":
        monkeypatch.setattr(os, "fsync", full)
    elif call == "replace":
        monkeypatch.setattr(Path, "replace", full)
    else:
        opened = Path.open

        def open_full(path, mode="r", *arguments):
            file = opened(path, mode, *arguments)
            if "w" in mode:
                os.close(file.fileno())
                os.open("/dev/full", os.O_WRONLY)  # gets the same descriptor number
            return file

        monkeypatch.setattr(Path, "open", open_full)
    assert "No space left" in assert_failed_save_harms_nothing(checkpoints, 16)


def test_a_folder_that_is_gone_is_named(tmp_path):
    with pytest.raises(RunError, match=r"gone.step-00000001\.pt: cannot write the file: No such file"):
        CheckpointFolder(tmp_path / "gone", 1).save(1, state(1), False)


def test_a_file_size_limit_leaves_the_earlier_ones(tmp_path):
    """A quota enforced by the kernel, in a separate process."""
    with_two_checkpoints(tmp_path)
    script = (
        "import resource, signal, sys, torch\n"
        "from pathlib import Path\n"
        "from autoreid.checkpoint import CheckpointFolder\n"
        "from autoreid.errors import RunError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        "try:\n"
        "    CheckpointFolder(Path(sys.argv[1]), 2).save(3, {'w': torch.zeros(10**6)}, True)\n"
        "except RunError as error:\n"
        "    print(error)\n"
        "    sys.exit(error.exit_status)\n"
    )
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    done = run_python("-c", script, tmp_path)
    assert (done.returncode, done.stderr) == (1, "")
    assert "step-00000003.pt: cannot write the file: File too large" in done.stdout
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MB, if this process may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True)
    except FileNotFoundError:
        pytest.skip("there is no mount program")
    if mounted.returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_leaves_the_earlier_ones(small_disk):
    checkpoints = with_two_checkpoints(small_disk)
    assert "No space left" in assert_failed_save_harms_nothing(checkpoints, 10**6)
    # Once there is space again, saving works.
    checkpoints.save(4, state(4), True)
    assert_is_state(checkpoints.load_latest(), 4)
