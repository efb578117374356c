import warnings

import pytest
import tensorflow_datasets as tfds


@pytest.fixture(scope="session")
def store():
    """Returns a function that prepares a TFDS dataset in a folder. (TFDS' writer gives deprecation warnings.)"""

    def stored(folder, name, features, splits, version="1.0.0", **options):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tfds.dataset_builders.store_as_tfds_dataset(
                name=name,
                version=version,
                features=tfds.features.FeaturesDict(features, doc=None),
                split_datasets=splits,
                data_dir=folder,
                **options,
            )

    return stored
