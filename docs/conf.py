"""The documentation site: MyST pages, notebooks that run at build time, and an API reference from the docstrings.

`scripts/docs` builds it. Every warning is an error, so no broken link or unknown name is published.
"""

import re
from pathlib import Path

from sphinx.ext import autosummary

from lora_np import __version__

project = "lora_np"
author = "the lora_np contributors"
copyright = author  # noqa: A001 - Sphinx wants this name
release = version = __version__

extensions = [
    "myst_nb",  # Markdown, and notebooks written in Markdown
    "numpydoc",  # the sections of our docstrings
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
]
exclude_patterns = ["_build"]
nitpicky = True  # a reference to something unknown is a warning, and so an error

# Markdown. Links to headings work as they do on GitHub.
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

# Blocks marked {code-cell} run here, at build time; an exception or any output on stderr fails the build. Blocks marked
# python run in the tests: see conftest.py.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 120
nb_output_stderr = "warn"

# The reference: the docstrings, in the order of the source. They also state the types, in words.
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "none"
autodoc_preserve_defaults = True
numpydoc_show_class_members = False
toc_object_entries_show_parents = "hide"
autosummary.WELL_KNOWN_ABBREVIATIONS += ("eq.", "sec.")  # no sentence ends there
default_role = "py:obj"  # `name` is a link if the reference has that name, else code: see _resolve_name

html_theme = "furo"
html_title = f"lora_np {version}"
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["site.css", "cheat-sheet.css"]
mathjax_path = "mathjax/tex-chtml.js"  # a local copy from scripts/docs, so that no page loads anything from another host


def setup(app):
    """Connect the functions below."""
    app.connect("source-read", _omit_absent_pages)
    app.connect("missing-reference", _resolve_name)
    app.connect("autodoc-skip-member", _omit_foreign)


def _omit_absent_pages(app, docname, source):
    """Remove pages that do not exist from index.md; a page that exists but is not listed is a warning."""
    if docname == "index":
        folder, lines = Path(app.srcdir), source[0].splitlines()
        source[0] = "\n".join(
            line for line in lines if not _names_absent_page(line, folder)
        )


def _names_absent_page(line, folder):
    page = f"{line}.md" if re.fullmatch(r"[a-z-]+(/index)?", line) else None
    link = re.search('href="(.+?)"', line)
    file = link[1] if link else page
    return file is not None and not (folder / file).exists()


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
