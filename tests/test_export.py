from __future__ import annotations

import importlib.util

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from autoreid import export
from autoreid.commands import export as work
from autoreid.errors import RunError
from autoreid.spaces.build import build_model
from tests.helpers.commands import run_python
from tests.helpers.trained import DIMENSIONS, HEIGHT, WIDTH, small_network, write_checkpoint


@pytest.fixture(scope="module")
def network():
    return small_network(0)


@pytest.fixture(scope="module")
def checkpoint(network, tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("run") / "checkpoints/best.pt", network)


@pytest.fixture(scope="module")
def model(network):
    """One export for all tests, because it takes seconds."""
    return work.export_onnx(network, HEIGHT, WIDTH)


def test_the_command_writes_what_it_checked(checkpoint, network, tmp_path):
    output = tmp_path / "new/folder/model.onnx"
    line = ["-m", "autoreid.export", checkpoint, "--output", output, "--check"]
    done = run_python(*line, folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert float(lines[0].partition("onnxruntime: ")[2]) < 1e-4
    assert lines[1].startswith(f"{output}: images (B, 3, {HEIGHT}, {WIDTH})")
    assert list(output.parent.iterdir()) == [output]
    onnx.checker.check_model(onnx.load(output), full_check=True)
    images = torch.randn(5, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(4))
    session = onnxruntime.InferenceSession(output)
    (features,) = session.run(["embedding"], {"images": images.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(features, network(images).numpy(), rtol=1e-4, atol=1e-5)


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
    ((network, *size),) = seen
    assert size == [384, 192]
    assert network.layer4[0].conv2.stride == (1, 1)
    assert torch.equal(network.layer4[0].conv2.weight, state["layer4.0.conv2.weight"])
    assert "resnet50.pth: 318 entries loaded; 2 missing in the file: classifier" in capsys.readouterr().out
    for wrong, message in (
        (["--size", "384"], "--size 384: must be of the form HEIGHTxWIDTH"),
        (["--option", "neck"], "--option neck: must be of the form KEY=VALUE"),
        (["--model", "resnet"], "unknown network 'resnet'"),
    ):
        assert export.main(line + wrong) == 2
        assert message in capsys.readouterr().err
    assert export.main([*line[:3], "--size", "384x192"]) == 2
    assert "--size: requires --model" in capsys.readouterr().err


def test_any_number_of_images_of_one_size(model):
    session = onnxruntime.InferenceSession(model)
    (images,), (embedding,) = session.get_inputs(), session.get_outputs()
    assert (images.name, images.shape[1:]) == ("images", [3, HEIGHT, WIDTH])
    assert (embedding.name, embedding.shape[1:]) == ("embedding", [DIMENSIONS])
    for batch in (1, 2, 9):
        (features,) = session.run(None, {"images": np.zeros((batch, 3, HEIGHT, WIDTH), np.float32)})
        assert features.shape == (batch, DIMENSIONS)


def test_pooling_into_parts_that_do_not_divide_the_rows_stays_small(model):
    # torch decomposes such a 2-d pooling into single pixels: thousands of nodes at the usual size.
    assert len(onnx.load_from_string(model).graph.node) < 150


def test_another_networks_file_is_found_out(model, network):
    assert 0 <= work.check_onnx(model, network, HEIGHT, WIDTH) < 1e-4
    with pytest.raises(RunError, match="embedding differs from the network's by"):
        work.check_onnx(model, small_network(1), HEIGHT, WIDTH)
    wider = torch.nn.Sequential(network, torch.nn.ZeroPad1d((0, 1)))
    with pytest.raises(
        RunError, match=rf"returns shape \(1, {DIMENSIONS}\), expected \(1, {DIMENSIONS + 1}\)"
    ):
        work.check_onnx(model, wider, HEIGHT, WIDTH)
    broken = small_network(0)
    torch.nn.init.constant_(broken.neck.norm.weight, torch.nan)
    with pytest.raises(RunError, match="by nan"):
        work.check_onnx(model, broken, HEIGHT, WIDTH)


def test_a_check_that_fails_writes_nothing(checkpoint, model, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(work, "export_onnx", lambda *_: model)
    # The checkpoint has other weights than those that were exported.
    other = write_checkpoint(tmp_path / "other.pt", small_network(1))
    output = tmp_path / "model.onnx"
    assert export.main([str(other), "--output", str(output), "--check"]) == 1
    assert "nothing was written" in capsys.readouterr().err
    assert not output.exists()


def test_missing_packages_are_one_line(checkpoint, monkeypatch, capsys, tmp_path):
    find_spec = importlib.util.find_spec
    missing = {"onnx", "onnxscript"}
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name in missing else find_spec(name, *rest)
    )
    assert export.main([str(checkpoint), "--output", str(tmp_path / "model.onnx")]) == 1
    message = "autoreid: export requires onnx and onnxscript: pip install 'autoreid[export]'\n"
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
