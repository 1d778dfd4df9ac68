"""Configuration of Sphinx: ``sphinx-build -W docs docs/_build``."""
import re
import sys
from pathlib import Path

import fastbp

sys.path.insert(0, str(Path(__file__).parent))   # mathml.py

project = "fastbp"
version = release = fastbp.__version__
extensions = [
    "myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "sphinx_copybutton", "matplotlib.sphinxext.plot_directive", "mathml",
]
exclude_patterns = ["_build"]
nitpicky = True
default_role = "code"
highlight_language = "none"   # tables in docstrings are no Python

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
html_math_renderer = "mathml"

autodoc_typehints = "none"   # the docstrings say what comes and goes, with shapes
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
maximum_signature_line_length = 88

plot_formats = ["svg"]
plot_html_show_formats = plot_html_show_source_link = False
GREY = "#888888"   # is seen on white and on black
plot_rcparams = {"savefig.transparent": True} | dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), GREY)
plot_apply_rcparams = True

copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True

html_theme = "furo"
html_title = "fastbp"
html_static_path = ["_static"]
html_css_files = ["fastbp.css"]
html_show_copyright = html_show_sphinx = html_copy_source = False


def link_systems(app, what, name, thing, options, lines):
    """'docs/by-hand S10' of a docstring becomes a link to that section, 'docs/by-hand/losses.md' one to that page"""
    for i, line in enumerate(lines):
        line = re.sub(r"\bdocs(/by-hand/[\w-]+)\.md\b", r":doc:`\1`", line.replace("docs/by-hand ", ""))
        lines[i] = re.sub(r"\b(S[1-9]\d?|BP[1-4])\b", lambda match: f":ref:`{match[1]} <{match[1].lower()}>`", line)


def setup(app):
    app.connect("autodoc-process-docstring", link_systems)
