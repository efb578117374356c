"""Files of PyTorch as Python containers of NumPy arrays: `read`. PyTorch is not needed, and no code of a file runs."""

import io
import json
import mmap
import os
import struct
import tarfile
import zipfile
from typing import Any

import numpy as np

from keras_sat import extras, files
from keras_sat.models.pytorch.pickles import Builder, Unreadable
from keras_sat.models.pytorch.tensors import DTYPES, Storage, TensorUnpickler
from keras_sat.typing import Path

# The first two pickles of a file of torch.save before PyTorch 1.6.
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_VERSION = 1001

SAFETENSORS = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
    "C64": "complex64",
}
AGAIN = "Download it or save it again."
UNPACK = "Unpack it, and give the file inside."
EXPECTED = "Expected a file of torch.save (.pt, .pth) or safetensors."
# Files of other kinds, by their first bytes.
SIGNATURES = (
    (b"\x89HDF\r\n\x1a\n", f"is an HDF5 file, as Keras writes, and no file of PyTorch. {EXPECTED}"),
    (b"version https://git-lfs", "is a git-lfs pointer in place of the file. Run `git lfs pull` where it came from."),
    (b"\x1f\x8b", f"is compressed with gzip. {UNPACK}"),
    (b"BZh", f"is compressed with bzip2. {UNPACK}"),
    (b"\xfd7zXZ", f"is compressed with xz. {UNPACK}"),
    (b"7z\xbc\xaf", f"is a 7z archive. {UNPACK}"),
    (b"\x93NUMPY", f"is an array of NumPy and no file of PyTorch. {EXPECTED}"),
    (b"{", f"is JSON text and no file of weights. {EXPECTED}"),
)


def read(path: Path) -> Any:
    """Returns what a file of PyTorch holds.

    The format is told by the first bytes, never by the suffix: what `torch.save` writes (zip archives, and the format
    before PyTorch 1.6), plain pickles, and safetensors. Tensors become NumPy arrays that may share memory and may be
    read-only. Their types stay, bfloat16 too. Parameters are plain arrays. A state dict is a dict, an
    `argparse.Namespace` a dict of its attributes, a path or device text.

    No code of the file runs, and nothing that it names is imported. A file that names anything but tensors, numbers,
    text and containers is refused.

    Args:
        path: the file. "~" is the home folder.

    Raises:
        ValueError: if there is no such file, or it is refused, damaged or in another format. The message says which,
            and what to do.
        ImportError: if the file is a safetensors file and the safetensors library is missing.
    """
    path = files.expanded(path)
    if not os.path.isfile(path):
        raise ValueError(f"There is no file at {path}")
    with open(path, "rb") as file:
        try:
            return _read(file, os.path.getsize(path))
        except Unreadable as error:
            raise ValueError(f"{path} {error}") from error
        except ImportError:
            raise
        except Exception as error:  # bytes at random can raise anything
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise ValueError(f"{path} is damaged or incomplete ({reason}). {AGAIN}") from error


def metadata(path: Path) -> dict[str, str]:
    """Returns the metadata of a safetensors file; {} for a file of another format."""
    with open(files.expanded(path), "rb") as file:
        if not _is_safetensors(file.read(9)):
            return {}
        file.seek(0)
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return header.get("__metadata__") or {}


def _is_safetensors(head):
    """Returns whether a file begins as a safetensors file: with the length of a JSON header, and the header."""
    return head[5:9] == b"\0\0\0{"


def _read(file, size):
    head = file.read(1024)
    file.seek(0)
    if not head:
        raise Unreadable(f"is empty. {AGAIN}")
    if _is_safetensors(head):
        return _safetensors(file)
    if head.startswith(b"PK\x03\x04"):
        return _zip(file)
    _refuse(head, file)
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as stream:
        return _stream(stream, size)


def _refuse(head, file):
    """Raises Unreadable if the first bytes of a file are not those of a pickle. It says what the file is."""
    for signature, reason in SIGNATURES:
        if head.startswith(signature):
            raise Unreadable(reason)
    if head.lstrip().startswith(b"<"):
        raise Unreadable("is a web page in place of the file. Download it again, as a browser would.")
    if head[257:262] == b"ustar":
        raise Unreadable(_about_tar(file))
    if head[0] not in b"\x80(c}]":  # protocols from 2 begin with \x80, older ones with a container or a name
        raise Unreadable(f"is in an unknown format: it begins with {head[:8]!r}. {EXPECTED}")


def _about_tar(file):
    with tarfile.open(fileobj=file, mode="r:") as archive:
        names = set(archive.getnames())
    if {"storages", "tensors", "pickle"} <= names:
        return "is in the format of PyTorch before 0.1.10. Load it with PyTorch and save it again with torch.save."
    return f"is a tar archive. {UNPACK}"


def _safetensors(file):
    try:
        import safetensors
    except ImportError as error:
        raise ImportError(f"{file.name} is read by the safetensors library: {extras.install('pytorch')}") from error
    tensors = {}
    for name, tensor in safetensors.deserialize(file.read()):
        if tensor["dtype"] not in SAFETENSORS:
            raise Unreadable(f"holds {name} as {tensor['dtype']}; expected one of {', '.join(SAFETENSORS)}.")
        dtype = DTYPES[SAFETENSORS[tensor["dtype"]]]
        tensors[name] = np.frombuffer(tensor["data"], dtype).reshape(tensor["shape"])
    return tensors


class _Unpickler(TensorUnpickler):
    def find(self, module: str, name: str) -> Any:
        if (module, name) == ("torch.storage", "_load_from_bytes"):  # a tensor that was pickled without torch.save
            return Builder(name, lambda data: _stream(io.BytesIO(data), len(data)))
        return super().find(module, name)


class _Storages(_Unpickler):
    """Reads a pickle whose storages lie beside it. A subclass says where: `bytes_of`."""

    def stored(self, identifier: Any) -> Storage:
        kind, *rest = identifier
        if kind != "storage":
            raise Unreadable(f"holds an object of the kind {kind!r} beside its pickle; expected storages alone.")
        dtype, key, _, length, *view = rest
        data = self.bytes_of(key, length, dtype.itemsize)
        if view and view[0] is not None:  # before PyTorch 0.4 a storage could be a part of another
            _, start, part = view[0]
            if min(start, part, length - start - part) < 0:
                raise Unreadable("is damaged: one of its storages reaches beyond another that it is a part of.")
            data = data[start * dtype.itemsize : (start + part) * dtype.itemsize]
        return Storage(data, dtype)

    def bytes_of(self, key: str, length: int, item_size: int) -> np.ndarray:
        """Returns the memory of a storage, uint8 [length * item_size]."""
        raise NotImplementedError


class _ZipUnpickler(_Storages):
    def __init__(self, archive: zipfile.ZipFile, top: str) -> None:
        self.archive, self.top = archive, top
        self.found: dict[str, np.ndarray] = {}

    def bytes_of(self, key: str, length: int, item_size: int) -> np.ndarray:
        if key not in self.found:
            data = _entry(self.archive, f"{self.top}/data/{key}", length * item_size)
            self.found[key] = np.frombuffer(data, np.uint8)
        return self.found[key]


def _zip(file):
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        if len(set(names)) < len(names):
            raise Unreadable("is a zip archive with two entries of one name, which PyTorch does not write.")
        pickles = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise Unreadable(_about_zip(names))
        top = pickles[0].removesuffix("/data.pkl")
        if f"{top}/constants.pkl" in names:
            raise Unreadable(
                "is a TorchScript archive, which holds a program. Write its state dict with PyTorch: "
                'torch.save(torch.jit.load(path, map_location="cpu").state_dict(), "model.pt")'
            )
        if f"{top}/byteorder" in names and _entry(archive, f"{top}/byteorder") != b"little":
            raise Unreadable("was written on a big-endian machine. Load it there and save it as safetensors.")
        return _ZipUnpickler(archive, top).load(io.BytesIO(_entry(archive, pickles[0])))


def _about_zip(names):
    if "config.json" in names and "metadata.json" in names:
        return f"is a model of Keras and no file of PyTorch. {EXPECTED}"
    if all(name.endswith(".npy") for name in names):
        return f"is an archive of NumPy arrays (.npz) and no file of PyTorch. {EXPECTED}"
    return f"is a zip archive that torch.save did not write. If the file is inside, unpack it. {EXPECTED}"


def _entry(archive, name, size=None):
    """Returns the bytes of an entry of a zip archive, which must be `size` if that is given."""
    try:
        info = archive.getinfo(name)
    except KeyError:
        raise Unreadable(f"is incomplete: it lacks the entry {name}. {AGAIN}") from None
    if size is not None and info.file_size != size:
        raise Unreadable(f"is damaged: its entry {name} has {info.file_size} bytes, not {size}. {AGAIN}")
    if info.CRC or info.compress_type != zipfile.ZIP_STORED:
        return archive.read(info)
    # PyTorch can be told to write no checksums (torch.serialization.set_crc32_options): it writes zeros.
    archive.fp.seek(info.header_offset + 26)
    archive.fp.seek(sum(struct.unpack("<HH", archive.fp.read(4))), io.SEEK_CUR)
    return archive.fp.read(info.file_size)


class _StreamUnpickler(_Storages):
    """Gives out memory for the storages, which are filled when the pickle has been read: they come after it."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.found: dict[str, np.ndarray] = {}  # uint8 [length, item_size]

    def bytes_of(self, key: str, length: int, item_size: int) -> np.ndarray:
        if key not in self.found:
            if length * item_size > self.limit:
                raise Unreadable(f"is incomplete: its storage {key} would be larger than the file. {AGAIN}")
            self.found[key] = np.empty((length, item_size), np.uint8)
        return self.found[key].reshape(-1)

    def fill(self, stream: Any, key: str) -> None:
        """Reads the values of a storage."""
        memory = self.found[key]
        (length,) = struct.unpack("<q", stream.read(8))
        data = stream.read(memory.size)
        if (length, len(data)) != (len(memory), memory.size):
            raise Unreadable(f"is damaged or incomplete: its storage {key} has not its length. {AGAIN}")
        memory.reshape(-1)[:] = np.frombuffer(data, np.uint8)


def _stream(stream, size):
    """Returns what a stream of pickles holds: a plain pickle, or the format of torch.save before PyTorch 1.6.

    This format is pickles of a magic number, a version, facts on the machine, the object, and the keys of the
    storages. Then come the storages in the order of their keys: the number of elements (int64), and the elements.
    """
    first = _Unpickler().load(stream)
    if first != LEGACY_MAGIC:
        if stream.read(1):
            raise Unreadable("is a pickle with more bytes behind it, and no file of torch.save.")
        return first
    if (version := _Unpickler().load(stream)) != LEGACY_VERSION:
        raise Unreadable(f"has the version {version} of the format before PyTorch 1.6; expected {LEGACY_VERSION}.")
    if not _Unpickler().load(stream)["little_endian"]:
        raise Unreadable("was written on a big-endian machine. Load it there and save it as safetensors.")
    unpickler = _StreamUnpickler(size)
    content = unpickler.load(stream)
    keys = _Unpickler().load(stream)
    if sorted(keys) != sorted(unpickler.found):
        raise Unreadable(f"is damaged: its storages are not those of its tensors. {AGAIN}")
    for key in keys:
        unpickler.fill(stream, key)
    return content
