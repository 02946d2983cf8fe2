"""Sphinx's settings: ``make docs`` builds the site into ``build/docs``."""

import os
import re
import sys
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from pathlib import Path

HERE = Path(__file__).resolve().parent
# This checkout, whatever is installed; generate.py and pictures/ are modules of the site's own.
sys.path[:0] = [str(HERE.parent), str(HERE)]

import generate  # noqa: E402
from pictures import draw  # noqa: E402

generate.write(HERE / "generated")
draw.draw_all(HERE / "generated" / "pictures")

project = "Headway"
copyright = "the authors of Headway"
try:
    release = installed_version("headway")
except PackageNotFoundError:
    release = "of this checkout"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["generated", "examples", "pictures"]
nitpicky = True
# Signatures also name what is not part of the API, and what others define; no network is there to ask these for it.
_documented = re.findall(r"automodule:: (\S+)", (HERE / "reference/api.md").read_text(encoding="utf-8"))
nitpick_ignore_regex = [("py:.*", rf"(?!(?:{'|'.join(map(re.escape, _documented))})\.\w+$).+")]

# Two classes are called Choice, a knob and what was chosen.
suppress_warnings = ["ref.python"]

html_theme = "furo"
html_title = "Headway"
html_static_path = ["static"]
html_css_files = ["headway.css"]
# Nothing that is not needed to read: no copy of the sources, no date.
html_copy_source = False
html_last_updated_fmt = None

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

linkcheck_ignore = [r"http://127\.0\.0\.1", r"http://HOST", r"http://localhost"]
linkcheck_timeout = 20
linkcheck_workers = 4

# Figures are drawn by matplotlib, which keeps a cache.
os.environ.setdefault("MPLBACKEND", "Agg")


def _drop_source_roles(app, what, name, obj, options, lines):
    """Docstrings name code as ``code``, never by roles; a bare `name` would be taken for one."""
    for index, line in enumerate(lines):
        lines[index] = re.sub(r"(?<!`)`(?!`)([^`]+)`(?!`)", r"``\1``", line)


def setup(app):
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", _drop_source_roles)
