"""The command `keras-sat check`."""

import re
import shutil


def test_check(inside, photos, tmp_path, capsys):
    assert inside("check", photos) == 0
    assert "All images are 16 x 18 pixels." in capsys.readouterr().out
    shutil.copytree(photos, tmp_path / "photos")
    (tmp_path / "photos" / "train" / "dark" / "zero.png").write_bytes(b"")
    assert inside("check", tmp_path / "photos") == 1
    assert "train/dark/zero.png: empty" in capsys.readouterr().out
    assert inside("check", "fashion_mnist_mini") == 0
    assert re.search(r"T-shirt_top +1000 +200", capsys.readouterr().out)
