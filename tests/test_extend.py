"""docs/extend.md: its code, put where it says, does what it says."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from autoreid.config import Losses
from autoreid.data import datasets
from autoreid.data.datasets import read_dataset
from autoreid.losses import TERMS, build_loss
from autoreid.search.alphas import Alphas
from autoreid.spaces.build import NETWORKS, build_model
from autoreid.spaces.reid_cell import outgoing_edges
from tests.helpers import per_edge
from tests.test_fused_cell import EXACT, build, draw_mixing, images

ORACLE = per_edge.build_operation
ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs/extend.md").read_text()
BLOCKS = re.findall(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", TEXT, re.DOTALL)
#: Paths that the page has its reader create.
CREATED = {"autoreid/data/datasets/campus.py", "autoreid/models/tiny.py", "autoreid/losses/compactness.py"}
CREATED |= {"autoreid/search/relaxations/tempered.py"}
CREATED |= {f"autoreid/spaces/reid_cell/{name}.py" for name in ("convolution", "fused_convolution")}
SPACE = {f"autoreid/spaces/kernels/{name}.py" for name in ("genotype", "network", "space")}
CREATED |= SPACE


@pytest.fixture
def code(tmp_path):
    """Imports the page's code for a file."""

    def load(path: str) -> ModuleType:
        (source,) = [source for name, source in BLOCKS if name == path]
        file = tmp_path / Path(path).name
        file.write_text(source)
        spec = importlib.util.spec_from_file_location(path.removesuffix(".py").replace("/", "."), file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


def test_every_file_that_it_names_is_there():
    named = set(re.findall(r"`?((?:autoreid|tests|scripts)/[\w/]+\.py)", TEXT))
    missing = {path for path in named if not (ROOT / path).exists()}
    assert missing == CREATED


def test_every_name_that_it_says_to_edit_is_in_that_file():
    places = re.findall(r"`(\w+)`(?: in|, which.*? in)\s+`((?:autoreid|tests)/[\w/]+\.py)`", TEXT)
    assert Counter(path for _, path in places).total() >= 10
    for name, path in places:
        assert re.search(rf"\b{name}\b", (ROOT / path).read_text()), f"{path}: no {name}"


def test_a_data_set(tmp_path, monkeypatch, code):
    monkeypatch.setitem(datasets.BENCHMARKS, "campus", code("autoreid/data/datasets/campus.py").CAMPUS)
    for split, names in (
        ("train", ["17-2-0001.jpg", "18-1-0001.jpg"]),
        ("query", ["3-1-0001.jpg"]),
        ("gallery", ["0-1-0001.jpg", "3-3-0002.jpg"]),
    ):
        folder = tmp_path / "Campus-v1" / split
        folder.mkdir(parents=True)
        for name in names:
            Image.new("RGB", (8, 16)).save(folder / name)
    dataset = read_dataset(tmp_path, "campus")
    assert (dataset.train.identities.tolist(), dataset.train.cameras.tolist()) == ([17, 18], [2, 1])
    assert (dataset.gallery.identities.tolist(), dataset.query.cameras.tolist()) == ([0, 3], [1])
    assert "2 train images, not 1,500" in dataset.notes[0]


def test_a_network(monkeypatch, code):
    monkeypatch.setitem(NETWORKS, "tiny", code("autoreid/models/tiny.py").TinyNet)
    network = build_model("tiny", 5, channels=8)
    assert network.head() == [network.neck]
    embedding, logits = network(torch.randn(4, 3, 64, 32))
    assert (embedding.shape, logits.shape) == ((4, 8), (4, 5))
    assert network.eval()(torch.randn(1, 3, 48, 40)).shape == (1, 8)


def test_a_loss_term(monkeypatch, code):
    monkeypatch.setitem(TERMS, "compactness", code("autoreid/losses/compactness.py").Compactness)
    embeddings, logits = torch.randn(7, 3), torch.randn(7, 5)
    labels = torch.tensor([4, 1, 4, 1, 2, 1, 4])
    plain = build_loss(Losses())((embeddings, logits), labels)
    values = build_loss(Losses(terms={"compactness": 0.1}))((embeddings, logits), labels)
    x, distances = embeddings.double().numpy(), []
    for row, label in zip(x, labels.numpy(), strict=True):
        mean = np.mean(
            [other for other, same in zip(x, labels.numpy(), strict=True) if same == label], axis=0
        )
        distances.append(sum((row - mean) ** 2))
    expected = math.fsum(distances) / 7
    assert values.terms["compactness"].item() == pytest.approx(expected, rel=1e-5)
    assert values.total.item() == pytest.approx(plain.total.item() + 0.1 * expected, rel=1e-5)


def test_a_relaxation(code):
    relaxation = code("autoreid/search/relaxations/tempered.py").TemperedSoftmax(temperature=0.5)
    alphas = Alphas({"blocks": (6, 4)}, torch.Generator().manual_seed(0))
    mixing = relaxation.mixture(alphas, 3, "weights")["blocks"]
    expected = (2 * alphas.groups["blocks"]).exp()
    torch.testing.assert_close(mixing, expected / expected.sum(1, keepdim=True))
    assert torch.autograd.grad(mixing[:, 0].sum(), alphas.groups["blocks"])[0].abs().min() > 0
    for found in (*relaxation.evaluation(alphas), relaxation.probabilities(alphas)):
        assert torch.equal(found["blocks"], mixing.detach())
        assert not found["blocks"].requires_grad


def one_edge(name, channels, stride, affine, parts):
    """The oracle's operation, with the name of the page's."""
    if name != "conv_3x3":
        return ORACLE(name, channels, stride, affine, parts)
    layers = nn.Conv2d(channels, channels, 3, stride, 1, bias=False)
    return nn.Sequential(nn.ReLU(), layers, nn.BatchNorm2d(channels, affine=affine))


@pytest.mark.parametrize(
    ("file", "name"), [("convolution.py", "convolution"), ("fused_convolution.py", "Convolution")]
)
@pytest.mark.parametrize("reduction", [False, True])
def test_an_operation(monkeypatch, code, reduction, file, name):
    """In a cell it computes what one plain module on each edge computes: mixed, sampled and derived."""
    convolution = getattr(code(f"autoreid/spaces/reid_cell/{file}"), name)
    known = outgoing_edges.build_operation

    def built(name, channels, stride, affine, parts, edges=1):
        if name == "conv_3x3":
            return convolution(channels, stride, affine, edges)
        return known(name, channels, stride, affine, parts, edges)

    monkeypatch.setattr(outgoing_edges, "build_operation", built)
    monkeypatch.setattr(per_edge, "build_operation", one_edge)
    operations = ("none", "skip_connect", "conv_3x3")
    cell, oracle = build(operations, 2, 4, reduction)
    inputs, (mixing,) = images(9, 6), draw_mixing(operations, 2, 1)
    found, expected = cell(*inputs, mixing), oracle(*inputs, mixing)
    torch.testing.assert_close(found, expected, **EXACT)
    leaves = [*inputs, mixing]
    for one, other in zip(
        torch.autograd.grad(found.sin().sum(), leaves),
        torch.autograd.grad(expected.sin().sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(one, other, **EXACT)
    columns = [2, 1, 2, 2, 0]
    one_hot = F.one_hot(torch.tensor(columns), 3).double()
    cell.eval(), oracle.eval()
    torch.testing.assert_close(cell(*inputs, None, columns=columns), oracle(*inputs, one_hot), **EXACT)
    # One edge alone, with the weights that a derived network inherits.
    chosen = cell.outgoing(0).weights_of("conv_3x3", 1, "fans.0.", cell.state_dict())
    single = convolution(4, 2 if reduction else 1, False, 1).double().eval()
    single.load_state_dict(chosen, strict=False)
    x = torch.randn(2, 4, 9, 6, dtype=torch.float64)
    every = cell.outgoing(0).candidates["conv_3x3"]
    torch.testing.assert_close(single(x), every(x, slice(1, 2)), **EXACT)


@pytest.fixture(scope="module")
def extended(tmp_path_factory) -> Path:
    """A copy of the package with the page's search space, made by following the page."""
    root = tmp_path_factory.mktemp("extended")
    shutil.copytree(ROOT / "autoreid", root / "autoreid", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "configs", root / "configs")
    written = dict(BLOCKS)
    (root / "autoreid/spaces/kernels").mkdir()
    (root / "autoreid/spaces/kernels/__init__.py").touch()
    for path in (*SPACE, "configs/kernels.yaml"):
        (root / path).write_text(written[path])
    section = written["autoreid/config/spaces.py"]
    name, field, line = '"kernels"', "kernels: Kernels = Kernels()", '"kernels": KernelSpace'
    genotype = '"kernels": KernelGenotype'
    assert all(f"`{edit}`" in TEXT for edit in (name, field, line, genotype))
    replace(root / "autoreid/config/spaces.py", "class SpaceChoice(", f"{section}\n\nclass SpaceChoice(")
    replace(root / "autoreid/config/spaces.py", "    space: Literal[", f"    space: Literal[{name}, ")
    replace(
        root / "autoreid/config/spaces.py", "    osnet_ain: OsnetAin", f"    {field}\n    osnet_ain: OsnetAin"
    )
    module = "from autoreid.spaces.kernels.space import KernelSpace\n"
    beginning = "from autoreid.spaces.osnet_ain.space"
    replace(root / "autoreid/spaces/build.py", beginning, module + beginning)
    replace(root / "autoreid/spaces/build.py", "type[Space]] = {", f"type[Space]] = {{{line}, ")
    module = "from autoreid.spaces.kernels.genotype import KernelGenotype\n"
    beginning = "from autoreid.spaces.osnet_ain.genotype"
    replace(root / "autoreid/spaces/genotypes.py", beginning, module + beginning)
    replace(root / "autoreid/spaces/genotypes.py", "type[Genotype]] = {", f"type[Genotype]] = {{{genotype}, ")
    return root


def replace(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert text.count(old) == 1, f"{file}: {old}"
    file.write_text(text.replace(old, new))


def run_in(root: Path, *command: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command], cwd=root, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
def test_a_search_space_is_searched_derived_and_drawn(extended):
    """Both commands of the page; with gumbel_hard, whose passes compute a mixture or a single candidate."""
    (block,) = re.findall(r"```shell\n(.*?)```", TEXT, re.DOTALL)
    (_, *search), (_, *derive) = map(shlex.split, block.splitlines())
    people = "{train_identities: 12, test_identities: 4, images_per_identity: 8, cameras: 2}"
    small = [f"data.synthetic.synthetic_people={people}", "data.height=32", "data.width=16"]
    quick = ["data.batch_size=16", "training.epochs=2", "search.relaxation=gumbel_hard"]
    run_in(extended, *search, *small, *quick)
    result = json.loads((extended / "runs/kernels/result.json").read_text())
    drawn = extended / "searched_genotypes/kernels"
    assert json.loads((drawn / "EP02.json").read_text()) == result["genotype"]
    assert result["genotype"]["space"] == "kernels"
    sizes = result["genotype"]["sizes"]
    picture = (drawn / "EP02-stages.gv").read_text()
    assert re.findall(r"(\d)×\1", picture) == [str(size) for size in sizes]
    run_in(extended, *derive, *small)
    network = (extended / "derived/kernels/network.gv").read_text()
    maps = ["16 × 16 × 8", "16 × 8 × 4", "16 × 4 × 2"]
    assert re.findall(r"(\d)×\1\n([\d ×]+)\"", network) == [*zip(map(str, sizes), maps, strict=True)]


@pytest.mark.slow
def test_a_supernet_with_one_candidate_is_the_derived_network(extended):
    """The comparison that the page asks for; a sample and a weight of 1 select the same."""
    run_in(
        extended,
        "-c",
        """
import numpy
import torch
from autoreid.config import Search
from autoreid.spaces.build import build_model, build_space
from autoreid.spaces.kernels.genotype import SIZES, KernelGenotype

space = build_space(Search(space="kernels", kernels={"stages": 2, "channels": 4}))
supernet = space.build_supernet(5).double()
network = build_model("derived", 5, genotype=KernelGenotype(sizes=(7, 3)), channels=4).double()
chosen = {}
for name, value in supernet.state_dict().items():
    group, place, *rest = name.split(".")
    if group == "neck":
        chosen[name] = value
    elif SIZES[int(rest[0])] == (7, 3)[int(place)]:
        chosen[".".join([group, place, *rest[1:]])] = value
network.load_state_dict(chosen, strict=False)
assert space.path(network.genotype) == {"stages": [2, 0]}
rng = numpy.random.default_rng(0)
assert {space.random_genotype(rng).sizes for _ in range(200)} == {(a, b) for a in SIZES for b in SIZES}
one_changed = {(a, 3) for a in (3, 5)} | {(7, b) for b in (5, 7)}
assert {space.mutated(network.genotype, rng).sizes for _ in range(100)} == one_changed
images = torch.randn(6, 3, 20, 12, dtype=torch.float64)
expected = network(images)
one_hot = torch.nn.functional.one_hot(torch.tensor([2, 0]), 3).double()
for choice in ({"sample": {"stages": [2, 0]}}, {"mixing": {"stages": one_hot}}):
    for one, other in zip(supernet(images, **choice), expected, strict=True):
        torch.testing.assert_close(one, other)
""",
    )
