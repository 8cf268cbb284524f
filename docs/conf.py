"""The documentation site: `python -m nox -s docs` builds it into docs/_build/html, without a network."""

from __future__ import annotations

import pathlib
import sys

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
    "site_docstrings",
    "site_tables",
    "site_errors",
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

html_theme = "furo"
html_title = f"gradbridge {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
suppress_warnings = ["toc.empty_glob"]  # a section may have no pages yet
html_theme_options = {"navigation_with_keys": True}
