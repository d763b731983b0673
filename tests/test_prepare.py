"""Archives of data sets: unpacked safely, converted, checked, and resumed after an interruption."""

import contextlib
import importlib.util
import io
import os
import re
import stat
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from autoreid.data.datasets import BENCHMARKS, read_dataset
from autoreid.data.datasets.cuhk_sysu import crop_people
from autoreid.data.prepare import check_dataset, prepare_dataset
from autoreid.data.unpack import Limits, unpack
from autoreid.errors import ConfigError, DataError, RunError
from tests.helpers import miniatures
from tests.helpers.archives import pack
from tests.helpers.commands import run_python
from tests.helpers.miniatures import MINIATURES

ROOT = Path(__file__).parents[1]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def market(tmp_path):
    """A miniature of Market-1501: its folder, its archive, and a folder for data sets."""
    miniatures.market1501(tmp_path / "market")
    return tmp_path / "market", pack(tmp_path / "market", tmp_path / "market.zip"), tmp_path / "data"


@pytest.mark.parametrize("name", MINIATURES)
def test_an_archive_becomes_the_data_set_that_its_reader_knows(tmp_path, name):
    MINIATURES[name](tmp_path / "made")
    archive = pack(tmp_path / "made", tmp_path / "archive.zip")
    findings = prepare_dataset(name, [archive], tmp_path / "data")
    folder = tmp_path / "data" / BENCHMARKS[name].folders[0]
    assert contents(folder) == contents(tmp_path / "made")
    assert [path.name for path in (tmp_path / "data").iterdir()] == [folder.name], "nothing else is left"
    assert findings.broken == []
    dataset = read_dataset(tmp_path / "data", name)
    assert findings.images == sum(len(split) for split in (dataset.train, dataset.query, dataset.gallery))
    lines = list(findings.lines())
    assert lines[0].startswith("train ")
    assert any(line.startswith("warning: ") and " not " in line for line in lines)
    assert lines[-1] == f"{findings.images} images: all can be read"


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tar.bz2", ".tar.xz"])
def test_tar_archives(market, suffix):
    folder, archive, root = market
    packed = pack(folder, archive.with_name("market" + suffix))
    prepare_dataset("market1501", [packed], root)
    assert contents(root / "market1501") == contents(folder)


def test_cuhk03_is_extracted_from_its_matlab_files(tmp_path):
    images = miniatures.cuhk03_release(tmp_path / "release")
    protocols = sorted((tmp_path / "release").glob("*config*.mat"))
    with zipfile.ZipFile(tmp_path / "cuhk03_release.zip", "w") as file:
        file.write(tmp_path / "release/cuhk-03.mat", "cuhk03_release/cuhk-03.mat")
        file.writestr("cuhk03_release/readme.txt", "")
    prepare_dataset("cuhk03_labeled", [tmp_path / "cuhk03_release.zip", *protocols], tmp_path / "data")
    for kind in ("labeled", "detected"):
        dataset = read_dataset(tmp_path / "data", f"cuhk03_{kind}")
        # Pair 1 has the three training people; the others the three test people, with two images per camera.
        assert [len(split) for split in (dataset.train, dataset.query, dataset.gallery)] == [12, 6, 6]
        assert dataset.train.num_identities == dataset.query.num_identities == 3
        assert not set(dataset.train.identities) & set(dataset.query.identities)
        assert {name: dataset.query.cameras.tolist().count(name) for name in (1, 2)} == {1: 3, 2: 3}
        found = [*dataset.train.paths, *dataset.query.paths, *dataset.gallery.paths]
        for path in found:
            original = re.sub(r"^\d+_c\d_", "", Path(path).name)
            np.testing.assert_array_equal(np.asarray(Image.open(path)), images[f"{kind}/{original}"])
        assert len(found) == sum(name.startswith(kind) for name in images)


def test_cuhk03_without_its_protocol_asks_for_it(tmp_path):
    miniatures.cuhk03_release(tmp_path)
    with pytest.raises(
        DataError, match=r"cuhk-03\.mat: the protocol is missing; add --archive cuhk03_new_protocol"
    ):
        prepare_dataset("cuhk03_labeled", [tmp_path / "cuhk-03.mat"], tmp_path / "data")


@pytest.mark.parametrize("broken", ["cuhk-03.mat", "cuhk03_new_protocol_config_labeled.mat"])
def test_broken_files_of_cuhk03_are_named(tmp_path, broken):
    miniatures.cuhk03_release(tmp_path)
    (tmp_path / broken).write_bytes(b"MATLAB 7.3 MAT-file" + bytes(1000))
    with pytest.raises(DataError, match=f"{broken}: broken, or not "):
        prepare_dataset("cuhk03_labeled", sorted(tmp_path.glob("*.mat")), tmp_path / "data")


def test_cuhk_sysu_is_cut_out_of_its_scenes(tmp_path):
    expected = miniatures.cuhk_sysu_release(tmp_path / "release")
    archive = pack(tmp_path / "release", tmp_path / "cuhk_sysu.tar")
    findings = prepare_dataset("cuhk_sysu", [archive], tmp_path / "data")
    dataset = read_dataset(tmp_path / "data", "cuhk_sysu")
    assert findings.images == 5
    assert dataset.train.num_identities == 3
    assert {Path(path).name for path in dataset.train.paths} == set(expected)
    for path in dataset.train.paths:
        crop = np.asarray(Image.open(path)).astype(int)
        assert crop.shape == expected[Path(path).name].shape, "clipped at the scene's border"
        assert np.abs(crop - expected[Path(path).name]).mean() < 12, "JPEG of noise"
    assert not (tmp_path / "data/cuhk_sysu/dataset").exists(), "the scenes are not kept"


def test_people_who_are_cut_out_already_stay(tmp_path):
    miniatures.cuhk_sysu_release(tmp_path / "release")
    crop_people(tmp_path / "release", tmp_path / "target")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "target").rglob("*.jpg")}
    missing = min(before)
    missing.unlink()
    crop_people(tmp_path / "release", tmp_path / "target")
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "target").rglob("*.jpg")}
    assert after.keys() == before.keys()
    assert {path for path in before if after[path] != before[path]} == {missing}


def test_a_full_disk_while_laying_out_is_named(tmp_path, monkeypatch):
    miniatures.cuhk03_release(tmp_path)

    def full(*given):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(RunError, match="cannot lay out cuhk03_labeled: No space left on device"):
        prepare_dataset("cuhk03_labeled", sorted(tmp_path.glob("*.mat")), tmp_path / "data")
    monkeypatch.undo()
    prepare_dataset("cuhk03_labeled", sorted(tmp_path.glob("*.mat")), tmp_path / "data")


@pytest.mark.parametrize("inside", ["DukeMTMC-reID/", ""])
def test_occluded_duke_is_divided_by_its_lists(tmp_path, inside):
    made = miniatures.Miniature(tmp_path / "duke")
    for part, people in (("bounding_box_train", (1, 2)), ("query", (3,)), ("bounding_box_test", (3, 4, 5))):
        for person in people:
            for camera in (1, 2):
                path = f"{inside}{part}/{person:04d}_c{camera}_{part[-5:]}.jpg"
                made.add("", path, person, camera)
    lists = {
        "train": ["0001_c1_train.jpg", "0002_c2_train.jpg"],
        "query": ["0003_c1_query.jpg", "0004_c1__test.jpg"],  # the second one was in the gallery
        "gallery": ["0003_c2__test.jpg", "0004_c2__test.jpg", "0005_c1__test.jpg"],
    }
    where = tmp_path if inside else tmp_path / "repository/main/dataset/Occluded_Duke"
    where.mkdir(parents=True, exist_ok=True)
    for split, names in lists.items():
        (where / f"{split}.list").write_text("\n".join(names) + "\n")
    of_lists = where.glob("*.list") if inside else [pack(tmp_path / "repository", tmp_path / "lists.tar.gz")]
    archives = [pack(tmp_path / "duke", tmp_path / "DukeMTMC-reID.zip"), *of_lists]
    prepare_dataset("occluded_duke", archives, tmp_path / "data")
    dataset = read_dataset(tmp_path / "data", "occluded_duke")
    for split, names in lists.items():
        paths = getattr(dataset, split).paths
        assert [Path(path).name for path in paths] == names
        originals = [next((tmp_path / "duke").rglob(name)).read_bytes() for name in names]
        assert [Path(path).read_bytes() for path in paths] == originals
    if not inside:
        return
    (tmp_path / "query.list").write_text("0009_c1_query.jpg\n")
    with pytest.raises(DataError, match=r"query\.list: 0009_c1_query\.jpg: no such image"):
        prepare_dataset("occluded_duke", archives, tmp_path / "other")


class Interrupted(BaseException):
    """Like Ctrl-C."""


@pytest.mark.parametrize("suffix", [".zip", ".tar.gz"])
def test_interrupted_it_goes_on_with_what_is_there(market, monkeypatch, suffix):
    folder, archive, root = market
    archive = pack(folder, archive.with_name("m" + suffix))
    module = zipfile.shutil if suffix == ".zip" else tarfile
    written, copy = [], module.copyfileobj

    def copy_five(source, target, *options):
        if len(written) == 5:
            target.write(source.read(3))
            raise Interrupted
        written.append(target.name)
        copy(source, target, *options)

    monkeypatch.setattr(module, "copyfileobj", copy_five)
    with pytest.raises(Interrupted):
        prepare_dataset("market1501", [archive], root)
    assert not (root / "market1501").exists()
    monkeypatch.setattr(module, "copyfileobj", lambda *given: written.append(given[1].name) or copy(*given))
    prepare_dataset("market1501", [archive], root)
    assert contents(root / "market1501") == contents(folder)
    assert len(written) == len(set(written)) == len(contents(folder)), "no file is written twice"


def test_another_archive_starts_anew(market):
    folder, archive, root = market
    (root / ".market1501.partial/unpacked/query").mkdir(parents=True)
    (root / ".market1501.partial/unpacked/query/0009_c1s1_000000_00.jpg").write_bytes(b"of an older archive")
    prepare_dataset("market1501", [archive], root)
    assert contents(root / "market1501") == contents(folder)


def test_what_is_there_is_never_written_over(market):
    _, archive, root = market
    (root / "market1501").mkdir(parents=True)
    with pytest.raises(ConfigError, match="already exists"):
        prepare_dataset("market1501", [archive], root)
    with pytest.raises(ConfigError, match="not a valid data set name"):
        prepare_dataset("../market1501", [archive], root)


def damage(archive: Path, how: str) -> None:
    data = bytearray(archive.read_bytes())
    if how == "cut":
        data = data[: len(data) * 2 // 3]
    elif how == "flipped":
        data[len(data) // 2 : len(data) // 2 + 40] = bytes(
            byte ^ 0xFF for byte in data[len(data) // 2 :][:40]
        )
    else:
        data = bytearray(how.encode())
    archive.write_bytes(data)


@pytest.mark.parametrize("suffix", [".zip", ".tar.gz", ".tar.bz2", ".tar.xz"])
@pytest.mark.parametrize("how", ["cut", "flipped", "", "<html>not found</html>"])
def test_a_corrupted_archive_is_named_and_leaves_nothing(market, suffix, how):
    folder, archive, root = market
    archive = pack(folder, archive.with_name("m" + suffix))
    damage(archive, how)
    with pytest.raises(
        DataError, match=re.escape(f"{archive}: broken, or not a zip or tar archive: ")
    ) as error:
        prepare_dataset("market1501", [archive], root)
    assert "\n" not in str(error.value)
    assert list(root.iterdir()) == []


@pytest.mark.parametrize("how", ["between files", "in a file", "in a header", "a header overwritten"])
def test_a_tar_that_ends_too_soon_is_noticed(market, how):
    folder, archive, root = market
    archive = pack(folder, archive.with_name("m.tar"))
    with tarfile.open(archive) as file:
        third = file.getmembers()[3]
    data = archive.read_bytes()
    cut = {
        "between files": third.offset,
        "in a file": third.offset_data + 100,
        "in a header": third.offset + 99,
    }
    rest = b"x" * 512 + data[third.offset + 512 :] if how == "a header overwritten" else b""
    archive.write_bytes(data[: cut.get(how, third.offset)] + rest)
    with pytest.raises(DataError, match=r"m\.tar: broken"):
        prepare_dataset("market1501", [archive], root)
    assert list(root.iterdir()) == []


@pytest.fixture(scope="module")
def archives(tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("archives")
    miniatures.dukemtmc(folder / "duke")
    return {
        kind: pack(folder / "duke", folder / f"a{kind}").read_bytes() for kind in (".zip", ".tar", ".tar.gz")
    }


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([".zip", ".tar", ".tar.gz"]),
    st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), min_size=1, max_size=8),
    st.floats(0.1, 3),
)
def test_whatever_is_wrong_with_an_archive_is_a_message(tmp_path_factory, archives, kind, changes, length):
    data = bytearray(archives[kind])
    for place, value in changes:
        data[int(place * len(data))] = value
    folder = tmp_path_factory.mktemp("fuzzed")
    archive = folder / f"a{kind}"
    archive.write_bytes(data[: int(min(length, 1) * len(data))])
    with contextlib.suppress(DataError, RunError):
        unpack(archive, folder / "here")
    assert {path.name for path in folder.iterdir()} <= {archive.name, "here"}


#: Hostile names, and what zipfile or tarfile's filter does with them: write them inside the folder, or refuse.
OUTSIDE = {
    "../escaped.jpg": {".zip": "inside", ".tar": "refused"},
    "a/../../escaped.jpg": {".zip": "inside", ".tar": "refused"},
    "/tmp/autoreid-escaped.jpg": {".zip": "inside", ".tar": "inside"},  # noqa: S108
    "..\\escaped.jpg": {".zip": "inside", ".tar": "inside"},
    "..": {".zip": "broken", ".tar": "refused"},
}


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("suffix", [".zip", ".tar"])
def test_a_path_that_leaves_the_folder_does_not(tmp_path, name, suffix):
    archive = tmp_path / f"evil{suffix}"
    if suffix == ".zip":
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr("query/good.jpg", b"good")
            file.writestr(zipfile.ZipInfo(name), b"evil")
    else:
        with tarfile.open(archive, "w") as file:
            info = tarfile.TarInfo(name)
            info.size = 4
            file.addfile(info, io.BytesIO(b"evil"))
    root, outcome = tmp_path / "deep/data", OUTSIDE[name][suffix]
    if outcome == "inside":
        unpack(archive, root)
        assert b"evil" in contents(root).values()
    else:
        with pytest.raises(DataError, match=outcome):
            unpack(archive, root)
        assert b"evil" not in contents(root).values()
    assert not [path for path in tmp_path.rglob("*escaped*") if not path.is_relative_to(root)]
    assert not Path("/tmp/autoreid-escaped.jpg").exists()  # noqa: S108


@pytest.mark.parametrize("kind", ["symbolic", "hard", "device", "zip"])
def test_no_archive_makes_links_or_devices(tmp_path, kind):
    if kind == "zip":
        archive = tmp_path / "evil.zip"
        with zipfile.ZipFile(archive, "w") as file:
            info = zipfile.ZipInfo("query")
            info.external_attr = (stat.S_IFLNK | 0o777) << 16
            file.writestr(info, "/etc")
    else:
        archive = tmp_path / "evil.tar"
        with tarfile.open(archive, "w") as file:
            info = tarfile.TarInfo("query")
            info.type = {"symbolic": tarfile.SYMTYPE, "hard": tarfile.LNKTYPE, "device": tarfile.CHRTYPE}[
                kind
            ]
            info.linkname = "/etc"
            file.addfile(info)
    if kind == "zip":
        unpack(archive, tmp_path / "folder")
        assert not (tmp_path / "folder/query").is_symlink()
        assert contents(tmp_path / "folder") == {"query": b"/etc"}
    else:
        with pytest.raises(DataError, match="'query' is a link or a device"):
            unpack(archive, tmp_path / "folder")
        assert list((tmp_path / "folder").iterdir()) == []


@pytest.mark.parametrize("suffix", [".zip", ".tar.gz"])
def test_a_bomb_is_stopped_by_its_size(tmp_path, suffix):
    (tmp_path / "bomb").mkdir()
    for number in range(3):
        (tmp_path / f"bomb/{number}.jpg").write_bytes(bytes(40 << 20))
    archive = pack(tmp_path / "bomb", tmp_path / f"bomb{suffix}")
    assert archive.stat().st_size < 1 << 20
    with pytest.raises(DataError, match="too much for an archive of its size"):
        unpack(archive, tmp_path / "folder")
    assert sum(len(data) for data in contents(tmp_path / "folder").values()) < 100 << 20


def test_a_bomb_is_stopped_by_its_number_of_files(market, tmp_path):
    _, archive, _ = market
    with pytest.raises(DataError, match="or 3 files"):
        unpack(archive, tmp_path / "folder", Limits(files=3))
    assert len(contents(tmp_path / "folder")) == 3


def test_a_zip_that_understates_its_sizes_gets_no_more_room(tmp_path):
    archive = tmp_path / "liar.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.jpg", bytes(1 << 20))
    data = archive.read_bytes().replace((1 << 20).to_bytes(4, "little"), (1000).to_bytes(4, "little"))
    archive.write_bytes(data)
    with pytest.raises(DataError, match="broken"):
        unpack(archive, tmp_path / "folder")
    assert all(len(content) <= 1000 for content in contents(tmp_path / "folder").values())


def test_a_password_is_asked_for_by_no_one(market):
    _, archive, root = market
    data = bytearray(archive.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + offset] |= 1
    archive.write_bytes(data)
    with pytest.raises(DataError, match="password"):
        prepare_dataset("market1501", [archive], root)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_cannot_be_written_is_named(market):
    _, archive, root = market
    root.mkdir()
    root.chmod(0o500)
    with pytest.raises(ConfigError, match=re.escape(str(root))):
        prepare_dataset("market1501", [archive], root)


def test_a_full_disk_is_named(market, monkeypatch):
    _, archive, root = market

    def full(*given):
        raise OSError(28, "No space left on device", "query/0001.jpg")

    monkeypatch.setattr(zipfile.shutil, "copyfileobj", full)
    with pytest.raises(RunError, match=r"query/0001\.jpg: cannot unpack .*: No space left on device"):
        prepare_dataset("market1501", [archive], root)
    monkeypatch.undo()
    prepare_dataset("market1501", [archive], root)


#: Expected reason -> how the image is broken.
BROKEN = {
    "the file is empty": lambda data: b"",
    "truncated": lambda data: data[: len(data) // 2],
    "unknown image format": lambda data: b"<html>404</html>",
    "No such file or directory": None,
}


def break_images(dataset) -> dict[str, str]:
    """Break one image in each way; returns path -> expected reason."""
    expected = {}
    paths = [
        dataset.train.paths[0],
        dataset.query.paths[0],
        dataset.gallery.paths[0],
        dataset.gallery.paths[1],
    ]
    for path, (reason, breaking) in zip(paths, BROKEN.items(), strict=True):
        file = Path(path)
        if breaking is None:
            file.unlink()
        else:
            file.write_bytes(breaking(file.read_bytes()))
        expected[path] = reason
    return expected


def test_each_broken_file_is_named_with_its_reason(tmp_path):
    """In a layout with lists, where files can also be missing."""
    miniatures.msmt17(tmp_path / "msmt17")
    expected = break_images(read_dataset(tmp_path, "msmt17"))
    findings = check_dataset("msmt17", tmp_path)
    assert len(findings.broken) == len(expected)
    for line in findings.broken:
        path, _, reason = line.partition(": cannot read this image: ")
        assert expected.pop(path).lower() in reason.lower()
    assert list(findings.lines())[-1] == f"{findings.images} images: 4 broken"


def test_a_data_set_with_broken_images_does_not_get_its_name(tmp_path):
    miniatures.msmt17(tmp_path / "made")
    broken = next((tmp_path / "made").rglob("*.jpg"))
    whole = broken.read_bytes()
    broken.write_bytes(whole[:100])
    findings = prepare_dataset("msmt17", [pack(tmp_path / "made", tmp_path / "a.zip")], tmp_path / "data")
    assert [Path(line.split(": ")[0]).name for line in findings.broken] == [broken.name]
    assert not (tmp_path / "data/msmt17").exists()
    broken.write_bytes(whole)
    findings = prepare_dataset("msmt17", [pack(tmp_path / "made", tmp_path / "b.zip")], tmp_path / "data")
    assert findings.broken == []
    assert (tmp_path / "data/msmt17").exists()


def run(*words: object) -> int:
    """Run the script's command in this process; returns its exit status."""
    specification = importlib.util.spec_from_file_location(
        "prepare_script", ROOT / "scripts/prepare_dataset.py"
    )
    script = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(script)
    return script.main([str(word) for word in words])


def test_the_command(market, capsys):
    _, archive, root = market
    assert run("market1501", "--archive", archive, "--root", root) == 0
    printed = capsys.readouterr().out
    assert "3 identities" in printed.splitlines()[0]
    assert "18 images: all can be read" in printed
    assert run("market1501", "--root", root) == 2
    assert "give either --archive" in capsys.readouterr().err
    assert run("markt1501", "--check", "--root", root) == 2
    assert "did you mean market1501" in capsys.readouterr().err


def test_check_as_the_readme_has_it(market):
    folder, _, root = market
    root.mkdir()
    folder.rename(root / "market1501")
    broken = next((root / "market1501").rglob("query/*.jpg"))
    broken.write_bytes(b"")
    done = run_python("scripts/prepare_dataset.py", "market1501", "--check", "--root", root)
    assert done.returncode == 1, done.stderr
    assert f"{broken}: cannot read this image: the file is empty" in done.stdout.splitlines()
    assert done.stdout.splitlines()[-1] == "18 images: 1 broken"
