import numpy as np
import pytest
import tensorflow as tf

from keras_sat import data


def signature(batch):
    return tuple(tf.TensorSpec([None, *array.shape[1:]], array.dtype) for array in batch)


def test_batches_of_what_others_hold():
    images, labels = np.zeros((6, 2, 2, 1)), np.arange(6)
    whole = tf.data.Dataset.from_tensor_slices((images, labels))
    forms = {
        "arrays": (images, labels),
        "a list": (images, labels.tolist()),
        "weights": (images, labels, np.ones(6)),
        "dataset": whole.batch(4),
        "batches": [(images[:4], labels[:4]), (images[4:], labels[4:], np.ones(2))],
    }
    for name, form in forms.items():
        batches = list(data.batches(form, 4))
        assert [len(x) for x, _ in batches] == [4, 2], name
        np.testing.assert_array_equal(np.concatenate([y for _, y in batches]), labels)
    padded = [(images[:4], labels[:4], np.ones(4)), (images[2:], labels[2:], np.array([0, 0, 1, 1]))]
    for form in (padded, tf.data.Dataset.from_generator(lambda: padded, output_signature=signature(padded[0]))):
        assert np.concatenate([y for _, y in data.batches(form, 4)]).tolist() == labels.tolist()
    assert list(data.batches([(images, labels, np.zeros(6))], 4)) == list(data.batches([], 4)) == []
    for wrong, message in (
        (whole.batch(4).repeat(), r"never ends.*dataset.take\(100\)"),
        (iter(()), "can be read only once.*Received: tuple_iterator"),
        (images, "Received: ndarray"),
        ((images, labels, np.full(6, 0.5)), r"sample weights \[batch\] of 0 and 1.*such as \[0.5, 0.5"),
        ((images, labels[:5]), r"differ in number.*\(5,\)"),
        (tf.data.Dataset.from_tensors({"image": images}), "and labels. Received: a dict of image"),
        (tf.data.Dataset.from_tensors(images), r"Received: EagerTensor of shape \(6, 2, 2, 1\)"),
    ):
        with pytest.raises(ValueError, match=message):
            list(data.batches(wrong, 4))
