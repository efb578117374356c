"""Folders of images with the layouts and faults that real ones have."""

import os
import pathlib
import shutil
import unicodedata
import warnings

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from keras_sat import data
from keras_sat.cli import _main
from keras_sat.preprocessing import Preprocessing

RANDOM = np.random.default_rng(0)


def picture(size=(20, 24), mode="RGB"):
    """Returns a smooth picture, which JPEG compresses almost without loss."""
    rows, columns = np.mgrid[0 : size[0], 0 : size[1]]
    pixels = (np.stack([rows * 8, columns * 7, rows + columns], -1) + RANDOM.integers(0, 256, 3)) % 256
    return Image.fromarray(pixels.astype(np.uint8)).convert(mode)


def write(folder, counts, size=(20, 24), mode="RGB", ending="png"):
    """Writes a picture n times for each {class: n}."""
    for name, number in counts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(number):
            picture(size, mode).save(folder / name / f"{index}.{ending}")
    return folder


@pytest.fixture
def photos(tmp_path):
    write(tmp_path / "photos" / "train", {"cat": 12, "dog": 6})
    write(tmp_path / "photos" / "test", {"cat": 8, "dog": 4})
    return tmp_path / "photos"


def labels(dataset):
    return np.concatenate([y for _, y in dataset.as_numpy_iterator()])


def test_any_part_holds_all_classes_in_proportion(photos):
    assert data.class_names(photos) == ["cat", "dog"]
    for split, counts in (
        ("train", [12, 6]),
        ("train[:6]", [4, 2]),
        ("train[50%:]", [6, 3]),
        ("test[3:9]", [4, 2]),
        ("train+test", [20, 10]),
    ):
        np.testing.assert_array_equal(np.bincount(labels(data.load(photos, split, 5))), counts)
    write(photos / "train", {"rare": 1})
    with pytest.warns(UserWarning, match="test has no images of 'rare'"):
        sample = data.load(photos, "train", 4, sample=4, seed=3)
    np.testing.assert_array_equal(np.bincount(labels(sample)), [2, 1, 1])  # at least one of each
    shutil.rmtree(photos / "train" / "rare")
    sample = labels(data.load(photos, "train", 4, sample=9, seed=3))
    np.testing.assert_array_equal(np.bincount(sample), [6, 3])
    first, again, other = (
        [x.tobytes() for x, _ in data.load(photos, "train", 9, sample=9, seed=seed).as_numpy_iterator()]
        for seed in (1, 1, 2)
    )
    assert first == again != other


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("test[:500]", r"it has train \(18 images\), test \(12 images\).*incompatible with 12"),
        ("test[:0]", "'test.:0.' of .* is empty"),
        ("val", "has no split 'val'"),
        ("test[", "has no split"),
    ],
)
def test_parts_that_cannot_be_had(photos, split, message):
    with pytest.raises(ValueError, match=message):
        data.load(photos, split, 4)


def test_images_of_one_size_are_kept_as_they_are(photos):
    described = data.describe(photos)
    assert described.preprocessing == Preprocessing(20, 24, 3, "stretch")
    images, _ = next(iter(data.load(photos, "test", 12)))
    encoded = [pathlib.Path(path).read_bytes() for path, _ in data.source(photos).examples("test")]
    np.testing.assert_array_equal(images, [tf.io.decode_png(image) for image in encoded])

    write(photos / "test", {"cat": 1}, size=(30, 30))
    with pytest.raises(ValueError, match="differ in size: say image_size"):
        data.describe(photos)
    assert data.describe(photos, 16).preprocessing.crop == "padded"
    assert data.describe(photos, 16, crop="stretch", channels=1).preprocessing == Preprocessing(16, 16, 1, "stretch")


def test_small_images_are_shifted_and_large_ones_cut(photos):
    """(A random part of a small image could have only a few pixels.)"""
    padded = Preprocessing(20, 20, 3, "padded")
    encoded = [tf.io.read_file(path) for path, _ in data.source(photos).examples("train")]
    around = np.stack([np.pad(padded(image), ((2, 2), (2, 2), (0, 0))) for image in encoded])
    windows = [around[:, i : i + 20, j : j + 20] for i in range(5) for j in range(5)]
    options = {"training": True, "epochs": 1, "seed": 1}
    images, _ = next(iter(data.load(photos, "train", 18, preprocessing=padded, **options)))
    for image in images.numpy():
        assert any(np.all(w == x, axis=(1, 2, 3)).any() for w in windows for x in (image, image[:, ::-1]))
    large, _ = next(iter(data.load(photos, "train", 18, 80, crop="stretch", **options)))
    whole, _ = next(iter(data.load(photos, "train", 18, 80, crop="stretch")))
    assert len({x.tobytes() for x in large.numpy()} & {x.tobytes() for x in whole.numpy()}) < 9


@pytest.mark.parametrize(("mode", "ending"), [("L", "png"), ("L", "jpg"), ("1", "png"), ("LA", "png"), ("L", "bmp")])
def test_grey_folders_stay_grey(tmp_path, mode, ending):
    write(tmp_path / "train", {"a": 2, "b": 2}, mode=mode, ending=ending)
    assert data.describe(tmp_path).preprocessing.shape == (20, 24, 1)
    assert data.describe(tmp_path, channels=3).preprocessing.shape == (20, 24, 3)
    (images, _) = next(iter(data.load(tmp_path, "train", 4)))
    assert images.shape == (4, 20, 24, 1)
    write(tmp_path / "train", {"b": 3}, mode="RGB", ending=ending)
    assert data.describe(tmp_path).preprocessing.channels == 3


def test_turned_photos_are_looked_at_as_they_are_seen(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    write(tmp_path / "train", {"a": 2, "b": 2}, size=(24, 20))
    for name in "ab":
        picture((20, 24)).save(tmp_path / "train" / name / "turned.jpg", exif=exif)
    assert data.describe(tmp_path).preprocessing.shape == (24, 20, 3)
    next(iter(data.load(tmp_path, "train", 6)))


def test_hidden_files_and_folders_are_left_out(photos):
    for name in (".ipynb_checkpoints", "__MACOSX"):
        write(photos / "train", {name: 1})
        write(photos, {name: 1})
    (photos / "train" / "cat" / "._0.jpg").write_bytes(b"\x00\x05\x16\x07")
    (photos / "train" / "cat" / "Thumbs.db").write_bytes(b"\xd0\xcf")
    (photos / ".DS_Store").write_bytes(b"")
    source = data.source(photos)
    assert source.classes == ["cat", "dog"]
    assert source.splits == {"train": 18, "test": 12}


def test_other_kinds_of_files_are_counted_and_named(photos):
    picture().save(photos / "train" / "cat" / "a.tiff")
    picture().save(photos / "train" / "dog" / "b.tiff")
    picture().save(photos / "test" / "dog" / "c.avif")
    (photos / "test" / "dog" / "notes").write_text("x")
    write(photos / "test" / "dog", {"puppies": 2})
    picture().save(photos / "test" / "new.png")
    counts = (
        "1 .avif, 2 .tiff, 1 folders in a class, 1 images in no class, 1 without an ending, such as test/dog/c.avif"
    )
    message = f"left out are {counts}. What is read: JPEG"
    with pytest.warns(UserWarning, match=message):
        assert data.source(photos).splits == {"train": 18, "test": 12}


def test_all_kinds_that_tensorflow_reads(tmp_path):
    for name in "ab":
        (tmp_path / "train" / name).mkdir(parents=True)
        for kind, ending in (("JPEG", "jfif"), ("JPEG", "JPG"), ("PNG", "png"), ("GIF", "gif"), ("BMP", "bmp")):
            picture().save(tmp_path / "train" / name / f"x.{ending}", kind)
        picture().save(tmp_path / "train" / name / "x.webp", "WEBP")
    ((images, _),) = data.load(tmp_path, "train", 12)
    assert images.shape == (12, 20, 24, 3)


def layouts(root):
    """Yields folders, and the error message that each must give."""
    write(root / "flat", {"cat": 3, "dog": 2})
    yield root / "flat", r"no folders of splits; it holds cat \(3 images\), dog \(2 images\). Expected: .*train/CLASS/"
    write(root / "one" / "train", {"cat": 3})
    yield root / "one", "one class only, 'cat'"
    write(root / "new" / "train", {"cat": 3, "dog": 2})
    write(root / "new" / "test", {"cat": 1, "bird": 3})
    yield root / "new", r"new/test has classes that train does not know: 'bird' \(3 images\)"
    write(root / "empty" / "train", {"cat": 3, "dog": 2})
    (root / "empty" / "test" / "cat").mkdir(parents=True)
    yield root / "empty", "empty/test has no images"
    write(root / "class" / "train", {"cat": 3, "dog": 0})
    yield root / "class", "class/train has no images of 'dog'"
    write(root / "two" / "train", {unicodedata.normalize(form, "café"): 2 for form in ("NFC", "NFD")})
    yield root / "two", "two folders named 'café', in two forms of Unicode"
    (root / "nothing").mkdir()
    yield root / "nothing", "it holds no folders"
    write(root / "images", {"train": 3})
    yield root / "images", r"train/ has no folders of classes; it holds train \(3 images\)"
    (root / "file").write_text("x")
    yield root / "file", "is a file: a folder of images"


def test_other_layouts_are_said_in_a_line(tmp_path):
    for folder, message in layouts(tmp_path):
        with pytest.raises(ValueError, match=message) as error:
            data.source(folder)
        assert "\n" not in str(error.value), folder


def test_a_class_of_files_that_cannot_be_read(tmp_path):
    write(tmp_path / "train", {"cat": 3, "dog": 0})
    picture().save(tmp_path / "train" / "dog" / "a.tiff")
    with pytest.warns(UserWarning, match="1 .tiff"):
        with pytest.raises(ValueError, match="no images of 'dog': .tiff cannot be read, JPEG"):
            data.source(tmp_path)


def test_names_are_the_same_in_both_forms_of_unicode(tmp_path):
    for split, form in (("train", "NFC"), ("valid", "NFD")):
        write(tmp_path / split, {unicodedata.normalize(form, "café"): 2, "tea": 2})
    assert data.evaluation_split(tmp_path) == "valid"
    np.testing.assert_array_equal(labels(data.load(tmp_path, "valid", 4)), [0, 1, 0, 1])


def test_an_order_does_not_depend_on_who_asks(photos):
    orders = []
    for classes in (None, ["dog", "cat"]):
        source = data.source(photos, classes=classes)
        orders.append([path for path, _ in source.examples("test[:5]")])
    assert orders[0] == orders[1]


def test_a_name_that_is_not_utf_8(photos):
    os.rename(os.fsencode(photos / "train" / "cat" / "0.png"), os.fsencode(photos / "train" / "cat") + b"/\xe9.png")
    assert len(labels(data.load(photos, "train", 4))) == 18


def test_a_run_in_a_folder_of_a_datasets_name_does_not_become_the_dataset(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("fashion_mnist_mini", "cifar10"):
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        assert not data.is_folder(name)
    write(tmp_path / "mnist" / "train", {"a": 2, "b": 2})
    assert data.is_folder("mnist")
    assert data.is_folder("./cifar10")


def test_the_length_is_known(photos):
    for options, number in (({}, 4), ({"sample": 7}, 2), ({"training": True}, 3)):
        assert data.load(photos, "train", 5, **options).cardinality() == number


def test_classes_are_matched_by_name(photos):
    with pytest.warns(UserWarning, match="has no images of 'bird'"):
        source = data.source(photos, classes=["dog", "bird", "cat"])
    np.testing.assert_array_equal(np.bincount(labels(data.load(source, "train", 9))), [6, 0, 12])
    with pytest.raises(ValueError, match=r"does not know: 'dog' .*lacks 'hound'"):
        data.source(photos, classes=["cat", "hound"])


def test_a_class_that_only_train_has_is_said(photos):
    write(photos / "train", {"bird": 3})
    with pytest.warns(UserWarning, match="test has no images of 'bird'"):
        assert data.source(photos).classes == ["bird", "cat", "dog"]


def damage(folder):
    """Writes five files that cannot be read; returns {name: what is wrong with it}."""
    whole = (folder / "0.png").read_bytes()
    (folder / "zero.jpg").write_bytes(b"")
    (folder / "short.png").write_bytes(whole[: len(whole) // 2])
    (folder / "page.jpg").write_bytes(b"<html><body>404</body></html>")
    (folder / "link.png").symlink_to("nowhere.png")
    picture().save(folder / "avif.jpg", "AVIF")
    return {
        "avif.jpg": "AVIF, of a kind that TensorFlow does not read",
        "link.png": "a dangling link",
        "page.jpg": "a web page, or another text",
        "short.png": "cut short or damaged",
        "zero.jpg": "empty",
    }


@pytest.mark.parametrize("name", ["avif.jpg", "link.png", "page.jpg", "short.png", "zero.jpg"])
def test_a_damaged_file_is_named(photos, name):
    for other in set(damage(photos / "train" / "cat")) - {name}:
        (photos / "train" / "cat" / other).unlink()
    for options in ({}, {"training": True, "epochs": 1}):
        dataset = data.load(photos, "train", 4, preprocessing=Preprocessing(16, 16, 3), **options)
        with pytest.raises(tf.errors.InvalidArgumentError, match=f"cannot be read.*train/cat/{name}"):
            list(dataset)


def test_damaged_files_are_left_out_and_counted(photos):
    damage(photos / "train" / "cat")
    with pytest.warns(UserWarning, match=r"damaged files are left out, 5 in all: .*\(empty\)"):
        source = data.source(photos, skip_damaged=True)
    assert source.splits == {"train": 18, "test": 12}
    assert len(labels(data.load(source, "train", 4))) == 18


def test_check_lists_what_is_wrong(photos, capsys):
    faults = damage(photos / "train" / "cat")
    pixels = Image.open(photos / "train" / "cat" / "1.png")
    pixels.save(photos / "test" / "cat" / "again.bmp")  # the same pixels in another format
    pixels.save(photos / "train" / "dog" / "again.png")
    picture((9, 9)).save(photos / "train" / "dog" / "small.png")
    findings = data.check(photos)
    assert findings.damaged == {f"train/cat/{name}": fault for name, fault in faults.items()}
    assert sorted(findings.shared[0]) == ["test/cat/again.bmp", "train/cat/1.png", "train/dog/again.png"]
    assert findings.contradictory == findings.shared
    assert findings.counts == {"train": {"cat": 17, "dog": 8}, "test": {"cat": 9, "dog": 4}}
    assert findings.sizes == {(20, 24): 32, (9, 9): 1}
    assert not findings.is_clean
    table = findings.table()
    assert "5 files: cannot be read\n" in table
    assert "2 sizes, 9 to 20 pixels high, 9 to 24 wide; most often 20 x 24 (32 images)." in table


def test_check_of_a_folder_without_faults(photos):
    for index, path in enumerate(sorted(photos.rglob("*.png"))):
        Image.fromarray(np.full((20, 24, 3), index, np.uint8)).save(path)
    findings = data.check(photos, progress=None)
    assert findings.is_clean
    assert "All images are 20 x 24 pixels." in findings.table()


def test_what_changed_is_said(photos):
    before = data.describe(photos)
    assert before.differences(data.describe(photos)) == []
    assert data.Description.of(before.settings()) == before
    write(photos / "train", {"cat": 14})
    assert before.differences(data.describe(photos)) == ["train: 18 images then, 20 now"]
    for index in (12, 13):
        os.remove(photos / "train" / "cat" / f"{index}.png")
    os.rename(photos / "train" / "cat" / "0.png", photos / "train" / "cat" / "new.png")
    assert before.differences(data.describe(photos)) == ["train: other files, of as many images"]
    os.rename(photos / "train" / "cat" / "new.png", photos / "train" / "dog" / "new.png")
    assert before.differences(data.describe(photos)) == ["train: cat: 12 then, 11 now, dog: 6 then, 7 now"]


def test_swapped_labels_are_noticed(tmp_path):
    """The files of both classes have the same names and sizes."""
    write(tmp_path / "train", {"cat": 3, "dog": 3}, ending="bmp")
    before = data.describe(tmp_path, 16)
    for old, new in (("cat", "x"), ("dog", "cat"), ("x", "dog")):
        os.rename(tmp_path / "train" / old, tmp_path / "train" / new)
    assert before.differences(data.describe(tmp_path, 16)) == ["train: other files, of as many images"]
    for old, new in (("cat", "kitten"),):
        os.rename(tmp_path / "train" / old, tmp_path / "train" / new)
    assert before.differences(data.describe(tmp_path, 16))[:2] == ["classes: gone cat", "classes: new kitten"]


def test_paths_with_spaces_brackets_and_the_home_folder(photos, monkeypatch):
    there = photos.parent / "my photos [1]"
    os.rename(photos, there)
    monkeypatch.setenv("HOME", str(photos.parent))
    (there / "train" / "cat" / "cut [2].png").write_bytes((there / "train" / "cat" / "0.png").read_bytes()[:60])
    with pytest.raises(tf.errors.InvalidArgumentError) as error:
        list(data.load(there, "train", 4, preprocessing=Preprocessing(16, 16, 3)))
    assert _main.one_line(error.value).startswith(
        f"This image cannot be read: {there}/train/cat/cut [2].png (cut short"
    )
    (there / "train" / "cat" / "cut [2].png").unlink()
    for path in (there, f"{there}/", "~/my photos [1]", "~/my photos [1]/"):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert data.describe(path).dataset == str(there)
            assert len(labels(data.load(path, "test[:5]", 4))) == 5
