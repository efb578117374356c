"""The flag --shard of `keras-sat evaluate` and `keras-sat certify`."""

import os

import pytest

from keras_sat import evaluation
from keras_sat.attacks import PGD, LinfBall
from keras_sat.cli import shards


@pytest.mark.parametrize("text", ["4/4", "1", "a/b", "\u00b2/3", "-1/2", "/", "1/2/3"])
def test_bad_texts(text):
    with pytest.raises(ValueError, match="shard must be K/N with K < N, such as 0/4"):
        shards.parse(text)


def test_the_last_part_merges(tiny_model, images, labels, tmp_path, capsys):
    model = tiny_model()
    reports = [
        evaluation.evaluate(model, (images, labels), PGD(LinfBall(4), steps=1), batch_size=2, shard=(k, 2), seed=0)
        for k in (0, 1)
    ]

    def whole(k, read=evaluation.from_json):
        return shards.whole(
            reports[k], str(tmp_path), "name", (k, 2), table="", settings={}, read=read, merge=evaluation.merge
        )

    assert whole(1) is None
    assert "merged with the shards 0, which are not there yet" in capsys.readouterr().out

    def after_another(path):
        """Reads a part after another process, which ended at the same time, has merged the parts."""
        os.remove(path)
        return evaluation.from_json(path)

    assert whole(0, after_another) is None
    assert "Another process" in capsys.readouterr().out
    assert whole(0).results[1].n == len(images)
    assert os.listdir(tmp_path / "reports") == []
