"""Optional dependencies: the command that installs one where it is missing."""

import importlib.metadata
import json
import os
import shlex
import sys
import urllib.parse


def install(extra: str) -> str:
    """Returns the command that installs an extra ("serve", "report", ...) into the environment that runs.

    Where the package was installed from a folder, such as a clone, it is that folder's.
    """
    what = shlex.quote(f"{_folder() or 'keras-sat'}[{extra}]")
    return f"{shlex.quote(sys.executable)} -m pip install {what}"


def _folder():
    """Returns the folder that the package was installed from, if it is still there."""
    try:
        text = importlib.metadata.distribution("keras-sat").read_text("direct_url.json") or "{}"
    except importlib.metadata.PackageNotFoundError:
        return None
    folder = urllib.parse.unquote(urllib.parse.urlsplit(json.loads(text).get("url", "")).path)
    return folder if os.path.exists(os.path.join(folder, "setup.cfg")) else None
