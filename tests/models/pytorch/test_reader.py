import io
import os
import pathlib
import pickle
import shutil
import struct
import subprocess
import sys
import tarfile
import zipfile

import ml_dtypes
import numpy as np
import pytest

from keras_sat.models.pytorch import reader

FOLDER = pathlib.Path(__file__).parent / "files"  # written by make_files.py with PyTorch
BASE = np.arange(24, dtype=np.float32)
DTYPES = [
    "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool", "complex64",
    "uint16",
]  # fmt: skip
KINDS = {
    **{name: np.arange(6).astype(getattr(ml_dtypes, name, name)).reshape(2, 3) for name in DTYPES},
    "plain": BASE.reshape(4, 6),
    "offset": BASE[5:11],
    "transposed": BASE.reshape(4, 6).T,
    "strided": BASE.reshape(4, 6)[1::2, ::3],
    "permuted": BASE.reshape(2, 3, 4).transpose(2, 0, 1),
    "channels_last": BASE.reshape(1, 2, 3, 4),
    "expanded": np.full((2, 3), 7, np.float32),
    "scalar": np.array(2.5, np.float32),
    "empty": np.empty((0, 3), np.float32),
    "parameter": BASE[:3],
}


def assert_same(content, expected):
    assert content.keys() == expected.keys()
    for name, array in expected.items():
        assert (content[name].dtype, content[name].shape) == (array.dtype, array.shape), name
        np.testing.assert_array_equal(content[name], array, err_msg=name)


ZIPS = ["kinds.pt", "kinds_protocol5.pt", "kinds_deflated.pt", "kinds_no_checksums.pt"]


@pytest.mark.parametrize("name", [*ZIPS, "kinds_legacy.pt", "kinds.pkl"])
def test_tensors_of_all_types_and_layouts(name):
    assert_same(reader.read(FOLDER / name), KINDS)


def test_safetensors():
    expected = {name: array for name, array in KINDS.items() if name not in ("uint16", "complex64")}
    assert_same(reader.read(FOLDER / "kinds.safetensors"), expected)


def test_tensors_that_share_a_storage_share_memory():
    content = reader.read(FOLDER / "kinds.pt")
    assert np.shares_memory(content["plain"], content["transposed"])
    assert not np.shares_memory(content["plain"], content["parameter"])


def test_the_suffix_does_not_matter(tmp_path):
    shutil.copy(FOLDER / "kinds_legacy.pt", tmp_path / "kinds.safetensors")
    assert_same(reader.read(tmp_path / "kinds.safetensors"), KINDS)


@pytest.mark.parametrize("name", ["training.pt", "training_legacy.pt", "training_protocol5.pt"])
def test_what_scripts_save_beside_the_weights(name):
    content = reader.read(FOLDER / name)
    weights = content.pop("state_dict")
    assert list(weights)[:3] == ["module.0.weight", "module.0.bias", "module.1.weight"]
    np.testing.assert_array_equal(weights["module.3.weight"], np.arange(16).reshape(2, 8) + 0.5)
    optimizer = content.pop("optimizer")
    assert optimizer["param_groups"][0]["momentum"] == 0.9
    assert optimizer["state"][0]["momentum_buffer"].shape == (2, 1, 3, 3)
    assert content.pop("scheduler")["milestones"] == {2: 1, 3: 1}
    history, columns, names = (content.pop(key) for key in ("history", "columns", "names"))
    np.testing.assert_array_equal(history, np.arange(6, dtype=np.float32).reshape(2, 3))
    np.testing.assert_array_equal(columns, np.arange(6).reshape(2, 3))
    assert names.tolist() == ["a", "bc"]
    assert content == {
        "epoch": 3,
        "args": {"lr": 0.1, "data": "/data/cifar", "nested": {"a": 1}},
        "best": 0.75,
        "loss": 1.25,
        "seen": {1, 2},
        "frozen": frozenset({"x"}),
        "counts": {"a": 2, "b": 1},
        "groups": {"a": [1]},
        "raw": b"\x00\xff",
        "bytes": b"\x01\xfe",
        "complex": 1 + 2j,
        "big": 2**70,
        "device": "cuda:1",
        "size": (1, 2),
        "dtype": np.dtype(ml_dtypes.bfloat16),
        "version": "2.13.0+cpu",
        "none": None,
    }


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("whole_model.pt", r"names torch.nn.modules.container.Sequential, .*torch.save\(model.state_dict\(\)"),
        ("script.pt", "TorchScript archive"),
        ("sparse.pt", "_rebuild_sparse_tensor, .*sparse"),
        ("quantised.pt", "_rebuild_qtensor, .*quantised"),
        ("meta.pt", "_rebuild_meta_tensor_no_storage, .*no values"),
        ("conjugated.pt", "conjugated"),
        ("dill.pt", r"names dill\._dill\.\w+, .*import dill, torch; checkpoint = torch.load\(path, pickle_module=dill"),
    ],
)
def test_files_of_pytorch_that_are_not_read(name, says):
    with pytest.raises(ValueError, match=says) as caught:
        reader.read(FOLDER / name)
    assert str(caught.value).startswith(str(FOLDER / name))
    assert "\n" not in str(caught.value)


# Attacks. Each would write the file `mark`, or leave something behind, if a pickle's program ran.


class Reduced:
    """Pickles as a call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def attacks(mark):
    """Returns {name of the attack: (pickle, what the message names)}."""
    command = f"touch {mark}"
    short = text(command)
    call = b"\x85R."  # a tuple of one argument, REDUCE, STOP
    return {
        "os.system": (pickle.dumps(Reduced(os.system, command)), "posix.system"),
        "protocol 0": (pickle.dumps(Reduced(os.system, command), 0), "posix.system"),
        "os": (b"\x80\x02cos\nsystem\n" + short + call, "os.system"),
        "nt": (b"\x80\x02cnt\nsystem\n" + short + call, "nt.system"),
        "exec": (pickle.dumps(Reduced(exec, f"open({str(mark)!r}, 'w')")), "builtins.exec"),
        "eval of Python 2": (b"\x80\x02c__builtin__\neval\n" + text("1") + call, "__builtin__.eval"),
        "getattr": (pickle.dumps(Reduced(getattr, {}, "update")), "builtins.getattr"),
        "open": (pickle.dumps(Reduced(open, str(mark), "w")), "_?io.open"),
        "import": (b"\x80\x02c__builtin__\n__import__\n" + text("os") + call, "__import__"),
        "popen": (b"\x80\x02csubprocess\nPopen\n" + short + call, "subprocess.Popen"),
        "partial": (b"\x80\x02cfunctools\npartial\n" + short + call, "functools.partial"),
        "torch.load": (b"\x80\x02ctorch.serialization\nload\n" + short + call, "torch.serialization.load"),
        "stack global": (b"\x80\x04" + text("posix") + text("system") + b"\x93" + short + call, "posix.system"),
        "dotted name": (
            b"\x80\x04" + text("collections") + text("OrderedDict.update") + b"\x93.",
            "OrderedDict.update",
        ),
        "numpy": (b"\x80\x02cnumpy.testing._private.utils\nrunstring\n" + short + call, "runstring"),
        "instance": (b"(" + short + b"iposix\nsystem\n.", "posix.system"),
        "allowed instance": (b"(icollections\nOrderedDict\n.", "old class"),
        "object": (b"(cposix\nsystem\n" + short + b"o.", "posix.system"),
        "allowed object": (b"(ccollections\nOrderedDict\no.", "OBJ"),
        "new object": (b"\x80\x02cposix\nsystem\n" + short + b"\x85\x81.", "posix.system"),
        "keywords": (b"\x80\x04ccollections\nOrderedDict\n)}\x92.", "NEWOBJ_EX"),
        "extension": (b"\x80\x02\x82\x01.", "EXT1"),
        "call of a type": (b"\x80\x02c__builtin__\nlist\n)R.", "calls an object of type str"),
        "call of a value": (b"\x80\x02K\x01)R.", "calls an object of type int"),
        "state of a function": (b"\x80\x02ccollections\nOrderedDict\n}b.", "attributes of an object of type Builder"),
        "state of a type": (b"\x80\x02ctorch\nTensor\nN}\x86b.", "attributes of an object of type str"),
        "state of a dtype": (b"\x80\x02ctorch\nFloatStorage\nN}\x86b.", "order of bytes"),
        "state of a number": (b"\x80\x02K\x01}b.", "attributes of an object of type int"),
        "items of a list": (b"\x80\x02]K\x00K\x01s.", "sets items of an object of type list"),
        "append to a dict": (b"\x80\x02}K\x00a.", "adds items to an object of type dict"),
        "persistent text": (b"\x80\x02Pstorage\n.", "PERSID"),
        "persistent in a plain pickle": (b"\x80\x02" + text("storage") + b"\x85Q.", "outside its pickle"),
        "buffer outside": (b"\x80\x05\x97.", "NEXT_BUFFER"),
        "array of objects": (
            b"\x80\x02cnumpy\ndtype\n" + text("O8") + b"\x85R.",
            "NumPy array of the type O8",
        ),
    }


ATTACKS = sorted(attacks(""))


def write_zip(path, data, **entries):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", data)
        for name, value in entries.items():
            archive.writestr(f"model/data/{name}", value)


def write_legacy(path, data):
    facts = [reader.LEGACY_MAGIC, reader.LEGACY_VERSION, {"little_endian": True}]
    path.write_bytes(b"".join(pickle.dumps(fact, 2) for fact in facts) + data + pickle.dumps([], 2))


def write_plain(path, data):
    path.write_bytes(data)


@pytest.mark.parametrize("write", [write_zip, write_legacy, write_plain])
@pytest.mark.parametrize("attack", ATTACKS)
def test_attacks_are_refused_by_name(attack, write, tmp_path):
    data, says = attacks(tmp_path / "mark")[attack]
    if write is write_zip and "persistent" in attack:
        says += "|holds an object|damaged"  # there a persistent identifier is a storage
    if write is write_legacy and "plain" in attack:
        says = "damaged"
    write(tmp_path / "model.pt", data)
    with pytest.raises(ValueError, match=says):
        reader.read(tmp_path / "model.pt")
    assert os.listdir(tmp_path) == ["model.pt"]


def test_the_attacks_would_work(tmp_path):
    data, _ = attacks(tmp_path / "mark")["os.system"]
    pickle.loads(data)
    assert (tmp_path / "mark").exists()


def test_an_attack_inside_a_pickled_storage_is_refused(tmp_path):
    inner, _ = attacks(tmp_path / "mark")["os.system"]
    data = b"\x80\x04ctorch.storage\n_load_from_bytes\nB" + struct.pack("<I", len(inner)) + inner + b"\x85R."
    (tmp_path / "model.pkl").write_bytes(data)
    with pytest.raises(ValueError, match="names posix.system"):
        reader.read(tmp_path / "model.pkl")
    assert not (tmp_path / "mark").exists()


def plain(value):
    return pickle.dumps(value, 2)[2:-1]  # without the version and the end


def tensor(offset, size, stride, length=6, metadata=None):
    """Returns the pickle of a float32 tensor that is a view of the storage "0"."""
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + plain(length) + b"tQ"
    view = plain(offset) + plain(size) + plain(stride) + plain(False) + plain({}) + plain(metadata)
    return b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + storage + view + b"tR."


VALUES = np.arange(6, dtype=np.float32)


def test_a_tensor_inside_its_storage(tmp_path):
    write_zip(tmp_path / "model.pt", tensor(1, (2, 2), (3, 1)), **{"0": VALUES.tobytes()})
    np.testing.assert_array_equal(reader.read(tmp_path / "model.pt"), [[1, 2], [4, 5]])


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [
        (0, (7,), (1,)),
        (1, (6,), (1,)),
        (6, (), ()),
        (-1, (1,), (1,)),
        (0, (2,), (6,)),
        (5, (2,), (-1,)),
        (0, (-1,), (1,)),
        (0, (2, 2), (5, 1)),
        (2**62, (1,), (1,)),
        (0, (2**62, 2), (0, 2**62)),
    ],
)
def test_a_tensor_beyond_its_storage_is_refused(offset, size, stride, tmp_path):
    write_zip(tmp_path / "model.pt", tensor(offset, size, stride), **{"0": VALUES.tobytes()})
    with pytest.raises(ValueError, match="reaches beyond its storage"):
        reader.read(tmp_path / "model.pt")


def test_sizes_without_strides_are_refused(tmp_path):
    write_zip(tmp_path / "model.pt", tensor(0, (2, 2), (1,)), **{"0": VALUES.tobytes()})
    with pytest.raises(ValueError, match="damaged"):
        reader.read(tmp_path / "model.pt")


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ({"0": bytes(23)}, "has 23 bytes, not 24"),
        ({"0": bytes(25)}, "has 25 bytes, not 24"),
        ({"1": bytes(24)}, "lacks the entry model/data/0"),
    ],
)
def test_storages_of_another_size_are_refused(entries, says, tmp_path):
    write_zip(tmp_path / "model.pt", tensor(0, (6,), (1,)), **entries)
    with pytest.raises(ValueError, match=says):
        reader.read(tmp_path / "model.pt")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_entries_of_one_name_are_refused(tmp_path):
    write_zip(tmp_path / "model.pt", tensor(0, (6,), (1,)), **{"0": VALUES.tobytes()})
    with zipfile.ZipFile(tmp_path / "model.pt", "a") as archive:
        archive.writestr("model/data/0", bytes(24))
    with pytest.raises(ValueError, match="two entries of one name"):
        reader.read(tmp_path / "model.pt")


def test_big_endian_files_are_refused(tmp_path):
    write_zip(tmp_path / "model.pt", tensor(0, (6,), (1,)), **{"0": VALUES.tobytes()})
    with zipfile.ZipFile(tmp_path / "model.pt", "a") as archive:
        archive.writestr("model/byteorder", "big")
    with pytest.raises(ValueError, match="big-endian"):
        reader.read(tmp_path / "model.pt")


def test_a_storage_that_is_part_of_another(tmp_path):
    """What PyTorch before 0.4 wrote: the root's key and length, then the key, start and length of the part."""
    pickles = [reader.LEGACY_MAGIC, reader.LEGACY_VERSION, {"little_endian": True}]
    for start, expected in ((2, VALUES[2:5]), (4, None), (-1, None)):
        part = plain(6) + plain(("9", start, 3))
        storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + part + b"tQ"
        view = plain(0) + plain((3,)) + plain((1,))
        content = b"\x80\x02ctorch._utils\n_rebuild_tensor\n(" + storage + view + b"tR."
        end = pickle.dumps(["0"], 2) + struct.pack("<q", 6) + VALUES.tobytes()
        (tmp_path / "model.pt").write_bytes(b"".join(pickle.dumps(fact, 2) for fact in pickles) + content + end)
        if expected is not None:
            np.testing.assert_array_equal(reader.read(tmp_path / "model.pt"), expected)
        else:
            with pytest.raises(ValueError, match="part of"):
                reader.read(tmp_path / "model.pt")


@pytest.mark.parametrize("name", ["kinds.pt", "kinds_deflated.pt", "kinds_legacy.pt", "kinds.pkl", "training.pt"])
def test_truncated_files_are_refused(name, tmp_path):
    data = (FOLDER / name).read_bytes()
    for length in [1, 2, 9, *range(50, len(data), 97), len(data) - 1]:
        (tmp_path / name).write_bytes(data[:length])
        with pytest.raises(ValueError, match="damaged|incomplete|unknown format|empty") as caught:
            reader.read(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_truncated_safetensors_are_refused(tmp_path):
    data = (FOLDER / "kinds.safetensors").read_bytes()
    for length in (9, 100, len(data) - 1):
        (tmp_path / "model.safetensors").write_bytes(data[:length])
        with pytest.raises(ValueError, match="damaged or incomplete"):
            reader.read(tmp_path / "model.safetensors")


@pytest.mark.parametrize("name", ["kinds.pt", "kinds_legacy.pt", "kinds.pkl", "training_legacy.pt"])
def test_damaged_files_are_read_or_refused(name, tmp_path):
    """Whatever the bytes are, there is content or a ValueError. What zip archives hold has a checksum."""
    data = (FOLDER / name).read_bytes()
    random = np.random.default_rng(0)
    for place in random.integers(0, len(data), 200):
        damaged = bytearray(data)
        damaged[place] ^= 1 << random.integers(8)
        (tmp_path / name).write_bytes(damaged)
        try:
            content = reader.read(tmp_path / name)
        except ValueError as error:
            assert "\n" not in str(error)
            continue
        if name == "kinds.pt":
            assert_same(content, KINDS)


def tar(*names):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(name))
    return stream.getvalue()


def archive(*names):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        for name in names:
            file.writestr(name, b"")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>Quota exceeded</html>", "web page"),
        (b"\n  <html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "HDF5 file, as Keras"),
        (b"\x1f\x8b\x08" + bytes(20), "gzip"),
        (b"\x93NUMPY" + bytes(20), "array of NumPy"),
        (b'{"error": "not found"}', "JSON"),
        (tar("storages", "tensors", "pickle"), "before 0.1.10"),
        (tar("model.pt"), "tar archive"),
        (archive("config.json", "metadata.json", "model.weights.h5"), "model of Keras"),
        (archive("a.npy", "b.npy"), r"NumPy arrays \(.npz\)"),
        (archive("model.pt"), "unpack it"),
        (bytes(range(1, 30)), "unknown format"),
        (pickle.dumps(1) + b"more", "more bytes behind"),
        (pickle.dumps(reader.LEGACY_MAGIC) + pickle.dumps(1000), "version 1000"),
    ],
)
def test_other_files_are_refused_by_their_kind(data, says, tmp_path):
    (tmp_path / "model.pt").write_bytes(data)
    with pytest.raises(ValueError, match=says) as caught:
        reader.read(tmp_path / "model.pt")
    assert str(caught.value).startswith(f"{tmp_path}/model.pt is ") or "version" in says
    assert "\n" not in str(caught.value)


def test_paths(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(FOLDER))
    assert_same(reader.read("~/kinds.pt"), KINDS)
    for missing in (tmp_path / "model.pt", tmp_path):
        with pytest.raises(ValueError, match=f"There is no file at {missing}"):
            reader.read(missing)


def test_without_safetensors_the_message_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match=r"pip install .*\[pytorch\]"):
        reader.read(FOLDER / "kinds.safetensors")


def test_pytorch_is_not_imported():
    code = f"import sys; from keras_sat.models.pytorch import reader; reader.read({str(FOLDER / 'kinds.pt')!r})"
    code += "; assert not {'torch', 'dill'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
