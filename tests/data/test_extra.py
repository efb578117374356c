"""Extra images in every training batch."""

import pickle
import zipfile

import numpy as np
import pytest
import tensorflow as tf

from keras_sat import data
from keras_sat.preprocessing import Preprocessing

SHAPE = (28, 28, 1)
HOW = Preprocessing(*SHAPE)
CLASSES = [str(number) for number in range(10)]
LEVELS = np.arange(1, 51)  # an extra image is of one level, which no image of Fashion-MNIST is; its label is level % 10


@pytest.fixture(scope="module")
def fashion():
    return data.source("fashion_mnist_mini")


@pytest.fixture(scope="module")
def arrays():
    pixels = np.broadcast_to(LEVELS[:, None, None, None], (50, *SHAPE)).astype(np.uint8)
    return {"image": pixels, "label": LEVELS % 10, "another": np.array([{"kept": "as a pickle"}], object)}


@pytest.fixture(scope="module")
def files(arrays, tmp_path_factory):
    """Returns {kind: path} of .npz files with the same images."""
    folder = tmp_path_factory.mktemp("extra")
    np.savez(folder / "stored.npz", **arrays)
    np.savez_compressed(folder / "compressed.npz", **arrays)
    np.savez(folder / "fortran.npz", **{**arrays, "image": np.asfortranarray(arrays["image"])})
    return {path.stem: path for path in folder.iterdir()}


@pytest.fixture(scope="module")
def stored(fashion, files):
    return data.extra(files["stored"], classes=fashion.classes, preprocessing=HOW)


def load(source, extra, batch=10, split="train[:96]", share=0.7, **options):
    options = {"training": True, "augment": False, "epochs": 2, **options}
    return data.load(source, split, batch, extra=extra, extra_share=share, preprocessing=HOW, **options)


def parts(batch):
    """Returns the images and labels of a batch in two parts: of the split, and extra ones."""
    images, labels = (np.asarray(array) for array in batch)
    is_extra = np.ptp(images, axis=(1, 2, 3)) == 0
    return (images[~is_extra], labels[~is_extra]), (images[is_extra], labels[is_extra])


def same(batches, others):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others):
        for array, expected in zip(batch, other):
            np.testing.assert_array_equal(array, expected)


@pytest.fixture(scope="module")
def batches(fashion, stored):
    return list(load(fashion, stored))


def test_each_batch_has_the_share_and_each_epoch_another_part_of_the_split(fashion, batches):
    known = {
        image.tobytes(): label
        for images, labels in data.load(fashion, "train[:96]", 96).as_numpy_iterator()
        for image, label in zip(images, labels)
    }
    assert len(batches) == 2 * 9  # as many as without extra images
    epochs = [[], []]
    for step, batch in enumerate(batches):
        (images, labels), (more, more_labels) = parts(batch)
        assert (len(images), len(more)) == (3, 7)
        assert [known[image.tobytes()] for image in images] == labels.tolist()
        np.testing.assert_array_equal(more[:, 0, 0, 0] % 10, more_labels)
        epochs[step // 9] += [image.tobytes() for image in images]
    assert [len(set(epoch)) for epoch in epochs] == [27, 27]
    assert set(epochs[0]) != set(epochs[1])
    assert batches[0][1].dtype == tf.int64


@pytest.mark.parametrize("first_step", [4, 9, 17])
def test_training_can_begin_anywhere(fashion, stored, batches, first_step):
    same(list(load(fashion, stored, first_step=first_step)), batches[first_step:])


@pytest.mark.parametrize("kind", ["compressed", "fortran"])
def test_the_forms_of_a_file_give_the_same_images(fashion, files, batches, stored, kind):
    extra = data.extra(files[kind], classes=fashion.classes, preprocessing=HOW)
    same(list(load(fashion, extra, epochs=1)), batches[:9])
    assert extra.fingerprint()["images"] == 50
    assert (extra.fingerprint() == stored.fingerprint()) == (kind == "compressed")  # of what is stored, uncompressed
    assert extra.line() == f"Extra images: 50 of {files[kind]}, 28 x 28 x 1."


def test_images_are_drawn_uniformly_by_seed_step_and_worker(stored):
    def drawn(seed=0, first_step=0, workers=1, worker=0, number=5000):
        context = tf.distribute.InputContext(workers, worker, workers)
        examples = stored.stream(seed, 100, first_step, context).take(number)
        return np.array([image[0, 0, 0] for image, _, _ in examples.as_numpy_iterator()])

    levels = drawn()
    counts = np.bincount(levels, minlength=51)[1:]
    assert np.sum((counts - 100) ** 2 / 100) < 85  # chi-squared of 49 degrees of freedom: 0.1 % are larger
    np.testing.assert_array_equal(drawn(first_step=20, number=300), levels[2000:2300])
    others = [drawn(seed=1, number=100), drawn(first_step=1, number=100), drawn(workers=2, worker=1, number=100)]
    assert all(np.any(other != levels[:100]) for other in others)


def test_without_epochs_each_iteration_has_other_images(fashion, stored):
    dataset = load(fashion, stored, epochs=None)
    assert len(dataset) == 9
    first, second = (np.concatenate([parts(batch)[1][0] for batch in dataset]) for _ in range(2))
    again = np.concatenate([parts(batch)[1][0] for batch in load(fashion, stored, epochs=None)])
    assert len(first) == 63
    assert np.any(first != second)
    np.testing.assert_array_equal(first, again)


def test_a_dataset_gives_its_epochs_one_after_the_other(fashion, tmp_path):
    for number in range(12):
        name = "Bag" if number % 2 else "Coat"
        (tmp_path / "train" / name).mkdir(parents=True, exist_ok=True)
        encoded = tf.io.encode_png(np.full(SHAPE, number + 1, np.uint8))
        (tmp_path / "train" / name / f"{number}.png").write_bytes(encoded.numpy())
    with pytest.warns(UserWarning, match="no images of 'T-shirt/top'"):
        extra = data.extra(tmp_path, classes=fashion.classes, preprocessing=HOW)
    assert extra.fingerprint() == data.source(tmp_path).fingerprint("train")
    assert extra.line() == f"Extra images: 12 of {tmp_path}, 28 x 28 x 1."
    whole = list(load(fashion, extra, batch=6, share=0.5, split="train[:24]"))
    assert len(whole) == 8
    images, labels = (np.concatenate(part) for part in zip(*[parts(batch)[1] for batch in whole]))
    levels = images[:, 0, 0, 0]
    assert sorted(levels[:12]) == sorted(levels[12:]) == list(range(1, 13))
    assert list(levels[:12]) != list(levels[12:])
    assert [fashion.classes[label] for label in labels] == ["Coat" if level % 2 else "Bag" for level in levels]
    same(list(load(fashion, extra, batch=6, share=0.5, split="train[:24]", first_step=3)), whole[3:])


def test_the_training_images_can_be_extra_images_too(fashion):
    extra = data.extra(fashion, classes=fashion.classes, preprocessing=HOW)
    images, labels = next(iter(load(fashion, extra, batch=20, share=0.5, split="train", augment=True)))
    assert (images.shape, labels.shape) == ((20, *SHAPE), (20,))
    assert len({image.numpy().tobytes() for image in images}) == 20


def test_images_held_out_are_no_extra_images(fashion, stored):
    extra = data.extra(fashion, classes=fashion.classes, preprocessing=HOW)
    assert extra.shared(fashion, "train[:50]") == 50
    assert extra.shared(fashion, "test") == stored.shared(fashion, "train") == 0
    with pytest.raises(ValueError, match="held out of .* are among the extra images of"):
        load(fashion, extra, hold_out=0.1)
    load(fashion, extra, hold_out=0.1, split="test[:100]")
    load(fashion, stored, hold_out=0.1)


@pytest.mark.parametrize("mixup", [None, 0.3])
def test_labels_of_extra_images_are_smoothed_alone(fashion, stored, batches, mixup):
    smooth = list(load(fashion, stored, epochs=1, extra_label_smoothing=0.2, mixup=mixup))
    for (images, soft), (plain, labels) in zip(smooth, batches):
        assert (soft.dtype, soft.shape) == (tf.float32, (10, 10))
        np.testing.assert_allclose(np.sum(soft, axis=1), 1, atol=1e-6)
        if mixup:
            assert images.dtype == tf.uint8
            assert np.min(soft) < 0.02  # between images of the split
            assert np.any(images != plain)
            continue
        np.testing.assert_array_equal(images, plain)
        hot = np.eye(10)[labels]
        np.testing.assert_array_equal(soft[:3], hot[:3])
        np.testing.assert_allclose(soft[3:], 0.8 * hot[3:] + 0.02, atol=1e-7)


def test_each_replica_has_the_share(fashion, stored):
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])

    def of(first_step):
        return lambda context: load(fashion, stored, first_step=first_step, input_context=context)

    seen = []
    for first_step in (0, 5):
        steps = []
        for images, labels in strategy.distribute_datasets_from_function(of(first_step)):
            replicas = zip(strategy.experimental_local_results(images), strategy.experimental_local_results(labels))
            steps += [list(map(np.asarray, replica)) for replica in replicas]
        assert [[len(part[0]) for part in parts(batch)] for batch in steps] == [[1, 4]] * len(steps)
        seen.append(steps)
    assert len(seen[0]) == 2 * 2 * 9
    same(seen[1], seen[0][2 * 5 :])


def test_images_of_another_size_are_converted_as_stored_ones(fashion, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (1, 40, 32, 3), np.uint8)
    np.savez(tmp_path / "one.npz", image=pixels, label=np.array([3], np.int16))
    extra = data.extra(tmp_path / "one.npz", classes=fashion.classes, preprocessing=HOW)
    assert extra.line().endswith("one.npz, 40 x 32 x 3, as 28 x 28 x 1.")
    images, labels = next(iter(load(fashion, extra, share=0.1)))
    np.testing.assert_array_equal(images[-1], HOW(tf.constant(pixels[0])))
    assert labels[-1] == 3
    assert images.shape == (10, *SHAPE)


def damaged(folder, arrays):
    """Yields (path, message) of files that are refused."""

    def saved(message, save=np.savez, **changes):
        path = folder / f"{len(list(folder.iterdir()))}.npz"
        save(path, **{key: value for key, value in {**arrays, **changes}.items() if value is not None})
        return path, message

    images, labels = arrays["image"], arrays["label"]
    yield saved("has no array 'label': .* it has image, another", label=None)
    yield saved(r"images of .* are float32 \(50, 28, 28, 1\): uint8 .* were expected", image=images / np.float32(255))
    yield saved(r"images of .* are uint8 \(50, 28, 28\)", image=images[..., 0])
    yield saved(r"images of .* are uint8 \(50, 3, 28, 28\)", image=np.zeros((50, 3, 28, 28), np.uint8))
    yield saved(r"images of .* are uint8 \(0, 28, 28, 1\)", image=images[:0])
    yield saved("images of .* are object", image=np.array([images, None], object))
    yield saved(r"labels of .* are int64 \(49,\): integers \[50\]", label=labels[1:])
    yield saved(r"labels of .* are float64", label=labels / 1)
    yield saved("labels of .* are in 0..10: class numbers in 0..9", label=np.arange(50) % 11)
    yield saved("labels of .* are in -1..9", label=labels - (labels == 0))
    for save in (np.savez, np.savez_compressed):
        path, _ = saved("", save)
        path.write_bytes(path.read_bytes()[:-500])
        yield path, "cannot be read as an .npz file"
    path, _ = saved("", np.savez_compressed, another=None)
    content = bytearray(path.read_bytes())
    content[200:210] = bytes(10)
    path.write_bytes(content)
    yield path, "cannot be read as an .npz file"
    path = folder / "text.npz"
    path.write_text("<html>")
    yield path, r"cannot be read as an .npz file .*\(File is not a zip file\): copy or download it again"
    path = folder / "pickled.npz"
    path.write_bytes(pickle.dumps(arrays))
    yield path, "cannot be read as an .npz file"
    path = folder / "other.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for key in ("image", "label"):
            archive.writestr(f"{key}.npy", pickle.dumps(arrays[key]))
    yield path, "cannot be read as an .npz file"
    yield folder / "none.npz", r"cannot be read .*\(No such file or directory\)"


def test_refusals_of_files(tmp_path, arrays):
    for path, message in damaged(tmp_path, arrays):
        with pytest.raises(ValueError, match=message) as error:
            data.extra(path, classes=CLASSES, preprocessing=HOW)
        assert "\n" not in str(error.value), path


def test_refusals(fashion, stored, files, tmp_path):
    (tmp_path / "test" / "Bag").mkdir(parents=True)
    (tmp_path / "test" / "Bag" / "1.png").write_bytes(tf.io.encode_png(np.zeros(SHAPE, np.uint8)).numpy())
    options = {"classes": fashion.classes, "preprocessing": HOW}
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="no split 'train', .*; it has test"):
        data.extra(tmp_path, **options)
    with pytest.raises(ValueError, match="does not know"):
        data.extra("fashion_mnist_mini", classes=CLASSES, preprocessing=HOW)
    with pytest.raises(ValueError, match="the network has 0, 1"):
        data.extra(fashion, classes=CLASSES, preprocessing=HOW)
    other = data.extra(files["stored"], classes=CLASSES, preprocessing=HOW)
    small = data.extra(files["stored"], classes=fashion.classes, preprocessing=Preprocessing(14, 14, 1))
    for extra, changes, message in (
        (other, {}, "extra images have the classes 0, 1"),
        (small, {}, "extra images have .*height=14.* open them with it"),
        (stored, {"share": 0}, "extra_share must be above 0 and below 1. Received: 0"),
        (stored, {"share": 1}, "extra_share must be above 0 and below 1"),
        (stored, {"extra_label_smoothing": 1}, "extra_label_smoothing must be"),
        (stored, {"batch": 1}, "A batch of 1 has no place"),
        (stored, {"training": False}, "Extra images are for training"),
        (None, {}, "are for extra images"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            load(fashion, extra, **changes)
        assert "\n" not in str(error.value)
    for share, number in ((0.001, 1), (0.999, 9), (0.36, 4)):
        (_, (more, _)) = parts(next(iter(load(fashion, stored, share=share))))
        assert len(more) == number
