"""Where TF32 and bfloat16 are used. The second-order gradient of the alphas is in float32 by default."""

import warnings
from contextlib import suppress
from dataclasses import replace

import pytest
import torch

from autoreid import distributed
from autoreid.data.loaders import Batch, embedding_batches
from autoreid.data.training_data import build_search_data, build_training_data
from autoreid.distributed import StopSignal
from autoreid.search.build import build_search
from autoreid.training import measure
from autoreid.training.precision import allowing_tf32
from autoreid.training.task import build_training
from tests.helpers.tiny import OSNET_TRAINING, tiny_config

GPU = torch.device("cuda")
CPU = {"device": torch.device("cpu")}


def flags():
    return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32


@pytest.fixture
def torch_flags():
    """torch's default flags, which must be restored."""
    before = flags()
    assert before == (True, False)
    yield before
    assert flags() == before


@pytest.mark.parametrize(("precision", "allowed"), [("float32", False), ("tf32", True), ("bfloat16", True)])
def test_flags_are_set_and_restored(torch_flags, precision, allowed):
    with suppress(KeyError), allowing_tf32(precision, GPU):
        assert flags() == (allowed, allowed)
        with allowing_tf32("float32", GPU):
            assert flags() == (False, False)
        assert flags() == (allowed, allowed)
        raise KeyError
    with allowing_tf32(precision, torch.device("cpu")):
        assert flags() == torch_flags


class Probe:
    """Records the flags and autocast during the forward and backward passes of a network."""

    def __init__(self, network):
        self.forward, self.backward = [], []
        network.register_forward_hook(self._see)

    def _see(self, network, inputs, outputs):
        self.forward.append((flags(), torch.is_autocast_enabled("cpu")))
        if outputs[0].requires_grad:
            outputs[0].register_hook(lambda gradient: self.backward.append(flags()))


def search(folder, **changes):
    config = tiny_config(folder, **changes)
    with distributed.setup("cpu") as world:
        return build_search(config, build_search_data(config, world), world)


def on_gpu(task):
    """A task whose passes set the flags as on a GPU, although they run on the CPU."""
    for owner in [task, *([task.architect] if hasattr(task, "architect") else [])]:
        owner.precision.device = GPU
    return task


def probed_step(task):
    probe = Probe(task.state.network)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # autocast warns that there is no GPU
        task.step(StopSignal())
    return probe


ON, OFF = (True, True), (False, False)


@pytest.mark.parametrize(
    ("changes", "of_alphas", "passes"),
    [
        ({"search__order": "first"}, ON, 1),
        ({"search__order": "second"}, OFF, 4),
        ({"search__order": "second", "search__second_order_precision": "tf32"}, ON, 4),
        ({"search__order": "exact"}, OFF, 2),
        ({"search__order": "first", "training__precision": "float32"}, OFF, 1),
    ],
)
def test_tf32_in_forward_and_backward_passes_of_a_search(tmp_path, torch_flags, changes, of_alphas, passes):
    probe = probed_step(on_gpu(search(tmp_path, **changes)))
    of_weights = OFF if changes.get("training__precision") == "float32" else ON
    assert [seen for seen, _ in probe.forward] == [of_alphas] * passes + [of_weights]
    # Exact order also differentiates the first backward pass.
    assert set(probe.backward[:-1]) == {of_alphas}
    assert len(probe.backward) > passes
    assert probe.backward[-1] == of_weights


@pytest.mark.parametrize(("precision", "expected"), [("float32", OFF), ("tf32", ON)])
def test_tf32_in_a_training(tmp_path, torch_flags, precision, expected):
    config = tiny_config(tmp_path, **OSNET_TRAINING, training__precision=precision)
    with distributed.setup("cpu") as world:
        task = on_gpu(build_training(config, build_training_data(config, world), world))
    probe = probed_step(task)
    assert [seen for seen, _ in probe.forward] == probe.backward == [expected]


@pytest.mark.parametrize(("precision", "expected"), [("float32", OFF), ("tf32", ON)])
def test_embeddings_are_measured_in_the_training_precision(
    tmp_path, torch_flags, monkeypatch, precision, expected
):
    config = tiny_config(tmp_path, **OSNET_TRAINING, training__precision=precision)
    with distributed.setup("cpu") as world:
        data = build_training_data(config, world)
    # Images stay on the CPU, although the device is a GPU for everything else.
    monkeypatch.setattr(
        measure, "embedding_batches", lambda *given, **to: embedding_batches(*given, **(to | CPU))
    )
    monkeypatch.setattr(Batch, "to", lambda batch, *to: batch)
    seen = set()

    class Network(torch.nn.Module):
        def forward(self, images):
            seen.add(flags())
            return torch.randn(len(images), 2)

    measure.measure_network(config, Network(), data, replace(world, device=GPU))
    assert seen == {expected}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"search__order": "second"}, [False] * 4 + [True]),
        ({"search__order": "exact"}, [False] * 2 + [True]),
        ({"search__order": "second", "search__second_order_precision": "bfloat16"}, [True] * 5),
        ({"search__order": "first"}, [True] * 2),
    ],
)
def test_bfloat16_is_used_where_the_config_says_so(tmp_path, changes, expected):
    probe = probed_step(search(tmp_path, **changes, training__precision="bfloat16"))
    assert [autocast for _, autocast in probe.forward] == expected


@pytest.mark.parametrize("order", ["second", "exact"])
def test_the_second_order_gradient_is_computed_in_float32(tmp_path, order):
    gradients = []
    for precision in ("float32", "bfloat16"):
        task = search(tmp_path, search__order=order, training__precision=precision)
        batches = next(task.state.alpha_stream), next(task.state.stream)
        gradients.append(task.architect.gradients(*batches, step=0).values)
    for exact, found in zip(*gradients, strict=True):
        assert torch.equal(exact, found)
