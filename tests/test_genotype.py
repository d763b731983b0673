from __future__ import annotations

import json
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoreid.config import CELL_OPERATIONS
from autoreid.errors import DataError, RunError
from autoreid.models.osnet import OSBLOCKS
from autoreid.spaces.genotype import Genotype
from autoreid.spaces.osnet_ain.genotype import OSNET_BLOCKS, OsnetAinGenotype
from autoreid.spaces.reid_cell.genotype import CellGenotype, Edge


@st.composite
def cells(draw):
    nodes = []
    for node in range(draw(st.integers(1, 7))):
        sources = draw(st.permutations(range(node + 2)))[:2]
        nodes.append(tuple((draw(st.sampled_from(CELL_OPERATIONS[1:])), source) for source in sources))
    return tuple(nodes)


def plain():
    """A valid genotype as JSON types, to be made invalid."""
    node = [["sep_conv_3x3", 0], ["part_aware", 1]]
    return {"format": 1, "space": "reid_cell", "normal": [node, node], "reduce": [node]}


@settings(max_examples=100, deadline=None)
@given(cells(), cells())
def test_save_and_load_are_inverse(tmp_path_factory, normal, reduce):
    genotype = CellGenotype(normal=normal, reduce=reduce)
    path = tmp_path_factory.mktemp("genotype") / "EP01.json"
    genotype.save(path)
    loaded = Genotype.load(path)
    assert loaded == genotype
    assert str(loaded) == str(genotype) == path.read_text()
    # Parsed as plain JSON, the file contains the choices and nothing else.
    as_lists = json.loads(json.dumps({"normal": normal, "reduce": reduce}))
    assert json.loads(path.read_text()) == {"format": 1, "space": "reid_cell", **as_lists}
    assert isinstance(loaded.normal[0][0], Edge)
    assert loaded.normal[0][0].operation == normal[0][0][0]
    assert hash(loaded) == hash(genotype)


@settings(max_examples=100, deadline=None)
@given(cells(), cells(), cells(), cells())
def test_equal_exactly_when_all_choices_are(a, b, c, d):
    one, other = CellGenotype(normal=a, reduce=b), CellGenotype(normal=c, reduce=d)
    assert (one == other) == ((a, b) == (c, d)) == (str(one) == str(other))
    assert one == CellGenotype(normal=a, reduce=b)


def test_the_text_does_not_depend_on_the_files_layout(tmp_path):
    path = tmp_path / "compact.json"
    tree = plain()
    path.write_text(json.dumps(dict(reversed(tree.items())), separators=(",", ":")))
    loaded = Genotype.load(path)
    assert str(loaded) == str(CellGenotype(normal=loaded.normal, reduce=loaded.reduce))
    assert str(loaded).endswith("}\n")


def test_cells_are_yielded_by_name():
    genotype = CellGenotype(**{key: plain()[key] for key in ("normal", "reduce")})
    assert dict(genotype.cells()) == {"normal": genotype.normal, "reduce": genotype.reduce}


def broken(**changes):
    return json.dumps(plain() | changes)


NODE = [["sep_conv_3x3", 0], ["part_aware", 1]]
PLAIN = ["plain", "plain"]


@pytest.mark.parametrize(
    ("text", "place", "reason"),
    [
        (
            broken(normal=[[["conv_7x7", 0], ["part_aware", 1]]]),
            "normal",
            "node 0: unknown operation 'conv_7x7'",
        ),
        (
            broken(reduce=[NODE, [["none", 0], ["part_aware", 1]]]),
            "reduce",
            "node 1: unknown operation 'none'",
        ),
        (
            broken(normal=[[["part_aware", 0], ["part_aware", 2]]]),
            "normal",
            "node 0: its input must be 0 to 1, not 2",
        ),
        (
            broken(normal=[NODE, [["part_aware", -1], ["part_aware", 2]]]),
            "normal",
            "node 1: its input must be 0 to 2",
        ),
        (
            broken(normal=[[["part_aware", 1], ["max_pool_3x3", 1]]]),
            "normal",
            "node 0: both edges come from input 1",
        ),
        (broken(normal=[]), "normal", "at least one node"),
        (broken(normal=[[["part_aware", 0]]]), "normal.0", ""),
        (broken(normal=[[*NODE, NODE[0]]]), "normal.0", ""),
        (broken(normal=[[["part_aware"], NODE[0]]]), "normal.0.0", ""),
        (broken(normal=[[["part_aware", "left"], NODE[0]]]), "normal.0.0", ""),
        (broken(normal=[[["part_aware", 0.5], NODE[0]]]), "normal.0.0", ""),
        (broken(normal=[[["part_aware", "1"], NODE[0]]]), "normal.0.0", ""),
        (broken(normal=[[["part_aware", True], NODE[0]]]), "normal.0.0", ""),
        (broken(normal="two\nlines"), "normal", ""),
        (json.dumps({"space": "reid_cell", "normal": [NODE]}), "reduce", "required"),
        (broken(concat=[2]), "concat", "not permitted"),
        (
            json.dumps({"normal": [NODE], "reduce": [NODE]}),
            "space",
            "expected one of reid_cell, osnet_ain, msinet",
        ),
        (json.dumps({"space": "osnet_ain", "normal": [NODE]}), "stages", "required"),
        (json.dumps({"space": "osnet_ain", "stages": [PLAIN, PLAIN]}), "stages.2", "required"),
        (json.dumps({"space": "osnet_ain", "stages": [PLAIN, ["plain"], PLAIN]}), "stages.1.1", "required"),
        (json.dumps({"space": "osnet_ain", "stages": [["plain", "in"]] * 3}), "stages.0.1", "'in_both'"),
        (broken(format=2), "format", "1"),
        (broken(space="elsewhere"), "space", "reid_cell"),
        ("[]", "file", "object"),
        ("", "file", "JSON"),
        ("{'normal': []}", "file", "JSON"),
        (str(plain())[:40], "file", "JSON"),
        ('__import__("os").system("true")', "file", "JSON"),
        ("\x00\x01", "file", "JSON"),
    ],
)
def test_an_invalid_file_is_named_with_key_and_reason(tmp_path, text, place, reason):
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        Genotype.load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: not a genotype: {place}")
    assert reason in message
    assert "\n" not in message
    assert caught.value.exit_status == 2


def test_an_unreadable_file_is_named(tmp_path):
    for path in (tmp_path / "missing.json", tmp_path):
        with pytest.raises(DataError) as caught:
            Genotype.load(path)
        assert str(caught.value).startswith(f"{path}: cannot read the genotype: ")
        assert "\n" not in str(caught.value)


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "EP01.json"
    genotype = CellGenotype(normal=plain()["normal"], reduce=plain()["reduce"])
    genotype.save(path)
    before = path.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match=r"EP01\.json: cannot write the file: No space left"):
        CellGenotype(normal=genotype.reduce, reduce=genotype.reduce).save(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["EP01.json"]
    assert path.read_bytes() == before


def test_a_genotype_is_immutable():
    genotype = CellGenotype(normal=plain()["normal"], reduce=plain()["reduce"])
    with pytest.raises(ValueError, match="frozen"):
        genotype.normal = genotype.reduce  # type: ignore[misc]


BLOCKS = st.lists(st.sampled_from(OSNET_BLOCKS), min_size=6, max_size=6)


@settings(max_examples=50, deadline=None)
@given(BLOCKS, BLOCKS)
def test_osnet_blocks_are_saved_loaded_and_compared(tmp_path_factory, blocks, others):
    genotype = OsnetAinGenotype.of_blocks(blocks)
    path = tmp_path_factory.mktemp("genotype") / "EP01.json"
    genotype.save(path)
    assert Genotype.load(path) == genotype
    assert json.loads(path.read_text()) == {
        "format": 1,
        "space": "osnet_ain",
        "stages": [blocks[:2], blocks[2:4], blocks[4:]],
    }
    assert genotype.blocks == tuple(blocks)
    assert (genotype == OsnetAinGenotype.of_blocks(others)) == (blocks == others)


def test_osnet_blocks_are_those_of_the_models():
    assert tuple(OSBLOCKS) == OSNET_BLOCKS


def test_osnet_genotypes_are_sampled_uniformly():
    rng = np.random.default_rng(0)
    like = OsnetAinGenotype.of_blocks(["plain"] * 6)
    sampled = np.array([like.sample_like(rng).blocks for _ in range(2000)])
    for position in range(6):
        counts = [(sampled[:, position] == block).sum() for block in OSNET_BLOCKS]
        # Within five standard deviations of uniform sampling.
        assert all(abs(count - 500) < 5 * (2000 * 0.25 * 0.75) ** 0.5 for count in counts)
    assert len({tuple(row) for row in sampled}) > 1400, "of 4,096; positions are sampled independently"


def test_cells_are_sampled_with_the_same_number_of_nodes():
    like = CellGenotype(normal=[NODE] * 3, reduce=[NODE] * 3)
    sampled = like.sample_like(np.random.default_rng(0))
    assert [len(cell) for _, cell in sampled.cells()] == [3, 3]
