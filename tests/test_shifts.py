import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import ValidationError

from autoreid.config import SyntheticPeople
from autoreid.data.datasets.market1501 import read_market1501
from autoreid.data.synthetic.people import DRAWING_VERSION, SETTINGS_FILE, write_synthetic_people
from autoreid.data.synthetic.shifts import SHADINGS, TEXTURES, LocalShift, pick_shift
from autoreid.errors import DataError

SMALL = SyntheticPeople(
    train_identities=6, test_identities=1, images_per_identity=4, cameras=2, distractors=0, junk=0, domain=1
)
LOCAL = SMALL.model_copy(update={"shift": "local"})


def stem(pixels: np.ndarray) -> torch.Tensor:
    """Features behind a convolution and an instance norm, as in the stem of OSNet-AIN."""
    weights = torch.randn(16, 3, 7, 7, generator=torch.Generator().manual_seed(0))
    maps = F.conv2d(torch.from_numpy(pixels).permute(2, 0, 1)[None].float(), weights, stride=2)
    return F.instance_norm(maps)


def relative_change(before: np.ndarray, after: np.ndarray) -> float:
    first, second = stem(before), stem(after)
    return float((first - second).norm() / first.norm())


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_synthetic_people(root / "colour", SMALL)
    write_synthetic_people(root / "local", LOCAL)
    return {name: root / name for name in ("colour", "local")}


def pictures(root) -> np.ndarray:
    return np.stack(
        [np.asarray(Image.open(path), dtype=np.float64) for path in read_market1501(root).train.paths]
    )


def test_the_default_shift_is_not_named_so_that_older_folders_are_the_same(roots):
    settings = json.loads((roots["colour"] / SETTINGS_FILE).read_text())
    assert settings == {
        "drawing_version": DRAWING_VERSION,
        "train_identities": 6,
        "test_identities": 1,
        "images_per_identity": 4,
        "cameras": 2,
        "distractors": 0,
        "junk": 0,
        "height": 128,
        "width": 64,
        "domain": 1,
        "seed": 0,
    }


def test_a_folder_of_one_shift_is_not_taken_for_the_other(roots):
    with pytest.raises(DataError, match="shift is missing, not local"):
        write_synthetic_people(roots["colour"], LOCAL)
    with pytest.raises(DataError, match="shift is local, not a setting"):
        write_synthetic_people(roots["local"], SMALL)


def test_an_unknown_shift_is_refused():
    with pytest.raises(ValidationError, match="shift"):
        SyntheticPeople(shift="none")


def test_the_local_shift_survives_an_instance_norm_and_a_change_of_colours_does_not(roots):
    colour, local = pictures(roots["colour"]), pictures(roots["local"])
    dimmer = colour * 0.6 + 20
    assert max(relative_change(*pair) for pair in zip(colour, dimmer, strict=True)) < 1e-3
    changes = [relative_change(*pair) for pair in zip(colour, local, strict=True)]
    assert min(changes) > 0.1, "the strength differs from image to image"
    assert np.mean(changes) > 0.3


def test_the_people_stay_the_same(roots):
    # Seen from far enough, without the texture: the person's own colour picture is the most alike of all.
    def coarse(images: np.ndarray) -> np.ndarray:
        small = F.avg_pool2d(torch.from_numpy(images).permute(0, 3, 1, 2), 8)
        return F.instance_norm(small).flatten(1).numpy()

    colour, local = coarse(pictures(roots["colour"])), coarse(pictures(roots["local"]))
    distance = np.linalg.norm(local[:, None] - colour[None], axis=2)
    assert np.mean(distance.argmin(axis=1) == np.arange(len(local))) > 0.5, "by chance 1 of 24"


@pytest.mark.parametrize(
    ("field", "values"),
    [("texture", TEXTURES), ("shading", SHADINGS), ("contrast", (0.7, 1.8)), ("blur", (0.0, 0.03))],
)
def test_each_part_of_a_shift_shows(roots, field, values):
    image = Image.open(read_market1501(roots["colour"]).train.paths[0])
    base = vars(pick_shift(np.random.default_rng(0), 1))
    shown = {
        LocalShift(**{**base, field: value}).apply(image, np.random.default_rng(1)).tobytes()
        for value in values
    }
    assert len(shown) == len(values)


def test_three_neighbouring_domains_share_neither_texture_nor_light():
    shifts = [pick_shift(np.random.default_rng(0), domain) for domain in (1, 2, 3)]
    for field in ("texture", "shading", "contrast", "angle"):
        assert len({getattr(shift, field) for shift in shifts}) == 3, field
