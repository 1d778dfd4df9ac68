"""Configuration of Sphinx: ``sphinx-build -W docs docs/_build``."""
import sys
from pathlib import Path

import fastbp

sys.path.insert(0, str(Path(__file__).parent))   # mathml.py

project = "fastbp"
author = "the fastbp developers"
version = release = fastbp.__version__
extensions = [
    "myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "sphinx_copybutton",
    "matplotlib.sphinxext.plot_directive", "mathml",
]
exclude_patterns = ["_build"]
nitpicky = True

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath", "fieldlist"]
myst_heading_anchors = 3

# Signatures as they are written: no default value is longer than its name, no type is a page of its own.
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
autodoc_preserve_defaults = True
maximum_signature_line_length = 88
html_math_renderer = "mathml"

plot_formats = ["svg"]
plot_html_show_formats = plot_html_show_source_link = False

copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_theme = "furo"
html_title = "fastbp"
html_static_path = ["_static"]
html_css_files = ["fastbp.css"]
html_show_copyright = html_show_sphinx = False
html_copy_source = False
