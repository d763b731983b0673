"""Exported files: that they compute what the network computes, of pictures of any size and of either channel order."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

from autoreid import export
from autoreid.commands import export as work
from autoreid.deployment.metadata import Metadata
from autoreid.deployment.onnx_export import export_onnx
from autoreid.deployment.onnx_file import OnnxFile
from autoreid.embedder import Embedder
from autoreid.errors import DataError, RunError
from autoreid.networks import load_network
from autoreid.spaces.build import build_model
from tests.helpers.commands import run_python
from tests.helpers.onnx_files import edited
from tests.helpers.trained import (
    DIMENSIONS,
    HEIGHT,
    OPTIONS,
    WIDTH,
    lively_network,
    small_network,
    write_checkpoint,
)

#: The kinds of files: an export takes seconds, so each kind is exported once, and tests share them.
FLOATS, ANY_SIZE, HALF = (
    ("none", "RGB", "float32"),
    ("resize", "BGR", "float32"),
    ("normalise", "RGB", "float16"),
)


def pictures(count, height, width, seed=0):
    """Smooth random pictures (count, height, width, 3) uint8."""
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 12, 6, 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(one).resize((width, height))) for one in coarse])


def normalised(pixels):
    """Computed directly in float64 with ImageNet's means and deviations."""
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    return ((pixels / 255 - mean) / deviation).transpose(0, 3, 1, 2).astype(np.float32)


@pytest.fixture(scope="module")
def network():
    """A network whose embeddings of different pictures differ."""
    return lively_network(0, torch.from_numpy(normalised(pictures(16, HEIGHT, WIDTH, seed=5))))


@pytest.fixture(scope="module")
def checkpoint(network, tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("run") / "checkpoints/best.pt", network)


@pytest.fixture(scope="module")
def models(checkpoint):
    """The content of a file of each kind."""
    network, config, _ = load_network(checkpoint)
    kinds = (FLOATS, ANY_SIZE, HALF)
    return {kind: export_onnx(network, Metadata.of(config, *kind)) for kind in kinds}


@pytest.fixture(scope="module")
def embedder(network):
    return Embedder(network, HEIGHT, WIDTH, "cpu")


def run(model, images):
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (features,) = session.run(["embedding"], {"images": images})
    assert features.dtype == np.float32
    return torch.from_numpy(features)


def relative_difference(found, expected):
    return ((found - expected).norm(dim=1) / expected.norm(dim=1)).max().item()


@pytest.mark.slow
def test_the_command_writes_what_it_checked(checkpoint, network, tmp_path):
    output = tmp_path / "new/folder/model.onnx"
    line = ["-m", "autoreid.export", checkpoint, "--output", output, "--check"]
    done = run_python(*line, folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("onnxruntime agrees: smallest cosine 1.000000")
    assert float(lines[0].partition("relative difference ")[2]) < 1e-4
    assert lines[1].startswith(f"{output}: images (B, 3, {HEIGHT}, {WIDTH}) float32")
    assert list(output.parent.iterdir()) == [output]
    images = torch.randn(5, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        torch.testing.assert_close(run(output, images.numpy()), network(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [FLOATS, ANY_SIZE, HALF])
def test_files_are_valid_and_contain_no_paths_of_this_machine(models, kind):
    model = onnx.load_from_string(models[kind])
    onnx.checker.check_model(model, full_check=True)
    assert b".py" not in models[kind]


@pytest.mark.parametrize("batch", [1, 2, 9])
def test_a_file_for_bgr_embeds_pictures_of_opencv(models, embedder, batch):
    rgb = pictures(batch, HEIGHT, WIDTH)
    expected = embedder(rgb)
    assert relative_difference(embedder(rgb[..., ::-1].copy()), expected) > 0.05  # so the order matters
    assert relative_difference(run(models[ANY_SIZE], rgb[..., ::-1].copy()), expected) < 1e-5


@pytest.mark.parametrize(("height", "width"), [(64, 32), (128, 64), (171, 53), (32, 16), (19, 60), (100, 20)])
def test_a_file_for_any_size_resizes_as_in_training(models, embedder, height, width):
    rgb = pictures(3, height, width)
    bgr = rgb[..., ::-1].copy()
    found = run(models[ANY_SIZE], bgr)
    # Pillow resizes rows or columns first, whichever is faster, and rounds in between; ONNX Runtime the columns.
    assert relative_difference(found, embedder(rgb)) < 1e-2
    in_this_order = [
        Image.fromarray(one).resize((WIDTH, height), 3).resize((WIDTH, HEIGHT), 3) for one in rgb
    ]
    assert relative_difference(found, embedder(in_this_order)) < 1e-3
    assert relative_difference(run(models[ANY_SIZE], bgr[:1]), found[:1]) < 1e-5


def test_half_precision_keeps_the_embeddings_almost(models, embedder):
    rgb = pictures(5, HEIGHT, WIDTH)
    found, expected = run(models[HALF], rgb), embedder(rgb)
    assert torch.nn.functional.cosine_similarity(found, expected).min() > 0.9999
    assert 1e-5 < relative_difference(found, expected) < 0.02
    weights = onnx.load_from_string(models[HALF]).graph.initializer
    assert {one.data_type for one in weights if len(one.dims) == 4} == {onnx.TensorProto.FLOAT16}


def test_the_file_says_what_it_is(models, checkpoint):
    session = onnxruntime.InferenceSession(models[ANY_SIZE])
    entries = session.get_modelmeta().custom_metadata_map
    expected = {
        "network": "derived",
        "height": str(HEIGHT),
        "width": str(WIDTH),
        "preprocessing": "resize",
        "channels": "BGR",
        "precision": "float32",
        "metric": "euclidean",
        "mean": "[0.485, 0.456, 0.406]",
        "std": "[0.229, 0.224, 0.225]",
        "autoreid_version": importlib.metadata.version("autoreid"),
    }
    assert {key: entries[key] for key in expected} == expected
    assert json.loads(entries["network_options"])["genotype"] == OPTIONS["genotype"]
    assert Metadata.read(entries, "file") == Metadata.of(load_network(checkpoint).config, *ANY_SIZE)


def test_prepared_pictures_are_the_input_of_each_kind_of_file(models, embedder):
    rgb = pictures(2, 90, 50)
    for kind, model in models.items():
        file = OnnxFile(model, "model.onnx")
        limit = 0.02 if kind == HALF else 1e-2 if kind == ANY_SIZE else 1e-5
        assert relative_difference(file.run(file.prepare(rgb)), embedder(rgb)) < limit, kind


def test_weights_of_another_program_are_exported(tmp_path, monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(work, "export_onnx", lambda *given: seen.append(given) or b"model")
    torch.manual_seed(5)
    state = build_model("resnet50", 3, neck=False).state_dict()
    torch.save(state, tmp_path / "resnet50.pth")
    line = [
        str(tmp_path / "resnet50.pth"),
        "--output",
        str(tmp_path / "resnet50.onnx"),
        "--model",
        "resnet50",
    ]
    line += ["--option", "neck=false", "--option", "last_stride=1", "--size", "384x192"]
    assert export.main(line) == 0
    ((network, metadata),) = seen
    assert (metadata.height, metadata.width, metadata.network) == (384, 192, "resnet50")
    assert network.layer4[0].conv2.stride == (1, 1)
    assert torch.equal(network.layer4[0].conv2.weight, state["layer4.0.conv2.weight"])
    assert "resnet50.pth: 318 entries loaded; 2 missing in the file: classifier" in capsys.readouterr().out
    for wrong, message in (
        (["--size", "384"], "--size 384: must be of the form HEIGHTxWIDTH"),
        (["--option", "neck"], "--option neck: must be of the form KEY=VALUE"),
        (["--model", "resnet"], "unknown network 'resnet'"),
        (["--bgr"], "--bgr: requires --preprocessing normalise or resize"),
    ):
        assert export.main(line + wrong) == 2
        assert message in capsys.readouterr().err
    assert export.main([*line[:3], "--size", "384x192"]) == 2
    assert "--size: requires --model" in capsys.readouterr().err


@pytest.mark.slow
def test_any_number_of_images_of_one_size(models):
    session = onnxruntime.InferenceSession(models[FLOATS])
    (images,), (embedding,) = session.get_inputs(), session.get_outputs()
    assert (images.name, images.shape[1:]) == ("images", [3, HEIGHT, WIDTH])
    assert (embedding.name, embedding.shape[1:]) == ("embedding", [DIMENSIONS])
    for batch in (1, 2, 9):
        (features,) = session.run(None, {"images": np.zeros((batch, 3, HEIGHT, WIDTH), np.float32)})
        assert features.shape == (batch, DIMENSIONS)


def test_pooling_into_parts_that_do_not_divide_the_rows_stays_small(models):
    # torch decomposes such a 2-d pooling into single pixels: thousands of nodes at the usual size.
    assert len(onnx.load_from_string(models[FLOATS]).graph.node) < 150


def test_another_networks_file_is_found_out(models, network, embedder, tmp_path):
    output = tmp_path / "model.onnx"
    for kind, model in models.items():
        agreement = work.check_onnx(model, output, embedder)
        assert 0 <= agreement.difference < (1e-4 if kind == FLOATS else 0.02), kind
        with pytest.raises(RunError, match="embeddings differ from the network's by up to"):
            work.check_onnx(model, output, Embedder(small_network(1), HEIGHT, WIDTH, "cpu"))
    wider = torch.nn.Sequential(network, torch.nn.ZeroPad1d((0, 1)))
    with pytest.raises(
        DataError, match=rf"embeddings of shape \(1, {DIMENSIONS}\), expected \(1, {DIMENSIONS + 1}\)"
    ):
        work.check_onnx(models[FLOATS], output, Embedder(wider, HEIGHT, WIDTH, "cpu"))
    broken = small_network(0)
    torch.nn.init.constant_(broken.neck.norm.weight, torch.nan)
    with pytest.raises(RunError, match="by up to nan"):
        work.check_onnx(models[FLOATS], output, Embedder(broken, HEIGHT, WIDTH, "cpu"))


def test_a_check_that_fails_writes_nothing(models, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(work, "export_onnx", lambda *_: models[FLOATS])
    # The checkpoint has other weights than those that were exported.
    other = write_checkpoint(tmp_path / "other.pt", small_network(1))
    output = tmp_path / "model.onnx"
    assert export.main([str(other), "--output", str(output), "--check"]) == 1
    assert "nothing was written" in capsys.readouterr().err
    assert not output.exists()


def test_files_that_are_not_what_they_say_are_refused(models):
    for model, message in (
        (b"text", "model.onnx: ONNX Runtime cannot read the file"),
        (edited(models[FLOATS], autoreid_version=None), "model.onnx: has no metadata of autoreid; export"),
        (edited(models[FLOATS], metric=None), "model.onnx: metadata metric: Field required"),
        (
            edited(models[FLOATS], height="tall"),
            "model.onnx: metadata height: Input should be a valid integer",
        ),
        (
            edited(models[FLOATS], height="99"),
            rf"model.onnx: expected one input `images` \(B, 3, 99, {WIDTH}\), as its metadata says",
        ),
    ):
        with pytest.raises(DataError, match=message):
            OnnxFile(model, "model.onnx")


@pytest.mark.parametrize(
    ("options", "missing", "names"),
    [
        ([], {"onnx", "onnxscript"}, "onnx and onnxscript"),
        (["--precision", "float16"], {"onnxconverter_common"}, "onnxconverter_common"),
        (["--check"], {"onnxruntime"}, "onnxruntime"),
    ],
)
def test_missing_packages_are_one_line(checkpoint, monkeypatch, capsys, tmp_path, options, missing, names):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name in missing else find_spec(name, *rest)
    )
    assert export.main([str(checkpoint), "--output", str(tmp_path / "model.onnx"), *options]) == 1
    message = f"autoreid: export requires {names}: pip install 'autoreid[export]'\n"
    assert capsys.readouterr().err == message


def test_an_output_that_is_a_folder_is_refused_before_the_export(checkpoint, capsys, tmp_path):
    assert export.main([str(checkpoint), "--output", str(tmp_path)]) == 2
    message = f"autoreid: --output {tmp_path}: is a folder; give the .onnx file to write\n"
    assert capsys.readouterr().err == message


def test_a_wrong_checkpoint_ends_with_status_2(capsys, tmp_path):
    assert export.main([str(tmp_path / "gone.pt"), "--output", str(tmp_path / "model.onnx")]) == 2
    error = capsys.readouterr().err
    assert "gone.pt: no such checkpoint" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("kind", [FLOATS, HALF])
def test_openvino_computes_the_same(models, embedder, tmp_path, kind):
    openvino = pytest.importorskip("openvino", reason="needs openvino, 180 MB")
    rgb = pictures(3, HEIGHT, WIDTH)
    (tmp_path / "model.onnx").write_bytes(models[kind])
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(str(tmp_path / "model.onnx"), "CPU", settings)
    images = OnnxFile(models[kind], "model.onnx").prepare(rgb)
    found = torch.from_numpy(compiled(images)["embedding"])
    assert relative_difference(found, embedder(rgb)) < (0.02 if kind == HALF else 1e-4)
