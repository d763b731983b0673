from __future__ import annotations

import argparse
import gzip
import json
import os
import pickle
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

from autoreid import train
from autoreid.errors import DataError
from autoreid.models import load_weights
from autoreid.models.weights import fill, load_trunk
from autoreid.models.weights_file import read_weights
from autoreid.spaces.build import build_model
from tests.helpers.tiny import OSNET_TRAINING, write_tiny
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
    assert (
        f"model.pth.tar-3 (state_dict): {len(report.loaded)} entries loaded; 2 missing in the file: "
        in str(report)
    )


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
    for name, thing, has in (
        ("list", [torch.zeros(2)], "a list"),
        ("numbers", {"epoch": 3}, "the keys epoch"),
        ("nested", {"state_dict": 5}, "the keys state_dict"),
        ("gan", {"generator": {"a": torch.zeros(2)}, "step": 3}, "the keys generator, step"),
    ):
        torch.save(thing, tmp_path / f"{name}.pth")
        with pytest.raises(DataError, match=rf"{name}\.pth: contains no weights: expected tensors.*{has}"):
            load_weights(network, tmp_path / f"{name}.pth")


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 98\n"


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "an empty file"),
        (POINTER, "a Git LFS pointer"),
        (b"\n <!DOCTYPE html><html><title>Google Drive - Virus scan warning", "a web page"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code>", "a web page"),
        (b'{"error": "Repository not found"}', "JSON text"),
        (gzip.compress(b"weights", mtime=0), "a compressed archive"),
        (b"no weights at all", "not a file of torch.save or safetensors"),
        (bytes(range(256)), "not a file of torch.save or safetensors"),
        (pickle.dumps({"conv1.weight": np.zeros(3)}, protocol=2), "not a file of torch.save or safetensors"),
    ],
)
def test_what_is_no_weights_file_is_called_what_it_is(tmp_path, content, what):
    (tmp_path / "file.pth").write_bytes(content)
    assert_refused(tmp_path / "file.pth", what)


def assert_refused(path, what):
    with pytest.raises(DataError, match=rf"{re.escape(path.name)}: .*{what}") as caught:
        read_weights(path)
    assert "\n" not in str(caught.value)
    assert "weights_only" not in str(caught.value)


def test_archives_of_other_kinds_are_called_what_they_are(tmp_path):
    np.savez(tmp_path / "numpy.npz", weights=np.zeros(3))
    assert_refused(tmp_path / "numpy.npz", "a zip archive without torch's data")
    with tarfile.open(tmp_path / "weights.tar", "w") as archive:
        archive.add(tmp_path / "numpy.npz")
    assert_refused(tmp_path / "weights.tar", "a tar archive")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pth")
    assert_refused(tmp_path / "module.pth", r"the Python object torch\.nn\.modules\.linear\.Linear")
    torch.save({"weights": torch.zeros(50)}, tmp_path / "half.pth")
    os.truncate(tmp_path / "half.pth", 600)
    assert_refused(tmp_path / "half.pth", "the file is damaged: it is incomplete")


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore:`torch.jit:DeprecationWarning")
def test_a_torchscript_program_is_called_what_it_is(tmp_path, recwarn):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "program.pt")
    recwarn.clear()
    assert_refused(tmp_path / "program.pt", "a TorchScript program, not weights")
    assert not recwarn.list, "torch's advice how to run it"


def test_a_changed_byte_in_a_tensor_is_damage(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"weight": torch.full((100,), 2.0)}, path)
    data = bytearray(path.read_bytes())
    data[data.index(torch.full((9,), 2.0).numpy().tobytes()) + 3] ^= 1
    path.write_bytes(data)
    assert not torch.load(path)["weight"].eq(2).all(), "torch itself does not notice"
    assert_refused(path, "damaged: .*weights/data/0 has a wrong checksum")


def test_files_without_checksums_can_be_read(tmp_path):
    """torch.serialization.set_crc32_options lets a program save without them."""
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"weight": torch.ones(3)}, tmp_path / "weights.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch.equal(read_weights(tmp_path / "weights.pth")["weight"], torch.ones(3))


class Runs:
    """A pickle that would create a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_code_in_a_file_is_refused_not_run(tmp_path):
    torch.save({"state_dict": Runs(tmp_path / "touched")}, tmp_path / "evil.pth")
    with pytest.raises(
        DataError, match=r"evil\.pth: it contains the Python object \S+, which could run code"
    ):
        load_weights(build_model("osnet_x0_25", 5), tmp_path / "evil.pth")
    assert not (tmp_path / "touched").exists()


#: How programs save the weights of a network -> where the report says they are.
SAVED = {
    "plain": (lambda state: state, ""),
    "ddp twice": (lambda state: with_prefix("module.module.", state), ""),
    "compiled": (lambda state: with_prefix("_orig_mod.", state), ""),
    "fast-reid": (
        lambda state: {"model": with_prefix("backbone.", state), "iteration": 9},
        "model: backbone.",
    ),
    "bag of tricks": (lambda state: with_prefix("base.", state), "base."),
    "moco": (
        lambda state: {
            "arch": "osnet",
            "state_dict": with_prefix("module.encoder_q.", state)
            | with_prefix("module.encoder_k.", changed(state)),
        },
        "state_dict: encoder_q.",
    ),
    "lightning": (
        lambda state: {
            "epoch": 3,
            "state_dict": with_prefix("model.", state),
            "hyper_parameters": {"lr": 0.1},
        },
        "state_dict: model.",
    ),
    "dino": (
        lambda state: {
            "args": argparse.Namespace(arch="osnet"),
            "student": with_prefix("module.backbone.", changed(state)),
            "teacher": with_prefix("backbone.", state),
        },
        "teacher: backbone.",
    ),
    "with metrics": (lambda state: {"net": state, "acc": np.zeros(3), "best": np.float64(0.5)}, "net"),
    "compiled in part": (
        lambda state: {key.replace("conv3.0.", "conv3._orig_mod.0."): value for key, value in state.items()},
        "",
    ),
}


def with_prefix(prefix, state):
    return {prefix + key: value for key, value in state.items()}


@pytest.mark.parametrize("how", SAVED)
def test_weights_are_found_as_other_programs_save_them(tmp_path, how):
    network = build_model("osnet_x0_25", 5)
    state = changed(build_model("osnet_x0_25", 7).state_dict())
    save, place = SAVED[how]
    torch.save(save(state), tmp_path / "theirs.pth")
    report = load_weights(network, tmp_path / "theirs.pth")
    assert report.place == place
    found = network.state_dict()
    assert all(torch.equal(found[key], state[key]) for key in report.loaded)
    assert report.missing == ("classifier.weight", "classifier.bias")
    ours = {key for key in report.skipped if "encoder_k" not in key}
    assert {".".join(key.split(".")[-2:]) for key in ours} == {*report.missing}


def zeros(build):
    """Return a state dict of zeros, which need no memory, with the names and shapes of a network."""
    with torch.device("meta"):
        state = build().state_dict()
    return {key: torch.zeros((), dtype=value.dtype).expand(value.shape) for key, value in state.items()}


def imagenet(name="resnet50"):
    return zeros(lambda: getattr(torchvision.models, name)(weights=None))


@pytest.fixture(scope="module")
def resnet():
    return build_model("resnet50", 5)


@pytest.mark.parametrize("neck", ["bottleneck.", "heads.bottleneck.0."])
def test_the_neck_of_other_programs_is_ours(tmp_path, neck):
    """Names of the bag of tricks and of fast-reid; the neck is outside of the backbone's prefix."""
    network = build_model("resnet50", 5)
    norm = changed(torch.nn.BatchNorm1d(2048).state_dict())
    state = with_prefix("backbone.", imagenet()) | with_prefix(neck, norm)
    assert fill(network, state, tmp_path, whole_trunk=True).missing == ("neck.classifier.weight",)
    found = network.neck.norm.state_dict()
    assert all(torch.equal(found[key], value) for key, value in norm.items())


def test_safetensors_hold_the_same_weights(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    network = build_model("osnet_x0_25", 5)
    state = changed(network.state_dict())
    safetensors.save_file(with_prefix("backbone.", state), tmp_path / "model.safetensors", {"format": "pt"})
    report = load_weights(network, tmp_path / "model.safetensors")
    assert (report.place, report.missing, report.skipped) == ("backbone.", (), {})
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    os.truncate(tmp_path / "model.safetensors", (tmp_path / "model.safetensors").stat().st_size - 8)
    assert_refused(tmp_path / "model.safetensors", "damaged safetensors file")


def test_counters_may_be_missing_or_of_shape_1(tmp_path):
    network = build_model("osnet_x0_25", 5)
    state = changed(network.state_dict())
    old = {key: value for key, value in state.items() if "num_batches" not in key}
    torch.save(old, tmp_path / "old.pth")
    assert all(
        name.endswith("num_batches_tracked") for name in load_weights(network, tmp_path / "old.pth").missing
    )
    torch.save(
        {key: value.reshape(value.shape or (1,)) for key, value in state.items()}, tmp_path / "one.pth"
    )
    assert load_weights(network, tmp_path / "one.pth").missing == ()
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


#: A network, weights of another one, and what is said of them.
OTHERS = {
    "resnet101": (
        "resnet50",
        lambda: imagenet("resnet101"),
        "it has no layer3.6.conv1, layer3.6.bn1, layer3.6.conv2 and 99 more, which the file has",
    ),
    "the first convolution": (
        "resnet50",
        lambda: {"conv1.weight": torch.zeros(64, 3, 7, 7)},
        "the file has no bn1, layer1.0.conv1, layer1.0.bn1 and 102 more, which would stay as initialised",
    ),
    "no norms": (
        "resnet50",
        lambda: remove("bn", imagenet()),
        "the file has no bn1, layer1.0.bn1, layer1.0.bn2",
    ),
    "no bias": (
        "resnet50",
        lambda: remove("layer2.1.bn2.bias", imagenet()),
        "the file has no layer2.1.bn2, which",
    ),
    "squeeze and excitation": (
        "resnet50",
        lambda: imagenet() | {"layer1.0.se_module.fc1.weight": torch.zeros(16, 256, 1, 1)},
        "it has no layer1.0.se_module.fc1, which the file has",
    ),
    "resnet18": (
        "resnet50",
        lambda: imagenet("resnet18"),
        "layer1.0.conv1.weight has shape (64, 64, 3, 3), but that of this network has (64, 64, 1, 1)",
    ),
    "osnet_ain": (
        "osnet_x1_0",
        lambda: recorded("osnet_ain_x1_0"),
        "no conv1.bn, conv2.0.conv3.bn, conv2.1.conv3.bn",
    ),
    "osnet_ibn": ("osnet_x1_0", lambda: recorded("osnet_ibn_x1_0"), "the file has no conv1.bn, which"),
    "osnet": ("osnet_ibn_x1_0", lambda: recorded("osnet_x1_0"), "no conv2.0.norm_after, conv2.1.norm_after"),
    "a block with instance norm": (
        "osnet_x1_0",
        lambda: recorded("osnet_x1_0") | {"conv2.0.IN.weight": torch.zeros(256)},
        "it has no conv2.0.IN, which the file has",
    ),
}


def remove(part, state):
    return {key: value for key, value in state.items() if part not in key}


def recorded(name):
    """Torchreid's names and shapes."""
    counter = "num_batches_tracked"
    shapes = {key: shape for key, shape in fixtures()[name]["state_dict"] if not key.endswith(counter)}
    return {key: torch.zeros(()).expand(shape) for key, shape in shapes.items()}


@pytest.mark.parametrize("other", OTHERS)
def test_a_trunk_that_does_not_fit_is_refused_by_name(tmp_path, resnet, other):
    name, state, message = OTHERS[other]
    network = resnet if name == "resnet50" else build_model(name, 5)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    for prefix in ("", "module.backbone."):
        with pytest.raises(DataError, match=rf"other\.pth: .*{re.escape(message)}") as caught:
            load_trunk(network, {"model": with_prefix(prefix, state())}, tmp_path / "other.pth")
        assert "\n" not in str(caught.value)
    assert all(torch.equal(network.state_dict()[key], value) for key, value in before.items())


@pytest.mark.parametrize(
    ("value", "message"),
    [(torch.zeros(64, dtype=torch.int8), "type torch.int8"), (torch.full((64,), torch.nan), "not finite")],
)
def test_values_that_are_no_weights_are_refused(tmp_path, resnet, value, message):
    with pytest.raises(DataError, match=rf"odd\.pth: bn1\.running_var has .*{message}"):
        load_trunk(resnet, imagenet() | {"bn1.running_var": value}, tmp_path / "odd.pth")


def test_half_precision_is_loaded_exactly(tmp_path):
    network = build_model("osnet_x0_25", 5)
    half = {
        key: value.half() if value.is_floating_point() else value
        for key, value in network.state_dict().items()
    }
    load_trunk(network, half, tmp_path / "half.pth")
    assert all(torch.equal(value, half[key].to(value.dtype)) for key, value in network.state_dict().items())
    assert network.conv1.conv.weight.dtype == torch.float32


def test_a_training_says_what_it_loaded(tmp_path):
    state = changed(build_model("osnet_x0_25", 7).state_dict())
    torch.save(with_prefix("module.", state), tmp_path / "start.pth")
    model = {"name": "osnet_x0_25", "weights": str(tmp_path / "start.pth")}
    path = write_tiny(tmp_path, **OSNET_TRAINING | {"model": model}, training__epochs=1)
    assert train.main(["--config", str(path)]) == 0
    loaded = len(state) - 2
    log = (tmp_path / "runs/tiny/logs/rank0.log").read_text()
    (line,) = [line for line in log.splitlines() if "start.pth" in line]
    assert (
        f"start.pth: {loaded} entries loaded; 2 missing in the file: classifier.weight, classifier.bias"
        in line
    )
    weights = json.loads((tmp_path / "runs/tiny/environment.json").read_text())["weights"]
    unused = {
        f"classifier.{part}": f"shape ({size}), not ("
        for part, size in (("weight", "7, 512"), ("bias", "7,"))
    }
    assert all(weights["unused"].pop(key).startswith(reason) for key, reason in unused.items())
    assert weights == {
        "file": str(tmp_path / "start.pth"),
        "place": "",
        "loaded": loaded,
        "missing": ["classifier.weight", "classifier.bias"],
        "unused": {},
    }
