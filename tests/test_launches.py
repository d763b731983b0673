"""What a step asks of a GPU, counted without one (benchmarks/launches.py)."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.launches import META, Launches, build, count_pass, count_step


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tmp_path_factory.mktemp("people"))


@pytest.mark.slow
def test_a_pass_of_auto_reids_search_moves_few_bytes_by_few_kernels(folder):
    found = count_pass(build(folder, "search.order=first"))
    assert found.kernels < 4_500
    assert found.bytes < 65e9
    assert not found.waits


@pytest.mark.slow
@pytest.mark.parametrize(("order", "kernels"), [("first", 8_000), ("second", 20_000)])
def test_a_step_waits_once_and_launches_few_kernels(folder, order, kernels):
    found = count_step(build(folder, f"search.order={order}"))
    assert found.kernels < kernels
    # At its end; a wait that comes back shows up here with its line.
    assert [place.partition(":")[0] for place in found.waits.elements()] == ["autoreid/training/steps.py"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "changes", "waits"),
    [
        ("osnet_ain_search.yaml", (), 1),
        (
            "darts_triplet.yaml",
            ("data.erasing=0.5", "data.brightness=0.2", "search.relaxation=gumbel", "search.order=first"),
            1,
        ),
        # Which candidates a step computes depends on the alphas.
        ("darts_triplet.yaml", ("search.relaxation=gumbel_hard", "search.order=first"), 3),
    ],
    ids=["osnet_ain", "augmented gumbel", "hard gumbel"],
)
def test_other_searches_wait_as_little(folder, recipe, changes, waits):
    small = ("data.height=64", "data.width=32", "data.batch_size=16", "search.activation_checkpointing=none")
    space = (
        ("search.osnet_ain.width=0.25",)
        if "osnet" in recipe
        else (
            "search.reid_cell.parts=2",
            "search.reid_cell.channels=4",
            "search.reid_cell.cells_per_stage=[1, 1]",
        )
    )
    found = count_step(build(folder, *small, *space, *changes, recipe=recipe))
    assert sum(found.waits.values()) == waits, found.waits


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe", ["baseline_pcb", "baseline_mgn", "baseline_agw", "baseline_sbs", "auto_reid_train"]
)
def test_a_training_waits_once_a_step(folder, recipe):
    small = ("data.height=128", "data.width=64", "data.batch_size=8", "data.images_per_identity=4")
    found = count_step(build(folder, *small, recipe=f"{recipe}.yaml"))
    assert [place.partition(":")[0] for place in found.waits.elements()] == ["autoreid/training/steps.py"]


def test_operations_are_counted_as_the_kernels_that_they_take():
    x, weight = torch.rand(2, 4, 8, 8, device=META), torch.rand(6, 4, 3, 3, device=META, requires_grad=True)
    with Launches() as found:
        y = nn.functional.conv2d(x.view(2, 4, 64).view_as(x), weight, padding=1)
        torch._foreach_add([weight.detach()] * 100, 1.0)
    # Views are free; 64 pairs of tensors fit into a launch.
    assert found.operations == {"convolution": 1, "_foreach_add": 2}
    moved = x.nbytes + weight.nbytes + y.nbytes + 2 * 100 * weight.nbytes
    assert found.bytes == moved
    with Launches() as found:
        y.sum().backward()
    # The image needs no gradient.
    assert found.operations["convolution_backward"] == 1


@pytest.mark.parametrize(
    "ask",
    [
        lambda x: x.sum().item(),
        lambda x: bool((x > 0).all()),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x[[0, 1]],
        lambda x: x[torch.tensor([0, 1])],
        lambda x: x + torch.tensor([1.0, 2.0, 3.0], device=META),
        lambda x: x.new_tensor([1.0]),
        lambda x: torch.rand(3).to(META),
        lambda x: x.nonzero(),
    ],
    ids=["item", "bool", "tolist", "cpu", "list", "host index", "tensor", "new_tensor", "to", "nonzero"],
)
def test_what_waits_for_the_device_is_seen(ask):
    with Launches() as found:
        ask(torch.rand(3, device=META))
    assert found.waits.total() >= 1


def test_what_does_not_wait_is_not_counted():
    index = torch.tensor([0, 1], device=META)
    with Launches() as found:
        x = torch.rand(3, device=META)
        x[index] * 2.0 + torch.full((), 3.0, device=META)
        torch.rand(3).to(META, non_blocking=True)
    assert not found.waits
