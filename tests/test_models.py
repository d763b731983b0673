from __future__ import annotations

import inspect

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import autoreid
from autoreid.errors import ConfigError
from autoreid.models import count_macs, count_parameters
from autoreid.spaces.build import NETWORKS, build_model
from autoreid.spaces.reid_cell.genotype import CellGenotype, Edge

_CELL = (
    (Edge("part_aware", 0), Edge("sep_conv_5x5", 1)),
    (Edge("max_pool_3x3", 0), Edge("skip_connect", 1)),
) * 2
OPTIONS = {"derived": {"genotype": str(CellGenotype(normal=_CELL, reduce=_CELL)), "parts": 2}}
WIDTHS = {name: 2048 for name in NETWORKS if name.startswith("resnet")}
WIDTHS |= {"pcb": 6 * 2048, "mgn": 8 * 256, "msinet_x1_0": 512 + 256}
#: Widths in training mode, where they differ.
TRAINING_WIDTHS = {"mgn": 3 * 256}
#: Networks with several classifiers.
CLASSIFIERS = {"pcb": 6, "mgn": 8, "msinet_x1_0": 2}
# From the papers and torchreid's model zoo, at 256×128, in millions and billions.
PUBLISHED = {
    "resnet50": (23.5, 2.7),
    "resnet101": (42.5, 5.1),  # torchvision: 44.5 M with 2 M of the classifier; 7.8 billion at 224×224
    "osnet_x1_0": (2.2, 0.98),
    "osnet_x0_75": (1.3, 0.57),
    "osnet_x0_5": (0.6, 0.27),
    "osnet_x0_25": (0.2, 0.08),
    "osnet_ibn_x1_0": (2.2, 0.98),
    "osnet_ain_x1_0": (2.17, 0.98),
}


def images(batch, height, width):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", NETWORKS)
def test_training_gives_embedding_and_logits_and_evaluation_what_is_ranked(name):
    torch.manual_seed(0)
    network = build_model(name, 5, **OPTIONS.get(name, {}))
    width = WIDTHS.get(name, 512)
    embedding, logits = network(images(2, 64, 32))
    assert embedding.shape == (2, TRAINING_WIDTHS.get(name, width))
    several = (CLASSIFIERS[name],) if name in CLASSIFIERS else ()
    assert logits.shape == (2, 5, *several)
    labels = torch.tensor([0, 4])
    loss = F.cross_entropy(logits, labels[:, None].expand(2, *several) if several else labels)
    if name in TRAINING_WIDTHS:  # the cross-entropy does not see all of the embedding
        loss = loss + embedding.square().sum()
    loss.backward()
    silent = [
        key
        for key, value in network.named_parameters()
        if value.requires_grad and (value.grad is None or not value.grad.isfinite().all())
    ]
    assert silent == []
    network.eval()
    with torch.no_grad():
        pair = images(2, 64, 32)
        ranked, alone = network(pair), network(pair[:1])
    assert ranked.shape == (2, width)
    torch.testing.assert_close(alone, ranked[:1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "name", ["resnet50", "pcb", "mgn", "osnet_x0_25", "osnet_ibn_x1_0", "osnet_ain_x0_25", "msinet_x1_0"]
)
@pytest.mark.parametrize("size", [(97, 51), (128, 64)])
def test_any_image_size_is_embedded(name, size):
    network = build_model(name, 3).eval()
    with torch.no_grad():
        embedding = network(images(1, *size))
    assert embedding.shape == (1, WIDTHS.get(name, 512))
    assert embedding.isfinite().all()


def test_the_nearest_name_is_proposed():
    with pytest.raises(ConfigError, match=r"unknown network 'osnet_ain_1_0'; did you mean osnet_ain_x1_0\?"):
        build_model("osnet_ain_1_0", 5)
    with pytest.raises(ConfigError, match=r"did you mean resnet50\?"):
        build_model("ResNet50", 5)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet50", {"last_strid": 1}, "no option 'last_strid'; its options are: last_stride, neck"),
        ("osnet_x0_25", {"width": 2.0}, "no option 'width'; its options are: pooling"),
        ("resnet50", {"last_stride": 3}, "last_stride = 3: must be 1 or 2"),
        ("pcb", {"parts": 0}, "parts = 0: must be at least 1"),
        ("pcb", {"dropout": 1.0}, r"dropout = 1\.0: must be"),
    ],
)
def test_wrong_options_are_named(name, options, message):
    with pytest.raises(ConfigError, match=message):
        build_model(name, 5, **options)


def test_a_training_set_without_identities_is_refused():
    with pytest.raises(ConfigError, match="num_identities = 0"):
        build_model("osnet_x0_25", 0)


@pytest.mark.parametrize(("last_stride", "expected"), [(1, (16, 8)), (2, (8, 4))])
def test_last_stride_sets_the_size_of_the_map(last_stride, expected):
    network = build_model("resnet50", 5, last_stride=last_stride).eval()
    with torch.no_grad():
        assert network.feature_map(images(1, 256, 128)).shape == (1, 2048, *expected)
    assert network.layer4[1].conv2.stride == (1, 1)


def test_resnets_neck_norms_what_is_classified_and_ranked():
    torch.manual_seed(0)
    network = build_model("resnet50", 5)
    embedding, logits = network(images(4, 64, 32))
    deviation = embedding.var(0, correction=0).add(1e-5).sqrt()
    normed = (embedding - embedding.mean(0)) / deviation
    torch.testing.assert_close(logits, normed @ network.neck.classifier.weight.T, rtol=1e-3, atol=1e-4)
    assert not network.neck.norm.bias.requires_grad
    network.eval()
    network.neck.norm.running_mean.fill_(0.5)
    with torch.no_grad():
        ranked = network(images(1, 64, 32))
        pooled = network.feature_map(images(1, 64, 32)).mean((2, 3))
    spread = network.neck.norm.running_var.add(1e-5).sqrt()
    torch.testing.assert_close(ranked, (pooled - 0.5) / spread)


def test_resnet_without_neck_classifies_and_ranks_the_same_embedding():
    torch.manual_seed(0)
    network = build_model("resnet50", 5, neck=False)
    embedding, logits = network(images(2, 64, 32))
    linear = network.classifier
    torch.testing.assert_close(logits, embedding @ linear.weight.T + linear.bias)
    network.eval()
    with torch.no_grad():
        torch.testing.assert_close(
            network(images(1, 64, 32)), network.feature_map(images(1, 64, 32)).mean((2, 3))
        )


def parts_by_loops(network, batch):
    """PCB written out from its paper, part by part: unit vectors by channel, then part, and each part's logits."""
    feature_map = network.feature_map(batch)
    height = feature_map.shape[2]
    vectors = []
    for part in range(network.parts):
        first, behind = part * height // network.parts, -(-(part + 1) * height // network.parts)
        vectors.append(feature_map[:, :, first:behind].mean((2, 3)))
    units = [vector / vector.norm(dim=1, keepdim=True) for vector in vectors]
    conv, norm = network.reduce[0], network.reduce[1]
    narrow = torch.stack([vector @ conv.weight.flatten(1).T for vector in vectors], dim=2)
    mean, variance = narrow.mean((0, 2), keepdim=True), narrow.var((0, 2), correction=0, keepdim=True)
    active = ((narrow - mean) / (variance + norm.eps).sqrt()).clamp(min=0)
    logits = [linear(active[:, :, part]) for part, linear in enumerate(network.classifier)]
    return torch.stack(units, dim=2).flatten(1), logits


@pytest.mark.parametrize(("parts", "size"), [(6, (384, 192)), (4, (150, 60))])
def test_pcb_is_what_its_paper_draws(parts, size):
    torch.manual_seed(0)
    network = build_model("pcb", 5, parts=parts, dropout=0.0)
    for module in network.modules():  # otherwise the second training pass would see updated statistics
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0
    with torch.no_grad():
        embedding, logits = network(images(1, *size))
        expected, expected_logits = parts_by_loops(network, images(1, *size))
    torch.testing.assert_close(embedding, expected, rtol=1e-3, atol=1e-5)
    for part in range(parts):
        torch.testing.assert_close(logits[:, :, part], expected_logits[part], rtol=1e-3, atol=1e-4)
    # The published loss is the sum over parts; torch's is the mean of the same values.
    labels = torch.tensor([3])
    each = [F.cross_entropy(part, labels) for part in expected_logits]
    torch.testing.assert_close(F.cross_entropy(logits, labels[:, None].expand(1, parts)), sum(each) / parts)


def test_pcbs_dropout_touches_the_logits_only():
    torch.manual_seed(0)
    network = build_model("pcb", 5, dropout=0.5)
    with torch.no_grad():
        first, second = network(images(2, 96, 48)), network(images(2, 96, 48))
    torch.testing.assert_close(first[0], second[0])
    assert (first[1] - second[1]).abs().max() > 0.01


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_are_those_published(name):
    parameters, macs = PUBLISHED[name]
    network = build_model(name, 751)
    digits = 2 if parameters == 2.17 else 1
    assert round(count_parameters(network) / 1e6, digits) == parameters
    assert round(count_macs(network, 256, 128) / 1e9, 1 if name.startswith("resnet") else 2) == macs


def test_counts_of_a_network_worked_out_by_hand():
    class Small(nn.Module):
        def __init__(self):
            super().__init__()
            self.wide = nn.Conv2d(3, 8, 3, stride=2, padding=1)
            self.depthwise = nn.Conv2d(8, 8, 5, groups=8, bias=False)
            self.linear = nn.Linear(8, 7)
            self.classifier = nn.Linear(7, 100)

        def forward(self, batch):
            embedding = self.linear(self.depthwise(self.wide(batch)).mean((2, 3)))
            return (embedding, self.classifier(embedding)) if self.training else embedding

    network = Small()
    network.wide.eval()
    modes = [module.training for module in network.modules()]
    assert count_parameters(network) == 8 * 3 * 9 + 8 + 8 * 25 + 8 * 7 + 7
    assert (
        sum(parameter.numel() for parameter in network.parameters())
        == count_parameters(network) + 7 * 100 + 100
    )
    # An image of 20 × 13 becomes 10 × 7, then 6 × 3.
    assert count_macs(network, 20, 13) == 10 * 7 * 8 * 3 * 9 + 6 * 3 * 8 * 25 + 8 * 7
    assert [module.training for module in network.modules()] == modes
    assert all(parameter.device.type == "cpu" for parameter in network.parameters())


@pytest.mark.parametrize(
    ("name", "deviation"),
    [("resnet50", 0.001), ("pcb", 0.01), ("mgn", 0.01), ("osnet_x1_0", 0.01), ("osnet_ain_x1_0", 0.01)],
)
def test_weights_start_as_published(name, deviation):
    torch.manual_seed(0)
    network = build_model(name, 400)
    for key, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
            drawn = module.weight.numel()
            spread = module.weight.std().item() * (fan_out / 2) ** 0.5
            assert abs(spread - 1) < 5 * (2 * drawn) ** -0.5, key
        elif isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d | nn.InstanceNorm2d):
            assert (module.weight == 1).all(), key
            assert (module.bias == 0).all(), key
        elif isinstance(module, nn.Linear):
            expected = deviation if "classifier" in key else 0.01
            assert abs(module.weight.std().item() / expected - 1) < 0.03, key
            assert module.bias is None or (module.bias == 0).all(), key


def test_equal_seeds_give_equal_networks():
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(build_model("osnet_ain_x0_25", 5).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_every_network_takes_the_number_of_identities():
    assert all("num_identities" in inspect.signature(build).parameters for build in NETWORKS.values())


def test_the_package_itself_builds_the_same_networks():
    torch.manual_seed(3)
    expected = build_model("pcb", 5, parts=2).state_dict()
    torch.manual_seed(3)
    found = autoreid.build_model("pcb", 5, parts=2).state_dict()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
