from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

from autoreid.errors import DataError
from autoreid.models import load_weights
from autoreid.spaces import build_model
from tests.helpers.torchreid import fixtures, their_images, their_state

# torchreid's network -> the same network here.
OURS = {
    "osnet_x1_0": ("osnet_x1_0", {}),
    "osnet_ibn_x1_0": ("osnet_ibn_x1_0", {}),
    "osnet_ain_x1_0": ("osnet_ain_x1_0", {}),
    "resnet50": ("resnet50", {"neck": False}),
    "pcb_p6": ("pcb", {"parts": 6}),
}


@pytest.mark.parametrize("name", OURS)
def test_torchreids_weights_give_torchreids_features(name, tmp_path):
    fixture = fixtures()[name]
    ours, options = OURS[name]
    network = build_model(ours, fixture["num_classes"], **options).eval()
    torch.save(their_state(name), tmp_path / "theirs.pth")
    report = load_weights(network, tmp_path / "theirs.pth")
    assert report.skipped == {}
    assert report.missing == ()
    assert list(report.loaded) == list(network.state_dict())  # one to one, in the same order
    assert sum(parameter.numel() for parameter in network.parameters()) == fixture["parameters"]
    with torch.no_grad():
        feature = network(their_images(fixture["input"])).double()
    assert list(feature.shape) == fixture["feature_shape"]
    scale = 1e-4 * fixture["feature_mean"][0]
    assert feature[:, :8].tolist() == pytest.approx(np.array(fixture["feature_first8"]), rel=1e-4, abs=scale)
    assert feature.norm(dim=1).tolist() == pytest.approx(fixture["feature_norm"], rel=1e-4)
    assert feature.mean(dim=1).tolist() == pytest.approx(fixture["feature_mean"], rel=1e-4)


def test_resnet_with_a_neck_ranks_torchreids_feature_too(tmp_path):
    fixture = fixtures()["resnet50"]
    network = build_model("resnet50", 751).eval()
    torch.save(their_state("resnet50"), tmp_path / "theirs.pth")
    report = load_weights(network, tmp_path / "theirs.pth")
    assert sorted(report.skipped) == ["classifier.bias", "classifier.weight"]
    assert {name.split(".")[0] for name in report.missing} == {"neck"}
    with torch.no_grad():
        feature = network(their_images(fixture["input"])).double()
    assert feature.norm(dim=1).tolist() == pytest.approx(fixture["feature_norm"], rel=1e-4)


def changed(state):
    """Return different values of the same shapes, so that loaded entries can be recognised."""
    return {
        key: value + 0.25 if value.is_floating_point() else value.clone() + 7 for key, value in state.items()
    }


def test_a_checkpoint_of_wrapped_weights_and_another_number_of_identities(tmp_path):
    network = build_model("osnet_x0_25", 10)
    other = changed(build_model("osnet_x0_25", 7).state_dict())
    classifier = {key: value.clone() for key, value in network.classifier.state_dict().items()}
    torch.save(
        {"state_dict": {f"module.{key}": value for key, value in other.items()}, "epoch": 3},
        tmp_path / "model.pth.tar-3",
    )
    report = load_weights(network, tmp_path / "model.pth.tar-3")
    assert report.skipped == {
        "classifier.weight": "shape (7, 512), not (10, 512)",
        "classifier.bias": "shape (7,), not (10,)",
    }
    assert report.missing == ("classifier.weight", "classifier.bias")
    state = network.state_dict()
    assert set(report.loaded) == set(state) - set(report.missing)
    assert all(torch.equal(state[key], other[key]) for key in report.loaded)
    assert all(torch.equal(network.classifier.state_dict()[key], value) for key, value in classifier.items())
    assert "classifier.bias (shape (7,), not (10,))" in str(report)
    assert f"{len(report.loaded)} entries loaded; 2 not in the file" in str(report)


@pytest.mark.parametrize("scalars_of", ["numpy._core", "numpy.core"])
def test_torchreids_own_checkpoints_hold_a_numpy_scalar_of_either_numpy(tmp_path, scalars_of):
    network = build_model("osnet_x0_25", 5)
    other = changed(network.state_dict())
    path = tmp_path / "model.pth.tar"
    content = {"state_dict": other, "rank1": np.float32(0.9), "epoch": 150, "optimizer": {"state": {}}}
    torch.save(content, path, _use_new_zipfile_serialization=False)
    named = np.float64(0).__reduce__()[0].__module__.rpartition(".")[0]
    path.write_bytes(
        path.read_bytes().replace(named.encode() + b".multiarray\n", scalars_of.encode() + b".multiarray\n")
    )
    assert load_weights(network, path).skipped == {}
    assert all(torch.equal(value, other[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize(
    ("name", "options"), [("resnet50", {}), ("resnet50", {"last_stride": 1}), ("pcb", {})]
)
def test_torchvisions_imagenet_file_fills_the_backbone(tmp_path, name, options):
    imagenet = changed(torchvision.models.resnet50(weights=None).state_dict())
    torch.save(imagenet, tmp_path / "resnet50-11ad3fa6.pth")
    network = build_model(name, 5, **options)
    report = load_weights(network, tmp_path / "resnet50-11ad3fa6.pth")
    assert set(report.skipped) == {"fc.weight", "fc.bias"}
    assert set(report.loaded) == set(imagenet) - {"fc.weight", "fc.bias"}
    assert {key.split(".")[0] for key in report.missing} <= {"neck", "reduce", "classifier"}
    assert torch.equal(network.layer4[2].bn3.running_var, imagenet["layer4.2.bn3.running_var"])


def test_weights_of_another_network_are_refused_and_change_nothing(tmp_path):
    network = build_model("osnet_x0_25", 5)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    for name in ("osnet_x0_5", "osnet_ain_x0_5"):
        torch.save(changed(build_model(name, 5).state_dict()), tmp_path / f"{name}.pth")
        with pytest.raises(DataError, match=rf"{name}\.pth: conv1\.conv\.weight has shape \(32, 3, 7, 7\)"):
            load_weights(network, tmp_path / f"{name}.pth")
    assert all(torch.equal(network.state_dict()[key], value) for key, value in before.items())


def test_a_file_with_nothing_for_this_network_is_named(tmp_path):
    torch.save({"encoder.weight": torch.zeros(3, 3)}, tmp_path / "alien.pth")
    with pytest.raises(
        DataError, match=r"alien\.pth: no weights for this network: the file has encoder\.weight"
    ):
        load_weights(build_model("osnet_x0_25", 5), tmp_path / "alien.pth")
    # A matching classifier does not make it the right network either.
    network = build_model("osnet_x0_25", 5)
    torch.save({"classifier.weight": torch.zeros(5, 512)}, tmp_path / "head.pth")
    with pytest.raises(DataError, match=r"head\.pth: no weights for this network"):
        load_weights(network, tmp_path / "head.pth")
    assert network.classifier.weight.abs().max() > 0


def test_files_that_cannot_be_read_are_named(tmp_path):
    network = build_model("osnet_x0_25", 5)
    with pytest.raises(DataError, match=r"gone\.pth: cannot read the weights: No such file"):
        load_weights(network, tmp_path / "gone.pth")
    with pytest.raises(DataError, match="cannot read the weights"):
        load_weights(network, tmp_path)
    torch.save(network.state_dict(), tmp_path / "whole.pth")
    data = (tmp_path / "whole.pth").read_bytes()
    for name, content in (("half", data[: len(data) // 2]), ("empty", b""), ("text", b"<!DOCTYPE html>")):
        (tmp_path / f"{name}.pth").write_bytes(content)
        with pytest.raises(DataError, match=rf"{name}\.pth: ") as caught:
            load_weights(network, tmp_path / f"{name}.pth")
        assert "\n" not in str(caught.value)
    for name, thing in (("list", [torch.zeros(2)]), ("numbers", {"epoch": 3}), ("nested", {"state_dict": 5})):
        torch.save(thing, tmp_path / f"{name}.pth")
        with pytest.raises(DataError, match=rf"{name}\.pth: contains no weights: expected tensors by name"):
            load_weights(network, tmp_path / f"{name}.pth")


class Runs:
    """A pickle that would create a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_code_in_a_file_is_refused_not_run(tmp_path):
    torch.save({"state_dict": Runs(tmp_path / "touched")}, tmp_path / "evil.pth")
    with pytest.raises(DataError, match=r"evil\.pth: not a weights file that torch can read safely"):
        load_weights(build_model("osnet_x0_25", 5), tmp_path / "evil.pth")
    assert not (tmp_path / "touched").exists()
