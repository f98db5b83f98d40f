"""Pages made from what ran, and no figure without alt text.

``{ledger} A`` is replaced by the rows of paper A (or ``B``, or ``beyond``) with what the chapters
measured; ``{run-status}`` by what each chapter took to run, and on what. Both read the executed
notebooks below `icl_runs`. The build warns, hence fails, at a figure without alt text.
"""

import re
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from html.parser import HTMLParser
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nbformat
from docutils import nodes
from nbformat import NotebookNode
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import ExtensionMetadata

from iclbook import claims

logger = logging.getLogger(__name__)

PAGES = "book/"  # chapter linear/prompts is document book/linear/prompts
NO_RUN = "no run recorded"
VERDICTS = ("holds", "proved here", "holds in part", "not reproduced", "not run", "not yet")
PACKAGES = ("numpy", "scipy", "torch", "matplotlib", "jupyter-book", "sphinx", "myst-nb")


def read_run(env: BuildEnvironment, chapter: str) -> NotebookNode | None:
    """Executed notebook of a chapter, None where there is none."""
    path = Path(env.srcdir, env.config.icl_runs, f"{chapter}.ipynb")
    return nbformat.read(path, as_version=4) if path.is_file() else None


def read_page(env: BuildEnvironment, docname: str) -> str:
    """Source of a document, empty if the book has none of this name."""
    if docname not in env.found_docs:
        return ""
    return Path(env.doc2path(docname)).read_text(encoding="utf-8")


class FromRuns(SphinxDirective):
    """What both directives need: text, links and tables."""

    def text(self, markdown: str) -> list[nodes.Node]:
        """Nodes of one line of Markdown."""
        parsed, messages = self.state.inline_text(markdown, self.lineno)
        return [*parsed, *messages]

    def paragraph(self, markdown: str) -> nodes.paragraph:
        """Make a paragraph of one line of Markdown."""
        return nodes.paragraph("", "", *self.text(markdown))

    def link(self, domain_type: str, target: str, chapter: str) -> nodes.paragraph:
        """Link that the build resolves, or warns of; it reads as the title of the chapter."""
        title = re.search(r"^# +(.+?)\s*$", read_page(self.env, PAGES + chapter), re.MULTILINE)
        reference = addnodes.pending_xref(
            "",
            nodes.inline("", "", *self.text(title[1] if title else chapter)),
            refdomain="std",
            reftype=domain_type,
            reftarget=target,
            refexplicit=True,
            refwarn=True,
            refdoc=self.env.docname,
        )
        self.set_source_info(reference)
        return nodes.paragraph("", "", reference)


def table(name: str, head: dict[str, int], rows: Iterable[list[list[nodes.Node]]]) -> nodes.table:
    """Table of a class, from its headings with their widths in per cent, and its cells."""

    def row(cells: Iterable[list[nodes.Node]]) -> nodes.row:
        return nodes.row("", *(nodes.entry("", *cell) for cell in cells))

    group = nodes.tgroup("", *(nodes.colspec(colwidth=w) for w in head.values()), cols=len(head))
    group += nodes.thead("", row([nodes.paragraph(text=name)] for name in head))
    group += nodes.tbody("", *(row(cells) for cells in rows))
    return nodes.table("", group, classes=[name, "colwidths-given"])


class Ledger(FromRuns):
    """``{ledger} PAPER``: its rows with what was measured, then those that no chapter shows yet."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Make the list of nodes."""
        paper = self.arguments[0]
        if paper not in claims.PAPERS:
            raise self.error(f"ledger takes one of {', '.join(claims.PAPERS)}, not {paper!r}")
        self.env.note_reread()  # runs come and go without a change of the page
        ledger = Path(self.env.srcdir, self.config.icl_ledger)
        try:
            rows = [claim for claim in claims.load(ledger) if claim.paper == paper]
        except ValueError as error:
            raise self.error(str(error)) from error
        printed = {claim.chapter: self.printed(claim.chapter) for claim in rows if claim.shown}
        verdicts = {
            claim.id: claims.verdict(claim, printed.get(claim.chapter, ())) for claim in rows
        }
        counts = Counter(verdicts.values())
        summary = ", ".join(f"{name} {counts[name]}" for name in VERDICTS if counts[name])
        made: list[nodes.Node] = [self.paragraph(f"Of {len(rows)} results: {summary}.")]
        shown = [
            [
                self.claim(claim),
                self.measured(claim, printed[claim.chapter]),
                self.verdict(claim, verdicts[claim.id]),
            ]
            for claim in rows
            if claim.shown
        ]
        if shown:
            made.append(table("icl-ledger", {"Claim": 38, "Measured": 42, "Verdict": 20}, shown))
        waiting = [claim for claim in rows if not claim.shown]
        if waiting:
            made.append(self.paragraph("No chapter shows these yet:"))
            items = [nodes.list_item("", *self.claim(claim)) for claim in waiting]
            made.append(nodes.bullet_list("", *items, classes=["icl-waiting"]))
        return made

    def printed(self, chapter: str) -> tuple[claims.Checked, ...]:
        """Read the lines that a chapter printed; none if it has not been run."""
        run = read_run(self.env, chapter)
        return () if run is None else claims.printed(run)

    def claim(self, claim: claims.Claim) -> list[nodes.Node]:
        """Say what is claimed and where."""
        head = nodes.strong("", claim.id)
        return [
            nodes.paragraph("", "", head, nodes.Text(f", {claim.where}")),
            self.paragraph(claim.says),
        ]

    def measured(self, claim: claims.Claim, printed: Iterable[claims.Checked]) -> list[nodes.Node]:
        """Say of each part what was measured, what is claimed and how it is decided."""
        ran = {checked.part: checked for checked in printed if checked.claim == claim.id}
        return [self.part(part, ran.get(part.name)) for part in claim.parts]

    def part(self, part: claims.Part, checked: claims.Checked | None) -> nodes.container:
        """Say of one part what was measured, what is claimed and how it is decided."""
        result = NO_RUN if checked is None else checked.text
        if checked is not None and not checked.holds:
            result += " (does not hold)"
        measured = nodes.inline("", result, classes=["icl-measured"])
        bounds = nodes.Text(f"; claimed {claims.bounds_text(part)}")
        lines = [
            nodes.paragraph("", "", nodes.strong("", "", *self.text(part.name))),
            nodes.paragraph("", "", measured, bounds),
            self.paragraph(part.decided),
        ]
        if part.fails:
            lines.append(self.paragraph(f"Reason: {part.fails}"))
        return nodes.container("", *lines, classes=["icl-part"])

    def verdict(self, claim: claims.Claim, verdict: str) -> list[nodes.Node]:
        """Give the verdict, and the place that shows it."""
        classes = ["icl-verdict", f"icl-{verdict.replace(' ', '-')}"]
        return [
            nodes.paragraph("", "", nodes.inline("", verdict, classes=classes)),
            self.link("ref", claim.anchor.lower(), claim.chapter),
        ]


class RunStatus(FromRuns):
    """``{run-status}``: what each chapter took, against its budget, and on what it ran."""

    def run(self) -> list[nodes.Node]:
        """Make the list of nodes."""
        self.env.note_reread()
        chapters = sorted(
            docname.removeprefix(PAGES)
            for docname in self.env.found_docs
            if re.match(
                r"---\n(?:.*\n)*?kernelspec:\n(?:.*\n)*?---\n", read_page(self.env, docname)
            )
        )
        runs = {chapter: read_run(self.env, chapter) for chapter in chapters}
        ran = {chapter: run.metadata["iclbook"] for chapter, run in runs.items() if run is not None}
        if not ran:
            return [
                self.paragraph(
                    f"{NO_RUN.capitalize()}: none of the {len(chapters)} chapters has been run."
                )
            ]
        head = {"Chapter": 40, "Time": 20, "Peak memory": 20, "Run at": 20}
        rows = [self.row(chapter, ran.get(chapter)) for chapter in chapters]
        return [table("icl-status", head, rows), *self.environment(ran.values())]

    def row(self, chapter: str, took: dict[str, Any] | None) -> list[list[nodes.Node]]:
        """Make the cells of one chapter."""
        link = self.link("doc", f"/{PAGES}{chapter}", chapter)
        if took is None:
            cells = [NO_RUN, "", ""]
        else:
            when = datetime.fromisoformat(took["when"]).astimezone(UTC)
            cells = [
                within(took["seconds"], self.config.icl_budget_seconds, "s"),
                within(took["peak_mib"], self.config.icl_budget_mib, "MiB"),
                f"{when:%Y-%m-%d %H:%M} UTC",
            ]
        return [[link], *([nodes.paragraph(text=cell)] for cell in cells)]

    def environment(self, ran: Iterable[dict[str, Any]]) -> list[nodes.Node]:
        """Say on what the chapters ran; on several machines, if so it was."""
        machines = sorted({(took["python"], took["platform"], took["cpus"]) for took in ran})
        lines = [
            f"Python {python} on {platform}, {cpus} processor cores."
            for python, platform, cpus in machines
        ]
        packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
        return [nodes.paragraph(text=line) for line in [*lines, f"Packages: {packages}."]]


def within(used: float, budget: float, unit: str) -> str:
    """Amount and budget in words."""
    return f"{used:.1f} of {budget:g} {unit}" + (", over budget" if used > budget else "")


class Silent(HTMLParser):
    """Finds the images of a piece of HTML that say nothing to whoever does not see them."""

    def __init__(self) -> None:
        """Start with none found."""
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an image without words."""
        has = dict(attrs)
        words = has.get("aria-label") or (has.get("alt") if tag == "img" else None) or ""
        decoration = has.get("aria-hidden") == "true"
        if tag in ("img", "svg") and not words.strip() and not decoration:
            self.found.append(f"<{tag}>")


def demand_alt_text(app: Sphinx, doctree: nodes.document) -> None:
    """Warn of every figure of a document without alt text."""
    for node in doctree.findall(nodes.image):
        if not node.get("alt", "").strip():
            warn(app, node, f"the image {node.get('uri')} has no alt text")
    for node in doctree.findall(nodes.raw):
        if "html" in node.get("format", "").split():
            silent = Silent()
            silent.feed(node.astext())
            silent.close()
            for tag in silent.found:
                warn(
                    app,
                    node,
                    f"{tag} in the output of a cell has no alt text: show it with iclbook.figures",
                )


def warn(app: Sphinx, node: nodes.Element, message: str) -> None:
    """Warn of a node, at its line if it knows it."""
    location = node if node.source else app.env.docname
    logger.warning(message, type="icl", subtype="alt", location=location)


def load_mathjax_for_captions(app: Sphinx, doctree: nodes.document) -> None:
    """Have MathJax on a page whose only mathematics is in the captions of figures."""
    if any('<span class="math' in node.astext() for node in doctree.findall(nodes.raw)):
        app.env.get_domain("math").data["has_equations"][app.env.docname] = True


def setup(app: Sphinx) -> ExtensionMetadata:
    """Register with Sphinx."""
    app.add_config_value("icl_runs", "_build/runs", "env", types=[str])
    app.add_config_value("icl_ledger", "book/claims.yml", "env", types=[str])
    app.add_config_value("icl_budget_seconds", 60, "env", types=[int, float])
    app.add_config_value("icl_budget_mib", 2048, "env", types=[int, float])
    app.add_directive("ledger", Ledger)
    app.add_directive("run-status", RunStatus)
    app.connect("doctree-read", demand_alt_text)
    app.connect("doctree-read", load_mathjax_for_captions)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
