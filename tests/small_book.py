"""A small book, on which every mistake that the tools must catch is made."""

from pathlib import Path

from tools.book import Book

HEADER = """\
---
jupytext:
  formats: md:myst
  notebook_metadata_filter: -jupytext.text_representation.jupytext_version,mystnb
  text_representation:
    extension: .md
    format_name: myst
    format_version: 0.13
kernelspec:
  display_name: Python 3
  language: python
  name: python3
---
"""
CHAPTER = f"""{HEADER}
# One

```{{code-cell}} ipython3
from iclbook.risk import risk
```

The risk of two.

```{{code-cell}} ipython3
:tags: [hide-input]

from IPython.display import display

print(f"{{risk(2.0):.4f}}", flush=True)
print("(dimensionless)")
drawing = "<figure><svg role='img' aria-label='a dot'></svg></figure>"
record = {{"claim": "A-F1", "part": "p", "control": False, "verdict": "holds"}}
display(
    {{"text/html": drawing, "text/plain": "a dot"}},
    raw=True,
    metadata={{"iclbook": record | {{"measured": 2.0}}}},
)
```
"""
RISK = '"""Risks."""\n\n\ndef risk(x):\n    """The risk."""\n    return 1.0 * x\n'
CONFIG = """\
title: A small book
only_build_toc_files: true
execute: {execute_notebooks: cache, timeout: 20}
launch_buttons: {thebe: false}
repository: {url: ""}
sphinx:
  config:
    include_patterns: ["book/**"]
    exclude_patterns: [".*", _build]
"""
TOC = "{format: jb-book, root: book/index, chapters: [{file: book/a/one}]}"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf8", newline="")


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text("utf8")
    assert old in text
    write(path, text.replace(old, new))


def make(root: Path) -> Book:
    """The small book, with one chapter, never executed."""
    book = Book(root)
    write(root / "_config.yml", CONFIG)
    write(root / "_toc.yml", TOC)
    write(book.pages / "index.md", "# Index\n\nA [chapter](a/one.md).\n")
    write(book.source("a/one"), CHAPTER)
    write(root / "iclbook" / "__init__.py", "")
    write(root / "iclbook" / "risk.py", RISK)
    write(root / "iclbook" / "a" / "own.py", "own = 1\n")
    write(root / "pyproject.toml", '[tool.pytest.ini_options]\nminversion = "9"\n')
    return book
