"""The command `keras-sat certify`, and the training for it."""

import json
import os

import pytest


def test_train_under_noise_and_certify(inside, photos, of_photos, tmp_path, capsys):
    """A run under noise, certified as a whole and in shards; then a run without noise."""
    run = tmp_path / "run"
    flags = ["--objective=gaussian", "--sigma=8", "--epochs=1", "--batch_size=10", "--learning-rate=0.01"]
    assert inside("train", f"--dataset={photos}", f"--output={run}", "--validation=4", *flags) == 0
    stored = json.loads((run / "run.json").read_text())
    assert (stored["objective"], stored["sigma"]) == ("gaussian", 8)
    assert {"noisy_accuracy", "val_robust_accuracy"} <= set(stored["history"])
    assert "on images with Gaussian noise of sigma 8 of 255." in capsys.readouterr().out
    with pytest.raises(ValueError, match="was trained on Gaussian noise: `keras-sat certify` evaluates it"):
        inside("evaluate", run)

    options = ("--samples=60", "--selection=20", "--alpha=0.01", "--split=test[:6]", "--radii=0,8,16")
    assert inside("certify", run, *options) == 0
    printed = capsys.readouterr().out
    assert "certified accuracy" in printed
    assert "Gaussian noise of sigma 8; 20 noisy images select a class, 60 certify it" in printed
    whole = json.loads((run / "certification.json").read_text())
    assert whole["examples"]["index"] == list(range(6))
    assert whole["context"]["split"] == "test[:6]"
    for k in (1, 0):
        assert inside("certify", run, *options, f"--shard={k}/2") == 0
    assert sorted(os.listdir(run / "reports")) == [f"certified-60-noise-8-test_..6{end}.json" for end in ("-2", "")]
    assert json.loads((run / "certification.json").read_text())["examples"] == whole["examples"]
    assert not list(run.glob(".certification*"))

    with pytest.raises(ValueError, match="sigma must be a positive number.*Received: 0.0"):
        inside("certify", run, "--sigma=0")
    with pytest.raises(ValueError, match="trained on noise, without an epsilon to attack with"):
        inside("compare", run, tmp_path, "--attack=fgsm")
    with pytest.raises(ValueError, match="does not say an epsilon: say --epsilon"):
        inside("predict", run, photos, "--attack=fgsm")
    assert inside("export", run, f"--to={tmp_path / 'saved'}") == 0
    card = json.loads((tmp_path / "saved" / "assets" / "robustness_card.json").read_text())
    assert (card["training"]["epsilon"], card["training"]["sigma"]) == (None, 8)
    with pytest.raises(ValueError, match="trained without noise: say --sigma"):
        inside("certify", of_photos, "--samples=60")
    with pytest.raises(ValueError, match="radii must be numbers with commas"):
        inside("certify", run, "--radii=a")


def test_an_export(inside, exported, photos, tmp_path, capsys):
    given = (f"--dataset={photos}", f"--output={tmp_path}", "--samples=40", "--split=test[:2]")
    with pytest.raises(ValueError, match="is an export: say --dataset, --sigma and --output"):
        inside("certify", exported[0], *given)
    for path in exported:
        assert inside("certify", path, "--sigma=8", *given) == 0
        assert json.loads((tmp_path / "certification.json").read_text())["settings"]["sigma"] == 8
