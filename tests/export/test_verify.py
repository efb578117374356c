import os
import shutil

import pytest

from keras_sat.export import export_saved_model, verify

pytestmark = pytest.mark.usefixtures("forked_verify")


def test_weights_that_differ_are_caught(tiny_model, tmp_path):
    export_saved_model(tiny_model(), tmp_path / "saved", signatures=["features"])
    assert set(verify(tmp_path / "saved")) == {"serving_default", "features"}  # rebuilt from the folder
    with pytest.raises(ValueError, match="differs from the Keras model by"):
        verify(tmp_path / "saved", tiny_model(seed=1))


def test_damaged_folders_are_caught(tiny_model, tmp_path):
    model = tiny_model()
    export_saved_model(model, tmp_path / "saved", signatures=[])
    (data,) = (tmp_path / "saved" / "variables").glob("*.data-*")
    os.truncate(data, 100)
    with pytest.raises(ValueError, match="not a SavedModel"):
        verify(tmp_path / "saved", model)
    shutil.rmtree(tmp_path / "saved" / "assets")
    with pytest.raises(ValueError, match="not written by export_saved_model"):
        verify(tmp_path / "saved", model)
