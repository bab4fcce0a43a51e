"""How the documentation is built: strictly, and without a network."""  # noqa: INP001 - Sphinx runs it

import sys
from pathlib import Path

import signaling

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "livekit-moderation"
project_copyright = "the authors of livekit-moderation, Apache License 2.0"
release = signaling.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "protocol_reference", "public_names"]
exclude_patterns = ["_build"]

myst_heading_anchors = 3
default_role = "code"  # in docstrings: `this` is code, as in Markdown
napoleon_use_ivar = True
toc_object_entries_show_parents = "hide"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
add_module_names = False
python_use_unqualified_type_names = True

nitpicky = True
nitpick_ignore_regex = [
    # Documented elsewhere, and there is no network.
    ("py:.*", r"(_?asyncio|collections|models|pathlib|pydantic|rtc|typing|websockets)\..*"),
    # Passed on as they are: a store to `ModerationModule`, an event in a `Delivery`, an answer of the protocol.
    ("py:class", r"signaling\.(stores\.contract\.Store|messages\.base\.Event)"),
    ("py:class", r"signaling\.messages\.(control\.JoinSuccess|moderation\.events\.(Result|State))"),
    ("py:class", r"signaling\.identifiers\.CommandId"),  # a `str`, as the wire has it
]

html_theme = "furo"
html_title = f"livekit-moderation {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
