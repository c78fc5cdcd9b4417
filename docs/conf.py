"""Sphinx settings of the documentation; pages that come from the code are written when it is
built."""

import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS), str(DOCS.parent)]

from commands_page import commands_page  # noqa: E402
from module_list import module_list  # noqa: E402
from settings_page import settings_page  # noqa: E402

project = "vla"
copyright = "the vla contributors"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "vla"
html_static_path: list[str] = []
nb_execution_mode = "off"
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_dmath_allow_digits = False
myst_dmath_allow_space = False
myst_heading_anchors = 4
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
default_role = "code"
suppress_warnings = ["config.cache"]

GENERATED = {
    "settings.md": settings_page,
    "modules.md": module_list,
    "commands.md": commands_page,
}
for name, page in GENERATED.items():
    path = DOCS / "reference" / name
    text = page()
    if not path.exists() or path.read_text() != text:
        path.write_text(text)
