"""Prepares the TFDS dataset `fashion_mnist` without downloads, from the files of a Debian package.

    apt-get install dataset-fashion-mnist
    python scripts/import_fashion_mnist.py [--from=/usr/share/datasets/fashion-mnist] [--data_dir=~/tensorflow_datasets]

The result is the same as that of `tfds build fashion_mnist`. Debian's gzip files differ from the authors' in the file
name in their header. So the SHA-256 of their contents is checked, and not TFDS' checksum of the compressed files.
"""

import argparse
import gzip
import hashlib
import os
import sys
import tempfile

import tensorflow_datasets as tfds

SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
IMAGES = {"train": ("train", 60_000), "test": ("t10k", 10_000)}


def unpack(source, folder):
    """Decompresses the four files into a folder.

    Raises:
        ValueError: if a file is missing, or its content is not Fashion-MNIST's.
    """
    for name, sha256 in SHA256.items():
        path = os.path.join(source, f"{name}.gz")
        if not os.path.exists(path):
            raise ValueError(f"There is no {path}: apt-get install dataset-fashion-mnist, or say --from=FOLDER.")
        with gzip.open(path) as file:
            content = file.read()
        if hashlib.sha256(content).hexdigest() != sha256:
            raise ValueError(f"{path} is not the file of Fashion-MNIST: its content has another sha256 than {sha256}.")
        with open(os.path.join(folder, name), "wb") as file:
            file.write(content)


with tfds.core.registered.skip_registration():  # TFDS has already registered this name

    class FashionMNIST(tfds.image_classification.FashionMNIST):
        """TFDS' builder, with local files in place of downloads."""

        name = "fashion_mnist"
        folder = None

        def _split_generators(self, dl_manager):
            def examples(prefix, number):
                paths = (os.path.join(self.folder, f"{prefix}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1"))
                return self._generate_examples(number, *paths)

            return {split: examples(*files) for split, files in IMAGES.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="source", default="/usr/share/datasets/fashion-mnist")
    parser.add_argument("--data_dir", help="folder of prepared datasets; default: TFDS' own")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as FashionMNIST.folder:
        try:
            unpack(args.source, FashionMNIST.folder)
        except ValueError as error:
            sys.exit(f"import_fashion_mnist: {error}")
        builder = FashionMNIST(data_dir=args.data_dir)
        builder.download_and_prepare()
    print(f"Prepared in {builder.data_dir}")


if __name__ == "__main__":
    main()
