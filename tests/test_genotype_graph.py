"""Genotype graphs and `python -m autoreid.render`: .gv texts, pictures, and machines without `dot`."""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from autoreid import render
from autoreid.config import CELL_OPERATIONS
from autoreid.errors import RunError
from autoreid.reporting import dot, genotype_graph
from autoreid.reporting.genotype_graph import as_graph, draw_genotype
from autoreid.spaces.osnet_ain.drawing import blocks_drawing
from autoreid.spaces.osnet_ain.genotype import OSNET_BLOCKS, OsnetAinGenotype
from autoreid.spaces.reid_cell.drawing import cell_drawing
from autoreid.spaces.reid_cell.genotype import CellGenotype
from tests.helpers.commands import ROOT, run_python

PUBLISHED = json.loads((Path(__file__).parent / "data" / "published_genotypes.json").read_text())["reid_cell"]
needs_dot = pytest.mark.skipif(shutil.which("dot") is None, reason="needs Graphviz's dot")


def published(name: str = "auto_reid") -> CellGenotype:
    return CellGenotype(normal=PUBLISHED[name]["normal"], reduce=PUBLISHED[name]["reduce"])


@st.composite
def cells(draw):
    nodes = []
    for node in range(draw(st.integers(1, 6))):
        sources = draw(st.permutations(range(node + 2)))[:2]
        nodes.append(tuple((draw(st.sampled_from(CELL_OPERATIONS[1:])), source) for source in sources))
    return tuple(nodes)


@pytest.fixture
def no_dot(monkeypatch, tmp_path):
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))


@pytest.fixture(autouse=True)
def warn_again(monkeypatch):
    monkeypatch.setattr(genotype_graph, "_warned", False)
    monkeypatch.setattr(genotype_graph, "_hangs", False)


def edges_of(text: str) -> set[tuple[str, str, str]]:
    """Return (tail, operation, head) of each edge in a .gv text, parsed with regular expressions."""
    operations = dict(re.findall(r"^\t(edge\w+) \[label=(\w+) ", text, re.M))
    tails = {box: tail for tail, box in re.findall(r"^\t(\w+) -> (edge\w+) ", text, re.M)}
    heads = dict(re.findall(r"^\t(edge\w+) -> (\w+) ", text, re.M))
    return {(tails[box], operations[box], heads[box]) for box in operations}


@settings(deadline=None)
@given(cell=cells())
def test_the_graph_has_exactly_the_edges_of_the_cell(cell):
    text = as_graph(cell_drawing(cell, "normal", "a caption")).source
    names = ["input0", "input1", *(f"node{node}" for node in range(len(cell)))]
    expected = {
        (names[source], operation, f"node{node}")
        for node, edges in enumerate(cell)
        for operation, source in edges
    }
    assert edges_of(text) == expected
    assert set(re.findall(r"(\w+) -> output", text)) == {f"node{node}" for node in range(len(cell))}
    assert text == as_graph(cell_drawing(cell, "normal", "a caption")).source


def test_only_part_aware_edges_are_thick():
    text = as_graph(cell_drawing(published().reduce, "reduce", "")).source
    thick = [line for line in text.splitlines() if "penwidth=4" in line]
    assert len(thick) == 2  # the one part_aware edge: into its box and out of it
    assert edges_of(text) >= {("input1", "part_aware", "node0")}
    assert all("edge0b" in line for line in thick)


def test_both_part_operations_look_alike():
    def looks(name):
        cell = (((name, 0), ("skip_connect", 1)),)
        return as_graph(cell_drawing(cell, "normal", "")).source.replace(name, "part")

    assert looks("part_conv") == looks("part_aware") != looks("dil_conv_3x3")


def test_an_operation_without_a_look_is_drawn_in_the_default_one():
    cell = ((("gabor_filter_5x5", 0), ("max_pool_3x3", 1)),)
    text = as_graph(cell_drawing(cell, "normal", "")).source
    assert edges_of(text) == {("input0", "gabor_filter_5x5", "node0"), ("input1", "max_pool_3x3", "node0")}


@needs_dot
@settings(max_examples=8, deadline=None)
@given(caption=st.text(st.characters(exclude_categories=["Cc", "Cs", "Cn", "Co"]), max_size=40))
def test_dot_accepts_any_caption(caption):
    cell = ((("part_aware", 0), ("skip_connect", 1)),)
    text = as_graph(cell_drawing(cell, "normal", caption)).source
    done = subprocess.run(["dot", "-Tplain"], input=text.encode(), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


@needs_dot
@pytest.mark.parametrize("name", PUBLISHED)
def test_draws_both_cells_as_white_pictures_that_show_part_aware(tmp_path, name):
    folder = tmp_path / "new" / "demo"
    pictures = draw_genotype(published(name), folder, "EP03", "demo · epoch 3 · mAP 41.2 %")
    assert pictures == [folder / "EP03-normal.png", folder / "EP03-reduce.png"]
    assert {path.name for path in folder.iterdir()} == {
        f"EP03-{kind}.{end}" for kind in ("normal", "reduce") for end in ("gv", "png")
    }
    for path, cell in zip(pictures, (published(name).normal, published(name).reduce), strict=True):
        image = Image.open(path).convert("RGB")
        assert 500 < image.width < 1600
        assert 150 < image.height < 500
        assert image.getpixel((0, 0)) == (255, 255, 255)
        magenta = image.tobytes().count(bytes.fromhex("d6006c"))
        has_part_aware = any(operation == "part_aware" for edges in cell for operation, _ in edges)
        assert (magenta > 500) == has_part_aware


@needs_dot
def test_subscripts_and_caption_are_drawn_as_text(tmp_path):
    draw_genotype(published(), tmp_path, "g", "demo · <epoch> 3 & mAP")
    text = (tmp_path / "g-normal.gv").read_bytes()
    svg = subprocess.run(["dot", "-Tsvg"], input=text, capture_output=True, check=True).stdout.decode()
    words = re.findall(r">([^<>]+)</text>", svg)
    assert {"c", "k", "normal cell"} <= {word.strip("\xa0 ") for word in words}
    assert "&lt;epoch&gt; 3 &amp; mAP" in "".join(words)


@pytest.mark.usefixtures("no_dot")
def test_without_dot_the_texts_are_kept_with_one_warning(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="autoreid"):
        assert draw_genotype(published(), tmp_path, "EP01", "one") == []
        assert draw_genotype(published(), tmp_path, "EP02", "two") == []
    assert len(caplog.records) == 1
    assert "install graphviz" in caplog.text
    assert "python -m autoreid.render" in caplog.text
    assert len(list(tmp_path.glob("*.gv"))) == 4


def write_dot(folder: Path, script: str) -> None:
    """Write a shell script that is called instead of Graphviz's dot."""
    dot = folder / "bin" / "dot"
    dot.write_text(f"#!/bin/sh\nexport PATH=/usr/bin:/bin\n{script}\n")
    dot.chmod(0o755)


def picture(folder: Path) -> Path:
    Image.effect_noise((60, 40), 50).save(folder / "whole.png")
    return folder / "whole.png"


@pytest.mark.usefixtures("no_dot")
@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo 'Error: no fonts' >&2; exit 3", "Error: no fonts"),
        ("kill -SEGV $$", "exit status -11"),
        ("true", "did not write a complete picture (0 bytes)"),
        ("head -c 1500 whole.png", "did not write a complete picture (1500 bytes)"),
        ("head -c -12 whole.png", "did not write a complete picture"),  # all but its end
        ("head -c 2 whole.png", "did not write a complete picture (2 bytes)"),
        ("echo '<svg/>'", "did not write a complete picture"),
    ],
)
def test_if_dot_fails_the_texts_are_kept_with_one_warning(tmp_path, caplog, monkeypatch, script, message):
    write_dot(tmp_path, script)
    monkeypatch.chdir(picture(tmp_path).parent)
    for stem in ("EP01", "EP02"):
        assert draw_genotype(published(), tmp_path / "drawn", stem, "one") == []
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert message in caplog.text
    assert sorted({path.suffix for path in (tmp_path / "drawn").iterdir()}) == [".gv"]


@pytest.mark.usefixtures("no_dot")
def test_a_complete_picture_is_taken_though_dot_warns(tmp_path, caplog, monkeypatch):
    write_dot(tmp_path, "echo 'Warning: no hard-coded metrics' >&2; cat whole.png")
    monkeypatch.chdir(picture(tmp_path).parent)
    drawn = draw_genotype(published(), tmp_path / "drawn", "EP01", "one")
    assert [path.read_bytes() for path in drawn] == [(tmp_path / "whole.png").read_bytes()] * 2
    assert not caplog.records


@pytest.mark.usefixtures("no_dot")
def test_a_dot_that_hangs_is_killed_and_not_called_again(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(dot, "SECONDS", 0.5)
    calls = tmp_path / "calls"
    # The child keeps standard output open.
    write_dot(tmp_path, f"sleep 1000 & echo $! >> {calls}; wait")
    began = time.monotonic()
    for stem in ("EP01", "EP02"):
        assert draw_genotype(published(), tmp_path, stem, "one") == []
    assert time.monotonic() - began < 20
    assert len(caplog.records) == 1
    assert "`dot` did not end within 0.5 s; the .gv files are kept" in caplog.text
    assert len(list(tmp_path.glob("*.gv"))) == 4
    (child,) = calls.read_text().split()
    stat = Path(f"/proc/{child}/stat")
    assert not stat.exists() or " Z " in stat.read_text(), "no process is left"


def test_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Exception, match=r"file/demo: cannot create the folder: Not a directory") as caught:
        draw_genotype(published(), tmp_path / "file" / "demo", "EP01", "")
    assert caught.value.exit_status == 2


@needs_dot
def test_render_draws_the_same_pictures_as_a_run(tmp_path, capsys, monkeypatch):
    for number in (1, 2):
        published().save(tmp_path / f"EP0{number}.json")
    with monkeypatch.context() as patch:
        patch.setattr(genotype_graph, "draw_graph", lambda *_: (_ for _ in ()).throw(RunError("no dot")))
        draw_genotype(published(), tmp_path, "EP01", "demo · mAP 41.2 %")
    kept = (tmp_path / "EP01-normal.gv").read_bytes()
    assert render.main([str(tmp_path)]) == 0
    names = [f"EP0{number}-{kind}.png" for number in (1, 2) for kind in ("normal", "reduce")]
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / name) for name in names]
    draw_genotype(published(), tmp_path / "run", "EP01", "demo · mAP 41.2 %")
    assert (tmp_path / "EP01-normal.png").read_bytes() == (tmp_path / "run" / "EP01-normal.png").read_bytes()
    assert (tmp_path / "EP01-normal.gv").read_bytes() == kept


def test_render_ends_silently_if_nobody_reads_its_output(tmp_path):
    """As in `python -m autoreid.render FOLDER | head -0`; there are pictures to print even without dot."""
    published().save(tmp_path / "found.json")
    command = (
        "from pathlib import Path; import sys; from autoreid import render; "
        "render.draw_graph = lambda text, folder: Path('x' * 100_000); sys.exit(render.main(['found.json']))"
    )
    line = f"{shlex.quote(sys.executable)} -c {shlex.quote(command)} | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", line], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True
    )
    assert (done.returncode, done.stderr) == (141, b"")


@needs_dot
def test_render_command_writes_to_another_folder(tmp_path):
    published().save(tmp_path / "found.json")
    line = ["-m", "autoreid.render", "found.json", "--output", "pictures/new"]
    done = run_python(*line, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["pictures/new/found-normal.png", "pictures/new/found-reduce.png"]
    assert [path.name for path in tmp_path.glob("*")] in (
        ["found.json", "pictures"],
        ["pictures", "found.json"],
    )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.json", None, "missing.json: no such file or folder"),
        ("bad.json", '{"space": "reid_cell"}', "bad.json: not a genotype: normal"),
        ("torn.json", '{"space": ', "torn.json: not a genotype"),
        ("notes.txt", "hello", "notes.txt: cannot be drawn"),
        ("empty", "FOLDER", "empty: nothing to draw"),
    ],
)
def test_render_names_what_is_wrong_in_one_line(tmp_path, capsys, name, content, message):
    if content == "FOLDER":
        (tmp_path / name).mkdir()
    elif content is not None:
        (tmp_path / name).write_text(content)
    assert render.main([str(tmp_path / name)]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert message in output.err
    assert len(output.err.splitlines()) == 1


@needs_dot
def test_render_of_a_broken_text_fails_in_one_line(tmp_path, capsys):
    (tmp_path / "torn.gv").write_text("digraph {")
    assert render.main([str(tmp_path / "torn.gv")]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (tmp_path / "torn.png").exists()


@pytest.mark.usefixtures("no_dot")
def test_render_without_dot_fails_with_the_remedy(tmp_path, capsys):
    published().save(tmp_path / "found.json")
    assert render.main([str(tmp_path / "found.json")]) == 1
    assert "install graphviz" in capsys.readouterr().err


#: Whether there is instance norm before the addition, and after it.
PLACEMENTS = {
    "plain": (False, False),
    "in_inside": (True, False),
    "in_after": (False, True),
    "in_both": (True, True),
}


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(OSNET_BLOCKS), min_size=6, max_size=6))
def test_blocks_show_the_places_of_instance_norm(blocks):
    genotype = OsnetAinGenotype.of_blocks(blocks)
    text = as_graph(blocks_drawing(genotype.stages, True, "a caption")).source
    tables = re.findall(r"^\t+block\d\d \[label=<<table(.*?)</table>>", text, re.MULTILINE)
    assert [re.search(r"<b>(\w+)</b>", table)[1] for table in tables] == blocks
    for block, table in zip(blocks, tables, strict=True):
        rows = re.findall(r"<td.*?</td>", table)
        addition = next(index for index, row in enumerate(rows) if "identity" in row)
        highlighted = [index for index, row in enumerate(rows) if "#d6006c" in row]
        assert all(">IN<" in rows[index] for index in highlighted)
        placement = (any(i < addition for i in highlighted), any(i > addition for i in highlighted))
        assert placement == PLACEMENTS[block]
    assert f"IN in {sum(block != 'plain' for block in blocks)} of 6 blocks" in text
    assert text == as_graph(blocks_drawing(genotype.stages, True, "a caption")).source


@needs_dot
def test_the_blocks_picture_is_drawn_and_rendered(tmp_path, capsys):
    genotype = OsnetAinGenotype.of_blocks(["in_inside", "plain"] * 3)
    pictures = draw_genotype(genotype, tmp_path / "run", "EP03", "demo · <epoch> 3 & mAP 41.2 %")
    assert pictures == [tmp_path / "run" / "EP03-blocks.png"]
    image = Image.open(pictures[0]).convert("RGB")
    assert 1000 < image.width < 2200
    assert image.tobytes().count(bytes.fromhex("d6006c")) > 3 * 500
    genotype.save(tmp_path / "run" / "EP03.json")
    genotype.save(tmp_path / "run" / "EP04.json")
    assert render.main([str(tmp_path / "run")]) == 0
    names = ["EP03-blocks.png", "EP04-blocks.png"]
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / "run" / name) for name in names]
