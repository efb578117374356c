"""Writing without halves: beside, then renamed."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile


def expanded(path: str | os.PathLike) -> str:
    """Returns a path as text; "~" is the home folder."""
    return os.path.expanduser(os.fspath(path))


@contextlib.contextmanager
def without_wildcards(path):
    """Yields another path of a folder if its own has brackets, say: TensorFlow takes it for a pattern."""
    if not re.search(r"[][*?\\]", os.path.abspath(path)):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        link = os.path.join(folder, "link")
        os.symlink(os.path.abspath(path), link)
        yield link


@contextlib.contextmanager
def replacing(path):
    """Yields a path beside `path` to write a file or a folder to; at the end it takes the place of the file `path`.

    After an exception `path` is as it was, and nothing else is left.
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


def sha256(path):
    """Returns the SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def fingerprint(value):
    """Returns eight letters and digits that tell this JSON value from others, for the name of a file."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]


def write_text(path, text):
    """Writes `text` to the file `path`."""
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write(text)


def write_json(path, value):
    """Writes `value` as indented JSON to the file `path`."""
    write_text(path, json.dumps(value, indent=2) + "\n")
