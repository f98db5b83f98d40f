"""The workshop of the book, tried on a small one: every mistake it must catch is made here."""

import shutil
import subprocess
from pathlib import Path

import chapters
import nbformat
import pytest
import yaml
from bookcheck import Book, BookError, check, code_cells

HERE = Path(__file__).parent
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

from IPython.display import HTML, display

print(f"{{risk(2.0):.4f}}", flush=True)
print("(dimensionless)")
display(HTML("<figure><svg role='img' aria-label='a dot'><circle r='1'/></svg></figure>"))
```
"""
CONFIG = """\
title: A small book
only_build_toc_files: true
execute: {execute_notebooks: cache, timeout: 20}
launch_buttons: {thebe: false}
repository: {url: ""}
sphinx:
  config:
    include_patterns: ["book/**"]
    exclude_patterns: [".*"]
"""
BUDGET = {"sphinx": {"config": {"icl_budget_seconds": 10, "icl_budget_mib": 1000}}}


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf8")


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Book:
    """A small book with one chapter, executed, with its reference."""
    book = Book(tmp_path_factory.mktemp("finished"))
    write(book.root / "_config.yml", CONFIG)
    write(
        book.root / "_toc.yml",
        "{format: jb-book, root: book/index, chapters: [{file: book/a/one}]}",
    )
    write(book.pages / "index.md", "# Index\n\nA [chapter](a/one.md).\n")
    write(book.source("a/one"), CHAPTER)
    write(book.root / "iclbook" / "risk.py", "def risk(x):\n    return 1.0 * x\n")
    write(book.root / "iclbook" / "__init__.py", "")
    shutil.copy(HERE.parent / "pyproject.toml", book.root)
    for name in ("conftest.py", "bookcheck.py", "chapters.py", "nbval-sanitize.cfg"):
        write(book.root / "tests" / name, (HERE / name).read_text("utf8"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(book.root))  # kernels import the small book's own iclbook
        chapters.refresh(book, ["a/one"])
    return book


@pytest.fixture
def book(finished: Book, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Book:
    """A copy of the small book, to spoil."""
    copy = Book(tmp_path / "book")
    shutil.copytree(finished.root, copy.root)
    monkeypatch.setenv("PYTHONPATH", str(copy.root))
    return copy


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text("utf8")
    assert old in text
    path.write_text(text.replace(old, new), "utf8")


def test_a_good_book_has_no_problems(book: Book) -> None:
    assert check(book) == []


def problem(book: Book) -> str:
    """The one problem that check finds."""
    (found,) = check(book)
    return found


def test_changed_cell_differs_from_its_reference(book: Book) -> None:
    change(book.source("a/one"), "risk(2.0)", "risk(3.0)")
    assert problem(book).startswith(
        "a/one: Cell 1 (from IPython.display import HTML, display) diff"
    )
    assert "make refs CHAPTER=a/one" in problem(book)


def test_added_cell_differs_from_its_reference(book: Book) -> None:
    with book.source("a/one").open("a") as file:
        file.write("\n```{code-cell} ipython3\n3\n```\n")
    assert problem(book).startswith("a/one: 3 code cells, but 2 in the reference")


def test_changed_prose_needs_no_new_reference(book: Book) -> None:
    change(book.source("a/one"), "The risk of two", "The risk of 2")
    assert check(book) == []


def test_cell_never_executed(book: Book) -> None:
    change(book.reference("a/one"), '"execution_count": 2', '"execution_count": null')
    assert "a/one: Cell 1 (from IPython.display" in problem(book)
    assert "never executed in the reference" in problem(book)


def test_page_missing_from_contents(book: Book) -> None:
    write(book.pages / "plain.md", "# Plain\n")
    write(book.pages / "results" / "table.md", "A table, for a page to include.\n")
    assert problem(book) == "plain: not in _toc.yml"


def test_chapter_missing_from_contents(book: Book) -> None:
    change(book.root / "_toc.yml", "{file: book/a/one}", "")
    assert problem(book) == "a/one: not in _toc.yml"


def test_contents_without_page(book: Book) -> None:
    change(book.root / "_toc.yml", "{file: book/a/one}", "{file: book/a/one}, {file: book/two}")
    assert problem(book) == "two: in _toc.yml, but book/two.md does not exist"


def test_chapter_without_reference(book: Book) -> None:
    book.reference("a/one").unlink()
    assert problem(book).startswith("a/one: no reference, tests/reference/a/one.ipynb")


def test_reference_without_chapter(book: Book) -> None:
    shutil.copy(book.reference("a/one"), book.reference("a/gone"))
    assert problem(book) == "a/gone: tests/reference/a/gone.ipynb has no chapter"


def test_format_that_is_never_executed(book: Book) -> None:
    change(book.source("a/one"), "format_name: myst", "format_name: markdown")
    assert problem(book).startswith("a/one: format_name is markdown, not myst")


def test_code_without_header_is_never_executed(book: Book) -> None:
    change(book.source("a/one"), HEADER, "")
    assert problem(book).startswith("a/one: format_name is None, not myst")


def test_lossy_round_trip(book: Book) -> None:
    change(book.source("a/one"), "ipython3\nfrom", "python\nfrom")
    assert problem(book).startswith("a/one: does not survive jupytext: line 23, '```{code-cell} ip")


def test_cell_inside_a_directive_is_never_executed(book: Book) -> None:
    with book.source("a/one").open("a") as file:
        file.write("\n````{note}\n```{code-cell} ipython3\n3\n```\n````\n")
    assert "a/one: a code cell inside another directive is never executed" in problem(book)


@pytest.mark.parametrize("tag", ["raises-exception", "nbval-ignore-output"])
def test_tag_that_weakens_the_comparison(book: Book, tag: str) -> None:
    change(book.source("a/one"), "[hide-input]", f"[{tag}]")
    assert f"Cell 1 (from IPython.display import HTML, display) has the tag {tag}" in problem(book)


def test_comment_that_weakens_the_comparison(book: Book) -> None:
    change(book.source("a/one"), "from iclbook", "# NBVAL_IGNORE_OUTPUT\nfrom iclbook")
    assert "Cell 0 (# NBVAL_IGNORE_OUTPUT) has an nbval comment" in problem(book)


def test_reference_holds_text_only(book: Book) -> None:
    cells = code_cells(nbformat.read(book.reference("a/one"), as_version=4))
    text, html = cells[1].outputs
    assert text.text == "2.0000\n(dimensionless)\n"  # in one piece
    assert html.data["text/html"] == "<figure><svg/></figure>"
    assert book.reference("a/one").stat().st_size < 2048


@pytest.mark.parametrize(
    "output",
    [
        nbformat.v4.new_output("stream", name="stderr", text="careful"),
        nbformat.v4.new_output("display_data", data={"image/svg+xml": "<svg></svg>"}),
    ],
)
def test_output_that_cannot_be_compared_is_refused(
    book: Book, output: nbformat.NotebookNode
) -> None:
    nb = book.stored_run("a/one")
    nb.cells[1].outputs = [output]
    with pytest.raises(BookError, match=r"a/one: Cell 0 \(from iclbook.risk import risk\) writes"):
        chapters.make_reference(nb, "a/one")


def nbval(book: Book) -> subprocess.CompletedProcess[str]:
    """The very command that `make test` runs, on the small book."""
    chapters.set_kernel_environment(book)
    command = chapters.nbval_command(book)
    return subprocess.run(command, cwd=book.root, capture_output=True, text=True, check=False)


def test_nbval_keeps_what_it_ran_for_the_site(book: Book) -> None:
    book.run("a/one").unlink()
    done = nbval(book)
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout
    run = book.stored_run("a/one")
    assert "<circle r='1'/>" in code_cells(run)[1].outputs[1].data["text/html"]
    assert 0 < run.metadata["iclbook"]["seconds"] < 20
    assert run.metadata["iclbook"]["peak_mib"] > 10


def test_nbval_turns_red_at_a_thousandth_and_at_an_exception(book: Book) -> None:
    for path in (book.source, book.reference):
        write(path("a/two"), path("a/one").read_text("utf8").replace("risk(2.0)", "risk(-2.0)"))
    changed = "if x < 0:\n        raise ValueError\n    return 1.001 * x"
    change(book.root / "iclbook" / "risk.py", "return 1.0 * x", changed)
    done = nbval(book)
    assert done.returncode == 1
    assert "2 failed, 2 passed" in done.stdout
    cell = "Cell 1 (from IPython.display import HTML, display)"
    assert f"a/one: {cell}: Cell outputs differ" in done.stdout
    assert f"a/two: {cell}: Cell execution caused an exception" in done.stdout
    # What ran to its end can be shown; what did not cannot.
    assert "2.0020" in code_cells(book.stored_run("a/one"))[1].outputs[0].text
    assert book.stored_run("a/two") is None


def test_only_stale_chapters_are_run(book: Book, capsys: pytest.CaptureFixture[str]) -> None:
    chapters.run_stale(book, ["a/one"])
    assert capsys.readouterr().out == "1 of 1 chapters need no run\n"
    change(book.root / "iclbook" / "risk.py", "1.0 * x", "3.0 * x")
    with pytest.raises(BookError, match="a/one: no run of today's sources"):
        chapters.build_site(book)
    chapters.run_stale(book, ["a/one"])
    assert "6.0000" in code_cells(book.stored_run("a/one"))[1].outputs[0].text


def test_a_failing_chapter_is_named_with_its_cell(book: Book) -> None:
    change(book.source("a/one"), "risk(2.0)", "risk(1, 2)")
    with pytest.raises(BookError, match=r"a/one: Cell 1 \(from IPython.*\) failed with TypeError"):
        chapters.run_stale(book, ["a/one"])
    assert book.stored_run("a/one") is None


def test_unknown_chapter_is_an_error(book: Book, capsys: pytest.CaptureFixture[str]) -> None:
    assert chapters.main(["run", "a/two"], book) == 1
    assert "no chapter a/two; there are a/one" in capsys.readouterr().err


def test_chapter_over_its_budget(book: Book) -> None:
    write(book.root / "_config.yml", yaml.safe_dump(BUDGET))
    assert chapters.budget(book) == []
    nb = book.stored_run("a/one")
    chapters.store_run(book, "a/one", nb, book.key("a/one"), seconds=21, mib=1001)
    assert chapters.budget(book) == [
        "a/one: 21 s, over 2.0 times 10 s",
        "a/one: 1001 MiB, over 1000 MiB",
    ]
    change(book.source("a/one"), "The risk", "A risk")
    assert chapters.budget(book) == ["a/one: no run of today's sources is stored"]


def test_the_site_shows_the_stored_run_and_a_bad_page_leaves_it(book: Book) -> None:
    address = chapters.build_site(book)
    assert address == (book.html / "index.html").as_uri()
    page = book.html / "book" / "a" / "one.html"
    assert "2.0000" in page.read_text("utf8")
    before = page.stat()
    change(book.pages / "index.md", "a/one.md", "a/two.md")
    with pytest.raises(BookError, match="errors or warnings"):
        chapters.build_site(book)
    assert page.stat() == before


def test_sphinx_must_not_execute(book: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chapters, "fill_cache", lambda *_: None)
    with pytest.raises(BookError, match=r"Sphinx executed .*a/one.md itself"):
        chapters.build_site(book)
    assert not book.html.exists()


def test_a_source_that_changes_while_its_chapter_runs_is_said_and_not_written(book: Book) -> None:
    edit = (
        'from pathlib import Path\n\nPath("../../iclbook/risk.py").open("a").write("# edited\\n")'
    )
    change(
        book.source("a/one"),
        "from iclbook.risk import risk",
        f"from iclbook.risk import risk\n{edit}",
    )
    before = book.reference("a/one").read_text("utf8")
    with pytest.raises(BookError, match=r"changed while they ran, .* run again: a/one$"):
        chapters.refresh(book, ["a/one"])
    assert book.reference("a/one").read_text("utf8") == before
