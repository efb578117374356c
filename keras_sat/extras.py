"""Optional dependencies ("extras"): the pip command that installs them."""

import importlib.metadata
import json
import os
import shlex
import sys
import urllib.parse


def install(extra: str) -> str:
    """Returns the shell command that installs an extra into the running Python environment.

    If the package was installed from a folder, such as a clone, the command names this folder.

    Args:
        extra: name of the extra, such as "serve" or "report".
    """
    what = shlex.quote(f"{_folder() or 'keras-sat'}[{extra}]")
    return f"{shlex.quote(sys.executable)} -m pip install {what}"


def _folder():
    """Returns the folder that the package was installed from, or None if there is none or it no longer exists."""
    try:
        text = importlib.metadata.distribution("keras-sat").read_text("direct_url.json") or "{}"
    except importlib.metadata.PackageNotFoundError:
        return None
    folder = urllib.parse.unquote(urllib.parse.urlsplit(json.loads(text).get("url", "")).path)
    return folder if os.path.exists(os.path.join(folder, "setup.cfg")) else None
