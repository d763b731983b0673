"""MGN, against a computation that is written out from its paper with functions on its weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from autoreid.commands.export import check_onnx
from autoreid.deployment.metadata import Metadata
from autoreid.deployment.onnx_export import export_onnx
from autoreid.embedder import Embedder
from autoreid.errors import DataError
from autoreid.models import count_parameters, load_weights, output_sizes
from autoreid.recipes import load_config
from autoreid.reporting.activation_maps import activation_maps
from autoreid.spaces.build import build_model
from tests.helpers.commands import ROOT
from tests.test_weights import changed

IDENTITIES = 5


def images(batch: int, height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, 3, height, width, generator=generator, dtype=torch.float64)


@pytest.fixture
def network():
    """With weights and statistics that differ from branch to branch."""
    torch.manual_seed(0)
    network = build_model("mgn", IDENTITIES).double()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, std=0.2)
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2.0)
            module.momentum = 0.0  # a pass in training mode changes nothing
    for branch in network.branches:
        for weight in branch.parameters():
            weight.data += 0.1 * weight.data.std(correction=0) * torch.randn_like(weight)
    return network


class Written:
    """The paper's network on the weights of another one."""

    def __init__(self, weights: dict[str, torch.Tensor], training: bool) -> None:
        self.weights, self.training = weights, training

    def conv_norm(self, x, conv, norm, stride=1, relu=True):
        weight = self.weights[f"{conv}.weight"]
        x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
        mean, variance, scale, shift = (
            self.weights[f"{norm}.{name}"] for name in ("running_mean", "running_var", "weight", "bias")
        )
        x = F.batch_norm(x, mean.clone(), variance.clone(), scale, shift, self.training)
        return F.relu(x) if relu else x

    def block(self, x, name, stride=1):
        y = self.conv_norm(x, f"{name}.conv1", f"{name}.bn1")
        y = self.conv_norm(y, f"{name}.conv2", f"{name}.bn2", stride)
        y = self.conv_norm(y, f"{name}.conv3", f"{name}.bn3", relu=False)
        if f"{name}.downsample.0.weight" in self.weights:
            x = self.conv_norm(x, f"{name}.downsample.0", f"{name}.downsample.1", stride, relu=False)
        return F.relu(x + y)

    def shared(self, x):
        x = F.max_pool2d(self.conv_norm(x, "conv1", "bn1", 2), 3, 2, 1)
        for block in range(3):
            x = self.block(x, f"layer1.{block}")
        for block in range(4):
            x = self.block(x, f"layer2.{block}", 1 if block else 2)
        return self.block(x, "layer3.0", 2)

    def branch(self, x, number):
        for block in range(1, 6):
            x = self.block(x, f"branches.{number}.layer3.{block}")
        for block in range(3):
            stride = 2 if (number, block) == (0, 0) else 1
            x = self.block(x, f"branches.{number}.layer4.{block}", stride)
        return x

    def vectors(self, x):
        """The eight pooled vectors (B, 2048, 1, 1)."""
        x = self.shared(x)
        found = []
        for number, stripes in enumerate((1, 2, 3)):
            y = self.branch(x, number)
            found.append(F.adaptive_max_pool2d(y, 1))
            if stripes > 1:
                found += F.adaptive_max_pool2d(y, (stripes, 1)).split(1, dim=2)
        return found

    def reduced(self, vectors):
        return [
            self.conv_norm(vector, f"reduce.{number}.0", f"reduce.{number}.1").flatten(1)
            for number, vector in enumerate(vectors)
        ]

    def logits(self, vectors, reduced):
        """Of whole maps (the first vector of each branch) before the reduction, of stripes after it."""
        sources = [
            vector.flatten(1) if number in (0, 1, 4) else narrow
            for number, (vector, narrow) in enumerate(zip(vectors, reduced, strict=True))
        ]
        return [
            F.linear(
                x, self.weights[f"classifier.{number}.weight"], self.weights[f"classifier.{number}.bias"]
            )
            for number, x in enumerate(sources)
        ]


@pytest.mark.slow
@pytest.mark.parametrize("size", [(96, 48), (107, 33)])
def test_outputs_are_those_of_the_paper(network, size):
    batch = images(3, *size)
    network.eval()
    with torch.no_grad():
        written = Written(network.state_dict(), training=False)
        expected = torch.cat(written.reduced(written.vectors(batch)), dim=1)
        assert expected.shape == (3, 2048)
        torch.testing.assert_close(network(batch), expected)
        network.train()
        written = Written(network.state_dict(), training=True)
        vectors = written.vectors(batch)
        reduced = written.reduced(vectors)
        embedding, logits = network(batch)
    torch.testing.assert_close(embedding, torch.cat([reduced[number] for number in (0, 1, 4)], dim=1))
    torch.testing.assert_close(logits, torch.stack(written.logits(vectors, reduced), dim=2))
    assert (embedding.shape, logits.shape) == ((3, 768), (3, IDENTITIES, 8))


def test_maps_have_the_sizes_of_the_paper(network):
    """At 384×128: 12×4 in the global branch, 24×8 in the others."""
    network = network.to("meta").eval()
    x = torch.empty(1, 3, 384, 128, device="meta", dtype=torch.float64)
    for block in (network.conv1, network.maxpool, network.layer1, network.layer2, network.layer3):
        x = block(x)
    assert [branch(x).shape[2:] for branch in network.branches] == [(12, 4), (24, 8), (24, 8)]


def test_parameters_counted_by_hand():
    def bottleneck(inputs, middle, changes_size=False):
        outputs = 4 * middle
        convolutions = inputs * middle + 9 * middle * middle + middle * outputs
        norms = 2 * (middle + middle + outputs)
        return convolutions + norms + (inputs * outputs + 2 * outputs if changes_size else 0)

    stem = 3 * 64 * 7 * 7 + 2 * 64
    first = bottleneck(64, 64, True) + 2 * bottleneck(256, 64)
    second = bottleneck(256, 128, True) + 3 * bottleneck(512, 128)
    shared = stem + first + second + bottleneck(512, 256, True)
    branch = 5 * bottleneck(1024, 256) + bottleneck(1024, 512, True) + 2 * bottleneck(2048, 512)
    reductions = 8 * (2048 * 256 + 2 * 256)
    network = build_model("mgn", IDENTITIES)
    assert count_parameters(network) == shared + 3 * branch + reductions
    classifiers = IDENTITIES * (3 * 2048 + 5 * 256 + 8)
    assert sum(weight.numel() for weight in network.parameters()) == count_parameters(network) + classifiers


def test_imagenet_weights_fill_all_branches(tmp_path):
    imagenet = changed(torchvision.models.resnet50(weights=None).state_dict())
    torch.save(imagenet, tmp_path / "resnet50.pth")
    network = build_model("mgn", IDENTITIES)
    report = load_weights(network, tmp_path / "resnet50.pth")
    assert {*report.skipped} == {"fc.weight", "fc.bias"}
    assert {key.split(".")[0] for key in report.missing} == {"reduce", "classifier"}
    loaded = network.state_dict()
    for key, value in imagenet.items():
        stage, block = key.split(".")[:2]
        names = [key]
        if stage == "layer4" or (stage == "layer3" and block != "0"):
            names = [f"branches.{number}.{key}" for number in range(3)]
        assert stage == "fc" or all(loaded[name].equal(value) for name in names), key
    own = tmp_path / "own.pth"
    torch.save(loaded, own)
    assert load_weights(build_model("mgn", IDENTITIES), own).missing == ()


def test_weights_of_a_deeper_resnet_are_refused(tmp_path):
    torch.save(torchvision.models.resnet101(weights=None).state_dict(), tmp_path / "resnet101.pth")
    with pytest.raises(DataError, match="another network"):
        load_weights(build_model("mgn", IDENTITIES), tmp_path / "resnet101.pth")


def test_branches_start_alike_and_do_not_share_weights():
    network = build_model("mgn", IDENTITIES)
    states = [branch.state_dict() for branch in network.branches]
    for state in states[1:]:
        assert all(value.equal(states[0][key]) for key, value in state.items())
    assert len({value.data_ptr() for state in states for value in state.values()}) == 3 * len(states[0])


@pytest.mark.slow
def test_a_classifier_teaches_its_own_branch_only(network):
    _, logits = network(images(2, 64, 32))
    weights = dict(network.named_parameters())
    for part, branch in enumerate((0, 1, 1, 1, 2, 2, 2, 2)):
        loss = logits[:, :, part].square().sum()
        gradients = torch.autograd.grad(loss, [*weights.values()], retain_graph=True, allow_unused=True)
        taught = {
            ".".join(name.split(".")[:2])
            for name, gradient in zip(weights, gradients, strict=True)
            if gradient is not None and gradient.any() and not name.startswith(("conv1", "bn1", "layer"))
        }
        reduction = set() if part in (0, 1, 4) else {f"reduce.{part}"}
        assert taught == {f"branches.{branch}", f"classifier.{part}"} | reduction


def test_the_loss_knows_three_embeddings():
    sizes = output_sizes(build_model("mgn", IDENTITIES), 64, 32)
    assert sizes == (768, 2048, 3)


def test_activation_maps_are_those_of_the_last_branch(network):
    network.eval()
    batch = images(1, 64, 32)
    with torch.inference_mode():
        written = Written(network.state_dict(), training=False)
        expected = written.branch(written.shared(batch), 2).square().sum(1).float()
    torch.testing.assert_close(activation_maps(network, batch), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_it_can_be_exported(network):
    config = load_config(ROOT / "configs/baseline_mgn.yaml", ["data.height=64", "data.width=32"])
    model = export_onnx(network.float(), Metadata.of(config))
    agreement = check_onnx(model, Path("mgn.onnx"), Embedder(network, 64, 32, "cpu"))
    assert agreement.difference < 1e-4
