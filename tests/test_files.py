import os

import pytest

from keras_sat import files


def test_a_failure_leaves_what_was_there(tmp_path):
    path = tmp_path / "report.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(RuntimeError), files.atomic_write(path) as temporary:
        with open(temporary, "w") as file:
            file.write("half")
        raise RuntimeError
    assert path.read_text() == '{\n  "a": 1\n}\n'
    assert os.listdir(tmp_path) == ["report.json"]


def test_what_cannot_be_written_as_json_leaves_no_file(tmp_path):
    with pytest.raises(TypeError):
        files.write_json(tmp_path / "report.json", {"a": object()})
    assert os.listdir(tmp_path) == []


def test_folders_are_made_and_moved_into_place(tmp_path):
    with files.atomic_write(tmp_path / "new" / "folder") as temporary:
        os.mkdir(temporary)
        (tmp_path / "new" / os.path.basename(temporary) / "file").write_text("x")
    assert os.listdir(tmp_path / "new") == ["folder"]
    with pytest.raises(RuntimeError), files.atomic_write(tmp_path / "other") as temporary:
        os.mkdir(temporary)
        raise RuntimeError
    assert os.listdir(tmp_path) == ["new"]


def test_paths(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files.expanded("~/x") == str(tmp_path / "x")
    assert files.expanded(tmp_path) == str(tmp_path)
    files.write_text("~/new/a.txt", "x")
    assert (tmp_path / "new" / "a.txt").read_text() == "x"


def test_wildcards_in_a_path_are_taken_as_they_are(tmp_path):
    folder = tmp_path / "runs [1]"
    folder.mkdir()
    (folder / "file").write_text("x")
    with files.without_wildcards(folder) as plain:
        assert "[" not in plain
        assert os.listdir(plain) == ["file"]
    with files.without_wildcards(tmp_path) as plain:
        assert plain == tmp_path
