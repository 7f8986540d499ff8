"Sphinx's settings for `make docs`: nothing is executed, and nothing is fetched, neither now nor when a page is read."

from docutils.nodes import SkipNode

from wssl import __version__
from wssl.companion.pages import math_html

project, author, copyright, version = "wssl", "the wssl authors", "2026, the wssl authors", __version__
extensions = ["myst_nb"]
exclude_patterns = ["_build"]

# notebooks show the outputs that they were committed with
nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "colon_fence", "fieldlist", "attrs_inline", "attrs_block"]
myst_heading_anchors = 4
myst_dmath_double_inline = True
smartquotes_action = "D"  # dashes only
add_module_names = False
toc_object_entries_show_parents = "hide"

html_theme = "sphinx_book_theme"
html_title = "wssl"
html_static_path = ["static"]
html_css_files = ["wssl.css"]
html_math_renderer = "mathml"
html_favicon = "static/favicon.svg"
html_context = {"default_mode": "auto"}
html_show_sphinx = False
html_theme_options = {
    "home_page_in_toc": True,
    "show_toc_level": 2,
    "collapse_navbar": True,
    "use_download_button": True,
    "use_fullscreen_button": False,
    "navigation_with_keys": False,
    "navbar_persistent": [],
    "pygments_light_style": "friendly",
    "pygments_dark_style": "github-dark",
}


def inline(translator, node):
    translator.body.append(math_html(node.astext()))
    raise SkipNode


def block(translator, node):
    translator.body.append(f'<div class="equation">{math_html(node.astext(), block=True)}</div>')
    raise SkipNode


def setup(app):
    app.add_html_math_renderer("mathml", inline_renderers=(inline, None), block_renderers=(block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
