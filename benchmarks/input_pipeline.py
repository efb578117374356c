"""Prints the images per second of `data.load`, compared with a bare decode loop on the same JPEG files.

    python benchmarks/input_pipeline.py [--images 1500] [--batch_size 128] [--repeats 5]

The files are generated from the picture of the tests. They have about the size of ImageNet's, in pixels and bytes, and
are written as a folder of JPEG files and as `imagenet2012` in TFDS' format. The bare loop only reads and decodes each
whole file, in parallel: no shuffling, no crop, no batches. Then a consumer takes 1.5 times as long for each batch as
the pipeline does, as a model on an accelerator would. The time that it waits for each batch is printed.
"""

import argparse
import io
import pathlib
import statistics
import tempfile
import time
import warnings

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from keras_sat import data

LANDSCAPE = pathlib.Path(__file__).parents[1] / "tests" / "landscape" / "landscape.png"
CLASSES = 10
PASSES = 3
AUTOTUNE = tf.data.AUTOTUNE


def encoded(number):
    """Yields different JPEG files of 500 x 375 pixels: the picture shifted, mirrored and darkened at random."""
    landscape, rng = tf.io.decode_png(LANDSCAPE.read_bytes()).numpy(), np.random.default_rng(0)
    for _ in range(number):
        image = np.roll(landscape, rng.integers(0, 375, 2), axis=(0, 1))[:, :: rng.choice([-1, 1])]
        image = (image * rng.uniform(0.6, 1.0)).astype(np.uint8)
        yield tf.io.encode_jpeg(np.ascontiguousarray(image), quality=95).numpy()


def write(folder, number):
    """Writes the same JPEG files as train/CLASS/*.jpg and as TFRecords."""
    examples = []
    for index, jpeg in enumerate(encoded(number)):
        label = index % CLASSES
        path = folder / "images" / "train" / str(label) / f"{index:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg)
        examples.append((index, {"image": io.BytesIO(jpeg), "label": label, "file_name": path.name}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the writer of TFDS gives deprecation warnings
        tfds.dataset_builders.store_as_tfds_dataset(
            name="imagenet2012",
            version="5.1.0",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(encoding_format="jpeg"),
                    "label": tfds.features.ClassLabel(num_classes=1000),
                    "file_name": tfds.features.Text(),
                }
            ),
            split_datasets={"train": examples},
            data_dir=folder / "tfds",
        )


def bare(folder):
    """Returns a dataset of the images of a folder, which are only read and decoded."""
    paths = [str(path) for path in sorted((folder / "images").rglob("*.jpg"))]
    files = tf.data.Dataset.from_tensor_slices(paths)
    return files.map(lambda path: tf.io.decode_jpeg(tf.io.read_file(path), 3), AUTOTUNE, deterministic=False)


def rate(dataset, images):
    """Returns the images per second of a dataset. During a first pass, which is not measured, tf.data tunes itself.

    Args:
        dataset: a dataset of images or batches.
        images: number of images in the dataset.
    """
    steps = int(dataset.cardinality())
    iterator = iter(dataset.repeat(1 + PASSES))
    for _ in range(steps):
        next(iterator)
    start = time.perf_counter()
    for _ in iterator:
        pass
    return PASSES * images / (time.perf_counter() - start)


def waits(dataset, seconds):
    """Returns how many seconds a consumer waits for each batch after the first.

    Args:
        dataset: a dataset of batches.
        seconds: time that the consumer takes for a batch.
    """
    iterator, waited = iter(dataset), []
    next(iterator)
    while True:
        time.sleep(seconds)
        start = time.perf_counter()
        if next(iterator, None) is None:
            return waited
        waited.append(time.perf_counter() - start)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1500)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        write(folder, args.images)
        used = args.images // args.batch_size * args.batch_size
        options = {"batch_size": args.batch_size, "image_size": 224}
        training, files = {"training": True, **options}, str(folder / "images")
        records = {"name": "imagenet2012", "split": "train", "data_dir": folder / "tfds"}
        candidates = {
            "bare decode loop": (bare(folder), args.images),
            "training, files": (data.load(files, "train", **training), used),
            "training, TFDS": (data.load(**records, **training), used),
            "evaluation, TFDS": (data.load(**records, **options), args.images),
        }
        rates = {name: [] for name in candidates}
        for _ in range(args.repeats):
            for name, (dataset, images) in candidates.items():
                rates[name].append(rate(dataset, images))
        medians = {name: statistics.median(values) for name, values in rates.items()}
        print(f"{'':<20}{'images/s':>9}{'min..max':>14}{'over bare':>11}")
        for name, values in rates.items():
            spread = f"{min(values):.0f}..{max(values):.0f}"
            print(f"{name:<20}{medians[name]:>9.0f}{spread:>14}{medians[name] / medians['bare decode loop']:>11.2f}")
        seconds = 1.5 * args.batch_size / medians["training, TFDS"]
        waited = waits(candidates["training, TFDS"][0], seconds)
        print(
            f"a consumer that takes {1000 * seconds:.0f} ms for a batch waits {1000 * statistics.median(waited):.1f} "
            f"ms for the next (largest of {len(waited)}: {1000 * max(waited):.1f} ms)"
        )


if __name__ == "__main__":
    main()
