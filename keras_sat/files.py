"""Reading and writing of files: atomic writes, digests, paths."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

from keras_sat.typing import Path


def expanded(path: Path) -> str:
    """Returns a path as text, with "~" replaced by the home folder."""
    return os.path.expanduser(os.fspath(path))


@contextlib.contextmanager
def without_wildcards(path: Path) -> Iterator[Path]:
    """Yields a path to the same folder that has none of the characters `[ ] * ? \\`.

    TensorFlow's loader interprets a path with such characters as a pattern. The yielded path is `path` itself, or a
    temporary link to it.

    Args:
        path: an existing folder.
    """
    if not re.search(r"[][*?\\]", os.path.abspath(path)):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        link = os.path.join(folder, "link")
        os.symlink(os.path.abspath(path), link)
        yield link


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[str]:
    """Yields a temporary path, which is renamed to `path` when the context ends.

    Write a file or a folder to the temporary path, which is in the same folder as `path`. After an exception, `path` is
    unchanged and the temporary file or folder is removed.

    Args:
        path: the file to create or replace, or a folder to create. Missing parent folders are created.
    """
    path = os.path.abspath(expanded(path))
    folder, name = os.path.split(path)
    os.makedirs(folder, exist_ok=True)
    temporary = os.path.join(folder, f".{os.getpid()}-{name}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        if os.path.isdir(temporary):
            shutil.rmtree(temporary)
        elif os.path.exists(temporary):
            os.remove(temporary)


def sha256(path: Path) -> str:
    """Returns the SHA-256 digest of a file as hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def fingerprint(value: Any) -> str:
    """Returns the first eight hexadecimal digits of the SHA-256 digest of a JSON value, for use in a file name."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]


def write_text(path: Path, text: str) -> None:
    """Writes text to a file, as UTF-8, and on to the disk. See `atomic_write`."""
    with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, value: Any) -> None:
    """Writes a value to a file, as indented JSON. See `atomic_write`."""
    write_text(path, json.dumps(value, indent=2) + "\n")
