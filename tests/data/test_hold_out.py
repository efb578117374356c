"""Images that are held out of a split: always the same ones, which training never sees."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from keras_sat import data
from keras_sat.data import prepared, slices


def images(dataset):
    """Returns the images of a dataset as a list of bytes."""
    return [image.tobytes() for batch, _ in dataset.as_numpy_iterator() for image in batch]


def labels(dataset):
    return np.concatenate([y for _, y in dataset.as_numpy_iterator()])


NUMBERED = 60  # images of the datasets below; each one is a plain picture of its own level


@pytest.fixture(scope="module")
def sources(store, tmp_path_factory):
    """Returns {kind: dataset}: the same 60 images of classes of 40, 16 and 4 as a folder, and as 5 files of TFDS."""
    folder = tmp_path_factory.mktemp("sources")
    numbers = np.repeat([0, 1, 2], [40, 16, 4])
    examples = []
    for level, label in enumerate(numbers):
        pixels = np.full((6, 6, 1), 4 * level, np.uint8)
        path = folder / "photos" / "train" / "abc"[label] / f"{level}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tf.io.encode_png(pixels).numpy())
        examples.append((level, {"image": pixels, "label": int(label)}))
    features = {"image": tfds.features.Image(shape=(6, 6, 1)), "label": tfds.features.ClassLabel(names=["a", "b", "c"])}
    config = tfds.download.DownloadConfig(num_shards=5)
    store(folder, "numbered", features, {"train": examples}, download_config=config)
    stored = data.source("numbered", folder)
    assert len(stored.info.splits["train"].file_instructions) == 5
    return {"folder": data.source(folder / "photos"), "files": stored}


@pytest.mark.parametrize(
    ("kind", "split"),
    [("folder", "train"), ("files", "train"), ("files", "train[:30%]+train[45%:]")],
)
def test_training_sees_all_others_once_an_epoch_and_never_one_that_is_held_out(sources, kind, split):
    source = sources[kind]
    everything = images(data.load(source, split, 7))
    options = {"hold_out": 0.25, "seed": 3}
    held = images(data.load(source, split, 7, held_out=True, **options))
    others = images(data.load(source, split, 7, **options))
    sample = data.load(source, split, 7, held_out=True, sample=6, **options)
    assert len(sample) == 1
    assert set(images(sample)) < set(held)
    assert set(labels(sample)) == {0, 1, 2}
    number = data.number_held_out(source, split, 0.25)
    assert number == len(held) == round(0.25 * len(everything))
    assert sorted(held + others) == sorted(everything)
    assert held == [image for image in everything if image in held]  # in the split's order
    assert sorted(held) != sorted(images(data.load(source, split, 7, held_out=True, hold_out=0.25, seed=4)))

    options |= {"training": True, "augment": False, "epochs": 2}
    whole = images(data.load(source, split, 3, **options))
    size = len(others) // 3 * 3
    epochs = [whole[:size], whole[size:]]
    assert [len(set(epoch)) for epoch in epochs] == [size, size]
    assert set(epochs[0]) | set(epochs[1]) <= set(others)
    assert epochs[0] != epochs[1]
    assert images(data.load(source, split, 3, first_step=5, **options)) == whole[5 * 3 :]


def test_training_can_have_the_part_that_is_held_out(sources):
    options = {"hold_out": 15, "held_out": True, "training": True}
    dataset = data.load(sources["folder"], "train", 15, **options)
    assert len(dataset) == 1
    np.testing.assert_array_equal(np.bincount(labels(dataset)), [10, 4, 1])  # in proportion


def test_the_last_image_of_a_class_is_held_out_last():
    for numbers, number, expected in (
        ([40, 16, 4], 3, [1, 1, 1]),
        ([40, 16, 4], 57, [39, 15, 3]),
        ([40, 16, 4], 59, None),
        ([9, 1], 5, [5, 0]),
    ):
        labels = np.repeat(range(len(numbers)), numbers)
        places = slices.stratified(labels, number, np.random.default_rng(0), leave=True)
        assert len(set(places)) == number
        assert expected is None or np.bincount(labels[places], minlength=len(numbers)).tolist() == expected


@pytest.mark.parametrize("kind", ["folder", "files"])
def test_workers_hold_out_the_same_images(sources, kind):
    source, options = sources[kind], {"hold_out": 0.2, "training": True, "augment": False, "epochs": 1}
    held = set(images(data.load(source, "train", 4, hold_out=0.2, held_out=True)))
    seen = [
        images(data.load(source, "train", 4, input_context=tf.distribute.InputContext(2, worker, 2), **options))
        for worker in range(2)
    ]
    assert len(held) == 12
    assert [len(each) for each in seen] == [24, 24]
    assert not set(seen[0]) & set(seen[1])
    assert not held & (set(seen[0]) | set(seen[1]))


def test_labels_of_large_splits_are_not_read_and_files_are_still_shuffled(sources, monkeypatch):
    source = data.source("numbered", sources["files"].info.data_dir.rpartition("/numbered/")[0])
    monkeypatch.setattr(prepared, "STRATIFIED_BYTES", 0)
    assert not any(source.labels("train"))
    held = images(data.load(source, "train", 7, hold_out=0.2, held_out=True))
    assert len(set(held)) == 12
    monkeypatch.setattr(prepared, "SHUFFLE_BYTES", 0)  # a buffer of one image: only the files are shuffled
    options = {"hold_out": 0.2, "training": True, "augment": False, "epochs": 4}
    whole = images(data.load(source, "train", 6, **options))
    epochs = [whole[begin : begin + 48] for begin in range(0, 4 * 48, 48)]
    assert len({tuple(epoch) for epoch in epochs}) > 1
    others = sorted(set(images(data.load(source, "train", 7))) - set(held))
    assert all(sorted(epoch) == others for epoch in epochs)


def test_the_embedded_dataset():
    source = data.source("fashion_mnist_mini")
    held = labels(data.load(source, "train", 500, hold_out=0.05, held_out=True))
    np.testing.assert_array_equal(np.bincount(held), [50] * 10)
    assert data.number_held_out(source, "train", 0.05) == 500


def test_what_cannot_be_held_out(sources):
    for hold_out, options, message in (
        (-0.1, {}, r"hold_out must be a share .* Received: -0.1"),
        (2.5, {}, "whole number of images. Received: 2.5"),
        (float("nan"), {}, "Received: nan"),
        (True, {}, "Received: True"),
        ("5%", {}, "Received: '5%'"),
        (0.001, {}, "0 of the 60 images of .* train cannot be held out"),
        (0.999, {}, "60 of the 60 images of .* cannot be held out"),
        (60, {}, "60 of the 60 images of .* cannot be held out"),
        (50, {"training": True}, "fewer images .10, with hold_out=50. than a batch of 20"),
        (0.1, {"training": True, "held_out": True}, "fewer images .6, with hold_out=0.1. than a batch of 20"),
        (0, {"held_out": True}, "say hold_out, such as 0.05"),
        (0, {"sample": 0}, "sample must be a number of images >= 1"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            data.load(sources["folder"], "train", 20, hold_out=hold_out, **options)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="has images twice: hold out of parts that do not overlap"):
        data.load(sources["folder"], "train[50%:]+train[:60%]", 20, hold_out=0.1)


@pytest.mark.parametrize("kind", ["folder", "files"])
def test_a_dataset_with_one_split_says_how_to_cut_it(sources, kind):
    with pytest.raises(ValueError, match=r"only train .60 images.: .*--train_split='train\[:90%\]'.*'train\[90%:\]'"):
        data.evaluation_split(sources[kind])
