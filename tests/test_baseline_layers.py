"""Layers and losses of the published baselines: GeM, IBN-a, non-local blocks, softmaxes over cosines."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from autoreid.config import Losses
from autoreid.errors import ConfigError, DataError
from autoreid.layers.heads import use_cosines
from autoreid.layers.instance_batch_norm import InstanceBatchNorm
from autoreid.layers.non_local import NonLocal
from autoreid.layers.pooling import GeneralizedMeanPool
from autoreid.losses import Outputs
from autoreid.losses.classification import Classification
from autoreid.losses.margin_softmax import MARGINS, arcface
from autoreid.models import load_weights
from autoreid.spaces.build import NETWORKS, build_model
from tests.test_models import OPTIONS, images


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_gem_and_its_gradients_follow_the_formula():
    pool = GeneralizedMeanPool(2.5).double()
    x = random(2, 3, 4, 5).requires_grad_()
    powers = [max(value, 1e-6) ** 2.5 for value in x[1, 2].flatten().tolist()]
    assert pool(x)[1, 2].item() == pytest.approx((sum(powers) / 20) ** (1 / 2.5))
    positive = (random(2, 3, 4, 5).abs() + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(pool, positive)
    assert torch.autograd.gradcheck(
        lambda p: torch.func.functional_call(pool, {"exponent": p}, positive.detach()), pool.exponent
    )


def test_gem_lies_between_average_and_maximum():
    x = random(2, 3, 4, 5).abs() + 0.1
    torch.testing.assert_close(GeneralizedMeanPool(1.0)(x), x.mean((2, 3)))
    torch.testing.assert_close(GeneralizedMeanPool(300.0)(x), x.amax((2, 3)), rtol=0.02, atol=0)
    half = x.bfloat16()
    exact = GeneralizedMeanPool().double()(half.double())
    torch.testing.assert_close(GeneralizedMeanPool()(half).double(), exact, rtol=1e-5, atol=0)


@pytest.mark.parametrize("exponent", [1.0, 3.0, 8.0, 50.0])
def test_gem_of_a_silent_channel_has_finite_gradients_for_every_exponent(exponent):
    pool, x = GeneralizedMeanPool(exponent), torch.zeros(1, 2, 3, 3)
    x[0, 1, 1, 1] = 4.0
    found = pool(x.requires_grad_())
    torch.testing.assert_close(
        found, torch.tensor([[1e-6, 4.0 * 9 ** (-1 / exponent)]]), rtol=1e-4, atol=1e-5
    )
    found.sum().backward()
    assert x.grad.isfinite().all()
    # The derivative of (4^p / 9)^(1/p) by p.
    assert pool.exponent.grad.item() == pytest.approx(
        found[0, 1].item() * math.log(9) / exponent**2, rel=1e-4
    )


def test_instance_batch_norm_norms_one_half_by_image_and_the_other_by_batch():
    norm = InstanceBatchNorm(5).double()
    x = random(3, 5, 4, 2)
    found = norm(x)
    for channels, dims in ((slice(0, 2), (2, 3)), (slice(2, 5), (0, 2, 3))):
        part = x[:, channels]
        mean, variance = part.mean(dims, keepdim=True), part.var(dims, correction=0, keepdim=True)
        torch.testing.assert_close(found[:, channels], (part - mean) / (variance + 1e-5).sqrt())


def ibn_names(depth):
    """The entries of IBN-Net's published files, as their names and shapes follow from torchvision's."""
    norms = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    for name, value in getattr(torchvision.models, f"resnet{depth}")(weights=None).state_dict().items():
        stage, *_, norm, kind = name.split(".")[-4:] if name.count(".") >= 3 else ("", "", name)
        if not (stage in ("layer1", "layer2", "layer3") and norm == "bn1" and kind in norms):
            yield name, value
            continue
        layer = name.rpartition(".")[0]
        half = value.clone() if kind == "num_batches_tracked" else torch.rand(len(value) // 2) + 0.5
        yield f"{layer}.BN.{kind}", half
        if kind in ("weight", "bias"):
            yield f"{layer}.IN.{kind}", half + 1


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "prefix"), [(50, ""), (101, "module.")])
def test_published_files_of_ibn_net_fill_the_backbone(tmp_path, depth, prefix):
    weights = dict(ibn_names(depth))
    assert sum(".IN." in name for name in weights) == 2 * ({50: 13, 101: 30}[depth])
    torch.save({prefix + name: value for name, value in weights.items()}, tmp_path / "ibn.pth")
    network = build_model(f"resnet{depth}_ibn_a", 5, last_stride=1, pooling="gem", non_local=[2, 3])
    report = load_weights(network, tmp_path / "ibn.pth")
    assert set(report.loaded) == set(weights) - {"fc.weight", "fc.bias"}
    assert {name.split(".")[0] for name in report.missing} == {"neck", "pool", "non_local"}
    assert network.layer3[5].bn1.IN.weight.equal(weights["layer3.5.bn1.IN.weight"])
    assert type(network.layer4[0].bn1) is nn.BatchNorm2d
    with pytest.raises(DataError, match="another network"):
        load_weights(build_model(f"resnet{depth}", 5), tmp_path / "ibn.pth")


def test_a_non_local_block_follows_the_papers_formula():
    block = NonLocal(4).double().eval()
    x = random(2, 4, 3, 2).requires_grad_()
    assert block(x).equal(x), "starts as the identity"
    nn.init.constant_(block.norm.weight, 0.7)
    theta, phi, g = (getattr(block, name) for name in ("theta", "phi", "g"))
    rows = x[1].flatten(1).T  # positions × channels
    theta, phi, g = (rows @ layer.weight.flatten(1).T + layer.bias for layer in (theta, phi, g))
    y = (theta @ phi.T / 6) @ g @ block.expand.weight.flatten(1).T
    expected = rows + 0.7 * y / math.sqrt(1 + 1e-5)
    torch.testing.assert_close(block(x)[1].flatten(1).T, expected)


def test_non_local_blocks_follow_the_last_blocks_of_two_stages():
    torch.manual_seed(0)
    network = build_model("resnet50", 5, non_local=[2, 3], last_stride=1)
    assert [*network.non_local] == ["layer2_2", "layer2_3", "layer3_3", "layer3_4", "layer3_5"]
    order = []
    for name, module in network.named_modules():
        if isinstance(module, NonLocal | torchvision.models.resnet.Bottleneck):
            module.register_forward_hook(lambda *_, name=name: order.append(name))
    network(images(2, 64, 32))
    places = {name: order.index(name) for name in order}
    for name in network.non_local:
        assert places[f"non_local.{name}"] == places[name.replace("_", ".")] + 1
    for block in network.non_local.values():
        nn.init.ones_(block.norm.weight)
    with torch.no_grad():
        assert (
            not network.eval()
            .feature_map(images(1, 64, 32))
            .equal(build_model("resnet50", 5).eval().feature_map(images(1, 64, 32)))
        )


@pytest.mark.parametrize("counts", [[5, 0], [0, 7], [2], 2, [-1, 0]])
def test_impossible_numbers_of_non_local_blocks_are_refused(counts):
    with pytest.raises(ConfigError, match=r"non_local = .*: must be two numbers of blocks, at most 4 and 6"):
        build_model("resnet50", 5, non_local=counts)


@pytest.mark.parametrize(
    "name", [name for name in NETWORKS if name not in ("pcb", "mgn") and "resnet101" not in name]
)
def test_every_network_with_one_embedding_can_pool_by_gem(name):
    options = {**OPTIONS.get(name, {}), "pooling": "gem"}
    network = build_model(name, 5, **options)
    assert network.pool in network.head()
    before = network.eval()(images(2, 64, 32))
    nn.init.constant_(network.pool.exponent, 1.0)
    averaged = network(images(2, 64, 32))
    assert averaged.shape == before.shape
    assert not averaged.allclose(before)
    with pytest.raises(ConfigError, match="pooling = 'max': must be one of average, gem"):
        build_model(name, 5, **options | {"pooling": "max"})


@pytest.mark.parametrize("kind", MARGINS)
def test_margins_follow_their_papers(kind):
    """In plain floats, from the angles."""
    scale, margin, smoothing = 16.0, 0.4, 0.1
    cosines = (0.9 * random(6, 5).tanh()).requires_grad_()
    labels = torch.tensor([0, 4, 2, 2, 1, 3])
    settings = Losses(softmax=kind, softmax_scale=scale, softmax_margin=margin, label_smoothing=smoothing)
    total = 0.0
    for row, label in zip(cosines.tolist(), labels.tolist(), strict=True):
        logits = []
        for column, cosine in enumerate(row):
            own = column == label
            if kind == "cosface":
                logits.append(cosine - margin if own else cosine)
            elif kind == "arcface":
                logits.append(math.cos(math.acos(cosine) + margin) if own else cosine)
            elif own:
                logits.append(max(1 + margin - cosine, 0) * (cosine - (1 - margin)))
            else:
                logits.append(max(cosine + margin, 0) * (cosine - margin))
        logits = [scale * logit for logit in logits]
        log_sum = math.log(sum(math.exp(logit) for logit in logits))
        losses = [log_sum - logit for logit in logits]
        total += (1 - smoothing) * losses[label] + smoothing * sum(losses) / 5
    term = Classification(settings)
    outputs = Outputs(torch.zeros(6, 2), cosines)
    assert term(outputs, labels).item() == pytest.approx(total / 6, rel=1e-9)
    parts = Outputs(torch.zeros(6, 2), torch.stack([cosines, cosines], dim=2))
    torch.testing.assert_close(term(parts, labels), term(outputs, labels))
    if kind != "circle":  # whose weights are constants in the gradient
        assert torch.autograd.gradcheck(lambda x: term(Outputs(x, x), labels), cosines)


def test_circle_is_the_papers_loss_of_one_positive_and_its_weights_are_constants():
    cosines, label, scale, margin = (
        torch.tensor([[0.6, -0.9, 0.2]]).requires_grad_(),
        torch.tensor([0]),
        8.0,
        0.25,
    )
    term = Classification(Losses(softmax="circle", softmax_scale=scale, softmax_margin=margin))
    found = term(Outputs(cosines, cosines), label)
    ap = 1 + margin - 0.6
    an = [0.0, 0.2 + margin]  # -0.9 is beyond the optimum -margin
    negatives = sum(math.exp(scale * a * (s - margin)) for a, s in zip(an, (-0.9, 0.2), strict=True))
    assert found.item() == pytest.approx(
        math.log1p(negatives * math.exp(-scale * ap * (0.6 - (1 - margin)))), rel=1e-5
    )
    (gradient,) = torch.autograd.grad(found, cosines)
    share = 1 - math.exp(-found.item())
    assert gradient[0, 0].item() == pytest.approx(-scale * ap * share, rel=1e-4)
    assert gradient[0, 1] == 0


def test_arcface_decreases_with_the_angle_beyond_pi_too():
    angles = torch.linspace(0, math.pi, 500, dtype=torch.float64)
    logits = arcface(angles.cos()[:, None], torch.ones(500, 1, dtype=torch.bool), 0.5)[:, 0]
    assert (logits.diff() < 0).all()
    edge = torch.tensor([[1.0], [-1.0]], requires_grad=True)
    arcface(edge, torch.ones(2, 1, dtype=torch.bool), 0.5).sum().backward()
    assert edge.grad.isfinite().all()


@pytest.mark.parametrize("name", ["resnet50", "pcb", "mgn", "osnet_x0_25", "msinet_x1_0", "derived"])
def test_classifiers_of_every_network_can_compute_cosines(name):
    torch.manual_seed(0)
    options = {**OPTIONS.get(name, {})} | ({"auxiliary": True} if name == "derived" else {})
    network = build_model(name, 5, **options)
    entries = {key: value.shape for key, value in network.state_dict().items()}
    use_cosines(network)
    assert {key: value.shape for key, value in network.state_dict().items()} == entries
    found = []
    for key, module in network.named_modules():
        if isinstance(module, nn.Linear) and "classifier" in key:
            module.register_forward_hook(
                lambda module, inputs, output: found.append((module, *inputs, output))
            )
    embedding, *logits = network(images(3, 64, 32))
    assert len(found) == {"pcb": 6, "mgn": 8, "msinet_x1_0": 2, "derived": 2}.get(name, 1)
    for module, x, output in found:
        expected = F.cosine_similarity(x[:, None], module.weight, dim=2)
        torch.testing.assert_close(output, expected)
    sum(values.square().sum() for values in (embedding, *logits)).backward()
    silent = [key for key, value in network.named_parameters() if value.requires_grad and value.grad is None]
    assert silent == []


def test_a_network_without_a_classifier_to_replace_is_refused():
    network = nn.Sequential(nn.Linear(4, 3))
    with pytest.raises(ConfigError, match=r"losses\.softmax: must be linear for Sequential"):
        use_cosines(network)


def test_cosines_are_not_rounded_by_autocast():
    network = use_cosines_of(nn.Linear(64, 7))
    x = torch.randn(4, 64)
    with torch.autocast("cpu", torch.bfloat16):
        assert network(x).dtype == torch.float32
        torch.testing.assert_close(network(x), F.cosine_similarity(x[:, None], network.weight, dim=2))


def use_cosines_of(linear):
    network = nn.Module()
    network.classifier = linear
    use_cosines(network)
    return network.classifier


def test_settings_of_a_margin_without_one_are_refused():
    with pytest.raises(ValueError, match=r"softmax_margin: needs softmax: cosface, arcface or circle"):
        Losses(softmax_margin=0.5)
