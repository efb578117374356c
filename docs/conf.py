"""The site that `make docs` builds: these pages, the notebook, run as it is built, and the docstrings' reference."""

import re

import keras_sat

project = "keras_sat"
author = "the keras_sat developers"
copyright = author  # of the footer
release = keras_sat.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
html_theme = "furo"
html_title = "keras_sat"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
exclude_patterns = ["build"]
default_role = "code"  # the docstrings' single quotes are Markdown's
smartquotes_action = "D"  # dashes alone: quotes in code stay as they are
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_output_stderr = "remove"  # TensorFlow's notes
copybutton_selector = "div:not(.output) > div.highlight > pre"  # of code, not of what it prints
maximum_signature_line_length = 60  # longer ones have a line for each argument
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_default_options = {"exclude-members": "get_config"}


def to_restructured_text(app, what, name, obj, options, lines):
    """Changes what Markdown and reStructuredText write in different ways: indented examples, and tables."""
    text = "\n".join(lines)
    text = re.sub(r"(?m)(^\S.*\n\n)((?: {4}.*\n?|\n)+)", r"\1.. code-block:: python\n\n\2", text)
    text = re.sub(r"(?m)^((?:\|.*\n?)+)", lambda table: _as_list_table(table[1]), text)
    lines[:] = text.split("\n")


def _as_list_table(table):
    """Returns a Markdown table as a list-table. A row without a first cell continues the row above it."""
    head, _, *body = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    rows = [head]
    for row in body:
        if row[0]:
            rows.append(row)
        else:
            rows[-1] = [f"{above} {cell}".strip() for above, cell in zip(rows[-1], row)]
    text = [".. list-table::", "   :header-rows: 1", ""]
    for first, *others in rows:
        text += [f"   * - {first}", *(f"     - {cell}" for cell in others)]
    return "\n".join([*text, "", ""])


def setup(app):
    app.connect("autodoc-process-docstring", to_restructured_text, priority=100)  # before napoleon
