"""The command `keras-sat convert`."""

import numpy as np

from keras_sat import models


def test_convert(run, tmp_path, write_release):
    source = models.EfficientNetB0(input_shape=(None, None, 3))
    write_release(tmp_path / "model", source)
    to = tmp_path / "out" / "b0.weights.h5"
    done = run("convert", f"--from={tmp_path / 'model'}", "--model=EfficientNetB0", f"--to={to}")
    assert done.returncode == 0, done.stderr
    converted = models.EfficientNetB0(input_shape=(None, None, 3), weights=to)
    for one, other in zip(source.get_weights(), converted.get_weights()):
        np.testing.assert_array_equal(one, other)
    done = run(
        "convert", f"--from={tmp_path / 'model'}", "--model=EfficientNetB1", f"--to={tmp_path / 'b1.weights.h5'}"
    )
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "missing" in done.stderr
    assert not (tmp_path / "b1.weights.h5").exists()
