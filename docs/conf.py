"""The site that `make docs` builds: these pages, the notebook, run as it is built, and the docstrings' reference."""

import re
import textwrap

import keras_sat

project = "keras_sat"
author = "the keras_sat developers"
release = keras_sat.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
exclude_patterns = ["build"]
default_role = "code"  # the docstrings' single quotes are Markdown's
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_output_stderr = "remove"  # TensorFlow's notes
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_default_options = {"exclude-members": "get_config"}


def to_restructured_text(app, what, name, obj, options, lines):
    """Says what Markdown leaves unsaid: that an indented example is code, and that a table is one."""
    text = "\n".join(lines)
    text = re.sub(r"(?m)(^\S.*\n\n)((?: {4}.*\n?|\n)+)", r"\1.. code-block:: python\n\n\2", text)
    text = re.sub(r"(?m)^((?:\|.*\n?)+)", lambda table: _as_literal(table[1]), text)
    lines[:] = text.split("\n")


def _as_literal(table):
    return ".. code-block:: text\n\n" + textwrap.indent(table, "    ") + "\n"


def setup(app):
    app.connect("autodoc-process-docstring", to_restructured_text, priority=100)  # before napoleon
