"""What a chapter's outputs depend on; a stored run counts only while none of it has changed."""

import ast
import functools
import hashlib
import json
import platform
import re
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

LEDGER = "claims.yml"
PLOTTED = Path(__file__).with_name("plotted.py")  # says what is in a figure
COMMANDS = {"__main__.py", "experiments.py"}  # what a chapter shows of these lies in results
# What no check decides by, prints or records.
PROSE_OF_ROW = {"paper", "where", "says", "anchor", "proof", "regime", "uses"}
PROSE_OF_PART = {"decided", "by", "about", "reason"}


def key(root: Path, chapter: str, cells: list[str]) -> str:
    """Hash of all that the outputs of a chapter depend on.

    Args:
        root: The book's folder, with iclbook/, book/ and requirements.txt.
        chapter: Its id, such as ``linear/prompts``.
        cells: The sources of its code cells.
    """
    return digest(json.dumps(ingredients(root, chapter, cells), sort_keys=True, default=str))


def ingredients(root: Path, chapter: str, cells: list[str]) -> dict[str, Any]:
    """All that the outputs of a chapter depend on, by kind. Line ends and prose are not in it."""
    return {
        "cells": [with_newlines(cell) for cell in cells],
        "package": package(root, chapter, cells),
        "figures": hash_of(PLOTTED.read_bytes(), is_code=True),
        "results": results(root / "book" / "results", cells),
        "claims": rows(root / "iclbook" / LEDGER, chapter),
        "versions": versions(root / "requirements.txt"),
        "python": platform.python_version_tuple()[:2],
    }


def package(root: Path, chapter: str, cells: list[str]) -> dict[str, str]:
    """Hashes of the files of iclbook/ that a chapter can use, but for the ledger.

    These are the shared rooms, its own wing and those that its cells import; a wing is a folder of
    both iclbook/ and book/. A chapter outside the wings can use all.
    """
    folder = root / "iclbook"
    wings = {path.name for path in folder.glob("*/") if (root / "book" / path.name).is_dir()}
    own = chapter.split("/")[0]
    foreign = wings - {own} - imports(cells, wings) if own in wings else set()
    found = {}
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        hidden = "__pycache__" in parts or any(part.startswith(".") for part in parts)
        left_out = parts[0] in foreign or parts[-1] in COMMANDS or parts == (LEDGER,)
        if hidden or left_out or not path.is_file():
            continue
        found["/".join(parts)] = hash_of(path.read_bytes(), path.suffix == ".py")
    return found


def results(folder: Path, cells: Iterable[str]) -> dict[str, str]:
    """Hashes of the files of results that cells name, as in ``results("A-T1")``."""
    quoted = {name for cell in cells for _, name in re.findall(r"""(["'])([\w.-]+)\1""", cell)}
    files = [path for path in sorted(folder.glob("*.json")) if path.stem in quoted]
    return {path.name: hash_of(path.read_bytes(), is_code=False) for path in files}


def imports(cells: Iterable[str], wings: set[str]) -> set[str]:
    """The wings that cells import; all of them if a cell is not plain Python."""
    modules: set[str] = set()
    try:
        for node in (node for cell in cells for node in ast.walk(ast.parse(cell))):
            if isinstance(node, ast.Import):
                modules.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                modules.update(f"{node.module}.{alias.name}" for alias in node.names)
    except SyntaxError:
        return wings
    return {wing for wing in wings if any(f"{m}.".startswith(f"iclbook.{wing}.") for m in modules)}


@functools.cache
def hash_of(content: bytes, is_code: bool) -> str:
    """Hash of a file: of code without comments and docstrings, of text without its line ends."""
    if b"\0" in content:
        return hashlib.sha256(content).hexdigest()
    text = with_newlines(content.decode("utf8", "surrogateescape"))
    try:
        return digest(ast.dump(Bare().visit(ast.parse(text))) if is_code else text)
    except SyntaxError:
        return digest(text)


class Bare(ast.NodeTransformer):
    """Drops strings that stand alone: docstrings, of modules to attributes."""

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        """Drop it if it is a string."""
        alone = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if alone else node


def rows(ledger: Path, chapter: str) -> object:
    """The chapter's rows of the ledger, without their prose."""
    text = ledger.read_text("utf8") if ledger.exists() else ""
    return [stripped(row) for row in read_ledger(text) if row.get("chapter") == chapter]


@functools.cache
def read_ledger(text: str) -> list[dict[str, Any]]:
    """Rows of a ledger; what is none is left to the agreement check."""
    try:
        loaded = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506
    except yaml.YAMLError:
        return []
    return [row for row in loaded if isinstance(row, dict)] if isinstance(loaded, list) else []


def stripped(row: dict[str, Any]) -> dict[str, Any]:
    """A row without its prose."""
    kept = {name: value for name, value in row.items() if name not in PROSE_OF_ROW}
    if isinstance(kept.get("control"), dict):
        kept["control"] = kept["control"].get("part")
    if isinstance(kept.get("parts"), list):
        kept["parts"] = [
            {name: value for name, value in part.items() if name not in PROSE_OF_PART}
            for part in kept["parts"]
            if isinstance(part, dict)
        ]
    return kept


def versions(requirements: Path) -> dict[str, str]:
    """Installed versions of the packages that the book pins."""
    return installed(requirements.read_text("utf8") if requirements.exists() else "")


@functools.cache
def installed(requirements: str) -> dict[str, str]:
    """Installed versions of pinned packages; what is not installed is left out."""
    found = {}
    for name in re.findall(r"^([\w.-]+)==", requirements, re.MULTILINE):
        try:
            found[name.lower()] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def with_newlines(text: str) -> str:
    """Text with the line ends of Unix."""
    return text.replace("\r\n", "\n")


def digest(text: str) -> str:
    """Hash of a text."""
    return hashlib.sha256(text.encode("utf8", "surrogateescape")).hexdigest()
