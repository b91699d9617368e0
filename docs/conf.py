"""The documentation site: MyST pages, notebooks that run at build time, and an API reference from the docstrings.

`scripts/docs` builds it. Every warning is an error, so no broken link or unknown name is published.
"""

import sys
from pathlib import Path

from sphinx.ext import autosummary

import lora_np

sys.path.append(str(Path(__file__).parent / "_extensions"))
import inventories

project = "lora_np"
author = "the lora_np contributors"
copyright = author  # noqa: A001 - Sphinx wants this name
release = version = lora_np.__version__

extensions = [
    "myst_nb",  # Markdown, and notebooks written in Markdown
    "numpydoc",  # the sections of our docstrings
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "thumbnails",  # of the gallery
]
exclude_patterns = ["_build", "_extensions"]
nitpicky = True  # a reference to something unknown is a warning, and so an error

# Markdown. Links to headings work as they do on GitHub.
myst_enable_extensions = ["attrs_block", "dollarmath"]
myst_heading_anchors = 3

# Blocks marked {code-cell} run here, at build time; an exception or any output on stderr fails the build. Blocks marked
# python run in the tests: see conftest.py.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 120
nb_output_stderr = "warn"
nb_render_markdown_format = "myst"  # with tables

# The reference: the docstrings, in the order of the source. They also state the types, in words.
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "none"
autodoc_preserve_defaults = True
numpydoc_show_class_members = False
numpydoc_xref_param_type = True
numpydoc_xref_ignore = "all"  # types are prose: words that are not names stay words
numpydoc_xref_aliases = {name: f"lora_np.{name}" for name in lora_np.__all__}
intersphinx_mapping = inventories.write(
    Path(__file__).parent / "_build" / "inventories"
)
toc_object_entries_show_parents = "hide"
autosummary.WELL_KNOWN_ABBREVIATIONS += ("eq.", "sec.")  # no sentence ends there
default_role = "py:obj"  # `name` is a link if the reference has that name, else code: see _resolve_name

html_theme = "furo"
html_title = f"lora_np {version}"
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["site.css", "cheat-sheet.css"]
html_js_files = ["copy.js"]
mathjax_path = "mathjax/tex-chtml.js"  # a local copy from scripts/docs, so that no page loads anything from another host


def setup(app):
    """Connect the functions below."""
    app.connect("missing-reference", _resolve_name)
    app.connect("autodoc-skip-member", _omit_foreign)


def _resolve_name(app, env, node, contnode):
    """Let any docstring refer to `forward` or `fit` without a prefix."""
    if node["reftype"] != "obj":
        return None
    for prefix in ("lora_np.", "lora_np.Layer.", "lora_np.LowRankLayer."):
        name = prefix + node["reftarget"]
        found = env.domains["py"].resolve_xref(
            env, node["refdoc"], app.builder, "obj", name, node, contnode
        )
        if found is not None:
            return found
    return contnode


def _omit_foreign(app, what, name, obj, skip, options):
    """Omit what estimators inherit from scikit-learn: it refers to names of scikit-learn's own documentation."""
    return (
        True
        if (getattr(obj, "__module__", None) or "").startswith("sklearn.")
        else None
    )
