"""Writes the embedded dataset `fashion_mnist_mini` from the four files of Fashion-MNIST.

    apt-get install dataset-fashion-mnist
    pip install zopfli
    python scripts/make_fashion_mnist_mini.py --from=/usr/share/datasets/fashion-mnist --to=keras_sat/datasets

The dataset has the first 1,000 training images and the first 200 test images of each class, in the order of the files:
10,000 + 2,000 images. Each image is stored losslessly, as a zlib stream that zopfli compresses. It is an eighth smaller
than a PNG of 28 x 28 pixels. This keeps the dataset below 6 MB.
"""

import argparse
import gzip
import os
from unittest import mock

import numpy as np
import tensorflow_datasets as tfds
import zopfli.zlib

CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
PER_CLASS = {"train": 1000, "test": 200}
FILES = {"train": "train", "test": "t10k"}
LICENSE = """The MIT License (MIT)

Copyright (c) 2017 Zalando SE, https://tech.zalando.com

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE."""


def read_idx(path):
    """Reads a gzipped IDX file (http://yann.lecun.com/exdb/mnist); returns a uint8 array."""
    with gzip.open(path, "rb") as file:
        data = file.read()
    rank = data[3]
    shape = np.frombuffer(data, ">i4", count=rank, offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape)


def examples(folder, split):
    """Yields the first PER_CLASS[split] examples of each class, in the order of the files."""
    images = read_idx(os.path.join(folder, f"{FILES[split]}-images-idx3-ubyte.gz"))
    labels = read_idx(os.path.join(folder, f"{FILES[split]}-labels-idx1-ubyte.gz"))
    taken = np.concatenate([np.flatnonzero(labels == c)[: PER_CLASS[split]] for c in range(len(CLASSES))])
    for index in np.sort(taken):
        yield {"image": images[index, :, :, None], "label": labels[index]}


class FashionMnistMini(tfds.core.GeneratorBasedBuilder):
    """A class-balanced subset of Fashion-MNIST: 10,000 training and 2,000 test images."""

    VERSION = tfds.core.Version("1.0.0")
    name = "fashion_mnist_mini"
    source = None

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            description="The first 1,000 training and 200 test images of each class of Fashion-MNIST (Zalando SE).",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Tensor(shape=(28, 28, 1), dtype=np.uint8, encoding="zlib"),
                    "label": tfds.features.ClassLabel(names=CLASSES),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://github.com/zalandoresearch/fashion-mnist",
            license=LICENSE,
            citation="Xiao, Rasul, Vollgraf: Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning "
            "Algorithms, arXiv:1708.07747",
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in PER_CLASS}

    def _generate_examples(self, split):
        yield from enumerate(examples(self.source, split))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="source", default="/usr/share/datasets/fashion-mnist")
    parser.add_argument("--to", default=os.path.join(os.path.dirname(__file__), "..", "keras_sat", "datasets"))
    args = parser.parse_args()
    FashionMnistMini.source = args.source
    with mock.patch("zlib.compress", zopfli.zlib.compress):  # TFDS has no option for the compression
        FashionMnistMini(data_dir=args.to).download_and_prepare()


if __name__ == "__main__":
    main()
