"""Embeddings are computed as the network was trained: by hand, during a training, from a checkpoint."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import autoreid
from autoreid.data.training_data import build_training_data
from autoreid.recipes import load_config
from autoreid.training.embedding import EmbeddingPass
from autoreid.training.measure import measure_network
from autoreid.training.precision import PassPrecision
from autoreid.training.task import build_training
from tests.helpers.ranks import ALONE
from tests.helpers.tiny import tiny_config, write_tiny
from tests.helpers.trained import HEIGHT, WIDTH, small_network, write_checkpoint

CPU = torch.device("cpu")
AS_TRAINED = {"precision": "bfloat16", "channels_last": True}


def watch(network):
    """What the network's first convolution is given and gives: layout of the images, layout of weights, dtype."""
    seen = []
    first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))

    def note(module, inputs, output):
        layouts = (x.is_contiguous(memory_format=torch.channels_last) for x in (*inputs, module.weight))
        seen.append((*layouts, output.dtype))

    first.register_forward_hook(note)
    return seen


def some_images(N=5):
    return torch.randn(N, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_precision_and_layout_are_those_asked_for():
    network, images = small_network(0), some_images()
    plain = network(images)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = network(images).float()
    assert not torch.equal(plain, rounded)
    seen = watch(network)
    for precision, expected in (("float32", plain), ("tf32", plain), ("bfloat16", rounded)):
        found = EmbeddingPass(network, PassPrecision(precision, CPU), torch.contiguous_format)(images)
        assert found.dtype == torch.float32
        assert torch.equal(found, expected), precision
    EmbeddingPass(network, PassPrecision("float32", CPU), torch.channels_last)(images)
    assert [given for given, *_ in seen] == [False, False, False, True]


def test_a_training_measures_in_its_own_precision_and_layout(tmp_path):
    tiny = {"task": "train", "model": {"name": "osnet_x0_25"}, "data__held_out_fraction": 0.0}
    tiny |= {"evaluation__split": "test", "data__height": 64, "data__width": 32}
    changes = {f"training__{key}": value for key, value in AS_TRAINED.items()}
    tiny_config(tmp_path, **tiny)  # draws the people
    for options, expected in (({}, (False, torch.float32)), (changes, (True, torch.bfloat16))):
        config = load_config(write_tiny(tmp_path, **tiny, **options))
        task = build_training(config, build_training_data(config, ALONE), ALONE)
        seen = watch(task.state.network)
        result = measure_network(config, task.state.network, task.data, ALONE)
        assert {(given and weights, dtype) for given, weights, dtype in seen} == {expected}
        assert 0 < result.map <= 1
        assert task.state.network.training


@pytest.mark.parametrize("precision", [None, "float32", "bfloat16"])
def test_a_checkpoint_embeds_as_it_was_trained_or_as_asked(tmp_path, precision):
    network = small_network(0)
    path = write_checkpoint(tmp_path / "net.pt", network, training=AS_TRAINED)
    model = autoreid.load(path, precision=precision)
    seen = watch(model.network)
    pictures = np.random.default_rng(0).integers(0, 256, (3, HEIGHT, WIDTH, 3), dtype=np.uint8)
    features = model(pictures, batch_size=2)
    dtype = torch.float32 if precision == "float32" else torch.bfloat16
    assert seen == 2 * [(True, True, dtype)]
    assert features.dtype == torch.float32
    usual = autoreid.load(write_checkpoint(tmp_path / "usual.pt", network))(pictures)
    if precision == "float32":
        torch.testing.assert_close(features, usual, rtol=1e-4, atol=1e-5)
    else:
        torch.testing.assert_close(features, usual, rtol=0.05, atol=0.05)
        assert not torch.allclose(features, usual, rtol=1e-4, atol=1e-5)
