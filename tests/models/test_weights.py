import numpy as np
import pytest

from keras_sat import models


def small(**options):
    return models.ResNet8(**{"input_shape": (16, 16, 3), "classes": 4, **options})


@pytest.fixture
def path(tmp_path):
    small().save_weights(tmp_path / "net.weights.h5")
    return tmp_path / "net.weights.h5"


def test_a_path_is_loaded(path):
    images = np.random.default_rng(0).uniform(0, 255, (2, 16, 16, 3)).astype(np.float32)
    np.testing.assert_array_equal(small(weights=path)(images), small(weights=str(path))(images))


def test_files_that_do_not_fit_are_refused(path, tmp_path):
    for options in ({"classes": 5}, {"input_shape": (16, 16, 1)}):
        with pytest.raises(ValueError, match="damaged or does not fit ResNet8"):
            small(weights=path, **options)
    with pytest.raises(ValueError, match="damaged or does not fit ResNet20"):
        models.ResNet20(input_shape=(16, 16, 3), classes=4, weights=path)
    with pytest.raises(ValueError, match="no weights file"):
        small(weights=tmp_path / "other.weights.h5")
    cut = tmp_path / "cut.weights.h5"
    cut.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(ValueError, match="damaged"):
        small(weights=cut)
    cut.write_bytes(b"<html>not found</html>")
    with pytest.raises(ValueError, match="damaged"):
        small(weights=cut)
