"""Networks of timm as backbones."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from autoreid.distributed import StopSignal
from autoreid.errors import ConfigError, DataError
from autoreid.layers.batch_norm import SharedBatchNorm, share_batch_statistics
from autoreid.models import check_input_size, count_macs, load_weights, output_sizes
from autoreid.networks import Architecture, load_network
from autoreid.spaces.build import build_model
from tests.helpers.tasks import build_training_task
from tests.test_models import images

timm = pytest.importorskip("timm")

#: A plain and a CLIP-like transformer, one with windows, and convolutional networks with several kinds of heads.
NAMES = ["test_vit", "vit_xsmall_patch16_clip_224", "swin_tiny_patch4_window7_224"]
NAMES += ["convnext_atto", "test_efficientnet", "mobilenetv3_small_050", "resnet18"]
SIZE = (128, 64)


def theirs_of(name, network):
    """timm's own network with its classifier, for the image size, with the same weights."""
    is_transformer = "vit" in name
    options = {"img_size": SIZE} if is_transformer else {}
    if name.startswith("swin"):
        options = {"strict_img_size": False}
    theirs = timm.create_model(name, num_classes=10, **options).eval()
    weights = {key.removeprefix("backbone."): value for key, value in network.state_dict().items()}
    if is_transformer:
        weights["pos_embed"] = timm.layers.resample_abs_pos_embed(
            weights["pos_embed"], list(theirs.patch_embed.grid_size)
        )
    wanted = theirs.state_dict()
    unlike = {key for key in wanted if key not in weights or weights[key].shape != wanted[key].shape}
    classifier = theirs.pretrained_cfg["classifier"]
    assert {key for key in unlike if not key.startswith(f"{classifier}.")} == set()
    theirs.load_state_dict({key: weights[key] for key in wanted if key not in unlike}, strict=False)
    return theirs


@pytest.mark.parametrize("name", NAMES)
def test_embeddings_are_timms_own(name):
    torch.manual_seed(0)
    network = build_model(f"timm:{name}", 5).eval()
    for buffer in network.backbone.buffers():
        if buffer.is_floating_point():
            buffer.add_(0.1 * torch.rand_like(buffer))
    share_batch_statistics(network)
    theirs = theirs_of(name, network)
    with torch.no_grad():
        expected = theirs.forward_head(theirs.forward_features(images(2, *SIZE)), pre_logits=True)
        torch.testing.assert_close(network.backbone(images(2, *SIZE)), expected, rtol=1e-4, atol=1e-5)
        ranked = network(images(2, *SIZE))
    torch.testing.assert_close(ranked, network.neck.norm(expected), rtol=1e-4, atol=1e-5)
    check_input_size(network, *SIZE)
    assert count_macs(network, *SIZE) > 0
    assert output_sizes(network, *SIZE).embedding == expected.shape[1]
    embedding, logits = network.train()(images(2, *SIZE))
    assert (embedding.shape, logits.shape) == (expected.shape, (2, 5))
    logits.square().sum().backward()
    silent = [key for key, value in network.named_parameters() if value.requires_grad and value.grad is None]
    assert silent == []


def test_norms_with_an_activation_share_their_statistics_and_keep_the_activation():
    network = build_model("timm:test_efficientnet", 5)
    plain = [module for module in network.backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    assert plain == [module for module in plain if type(module) is nn.BatchNorm2d]
    found = [module for module in network.modules() if isinstance(module, SharedBatchNorm)]
    assert found
    assert not any(module.shares_statistics for module in found)
    share_batch_statistics(network)
    assert all(
        module.shares_statistics for module in network.modules() if isinstance(module, SharedBatchNorm)
    )
    assert any(not isinstance(module.act, nn.Identity) for module in found)


@pytest.mark.parametrize("name", ["test_vit", "convnext_atto", "test_efficientnet"])
def test_timms_files_are_loaded(tmp_path, name):
    theirs = timm.create_model(name, num_classes=7)
    for value in theirs.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand_like(value))
    torch.save(theirs.state_dict(), tmp_path / "timm.pth")
    network = build_model(f"timm:{name}", 5)
    report = load_weights(network, tmp_path / "timm.pth")
    classifier = theirs.pretrained_cfg["classifier"]
    assert set(report.skipped) == {f"{classifier}.weight", f"{classifier}.bias"}
    assert {key.split(".")[0] for key in report.missing} == {"neck"}
    assert network.backbone.state_dict().keys() == theirs.state_dict().keys() - set(report.skipped)
    loaded = load_network(tmp_path / "timm.pth", Architecture(f"timm:{name}", {}, *SIZE)).network
    with torch.no_grad():
        torch.testing.assert_close(
            loaded.backbone(images(1, *SIZE)), network.eval().backbone(images(1, *SIZE))
        )


def test_files_of_other_networks_are_refused(tmp_path):
    torch.save(timm.create_model("test_vit", depth=7).state_dict(), tmp_path / "timm.pth")
    with pytest.raises(DataError, match=r"it has no backbone\.blocks\.6"):
        load_weights(build_model("timm:test_vit", 5), tmp_path / "timm.pth")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "resnet19",
            {},
            r"timm has no network 'resnet19'; did you mean one of resnet\w+, resnet\w+, resnet\w+\?",
        ),
        ("hf-hub:timm/resnet18", {}, "timm has no network 'hf-hub:timm/resnet18'"),
        ("resnet18", {"droppath": 0.1}, "has no option 'droppath'; its options are: drop_path"),
        ("vgg11", {"drop_path": 0.1}, r"timm:vgg11: .*drop_path_rate"),
    ],
)
def test_impossible_names_and_options_are_one_line(name, options, message):
    with pytest.raises(ConfigError, match=message) as caught:
        build_model(f"timm:{name}", 5, **options)
    assert "\n" not in str(caught.value)


def test_a_size_that_the_network_cannot_take_is_refused():
    with pytest.raises(ConfigError, match=r"data\.height 100, data\.width 64: .*16"):
        check_input_size(build_model("timm:test_vit", 5), 100, 64)


def test_without_timm_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r"timm:resnet18 requires timm: pip install 'autoreid\[timm\]'"):
        build_model("timm:resnet18", 5)


def test_a_training_takes_a_step(tmp_path):
    changes = {"model": {"name": "timm:test_efficientnet", "options": {"drop_path": 0.1}}}
    task = build_training_task(tmp_path, **changes, training__frozen_epochs=1)
    before = {name: value.clone() for name, value in task.state.network.state_dict().items()}
    _, metrics = task.step(StopSignal())
    assert metrics.isfinite().all()
    after = task.state.network.state_dict()
    assert {name.split(".")[0] for name in before if not after[name].equal(before[name])} == {"neck"}
    task.state.epoch = 1
    task.step(StopSignal())
    after = task.state.network.state_dict()
    assert not after["backbone.conv_stem.weight"].equal(before["backbone.conv_stem.weight"])
