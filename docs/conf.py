"""The documentation site: `python -m nox -s docs` builds it into docs/_build/html, without a network."""

from __future__ import annotations

import pathlib
import re
import sys
from typing import Any

import gradbridge

sys.path.insert(0, str(pathlib.Path(__file__).parent / "_ext"))

project = "gradbridge"
author = "the gradbridge developers"
copyright = author
version = release = gradbridge.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "site_columns",
    "site_docstrings",
    "site_tables",
    "site_errors",
    "site_figures",
    "site_commands",
]
exclude_patterns = ["_build", "_ext", "**.ipynb_checkpoints"]

# Pages are MyST Markdown; those with a kernelspec at their top (the tutorials) are executed, and a cell that
# fails fails the build.
nb_execution_mode = "auto"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True
myst_enable_extensions = ["deflist", "colon_fence", "dollarmath"]
myst_heading_anchors = 4  # so that `page.md#a-heading` leads to the heading

# Docstrings quote code in single backticks, as Markdown does.
default_role = "code"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
maximum_signature_line_length = 90
python_use_unqualified_type_names = True
add_module_names = False

pygments_style = "default"
pygments_dark_style = "monokai"
html_theme = "furo"
html_title = f"gradbridge {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True}


def _leave_out_empty_sections(app: Any, docname: str, source: list[str]) -> None:
    """A section of the index whose pages are found by a pattern is left out where there are none."""
    if docname == "index":
        here = pathlib.Path(__file__).parent
        pattern = r"```\{toctree\}\n(?:[^`\n]*\n)*?:glob:\n(?::.*\n)*\n(\S+)\n```\n"
        source[0] = re.sub(pattern, lambda m: m[0] if any(here.glob(f"{m[1]}.md")) else "", source[0])


def setup(app: Any) -> None:
    """Sphinx calls it."""
    app.connect("source-read", _leave_out_empty_sections)
