import pytest
import tensorflow as tf

from keras_sat.training import distribution


def test_strategies():
    assert distribution.strategy("none").num_replicas_in_sync == 1
    assert distribution.strategy("auto").num_replicas_in_sync == 1  # no GPU
    assert isinstance(distribution.strategy("mirrored"), tf.distribute.MirroredStrategy)
    assert distribution.strategy("mirrored").num_replicas_in_sync == 2  # the tests' two logical devices
    assert distribution.strategy("mirrored") is distribution.strategy("mirrored")
    with pytest.raises(ValueError, match="none.*mirrored.*tpu_pod"):
        distribution.strategy("tpu_pod")
