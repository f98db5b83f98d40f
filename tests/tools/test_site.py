"""The site, built for real from a small book: what it shows, reads again, repairs and refuses."""

import shutil
from collections import namedtuple
from pathlib import Path

import pytest
from small_book import change

from tools import site
from tools.__main__ import main
from tools.book import Book, BookError
from tools.site import build_site

# Sphinx and its extensions use what newer versions of other packages call old.
pytestmark = pytest.mark.filterwarnings("ignore")

Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def published(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders that were given to publish, which has tests of its own."""
    folders: list[Path] = []
    monkeypatch.setattr(site, "publish", lambda _, html: folders.append(html))
    return folders


@pytest.fixture(scope="session")
def built(finished: Book, tmp_path_factory: pytest.TempPathFactory) -> Book:
    """The small book with its site, and a second page."""
    book = Book(tmp_path_factory.mktemp("built") / "book")
    shutil.copytree(finished.root, book.root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(site, "publish", lambda *_: None)
        build_site(book, fresh=True)
    return book


@pytest.fixture
def book(built: Book, monkeypatch: pytest.MonkeyPatch) -> Book:
    """The small book with its site; whoever spoils it mends it, for Sphinx knows its paths."""
    backup = built.root.parent / "backup"
    shutil.rmtree(backup, ignore_errors=True)
    shutil.copytree(built.root, backup)
    monkeypatch.chdir(built.root)
    yield built
    monkeypatch.chdir(built.root.parent)
    shutil.rmtree(built.root)
    backup.rename(built.root)


def pages(book: Book) -> dict[str, bytes]:
    """All files of the site, but for Sphinx's hash of its settings, which has no fixed order."""
    files = (path for path in book.html.rglob("*") if path.is_file() and path.name != ".buildinfo")
    return {path.relative_to(book.html).as_posix(): path.read_bytes() for path in files}


def page(book: Book, name: str = "a/one") -> str:
    return (book.html / "book" / f"{name}.html").read_text("utf8")


def nothing_half_done(book: Book) -> bool:
    left = {path.name for path in book.build.iterdir()}
    return not left & {"next", "old"}


def test_the_site_shows_the_stored_run(book: Book) -> None:
    assert "2.0000" in page(book)
    assert "aria-label='a dot'" in page(book)


def test_what_is_as_it_was_is_not_built(book: Book, capsys: pytest.CaptureFixture[str]) -> None:
    before = (book.html / "index.html").stat()
    assert main(["book"], book) == 0
    said = capsys.readouterr().out
    assert "nothing needs a run" in said
    assert "the site is as its sources are" in said
    assert f"The book: {(book.html / 'index.html').as_uri()}" in said
    assert (book.html / "index.html").stat() == before
    shutil.rmtree(book.html)
    build_site(book, fresh=False)
    assert "2.0000" in page(book)


def test_a_mended_typo_is_read_alone_and_gives_the_site_that_a_fresh_build_gives(
    book: Book, capsys: pytest.CaptureFixture[str], published: list[Path]
) -> None:
    change(book.source("a/one"), "The risk of two", "The risk of 2")
    change(book.source("a/one"), "# One", "# The first")  # which the other page shows
    assert main(["book"], book) == 0
    said = capsys.readouterr().out
    assert "nothing needs a run" in said
    assert "0 added, 1 changed, 0 removed" in said
    assert "The risk of 2." in page(book)
    assert "The first" in page(book, "index")
    once = pages(book)
    assert main(["site"], book) == 0
    assert "2 added, 0 changed, 0 removed" in capsys.readouterr().out
    assert pages(book) == once
    assert published == 2 * [book.build / "next" / "html"]


def test_the_wheel_is_kept_while_the_package_is_as_it_was(
    book: Book, monkeypatch: pytest.MonkeyPatch
) -> None:
    def publish(_: Book, html: Path) -> None:
        wheel = html / "notebooks" / "a.whl"
        wheel.parent.mkdir(parents=True, exist_ok=True)
        with wheel.open("a") as file:
            file.write("built ")

    def wheel() -> str:
        return (book.html / "notebooks" / "a.whl").read_text("utf8")

    monkeypatch.setattr(site, "publish", publish)
    build_site(book, fresh=True)
    assert wheel() == "built "
    change(book.source("a/one"), "The risk of two", "The risk of 2")
    build_site(book, fresh=False)
    assert wheel() == "built built "
    build_site(book, fresh=True)
    assert wheel() == "built "


def test_a_changed_output_is_read_though_its_page_is_old(book: Book) -> None:
    before = book.source("a/one").stat()
    path = book.run("a/one")
    change(path, "2.0000", "7.0000")
    build_site(book, fresh=False)
    assert "7.0000" in page(book)
    assert book.source("a/one").stat() == before


def test_only_a_changed_chapter_is_parsed(book: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed = []
    real = site.read_myst_markdown_notebook
    monkeypatch.setattr(
        site, "read_myst_markdown_notebook", lambda text: parsed.append(text) or real(text)
    )
    change(book.source("index"), "# Index", "# The index")
    build_site(book, fresh=False)
    assert not parsed
    change(book.source("a/one"), "The risk of two", "The risk of 2")
    build_site(book, fresh=False)
    assert len(parsed) == 1


@pytest.mark.parametrize("name", ["_config.yml", "book/references.bib", "iclbook/risk.py"])
def test_whatever_else_changes_is_built_afresh(book: Book, name: str) -> None:
    runs = {"a/one": site.run_of(book, "a/one")}
    before = site.inputs(book, runs)
    with (book.root / name).open("a") as file:
        file.write("\n")
    today = site.inputs(book, runs)
    assert today["rest"] != before["rest"]
    assert site.start(book, book.build / "next", today, fresh=False) == today["pages"].keys()
    assert not (book.build / "next").exists()


def test_a_bad_page_leaves_the_site_and_the_next_build_starts_afresh(
    book: Book, capsys: pytest.CaptureFixture[str]
) -> None:
    before = pages(book)
    change(book.pages / "index.md", "a/one.md", "a/two.md")
    for _ in range(2):  # an incremental second one would not see the warning again
        with pytest.raises(BookError, match="errors or warnings"):
            build_site(book, fresh=False)
        assert pages(book) == before
        assert nothing_half_done(book)
    assert "a/two.md" in capsys.readouterr().err


def test_sphinx_must_not_execute(book: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    before = pages(book)
    monkeypatch.setattr(site, "fill_cache", lambda *_: None)
    with pytest.raises(BookError, match=r"Sphinx executed .*a/one.md itself"):
        build_site(book, fresh=True)
    assert pages(book) == before
    assert nothing_half_done(book)


def test_a_stale_run_is_said(book: Book) -> None:
    change(book.source("a/one"), "risk(2.0)", "risk(3.0)")
    with pytest.raises(BookError, match="a/one: no run of today's sources"):
        build_site(book, fresh=False)


def test_a_build_killed_between_its_last_two_steps_is_repaired(book: Book) -> None:
    before = pages(book)
    book.html.rename(book.build / "old")
    change(book.source("a/one"), "risk(2.0)", "risk(3.0)")  # so this one fails
    with pytest.raises(BookError, match="no run"):
        build_site(book, fresh=False)
    assert pages(book) == before
    assert not (book.build / "old").exists()


def test_one_killed_after_them_leaves_nothing(book: Book) -> None:
    shutil.copytree(book.html, book.build / "old")
    site.repair(book)
    assert not (book.build / "old").exists()
    assert "2.0000" in page(book)


def test_a_killed_build_is_not_gone_on_with(book: Book) -> None:
    """What a build was made from is on record only from its end to the start of the next."""
    work = book.build / "next"
    today = site.inputs(book, {"a/one": site.run_of(book, "a/one")})
    site.start(book, work, today, fresh=False)
    assert (work / ".doctrees").exists()
    assert site.inputs_before(work) == {}
    site.start(book, work, today, fresh=False)
    assert not work.exists()


@pytest.mark.parametrize("command", ["book", "refs", "nbval", "site"])
def test_a_full_disk_is_one_sentence(
    book: Book, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    before = pages(book)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(2**30, 2**30, 2**20))
    if command == "refs":
        book.run("a/one").unlink()
    assert main([command], book) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"\n{command} failed\nthe disk is full: ")
    assert said.count("\n") == 3
    assert pages(book) == before


def test_a_write_that_fails_is_one_sentence_and_leaves_nothing(
    book: Book, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system", "somewhere")

    before = pages(book)
    monkeypatch.setattr(site, "build_sphinx", fail)
    assert main(["site"], book) == 1
    assert capsys.readouterr().err == "\nsite failed\nsomewhere: Read-only file system\n"
    assert pages(book) == before
    assert nothing_half_done(book)
