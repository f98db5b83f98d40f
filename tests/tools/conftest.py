"""The small book, executed once."""

import shutil
from pathlib import Path

import pytest
import small_book

from tools.book import Book
from tools.engine import refresh


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Book:
    """The small book, executed, with its reference."""
    book = small_book.make(tmp_path_factory.mktemp("finished"))
    refresh(book, ["a/one"])
    return book


@pytest.fixture
def book(finished: Book, tmp_path: Path) -> Book:
    """A copy of the executed small book, to spoil."""
    copy = Book(tmp_path / "book")
    shutil.copytree(finished.root, copy.root)
    return copy


@pytest.fixture
def unrun(tmp_path: Path) -> Book:
    """The small book, never executed: enough where nothing is run."""
    return small_book.make(tmp_path / "book")
