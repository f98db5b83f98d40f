"""The download menu of a chapter: its notebooks and the package, which `tools.publish` writes."""

import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.typing import ExtensionMetadata

sys.path.insert(0, str(Path(__file__).parents[2]))  # Sphinx finds extensions by path, not tools/
from tools.book import is_chapter
from tools.publish import wheel_name

PAGES = "book/"  # chapter linear/prompts is document book/linear/prompts


def offer_notebooks(
    app: Sphinx, pagename: str, _template: str, context: dict[str, Any], doctree: nodes.document
) -> None:
    """Offer, on the page of a chapter, its notebooks and the wheel in place of its source."""
    if doctree is None or not is_chapter(Path(app.env.doc2path(pagename)).read_text("utf8")):
        return
    name, wheel = pagename.removeprefix(PAGES), wheel_name(Path(app.srcdir))
    offers = [
        (f"{name}.ipynb", "Notebook", "Download the executed chapter", "fas fa-code"),
        (f"{name}-exercises.ipynb", "Exercises", "Download it without solutions", "fas fa-pen"),
        (wheel, "Package", "Download what the notebooks import", "fas fa-cube"),
    ]
    for group in context.get("header_buttons", ()):
        if group.get("label") == "download-buttons":
            kept = [one for one in group["buttons"] if one["label"] == "download-pdf-button"]
            group["buttons"] = [link(context, *offer) for offer in offers if offer[0]] + kept


def link(context: dict[str, Any], file: str, text: str, tooltip: str, icon: str) -> dict[str, str]:
    """Make the theme's description of a link that downloads."""
    address = context["pathto"](f"notebooks/{file}", 1)
    # The theme has no place for the attribute `download`, without which a browser shows JSON.
    url = f'{address}" download="{Path(file).name}'
    shown = {"text": text, "tooltip": tooltip, "icon": icon}
    return {"type": "link", "url": url, "label": f"download-{text.lower()}-button"} | shown


def setup(app: Sphinx) -> ExtensionMetadata:
    """Register with Sphinx, after the theme has made its buttons."""
    app.connect("html-page-context", offer_notebooks, priority=900)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
