from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from autoreid.spaces.reid_cell.part_aware import PartAware


def by_loops(module, x):
    """The operation as in the paper's figure: repeat the attended vectors over their rows, concatenate and fuse."""
    B, C, H, W = x.shape
    M, D = module.parts, module.body.out_features
    pooled, bodies = [], []
    for part in range(M):
        first, behind = math.floor(part * H / M), math.ceil((part + 1) * H / M)
        total = torch.zeros(B, C, dtype=x.dtype)
        for row in range(first, behind):
            for column in range(W):
                total = total + x[:, :, row, column]
        pooled.append(total / ((behind - first) * W))
        bodies.append(pooled[part] @ module.body.weight.T + module.body.bias)
    attended = []
    for part in range(M):
        query = bodies[part] @ module.query.weight.T + module.query.bias
        scores = [
            (query * (bodies[other] @ module.key.weight.T + module.key.bias)).sum(1) for other in range(M)
        ]
        total_score = sum(score.exp() for score in scores)
        attended.append(
            sum((score.exp() / total_score)[:, None] * body for score, body in zip(scores, bodies))  # noqa: B905
        )
    rows = [attended[math.floor(row * M / H)] for row in range(H)]
    repeated = torch.stack(rows, dim=2)[..., None].repeat(1, 1, 1, W)
    assert repeated.shape == (B, D, H, W)
    weight = torch.cat([module.fuse_pixels.weight, module.fuse_parts.weight[:, :, None, None]], dim=1)
    fused = F.conv2d(F.relu(torch.cat([x, repeated], dim=1)), weight, stride=module.stride)
    norm = module.norm
    if norm.training:
        mean, variance = fused.mean((0, 2, 3)), fused.var((0, 2, 3), correction=0)
    else:
        mean, variance = norm.running_mean, norm.running_var
    result = (fused - mean[:, None, None]) / (variance[:, None, None] + norm.eps).sqrt()
    if norm.affine:
        result = result * norm.weight[:, None, None] + norm.bias[:, None, None]
    return result


def build(channels, stride, parts, affine=False):
    torch.manual_seed(0)
    module = PartAware(channels, stride, affine, parts).double()
    with torch.no_grad():
        for parameter in module.parameters():  # attention far from uniform, norms far from the identity
            parameter.add_(torch.randn_like(parameter))
    return module


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    ("parts", "height"), [(4, 8), (4, 7), (4, 4), (4, 5), (4, 11), (3, 8), (3, 3), (3, 10), (1, 1), (1, 5)]
)
def test_equals_the_papers_definition(parts, height, stride, affine):
    module = build(7, stride, parts, affine)
    x = torch.randn(3, 7, height, 5, dtype=torch.float64, requires_grad=True)
    found, expected = module(x), by_loops(module, x)
    assert found.shape == (3, 7, -(-height // stride), 3 if stride == 2 else 5)
    torch.testing.assert_close(found, expected)
    cotangent = torch.randn_like(found)
    inputs = [x, *module.parameters()]
    for value, wanted in zip(
        torch.autograd.grad((found * cotangent).sum(), inputs),
        torch.autograd.grad((expected * cotangent).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(value, wanted)


@pytest.mark.parametrize("stride", [1, 2])
def test_one_image_in_evaluation(stride):
    module = build(6, stride, 4)
    for _ in range(3):
        module(torch.randn(4, 6, 9, 4, dtype=torch.float64))
    module.eval()
    x = torch.randn(1, 6, 9, 4, dtype=torch.float64)
    torch.testing.assert_close(module(x), by_loops(module, x))
    # The result for an image does not depend on the other images.
    both = torch.cat([x, torch.randn_like(x)])
    torch.testing.assert_close(module(both)[:1], module(x))


def test_parts_inform_each_other():
    """A change in the lowest part changes every row, which only attention can do."""
    module = build(6, 1, 4).eval()
    x = torch.randn(1, 6, 8, 3, dtype=torch.float64)
    changed = x.clone()
    changed[:, :, 7] += 1
    moved = (module(changed) - module(x)).abs().amax((0, 1, 3))
    assert (moved > 1e-6).all()


@pytest.mark.parametrize(("height", "parts"), [(3, 4), (1, 2)])
def test_fewer_rows_than_parts_are_refused(height, parts):
    with pytest.raises(ValueError, match=f"map of {height} rows cannot be cut into {parts} parts"):
        build(6, 1, parts)(torch.zeros(2, 6, height, 4, dtype=torch.float64))


@pytest.mark.parametrize("stride", [1, 2])
def test_the_concatenation_is_never_kept(stride):
    B, C, H, W = 2, 9, 8, 4
    module = build(C, stride, 4)
    saved = []

    def pack(tensor):
        saved.append(tuple(tensor.shape))
        return tensor

    x = torch.randn(B, C, H, W, dtype=torch.float64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        module(x).sum().backward()
    hidden = module.body.out_features
    assert (B, C, H, W) in saved  # the hook sees the maps
    assert not [shape for shape in saved if C + hidden in shape]
    assert not [shape for shape in saved if len(shape) == 4 and shape[1:3] == (hidden, H)]


def test_both_halves_of_the_fusion_start_as_one_convolution_would():
    torch.manual_seed(0)
    module = PartAware(300, 1, affine=False)
    one = torch.nn.Conv2d(400, 300, 1, bias=False)
    for half in (module.fuse_pixels, module.fuse_parts):
        assert half.weight.std().item() == pytest.approx(one.weight.std().item(), rel=0.02)
        assert half.weight.abs().max().item() == pytest.approx(one.weight.abs().max().item(), rel=0.01)
