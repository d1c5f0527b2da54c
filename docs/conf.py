"""Settings of the documentation site, `make docs`. Nothing is loaded from other hosts."""

from __future__ import annotations

import re
from typing import Any

import ickd_pl.checks
from ickd_pl.version import __version__

project = "ickd_pl"
author = "The ickd_pl authors"
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
root_doc = "index"
exclude_patterns = ["README.md"]
html_theme = "furo"
html_title = f"ickd_pl {version}"
html_copy_source = False
html_show_sphinx = False

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
myst_all_links_external = False

autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True
# By their names: what they check stands in their docstrings.
autodoc_type_aliases = {name: name for name in vars(ickd_pl.checks) if name.endswith(("Float", "Int"))} | {
    "Network": "Network",
    "Maps": "Maps",
    "NamedMaps": "NamedMaps",
}
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_attr_annotations = True
napoleon_use_ivar = True


def _without_links_out(app: Any, docname: str, source: list[str]) -> None:
    """Links to files outside ``docs/`` name the file: the site has only the pages."""
    source[0] = re.sub(r"(?<!!)\[([^\]]+)\]\((?:\.\./)[^)]+\)", r"\1", source[0])


def setup(app: Any) -> None:
    app.connect("source-read", _without_links_out)
