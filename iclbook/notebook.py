"""What a chapter shows beyond print: outputs with metadata, and numbers that its prose takes up."""

import sys
from typing import Any


def show(bundle: dict[str, str], metadata: dict[str, Any] | None = None) -> None:
    """Show an output of several formats; in a plain process, print its text.

    Args:
        bundle: Content by mime type, ``text/plain`` among them.
        metadata: What travels beside it in a notebook's file.

    Raises:
        ValueError: If there is no ``text/plain``.
    """
    if "text/plain" not in bundle:
        raise ValueError(f"bundle: got {sorted(bundle)}, expected text/plain among them")
    if not _in_notebook():
        print(bundle["text/plain"])
        return
    from IPython.display import display

    display(bundle, raw=True, metadata=metadata or {})


def glue(name: str, text: str) -> None:
    """Name a text, which the page's prose takes up by the role ``glue:text`` of MyST-NB.

    In a plain process it does nothing.

    Raises:
        ValueError: If the name or the text is empty or no string.
    """
    for what, given in (("name", name), ("text", text)):
        if not isinstance(given, str) or not given.strip():
            raise ValueError(f"{what}: got {given!r}, expected a string that is not empty")
    if _in_notebook():
        from IPython.display import display

        # As MyST-NB's own glue writes it, which a notebook elsewhere need not have.
        prefix = "application/papermill.record/"
        scrap = {"scrapbook": {"name": name, "mime_prefix": prefix}}
        display({f"{prefix}text/plain": repr(text)}, raw=True, metadata=scrap)


def _in_notebook() -> bool:
    """Whether a kernel runs this code; IPython is not imported to find out."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and hasattr(shell, "kernel")
