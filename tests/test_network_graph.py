from __future__ import annotations

import re
import shutil

import pytest
import torch
from PIL import Image

from autoreid.models import count_parameters
from autoreid.reporting.dot import draw_graph
from autoreid.reporting.network_graph import network_graph
from autoreid.spaces.build import build_model
from autoreid.spaces.osnet_ain.genotype import OsnetAinGenotype
from autoreid.spaces.reid_cell.genotype import CellGenotype, Edge

CELL = ((Edge("sep_conv_3x3", 0), Edge("part_aware", 1)), (Edge("skip_connect", 0), Edge("max_pool_3x3", 2)))
GENOTYPE = str(CellGenotype(normal=CELL, reduce=CELL[:1]))


def build(**options):
    small = {"channels": 4, "cells_per_stage": (1, 2, 1), "stem": "darts"}
    return build_model("derived", 3, genotype=GENOTYPE, **(small | options))


def test_boxes_say_the_shapes_that_the_network_gives():
    network = build().eval()
    shapes = {}
    modules = {"stem": network.stem} | {f"cell{index}": cell for index, cell in enumerate(network.cells)}
    for name, module in modules.items():
        module.register_forward_hook(lambda *call, name=name: shapes.__setitem__(name, call[2].shape[1:]))
    network(torch.randn(1, 3, 33, 18))
    source = network_graph(network, 33, 18, "a run").source
    labels = dict(re.findall(r'^\t+(\w+) \[label="([^"]*)"', source, re.MULTILINE))
    kinds = ["stem", "normal", "reduce", "normal", "reduce"]
    for kind, (name, shape) in zip(kinds, shapes.items(), strict=True):
        assert labels[name] == f"{kind}\n{' × '.join(map(str, shape))}"
    assert labels["images"] == "images\n3 × 33 × 18"
    assert labels["neck"] == "BNNeck\n16"


def test_frames_sum_to_all_parameters():
    network = build(channels=1)
    source = network_graph(network, 32, 16, "a run").source
    frames = re.findall(r'label="(stem|head|stage \d) · (\d+)"', source)
    assert [name for name, _ in frames] == ["stem", "stage 1", "stage 2", "stage 3", "head"]
    counts = [count_parameters(part) for part in [network.stem, *network.cells, network.neck]]
    expected = [*counts[:2], counts[2] + counts[3], *counts[4:]]
    assert [int(count) for _, count in frames if int(count) < 1000] == [n for n in expected if n < 1000]
    assert sum(expected) == count_parameters(network)


def test_each_cell_has_the_two_inputs_that_it_reads():
    source = network_graph(build(auxiliary=True), 32, 16, "a run").source
    arrows = re.findall(r"^\t+(\w+) -> (cell\d|auxiliary)", source, re.MULTILINE)
    inputs = {head: sorted(tail for tail, other in arrows if other == head) for _, head in arrows}
    assert inputs == {
        "cell0": ["stem", "stem"],
        "cell1": ["cell0", "stem"],
        "cell2": ["cell0", "cell1"],
        "cell3": ["cell1", "cell2"],
        "auxiliary": ["cell2"],
    }


def test_the_auxiliary_head_is_no_part_of_the_networks_size():
    assert count_parameters(build(auxiliary=True)) == count_parameters(build())
    with_head = network_graph(build(auxiliary=True), 32, 16, "a run").source
    assert "auxiliary head" in with_head
    assert re.findall(r">   (.*)</font>", with_head) == re.findall(
        r">   (.*)</font>", network_graph(build(), 32, 16, "a run").source
    )


@pytest.mark.skipif(shutil.which("dot") is None, reason="needs Graphviz's dot")
def test_it_can_be_drawn_whatever_the_caption(tmp_path):
    graph = network_graph(build(), 32, 16, 'C < 5 & "parts" > 3')
    (tmp_path / "network.gv").write_text(graph.source)
    with Image.open(draw_graph(tmp_path / "network.gv", tmp_path)) as picture:
        assert picture.width > 5 * picture.height


def test_osnets_blocks_say_the_shapes_that_they_give():
    genotype = OsnetAinGenotype.of_blocks(["in_both", "plain"] * 3)
    network = build_model("derived", 3, genotype=str(genotype), width=0.25).eval()
    shapes = []
    for block in (*network.conv2, *network.conv3, *network.conv4):
        block.register_forward_hook(lambda *call: shapes.append(tuple(call[2].shape[1:])))
    network(torch.randn(1, 3, 66, 34))
    source = network_graph(network, 66, 34, "a run").source
    tables = re.findall(r"block\d\d \[label=<<table(.*?)</table>>", source)
    found = [re.findall(r"(\d+) × (\d+) × (\d+)", table)[-1] for table in tables]
    assert [tuple(map(int, shape)) for shape in found] == shapes[-6:]
    assert f"{count_parameters(network) / 1e3:.0f} k parameters" in source
