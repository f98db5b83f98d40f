"""Notebooks for readers: plain Markdown, no solutions for teaching, and they run anywhere."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
from bs4 import BeautifulSoup
from docutils.nodes import make_id
from nbclient import NotebookClient
from nbformat import NotebookNode, v4

from tools import publish
from tools.book import Book, BookError, code_cells, read_chapter
from tools.prose import Page, Site, markdown, read_site
from tools.store import GLUED, store_run

ROOT = Path(__file__).parents[2]
BOOK = Book(ROOT)
WHEEL = "iclbook-0.1.0-py3-none-any.whl"
# The quickest of each wing.
QUICK = ("linear/gradient-flow", "nonlinear/patterns")

CHAPTER = r"""---
kernelspec:
  display_name: Python 3
  language: python
  name: python3
jupytext:
  text_representation:
    format_name: myst
---

# A trial

(the-gap)=
## The gap

It is {glue:text}`gap`, as {cite:p}`hoerl1970,zhang2024` say; {cite:t}`zhang2024` prove
{prf:ref}`thm-trial` in {eq}`eq-trial`, see [](#the-gap), [there](other.md), [](other.md) and
{claim}`A-F1`. `{eq}` is a role. See [it](the-gap), [](the-gap): $E[x](y)$.
% a remark

$$
x = 1
$$ (eq-trial)

```{math}
:label: eq-two
y = 2
```

:::{prf:theorem} Of *trials*
:label: thm-trial

Let $x<1$:

```{admonition} Nested
:class: dropdown

{prf:ref}`thm-other` {ref}`here <the-gap>`
```
:::

:::{prf:proof}
Clear.
:::

```python
{eq}`verbatim`
```

```{code-cell} ipython3
:tags: [hide-input]

print("what was found")
```

```{exercise-start} By hand
:label: ex-trial
```

Find $x$.

```{exercise-end}
```

```{solution-start} ex-trial
:class: dropdown
```

It is SECRET.

```{code-cell} ipython3
"SECRET code"
```

SECRET remark.

```{solution-end}
```

## References

```{bibliography}
:filter: docname in docnames
```
"""
OTHER = "# The other page\n"
WORKS = """
@article{hoerl1970, author = {Hoerl, A. and Kennard, R.}, title = {Ridge {R}egression},
  year = {1970}, journal = {Technometrics}}
@misc{zhang2024, author = {Zhang, R. and Wu, J. and M{\\"o}ller, P.}, title = {Blocks},
  year = {2024}, eprint = {2402.14951}, archiveprefix = {arXiv}}
"""
HTML = """<div class="proof theorem admonition" id="thm-trial">
<p class="admonition-title"><span class="caption-number">Theorem 1.1 </span> (Of trials)</p>
<div class="math notranslate nohighlight" id="equation-eq-trial">
<span class="eqno">(1.1)<a class="headerlink" href="#">#</a></span>
<div class="math notranslate nohighlight" id="equation-eq-two">
<span class="eqno">(1.2)<a class="headerlink" href="#">#</a></span>
<div class="exercise admonition" id="ex-trial">

<p class="admonition-title"><span class="caption-number">Exercise 1.1 </span> (By hand)</p>
"""
OTHER_HTML = """<div class="proof theorem admonition" id="thm-other">
<p class="admonition-title"><span class="caption-number">Theorem 2.1 </span> (Else)</p>"""


def executed(text: str) -> NotebookNode:
    """A chapter as if it had run: it glued whatever its prose takes up."""
    nb = read_chapter(text)
    for number, cell in enumerate(code_cells(nb), start=1):
        cell.update(execution_count=number, outputs=[])
    for name in sorted(set(re.findall(r"\{glue:text\}`([^`]+)`", text))):
        scrap = {"scrapbook": {"name": name, "mime_prefix": GLUED}}
        data = {f"{GLUED}text/plain": "'0.25'"}
        code_cells(nb)[0].outputs.append(v4.new_output("display_data", data, metadata=scrap))
    code_cells(nb)[0].outputs.append(v4.new_output("stream", text="what was found\n"))
    return nb


@pytest.fixture
def book(tmp_path: Path) -> Book:
    """A book of one chapter that has run, and of one page, with its built site."""
    book = Book(tmp_path)
    files = {
        "_config.yml": "title: A small book",
        "book/linear/trial.md": CHAPTER,
        "book/linear/other.md": OTHER,
        "book/references.bib": WORKS,
        "_build/html/book/linear/trial.html": HTML,
        "_build/html/book/linear/other.html": OTHER_HTML,
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf8")
    store(book)
    return book


def store(book: Book) -> None:
    key = book.key("linear/trial")
    store_run(book, "linear/trial", executed(CHAPTER), key, seconds=1, cpu=1, mib=1)


def published(book: Book, name: str = "trial") -> NotebookNode:
    publish.publish(book, book.html)
    return nbformat.read(book.html / f"notebooks/linear/{name}.ipynb", as_version=4)


def prose_of(nb: NotebookNode) -> str:
    return "\n\n".join(cell.source for cell in nb.cells if cell.cell_type == "markdown")


def test_the_prose_of_a_notebook_is_plain_markdown(book: Book) -> None:
    nb = published(book)
    nbformat.validate(nb)
    first = nb.cells[0].source
    zhang = "[2024](https://arxiv.org/abs/2402.14951)"
    assert (
        first
        == rf"""# A trial

## The gap

It is 0.25, as (Hoerl and Kennard, 1970; Zhang et al., {zhang}) say; Zhang et al. ({zhang}) prove
Theorem 1.1 in (1.1), see “The gap”, there (“The other page”), “The other page” and
claim A-F1. `{{eq}}` is a role. See it, “The gap”: $E[x](y)$.

$$
x = 1 \tag{{1.1}}
$$

$$
y = 2 \tag{{1.2}}
$$

<blockquote>

**Theorem 1.1: Of *trials***

Let $x<1$:

<details>
<summary><b>Nested</b></summary>

Theorem 2.1 of “The other page” here

</details>

</blockquote>

*Proof.* Clear.

```python
{{eq}}`verbatim`
```"""
    )
    assert "**Exercise 1.1: By hand**\n\nFind $x$." in prose_of(nb)
    assert "**Solution of Exercise 1.1**\n\nIt is SECRET." in prose_of(nb)
    assert nb.cells[-1].source.endswith(
        "## References\n\n- Hoerl and Kennard (1970). *Ridge Regression*. Technometrics\n"
        f"- Zhang et al. ({zhang}). *Blocks*."
    )


def test_the_notebook_has_the_outputs_of_the_run_without_what_was_glued(book: Book) -> None:
    shown, secret = code_cells(published(book))
    assert [output.text for output in shown.outputs] == ["what was found\n"]
    assert (shown.execution_count, secret.execution_count) == (1, 2)
    assert shown.metadata == {"jupyter": {"source_hidden": True}}


def test_the_notebook_for_teaching_has_room_in_place_of_solutions(book: Book) -> None:
    nb = published(book, "trial-exercises")
    nbformat.validate(nb)
    assert "SECRET" not in nbformat.writes(nb)
    assert "what was found\\n" not in json.dumps([cell.get("outputs") for cell in nb.cells])
    assert [cell.source for cell in code_cells(nb)] == ['print("what was found")', ""]
    assert all(cell.execution_count is None for cell in code_cells(nb))
    sources = [cell.source for cell in nb.cells]
    place = sources.index("*Your solution:*")
    assert sources[place - 1].endswith("Find $x$.")
    assert sources[place + 2].startswith("## References")


def test_prose_that_was_changed_after_the_run_is_what_is_published(book: Book) -> None:
    book.source("linear/trial").write_text(CHAPTER.replace("# A trial", "# A second trial"), "utf8")
    nb = published(book)
    assert nb.cells[0].source.startswith("# A second trial")
    assert code_cells(nb)[0].outputs


def test_the_same_book_gives_the_same_bytes(book: Book) -> None:
    path = book.html / "notebooks/linear/trial.ipynb"
    publish.publish(book, book.html)
    before = path.read_bytes()
    publish.publish(book, book.html)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "unknown",
    ["{glue:text}`none`", "{cite:p}`none`", "{prf:ref}`none`", "{eq}`none`", "{numref}`none`"],
)
def test_what_the_book_does_not_have_is_named(book: Book, unknown: str) -> None:
    page = Page(read_site(book, book.html), "linear/trial", "", {}, solved=True)
    with pytest.raises(BookError, match=r"linear/trial: .*'none'"):
        markdown(page, f"See {unknown}.")


def test_a_chapter_that_has_not_run_is_not_published(book: Book) -> None:
    book.run("linear/trial").unlink()
    with pytest.raises(BookError, match="linear/trial: no run"):
        publish.publish(book, book.html)


CONF = f"""
import sys
sys.path.insert(0, {str(ROOT / "book/_ext")!r})
extensions = ["myst_parser", "downloads"]
html_theme = "sphinx_book_theme"
"""


def test_a_chapter_s_menu_downloads_the_notebooks(tmp_path: Path) -> None:
    pages = {"index": "# A book\n\n```{toctree}\nbook/linear/one\n```\n"}
    pages["book/linear/one"] = "---\njupytext: {}\n---\n\n# One\n"
    for name, text in pages.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{name}.md").write_text(text)
    (tmp_path / "conf.py").write_text(CONF)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-W",
        "-q",
        "-b",
        "html",
        tmp_path,
        tmp_path / "html",
    ]
    subprocess.run(command, check=True, capture_output=True)

    def menu(page: str) -> dict[str, str | None]:
        html = BeautifulSoup((tmp_path / f"html/{page}.html").read_text("utf8"), "html.parser")
        links = html.select(".dropdown-download-buttons a")
        return {str(link["href"]): link.get("download") for link in links}

    assert menu("book/linear/one") == {
        "../../notebooks/linear/one.ipynb": "one.ipynb",
        "../../notebooks/linear/one-exercises.ipynb": "one-exercises.ipynb",
        f"../../notebooks/{WHEEL}": WHEEL,
    }
    assert menu("index") == {"_sources/index.md": None}


# The real chapters


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """The book's pages, with numbers that are made up: the site need not have been built."""
    site = read_site(BOOK, tmp_path_factory.mktemp("no site"))
    labels = {}
    for page in BOOK.page_ids():
        text = BOOK.source(page).read_text("utf8")
        for label in re.findall(r"^:label: *(\S+)|^\$\$ *\(([\w-]+)\)", text, re.MULTILINE):
            labels[make_id("".join(label))] = (page, "(1.1)")
    return replace(site, labels=site.labels | labels)


@pytest.mark.parametrize("solved", [True, False])
@pytest.mark.parametrize("chapter", BOOK.chapters())
def test_no_directive_or_role_is_left(site: Site, chapter: str, *, solved: bool) -> None:
    text = BOOK.source(chapter).read_text("utf8")
    nb = publish.notebook(site, chapter, read_chapter(text), executed(text), solved=solved)
    nbformat.validate(nb)
    prose = prose_of(nb)
    raw = r".*(?:\{[\w:-]+\}`|```\{|:::|^\([\w-]+\)=|\]\((?!http)[\w./#-]{2,}\)).*"
    assert re.findall(raw, prose, re.MULTILINE) == []
    assert prose.count("\n$$") % 2 == 0
    for title in re.findall(r"\{exercise-start\} *(.*)", text):
        assert f"**(1.1): {title}**" in prose
    assert prose.count("*Your solution:*") == (0 if solved else text.count("{solution-start}"))


def test_chapters_import_only_what_the_package_brings() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf8"))["project"]
    brought = project["dependencies"] + project["optional-dependencies"]["book"]
    modules = {re.match(r"[\w-]+", one)[0].lower() for one in brought} | {"iclbook"}
    modules = (modules - {"scikit-learn", "pyyaml"}) | {"sklearn", "yaml"} | sys.stdlib_module_names
    for chapter in BOOK.chapters():
        cells = [ast.parse(cell) for cell in BOOK.cells(chapter)]
        imported = {name.lower() for cell in cells for name in imports(cell)}
        assert imported <= modules, chapter


def imports(cell: ast.AST) -> Iterator[str]:
    for node in ast.walk(cell):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split(".")[0]


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the wheel, and nothing else of the book, is installed."""
    folder = tmp_path_factory.mktemp("elsewhere")
    publish.build_wheel(ROOT, folder)
    assert [path.name for path in folder.iterdir()] == [publish.wheel_name(ROOT)] == [WHEEL]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    target = ["--target", folder / "installed", folder / WHEEL]
    subprocess.run([*command, *target], check=True, capture_output=True)
    for absent in ("myst_nb", "sphinx", "tools"):
        (folder / f"installed/{absent}.py").write_text("raise ImportError('not for readers')")
    return folder


def environment(elsewhere: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(elsewhere / "installed"), "OMP_NUM_THREADS": "1"}


def test_the_wheel_has_the_whole_package_and_nothing_else(elsewhere: Path) -> None:
    kept = {".py", ".yml", ".json", ".typed"}
    package = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "iclbook").rglob("*")
        if path.suffix in kept
    }
    package |= {f"iclbook/results/{path.name}" for path in (ROOT / "book/results").glob("*.json")}
    with zipfile.ZipFile(elsewhere / WHEEL) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert names == package
    assert {"iclbook/claims.yml", "iclbook/claims.schema.json", "iclbook/py.typed"} <= names


def test_the_ledger_is_read_outside_the_repository(elsewhere: Path, tmp_path: Path) -> None:
    code = "from iclbook import claims, __file__ as file; print(file, len(claims.load()))"
    ran = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=tmp_path,
        env=environment(elsewhere),
        check=True,
        capture_output=True,
        text=True,
    )
    file, rows = ran.stdout.split()
    assert Path(file).is_relative_to(elsewhere)
    assert int(rows) > 10


def test_the_install_cell_says_what_is_missing(site: Site, tmp_path: Path) -> None:
    words, cell = publish.install_cells(site, QUICK[0], WHEEL)
    assert f"[{WHEEL}](../{WHEEL})" in words.source
    code = cell.source.replace("%pip install --quiet ", "installed = ")
    code = code.replace('"{wheels[0]}[book]"', 'f"{wheels[0]}[book]"')
    without = "import sys; sys.meta_path[:] = [f for f in sys.meta_path if 'ditable' not in str(f)]"

    def run(folder: Path) -> subprocess.CompletedProcess[str]:
        program = f"{without}\nsys.path[:] = [p for p in sys.path if p != {str(ROOT)!r}]\n{code}"
        command = [sys.executable, "-P", "-c", f"{program}\nprint(installed)"]
        return subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True)

    (tmp_path / "linear").mkdir()
    assert f"FileNotFoundError: put {WHEEL} beside this notebook" in run(tmp_path / "linear").stderr
    (tmp_path / WHEEL).touch()
    for folder, path in ((tmp_path, WHEEL), (tmp_path / "linear", f"../{WHEEL}")):
        assert run(folder).stdout == f"{path}[book]\n"


@pytest.mark.parametrize("chapter", QUICK)
def test_a_notebook_runs_in_an_empty_folder(
    site: Site, elsewhere: Path, tmp_path: Path, chapter: str
) -> None:
    text = BOOK.source(chapter).read_text("utf8")
    nb = publish.notebook(site, chapter, read_chapter(text), executed(text), solved=True)
    nb.cells[:0] = publish.install_cells(site, chapter, WHEEL)
    nb.cells.append(v4.new_code_cell("import iclbook\nprint(iclbook.__file__)"))
    shutil.copy(elsewhere / WHEEL, tmp_path)
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(nb, timeout=240, resources=resources).execute(env=environment(elsewhere))
    assert Path(nb.cells[-1].outputs[0].text.strip()).is_relative_to(elsewhere)
    stderr = [
        output.text
        for cell in code_cells(nb)
        for output in cell.outputs
        if output.get("name") == "stderr"
    ]
    assert stderr == []
    assert [path.name for path in tmp_path.iterdir()] == [WHEEL]
