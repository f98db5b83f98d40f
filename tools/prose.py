"""The pages' MyST Markdown as plain Markdown, which any notebook shows.

What Sphinx would fill in is filled in: numbers of theorems and equations as the built site has
them, glued values, authors and years. Links within the book become the words that they lead to.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from docutils.nodes import make_id
from pybtex.database import Entry, parse_file
from pybtex.richtext import Text

from tools.book import Book, BookError

FENCE = re.compile(r"(`{3,}|:{3,}|~{3,})(?: *\{([\w:-]+)\}(.*)|(.*))")
ROLE = re.compile(r"(?<!`)\{([A-Za-z][\w:-]*)\}`([^`]+)`|`+[^`]+`+")
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((#?[\w-]+|[\w./-]+\.(?:md|json|html)(?:#[\w-]+)?)\)")
HEADING = re.compile(r"^\(([\w-]+)\)=\n+#+ +(.+)$", re.MULTILINE)
NUMBERED = re.compile(
    r'id="(?:equation-)?([\w-]+)">\s*<(?:p class="admonition-title"><span class="caption-number|'
    r'span class="eqno)">([^<]+)<'
)


@dataclass(frozen=True)
class Site:
    """What the pages refer to."""

    book: Book
    titles: dict[str, str]
    """Titles of pages by id."""
    labels: dict[str, tuple[str, str]]
    """Page and words of what has a label: ``Theorem 1.1``, ``(1.2)``, ``“Where it breaks”``."""
    works: dict[str, Entry]
    """The bibliography."""


@dataclass(frozen=True)
class Page:
    """One chapter on its way to a notebook."""

    site: Site
    id: str
    text: str
    """All of its source, where the bibliography finds what is cited."""
    glued: dict[str, str]
    solved: bool
    """Whether solutions are given."""


def read_site(book: Book, html: Path) -> Site:
    """Read titles and labels from the pages, and numbers from the built site."""
    titles: dict[str, str] = {}
    labels: dict[str, tuple[str, str]] = {}
    for page in book.page_ids():
        text = book.source(page).read_text("utf8")
        title = re.search(r"^# +(.+?) *$", text, re.MULTILINE)
        titles[page] = title[1] if title else page
        labels |= {make_id(label): (page, f"“{words}”") for label, words in HEADING.findall(text)}
        built = html / "book" / f"{page}.html"
        for label, words in NUMBERED.findall(built.read_text("utf8") if built.exists() else ""):
            labels[label] = (page, words.strip())
    works = book.pages / "references.bib"
    return Site(book, titles, labels, dict(parse_file(works).entries) if works.exists() else {})


def markdown(page: Page, text: str) -> str:
    """Plain Markdown of a page's MyST Markdown.

    Raises:
        BookError: If it names what the book does not have.
    """
    made, plain = [], []
    lines = iter(text.split("\n"))
    for line in lines:
        fence = FENCE.fullmatch(line.rstrip())
        if fence is None:
            plain.append(line)
            continue
        made.append(prose(page, "\n".join(plain)))
        plain, body = [], []
        for inner in lines:
            closing = inner.strip()
            if set(closing) == {fence[1][0]} and len(closing) >= len(fence[1]):
                break
            body.append(inner)
        if fence[2]:
            made.append(directive(page, fence[2], (fence[3] or "").strip(), body))
        else:
            made.append("\n".join([line, *body, fence[1]]))
    made.append(prose(page, "\n".join(plain)))
    return "\n\n".join(block.strip("\n") for block in made if block.strip())


def directive(  # noqa: C901 (a line each)
    page: Page, name: str, argument: str, lines: list[str]
) -> str:
    """Plain Markdown of a directive."""
    options = {}
    while lines and (option := re.fullmatch(r":([\w-]+): *(.*)", lines[0])):
        options[option[1]] = option[2]
        lines = lines[1:]
    title, text = prose(page, argument), "\n".join(lines)
    label = options.get("label", "")
    number = reference(page, label) if label else ""
    folder = page.site.book.source(page.id).parent
    match name:
        case "exercise-end" | "solution-end" | "raw" | "toctree":
            return ""
        case "math":
            return f"$$\n{text.strip()}{tag(number)}\n$$"
        case "code-block" | "code":
            return f"```{argument}\n{text}\n```"
        case "include":
            return markdown(page, (folder / argument).read_text("utf8"))
        case "bibliography":
            return bibliography(page)
        case "exercise-start":
            return f"**{number}: {title}**"
        case "solution-start":
            return f"**Solution of {reference(page, argument)}**"
        case "solution" if not page.solved:
            return "*Your solution:*"
        case "figure" | "image":
            return f"*Figure:* {markdown(page, text) or options.get('alt', '')}"
        case "prf:proof":
            return f"*Proof.* {markdown(page, text)}"
        case "admonition":
            pass
        case _:
            kind = number or name.split(":")[-1].capitalize()
            title = f"{kind}: {title}" if title else kind
    return box(title, markdown(page, text), folded="dropdown" in f"{name} {options.get('class')}")


def box(title: str, body: str, *, folded: bool) -> str:
    """Text that is set off; folded, only its title is seen."""
    if folded:
        return f"<details>\n<summary><b>{title}</b></summary>\n\n{body}\n\n</details>"
    # As HTML, since formulas inside a Markdown quotation get its ">".
    return f"<blockquote>\n\n**{title}**\n\n{body}\n\n</blockquote>"


def tag(number: str) -> str:
    """The number of an equation, as MathJax sets it."""
    return rf" \tag{{{number.strip('()')}}}" if number else ""


def prose(page: Page, text: str) -> str:
    """Plain Markdown of text without directives."""
    text = re.sub(r"^(\([\w-]+\)=|%.*|\{[.#][^}]*\})\n?", "", text, flags=re.MULTILINE)
    text = re.sub(
        r"\n\$\$ *\(([\w-]+)\)", lambda found: f"{tag(reference(page, found[1]))}\n$$", text
    )
    text = LINK.sub(lambda found: link(page, found[1], found[2]), text)
    return ROLE.sub(lambda found: role(page, found[1], found[2]) if found[1] else found[0], text)


def role(page: Page, name: str, content: str) -> str:
    """Plain Markdown of a role."""
    words, target = content, content
    if explicit := re.fullmatch(r"(.+?)\s*<(.+)>", content, re.DOTALL):
        words, target = explicit[1], explicit[2]
    if name in ("cite", "cite:p"):
        return f"({'; '.join(', '.join(cited(page, key)) for key in re.split(', *', content))})"
    if name == "cite:t":
        works = [cited(page, key) for key in re.split(", *", content)]
        return ", ".join(f"{author} ({year})" for author, year in works)
    if name.startswith("glue"):
        if target not in page.glued:
            raise BookError(f"{page.id}: no cell glues {target!r}")
        return page.glued[target]
    if name in ("eq", "ref", "numref", "prf:ref"):
        return words if explicit else reference(page, target)
    if name == "doc":
        return link(page, words if explicit else "", f"{target.removesuffix('.md')}.md")
    return {"claim": f"claim {content}", "math": f"${content}$"}.get(name, words)


def reference(page: Page, label: str) -> str:
    """What a label stands for, with the title of its page if that is another."""
    if make_id(label) not in page.site.labels:
        raise BookError(f"{page.id}: the site has nothing labelled {label!r}")
    where, words = page.site.labels[make_id(label)]
    return words if where == page.id else f"{words} of “{page.site.titles[where]}”"


def link(page: Page, words: str, target: str) -> str:
    """Words of a link within the book, with the title that it leads to."""
    path, _, label = target.partition("#")
    known = make_id(label or path) in page.site.labels
    if not label and not Path(path).suffix:
        # Either may stand without "#": a label, or brackets of a formula.
        return (words or reference(page, path)) if known else f"[{words}]({target})"
    if not path:
        return words or (
            reference(page, label) if known else f"“{label.replace('-', ' ').capitalize()}”"
        )
    folder = page.site.book.source(page.id).parent
    to = os.path.relpath(folder / path, page.site.book.pages).removesuffix(".md")
    title = page.site.titles.get(Path(to).as_posix())
    return f"{words} (“{title}”)" if words and title and words != title else words or f"“{title}”"


def cited(page: Page, key: str) -> tuple[str, str]:
    """Authors and linked year of a work."""
    if key.strip() not in page.site.works:
        raise BookError(f"{page.id}: the bibliography has no {key.strip()!r}")
    work = page.site.works[key.strip()]
    people = [" ".join(person.last_names) for person in work.persons.get("author", ())]
    authors = " and ".join(people) if len(people) < 3 else f"{people[0]} et al."
    authors = authors.replace(" and others", " et al.")
    year, where = plain(work.fields["year"]), address(work)
    return plain(authors), f"[{year}]({where})" if where else year


def address(work: Entry) -> str:
    """Where a work is found on the web; empty if the bibliography does not say."""
    fields = work.fields
    if "eprint" in fields:
        return f"https://arxiv.org/abs/{fields['eprint']}"
    return f"https://doi.org/{fields['doi']}" if "doi" in fields else fields.get("url", "")


def bibliography(page: Page) -> str:
    """The works that a page cites, in the order of their keys."""
    keys = {
        key.strip()
        for cite in re.findall(r"\{cite(?::\w)?\}`([^`]+)`", page.text)
        for key in cite.split(",")
    }
    lines = []
    for key in sorted(keys):
        authors, year = cited(page, key)
        fields = page.site.works[key].fields
        venue = fields.get("journal") or fields.get("booktitle") or fields.get("publisher") or ""
        lines.append(f"- {authors} ({year}). *{plain(fields['title'])}*. {plain(venue)}".strip())
    return "\n".join(lines)


def plain(latex: str) -> str:
    """LaTeX text of a bibliography as plain text."""
    return str(Text.from_latex(latex))
