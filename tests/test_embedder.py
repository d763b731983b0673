from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.optim.swa_utils import AveragedModel

import autoreid
from autoreid.errors import ConfigError, DataError
from autoreid.networks import load_network
from autoreid.spaces.build import build_model
from tests.helpers.torchreid import fixtures, their_images, their_state
from tests.helpers.trained import DIMENSIONS, HEIGHT, WIDTH, small_network, write_checkpoint


@pytest.fixture(scope="module")
def network():
    return small_network(0)


@pytest.fixture(scope="module")
def run_folder(network, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    write_checkpoint(folder / "checkpoints/best.pt", network)
    return folder


@pytest.fixture(scope="module")
def model(run_folder):
    return autoreid.load(str(run_folder / "checkpoints/best.pt"))


def arrays(count=3, height=HEIGHT, width=WIDTH):
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def normalised(pictures):
    """Computed directly in float64 with ImageNet's means and deviations, without resizing."""
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    return torch.from_numpy(((pictures / 255 - mean) / deviation).transpose(0, 3, 1, 2)).float()


def test_files_arrays_pictures_and_tensors_embed_alike(model, network, tmp_path):
    pictures = arrays()
    with torch.no_grad():
        expected = network(normalised(pictures))
    assert expected.shape == (3, DIMENSIONS)
    files = [tmp_path / f"{index}.png" for index in range(3)]
    for file, picture in zip(files, pictures, strict=True):
        Image.fromarray(picture).save(file)
    given = {
        "files": files,
        "names": [str(file) for file in files],
        "arrays": list(pictures),
        "one array": pictures,
        "pictures": (Image.fromarray(picture) for picture in pictures),
        "mixed": [str(files[0]), pictures[1], Image.fromarray(pictures[2])],
        "tensor": normalised(pictures),
    }
    for what, images in given.items():
        features = model(images)
        assert features.dtype == torch.float32, what
        assert not features.requires_grad, what
        torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5, msg=what)


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_batches_change_nothing(model, batch_size):
    images = arrays(5)
    expected = torch.cat([model(image) for image in images])
    torch.testing.assert_close(model(images, batch_size=batch_size), expected, rtol=1e-4, atol=1e-5)
    tensors = normalised(images)
    torch.testing.assert_close(model(tensors, batch_size=batch_size), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_tensors_of_other_number_formats_are_converted(model, dtype):
    images = normalised(arrays(2)).to(dtype)
    assert torch.equal(model(images), model(images.float()))


@pytest.mark.parametrize("images", [torch.zeros(2, 3, HEIGHT, WIDTH), [np.zeros((4, 4, 3), np.uint8)]])
@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_has_an_image(model, images, batch_size):
    with pytest.raises(ConfigError, match=f"batch_size = {batch_size}: must be at least 1"):
        model(images, batch_size=batch_size)


def test_one_picture_alone_gives_one_row(model, tmp_path):
    picture = arrays(1)[0]
    Image.fromarray(picture).save(tmp_path / "a.png")
    for image in (picture, Image.fromarray(picture), tmp_path / "a.png", str(tmp_path / "a.png")):
        torch.testing.assert_close(model(image), model(picture[None]))


def test_other_sizes_are_resized_and_other_modes_made_rgb(model):
    large = Image.fromarray(arrays(1, 150, 90)[0])
    resized = large.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    torch.testing.assert_close(model(large), model(resized))
    grey = resized.convert("L")
    torch.testing.assert_close(model(grey), model(np.stack(3 * [np.asarray(grey)], axis=2)))


def test_a_run_folder_means_its_best_checkpoint(model, run_folder):
    images = arrays()
    assert torch.equal(autoreid.load(run_folder)(images), model(images))


def test_the_moving_average_is_what_counts(network, tmp_path):
    averaged = AveragedModel(network)
    averaged.update_parameters(network)
    with torch.no_grad():
        for weight in averaged.module.parameters():
            weight.mul_(1.1)
    path = write_checkpoint(tmp_path / "step-00000003.pt", network, ema=averaged.state_dict())
    loaded, config, report = load_network(path)
    assert report is None
    assert (config.data.height, config.data.width) == (HEIGHT, WIDTH)
    assert not loaded.training
    expected, plain = averaged.module.state_dict(), network.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in loaded.state_dict().items())
    assert not torch.equal(expected["stem.0.weight"], plain["stem.0.weight"])


def test_images_that_cannot_be_read_are_named(model, tmp_path):
    (tmp_path / "text.jpg").write_text("no image")
    with pytest.raises(DataError, match=r"text\.jpg: cannot read this image"):
        model([arrays(1)[0], tmp_path / "text.jpg"])
    with pytest.raises(DataError, match=r"gone\.jpg: cannot read this image: No such file"):
        model(str(tmp_path / "gone.jpg"))
    Image.fromarray(arrays(1)[0]).save(tmp_path / "cut.png")
    whole = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"cut\.png: cannot read this image"):
        model(tmp_path / "cut.png")


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "no images"),
        ([np.zeros((4, 4, 3))], r"image 0 is a float64 array of shape \(4, 4, 3\)"),
        (
            [np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4, 4), np.uint8)],
            r"image 1 is a uint8 array of shape",
        ),
        (np.zeros((0, 4, 3), np.uint8), "image 0 is a uint8 array"),
        ([None], "image 0 is a NoneType: must be a file"),
        (None, "images has type NoneType: must be one or several files"),
        (3, "images has type int: must be one or several files"),
        (torch.zeros(3, 4, 4), r"shape \(3, 4, 4\): must be normalised floats"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), "torch.uint8 tensor"),
    ],
)
def test_what_is_no_image_is_refused(model, images, message):
    with pytest.raises(DataError, match=message):
        model(images)


def test_checkpoints_that_cannot_be_used_are_named(network, tmp_path):
    with pytest.raises(DataError, match="no such checkpoint"):
        autoreid.load(tmp_path / "gone.pt")
    with pytest.raises(DataError, match=r"contains no checkpoints/best\.pt"):
        autoreid.load(tmp_path)
    (tmp_path / "damaged.pt").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"damaged\.pt: not a file of torch\.save"):
        autoreid.load(tmp_path / "damaged.pt")
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    with pytest.raises(DataError, match=r"weights\.pt: not a checkpoint of python -m autoreid\.train"):
        autoreid.load(tmp_path / "weights.pt")
    search = write_checkpoint(tmp_path / "search.pt", network, task="search")
    with pytest.raises(DataError, match=r"search\.pt: .*supernet.*derive"):
        autoreid.load(search)
    other = write_checkpoint(tmp_path / "other.pt", torch.nn.Linear(2, 2))
    with pytest.raises(DataError, match=r"other\.pt: the weights do not match the network derived"):
        autoreid.load(other)


@pytest.mark.parametrize(
    ("theirs", "model", "options"), [("osnet_x1_0", "osnet_x1_0", {}), ("resnet50", "resnet50", {})]
)
def test_torchreids_weights_embed_images_as_torchreid(tmp_path, caplog, theirs, model, options):
    fixture = fixtures()[theirs]
    torch.save({"state_dict": their_state(theirs)}, tmp_path / "theirs.pth")
    size = tuple(fixture["input"][2:])
    with caplog.at_level(logging.INFO, "autoreid"):
        embedder = autoreid.load(tmp_path / "theirs.pth", model=model, size=size)
    assert "theirs.pth (state_dict): " in caplog.text
    features = embedder(their_images(fixture["input"]))
    assert features.norm(dim=1).tolist() == pytest.approx(fixture["feature_norm"], rel=1e-4)
    scale = 1e-4 * fixture["feature_mean"][0]
    assert features[:, :8].tolist() == pytest.approx(np.array(fixture["feature_first8"]), rel=1e-4, abs=scale)


def test_weights_whose_embedding_would_differ_are_refused(tmp_path):
    """As of torchreid's resnet50_fc512, whose embedding is computed by another layer from that of resnet50."""
    state = build_model("osnet_x0_25", 5).state_dict()
    torch.save(state | {"reduction.0.weight": torch.zeros(64, 512)}, tmp_path / "more.pth")
    with pytest.raises(
        DataError, match=r"more\.pth: the network has no reduction\.0\.weight; without it, embeddings"
    ):
        autoreid.load(tmp_path / "more.pth", model="osnet_x0_25")
    torch.save(state | {"fc.0.weight": torch.zeros(9, 9)}, tmp_path / "shape.pth")
    with pytest.raises(DataError, match=r"shape\.pth: fc\.0\.weight has shape \(9, 9\)"):
        autoreid.load(tmp_path / "shape.pth", model="osnet_x0_25")


def test_a_network_that_cannot_be_built_is_named(run_folder, tmp_path):
    torch.save(build_model("osnet_x0_25", 5).state_dict(), tmp_path / "weights.pth")
    with pytest.raises(ConfigError, match=r"unknown network 'osnet'; did you mean osnet_x"):
        autoreid.load(tmp_path / "weights.pth", model="osnet")
    with pytest.raises(ConfigError, match="osnet_x0_25 has no option 'parts'"):
        autoreid.load(tmp_path / "weights.pth", model="osnet_x0_25", options={"parts": 3})
    with pytest.raises(ConfigError, match=r"network osnet_x0_25: data\.height = 0"):
        autoreid.load(tmp_path / "weights.pth", model="osnet_x0_25", size=(0, 128))
    with pytest.raises(ConfigError, match="is a checkpoint of a training, which names its own network"):
        autoreid.load(run_folder, model="osnet_x0_25")


def test_a_device_that_is_not_there_is_named(run_folder):
    for device in ("toaster", f"cuda:{torch.cuda.device_count()}"):
        with pytest.raises(ConfigError, match=f"device = '{device}'"):
            autoreid.load(run_folder, device=device)


def test_importing_the_package_loads_nothing_heavy():
    code = "import sys, autoreid; assert callable(autoreid.load); print(*sys.modules)"
    root = Path(autoreid.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert not {"torch", "numpy", "PIL", "pydantic"} & set(done.stdout.split())


def test_pictures_are_decoded_like_their_files(model, tmp_path):
    """16 bits, transparency and orientation: the same features whether a file or an opened picture is given."""
    rng = np.random.default_rng(3)
    exif = Image.Exif()
    exif[0x0112] = 6
    files = [tmp_path / name for name in ("infrared.png", "cut_out.png", "phone.jpg")]
    Image.fromarray(rng.integers(0, 2**16, (HEIGHT, WIDTH)).astype(np.uint16)).save(files[0])
    Image.fromarray(rng.integers(0, 256, (HEIGHT, WIDTH, 4), dtype=np.uint8)).save(files[1])
    Image.fromarray(arrays(1)[0]).save(files[2], exif=exif.tobytes())
    features = model(files)
    assert torch.equal(features, model([Image.open(file) for file in files]))
    plain = model([np.asarray(Image.open(file).convert("RGB")) for file in files])
    assert not any(torch.equal(one, other) for one, other in zip(features, plain, strict=True))


def test_pictures_that_cannot_be_decoded_are_named_by_their_index(model, tmp_path):
    with pytest.raises(DataError, match="image 1: cannot read this image: it consists of floating-point"):
        model([arrays(1)[0], Image.new("F", (4, 4))])
    Image.fromarray(arrays(1)[0]).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:-60])
    with pytest.raises(DataError, match="image 0: cannot read this image: "):
        model(Image.open(tmp_path / "cut.png"))
