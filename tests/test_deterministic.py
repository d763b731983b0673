"""Settings of CUDA's libraries, and the mode in which equal seeds give equal bits."""

import json
import os
import signal
from contextlib import suppress

import pytest
import torch
from torch import nn

from autoreid import distributed, train
from autoreid.data.training_data import build_search_data
from autoreid.distributed.device import device_settings, explain_nondeterminism
from autoreid.errors import ConfigError
from autoreid.models import Network
from autoreid.search.build import build_search
from autoreid.spaces.build import NETWORKS
from autoreid.training.build import place_network
from autoreid.training.task import TrainTask
from tests.helpers.ranks import run_ranks
from tests.helpers.runs import (
    assert_equal,
    run_processes,
    run_train,
    run_train_with_signal,
    search_outcome,
    training_outcome,
)
from tests.helpers.tiny import OSNET, OSNET_TRAINING, tiny_config, write_tiny
from tests.helpers.trained import OPTIONS

ALLOCATOR = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
LIBRARIES = ("CUBLAS_WORKSPACE_CONFIG", "NCCL_NVLS_ENABLE")


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """As a user has it who set nothing, and as it was afterwards."""
    for name in (*ALLOCATOR, *LIBRARIES):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def mode():
    return (
        torch.backends.cudnn.benchmark,
        torch.are_deterministic_algorithms_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,
    )


def test_settings_are_applied_and_taken_back():
    before = mode()
    with device_settings():
        assert mode() == (True, False, True)
        assert os.environ[ALLOCATOR[0]] == "expandable_segments:True"
        assert not any(name in os.environ for name in LIBRARIES)
    assert mode() == before
    with suppress(KeyError), device_settings(deterministic=True):
        assert mode() == (False, True, False), "benchmarks choose by time, which no seed fixes"
        assert [os.environ[name] for name in LIBRARIES] == [":4096:8", "0"]
        raise KeyError
    assert mode() == before


def test_settings_that_are_switched_off():
    with device_settings(cudnn_benchmark=False, expandable_segments=False):
        assert mode()[0] is False
        assert not any(name in os.environ for name in ALLOCATOR)


@pytest.mark.parametrize("name", ALLOCATOR)
def test_the_user_s_own_environment_goes_before(monkeypatch, name):
    monkeypatch.setenv(name, "max_split_size_mb:128")
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    monkeypatch.setenv("NCCL_NVLS_ENABLE", "1")
    with device_settings(deterministic=True):
        assert {key: os.environ.get(key) for key in ALLOCATOR} == dict.fromkeys(ALLOCATOR) | {
            name: "max_split_size_mb:128"
        }
        assert [os.environ[key] for key in LIBRARIES] == [":16:8", "1"]


def test_an_environment_that_is_not_deterministic_is_refused(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    text = "CUBLAS_WORKSPACE_CONFIG=:0:0 is not deterministic.*:4096:8 or :16:8"
    with pytest.raises(ConfigError, match=text), device_settings(deterministic=True):
        pass
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_run_on_cpus_leaves_cuda_alone():
    before = mode()
    with distributed.setup("cpu", deterministic=True):
        assert mode() == (before[0], True, False)
        assert not any(name in os.environ for name in (*ALLOCATOR, *LIBRARIES))


@pytest.mark.slow
@pytest.mark.parametrize(
    "task", [{"search__alpha_optimizer": "sgd"}, OSNET_TRAINING], ids=["search", "training"]
)
def test_a_run_on_cpus_does_not_open_a_gpu(tmp_path, monkeypatch, task):
    """Which takes seconds and hundreds of megabytes; here torch believes that there is one.

    Not with Adam: torch 2.14's own looks at the GPU's current stream, wherever its parameters are.
    """

    def opened(*given):
        raise AssertionError("CUDA was opened")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "_lazy_init", opened)
    path = write_tiny(tmp_path, **task, training__epochs=1)
    assert train.main(["--config", str(path)]) == 0
    assert json.loads((tmp_path / "runs/tiny/environment.json").read_text())["devices"] == ["cpu"]
    (tmp_path / "runs/tiny/result.json").unlink()
    assert train.main(["--config", str(path)]) == 0, "a checkpoint is read without it too"


def test_a_run_on_cpus_reads_checkpoints_that_hold_a_gpu_s_random_state(tmp_path, monkeypatch):
    """As those of older versions do, wherever there was a GPU, and those of runs that have moved."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    config = tiny_config(tmp_path)
    with distributed.setup("cpu") as world:
        state = build_search(config, build_search_data(config, world), world).state
        saved = state.state_dict()
        assert saved["random"][1] is None
        expected = torch.rand(3)
        state.load_state_dict(saved | {"random": [saved["random"][0], torch.zeros(16, dtype=torch.uint8)]})
    assert torch.equal(torch.rand(3), expected)


class Scattered(Network):
    """A network with an operation that has no deterministic implementation on any device."""

    def __init__(self, num_identities):
        super().__init__()
        self.classifier = nn.Linear(3, num_identities)

    def head(self):
        return [self.classifier]

    def forward(self, images):
        embedding = images.mean((2, 3))
        order = torch.arange(embedding.numel())
        embedding = torch.zeros_like(embedding).put_(order, embedding)
        return (embedding, self.classifier(embedding)) if self.training else embedding


def test_an_operation_without_a_deterministic_implementation_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(NETWORKS, "scattered", Scattered)
    changes = OSNET_TRAINING | {"model": {"name": "scattered"}, "training__epochs": 1}
    path = write_tiny(tmp_path, **changes, distributed__deterministic=True)
    assert train.main(["--config", str(path)]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(
        "autoreid: distributed.deterministic = true: the operation put_ has no deterministic implementation"
    )
    # It fails before the first step, and a job is not requeued.
    assert not list((tmp_path / "runs/tiny/checkpoints").iterdir())
    events = (tmp_path / "runs/tiny/history.jsonl").read_text().splitlines()
    assert json.loads(events[-1])["kind"] == "failed"
    assert train.main(["--config", str(path), "distributed.deterministic=false"]) == 0


@pytest.mark.slow
def test_what_a_resumed_run_may_change(tmp_path, capsys):
    path = str(write_tiny(tmp_path, **OSNET_TRAINING, training__epochs=1))
    assert train.main(["--config", path]) == 0
    free = ["distributed.cudnn_benchmark=false", "distributed.expandable_segments=false"]
    assert train.main(["--config", path, *free]) == 0
    for key, value in (
        ("training.precision", "float32"),
        ("search.second_order_precision", "tf32"),
        ("distributed.deterministic", "true"),
    ):
        capsys.readouterr()
        assert train.main(["--config", path, f"{key}={value}"]) == 2
        assert f"{key} was " in capsys.readouterr().err


def test_other_errors_keep_their_words():
    with pytest.raises(RuntimeError, match=r"^something else$"), explain_nondeterminism():
        raise RuntimeError("something else")


def test_a_compiled_network_is_refused(tmp_path, capsys):
    path = write_tiny(tmp_path, distributed__deterministic=True, training__compile=True)
    assert train.main(["--config", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "distributed.deterministic: true needs training.compile: false" in line


def _resume(world, config):
    """Two steps more of a network, by the process that did the first and by one that starts anew."""
    network, optimizer, wrapped = _fresh(world, config)
    _step(world, wrapped, optimizer, 0)
    saved = {name: value.clone() for name, value in network.state_dict().items()}
    found = []
    for go_on in (True, False):
        if not go_on:
            network, optimizer, wrapped = _fresh(world, config)
            network.load_state_dict(saved)
        for step in (1, 2):
            _step(world, wrapped, optimizer, step)
        found.append([weight.detach().numpy() for weight in network.parameters()])
    return found


def _fresh(world, config):
    torch.manual_seed(0)
    network = nn.Sequential(*(nn.Sequential(nn.Linear(64, 64), nn.ReLU()) for _ in range(30)))
    wrapped = place_network(network, config, world)
    return network, torch.optim.SGD(network.parameters(), 0.1), wrapped


def _step(world, wrapped, optimizer, step):
    images = torch.randn(16, 64, generator=torch.Generator().manual_seed(10 * step + world.rank))
    optimizer.zero_grad()
    (1000 * wrapped(images).square().mean()).backward()
    optimizer.step()


def test_three_ranks_add_up_in_the_same_order_after_a_restart(tmp_path):
    config = tiny_config(tmp_path, distributed__deterministic=True)
    for calm, resumed in run_ranks(_resume, 3, config):
        assert all((one == other).all() for one, other in zip(calm, resumed, strict=True))


ON_GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]
DERIVED = {"model": {"name": "derived", "options": OPTIONS | {"parts": 2, "drop_path": 0.2}}}
PCB = {"model": {"name": "pcb", "options": {"parts": 3}}}
RESNET = {"model": {"name": "resnet50"}, "training__channels_last": True}


def _three_runs(folder, device, changes, plain, strike):
    """A run, the same again, and one that is killed in its second step and goes on."""
    for name in ("one", "two", "killed"):
        (folder / name).mkdir()
        changes = changes | {"distributed__deterministic": True, "checkpoint__every_steps": 1}
        path = write_tiny(folder / name, **changes, distributed__device=device)
        if name == "killed":
            assert strike(path) == [-signal.SIGKILL]
        assert run_processes(plain, path) == [0]
    return [folder / name for name in ("one", "two", "killed")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("device", "changes", "steps"),
    [
        ("cpu", {"search__order": "second"}, 6),
        pytest.param("cuda", {"search__order": "second"}, 6, marks=ON_GPU),
        pytest.param("cuda", {"search__order": "exact"}, 6, marks=ON_GPU),
        pytest.param("cuda", OSNET, 10, marks=ON_GPU),
    ],
)
def test_searches_agree_bit_for_bit(tmp_path, device, changes, steps):
    def strike(path):
        return run_processes(run_train_with_signal, path, 2, signal.SIGKILL, 0)

    one, *others = _three_runs(tmp_path, device, changes, run_train, strike)
    expected = search_outcome(one, steps)
    for other in others:
        assert_equal(search_outcome(other, steps), expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("device", "changes"),
    [
        ("cpu", DERIVED),
        pytest.param("cuda", DERIVED, marks=ON_GPU),
        pytest.param("cuda", PCB, marks=ON_GPU),
        pytest.param("cuda", RESNET, marks=ON_GPU),
    ],
)
def test_trainings_agree_bit_for_bit(tmp_path, device, changes):
    def strike(path):
        return run_processes(run_train_with_signal, path, 2, signal.SIGKILL, 0, TrainTask)

    one, *others = _three_runs(tmp_path, device, OSNET_TRAINING | changes, run_train, strike)
    expected = training_outcome(one)
    for other in others:
        assert_equal(training_outcome(other), expected)
