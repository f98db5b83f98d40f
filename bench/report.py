"""What all benches share: where they ran, and how their table gets into the book."""

import argparse
import platform
from collections.abc import Callable
from pathlib import Path


def machine() -> str:
    """The system and the processor, in words for a table's note."""
    return f"{platform.system()} {platform.machine()}"


def arguments(doc: str) -> argparse.ArgumentParser:
    """A parser for a bench's command line; --write names a file for its table."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--write", type=Path, help="file to write the table to")
    return parser


def publish(text: str, path: Path | None) -> None:
    """Print the table; write it too if a file was named."""
    print(text)
    if path:
        path.write_text(text, "utf8")


def run(doc: str, make: Callable[[], str]) -> None:
    """A bench whose command line has nothing but --write."""
    path = arguments(doc).parse_args().write
    publish(make(), path)
