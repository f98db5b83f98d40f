"""Pages made from what ran, and no figure without alt text.

``{ledger} A`` is replaced by the rows of paper A (or ``B``, or ``beyond``) with what the chapters
measured; ``{run-status}`` by what each chapter took to run, and on what. Both read the executed
notebooks below `icl_runs`. The role ``{claim}`A-F1` `` links to a row, whose anchor is its id, and
``claims.json`` has all rows for other programs. The build warns, hence fails, at a figure without
alt text.
"""

import functools
import json
import re
import sys
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
from sphinx.util.docutils import SphinxDirective, SphinxRole
from sphinx.util.typing import ExtensionMetadata

from iclbook import claims

sys.path.insert(0, str(Path(__file__).parents[2]))  # Sphinx finds extensions by path, not tools/
from tools import ledger

logger = logging.getLogger(__name__)

PAGES = "book/"  # chapter linear/prompts is document book/linear/prompts
CLAIMS = "book/claims"  # the page that has the ledger
NO_RUN = "no run recorded"
VERDICTS = (
    *("not reproduced", "inconclusive", "holds in part", "holds", "proved here", "measured here"),
    *("not run", "not yet"),
)
PACKAGES = ("numpy", "scipy", "torch", "matplotlib", "jupyter-book", "sphinx", "myst-nb")


def read_run(env: BuildEnvironment, chapter: str) -> NotebookNode | None:
    """Executed notebook of a chapter, None where there is none."""
    path = Path(env.srcdir, env.config.icl_runs, f"{chapter}.ipynb")
    return parse_run(path, path.stat().st_mtime_ns) if path.is_file() else None


@functools.cache
def parse_run(path: Path, _written: int) -> NotebookNode:
    """Read an executed notebook, once for each time that it was written."""
    return nbformat.read(path, as_version=4)


def read_records(env: BuildEnvironment, chapter: str) -> tuple[claims.Checked, ...]:
    """What the checks of a chapter found; nothing if it has not been run."""
    run = read_run(env, chapter)
    return () if run is None else ledger.records(run)


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
        try:
            rows = [claim for claim in load(self.env) if claim.paper == paper]
        except ValueError as error:
            raise self.error(str(error)) from error
        found = {claim.id: read_records(self.env, claim.chapter) for claim in rows}
        verdicts = {claim.id: ledger.verdict(claim, found[claim.id]) for claim in rows}
        counts = Counter(verdicts.values())
        summary = ", ".join(f"{name} {counts[name]}" for name in VERDICTS if counts[name])
        made: list[nodes.Node] = [self.paragraph(f"Of {len(rows)} results: {summary}.")]
        shown = [
            [
                self.claim(claim),
                self.measured(claim, found[claim.id]),
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

    def claim(self, claim: claims.Claim) -> list[nodes.Node]:
        """Say what is claimed and where, how it was measured, and what it rests on."""
        anchor = nodes.reference("", claim.id, refuri=f"#{claim.id}", internal=True)
        head = nodes.paragraph("", "", nodes.strong("", "", anchor), nodes.Text(f", {claim.where}"))
        head["ids"].append(claim.id)  # as it is: docutils would write ids in small letters
        lines = [head, self.paragraph(claim.says)]
        if claim.regime:
            lines.append(self.paragraph(f"*Measured at:* {claim.regime}"))
        if claim.uses:
            named = ", ".join(f"{{claim}}`{name}`" for name in claim.uses)
            lines.append(self.paragraph(f"*Rests on:* {named}."))
        if claim.control:
            lines.append(self.paragraph(f"*Must reject:* {claim.control['says']}"))
        return lines

    def measured(self, claim: claims.Claim, found: Iterable[claims.Checked]) -> list[nodes.Node]:
        """Say of each part what was measured, what is claimed and how it is decided."""
        ran = {one.part: one for one in found if one.claim == claim.id and not one.control}
        return [self.part(claim, part, ran.get(part.name)) for part in claim.parts]

    def part(
        self, claim: claims.Claim, part: claims.Part, checked: claims.Checked | None
    ) -> nodes.container:
        """Say of one part what was measured, what is claimed and how it is decided."""
        result = NO_RUN if checked is None else claims.measured_text(checked, part)
        if checked is not None and checked.verdict != claims.HOLDS:
            result += f" ({checked.verdict})"
        bounds = nodes.Text(f"; claimed {claims.bounds_text(part)}")
        name = [nodes.strong("", "", *self.text(part.name))]
        if part.about == "beyond" and claim.paper != "beyond":
            name.append(nodes.Text(" (beyond the paper)"))
        measured = nodes.paragraph(
            "", "", nodes.inline("", result, classes=["icl-measured"]), bounds
        )
        lines = [nodes.paragraph("", "", *name), measured]
        if part.by:
            lines.append(self.derivation(claim.chapter, part.by))
        lines.append(self.paragraph(part.decided))
        if part.reason:
            lines.append(self.paragraph(f"Reason: {part.reason}"))
        return nodes.container("", *lines, classes=["icl-part"])

    def derivation(self, chapter: str, label: str) -> nodes.paragraph:
        """Link to what derives a bound: a proposition, a section or an equation."""
        page = read_page(self.env, PAGES + chapter)
        written = rf"^\$\$ +\({label}\)$|\{{math\}}\n:label: +{label}$"
        equation = re.search(written, page, re.MULTILINE)
        anchor = f"equation-{label}" if equation else nodes.make_id(label)
        uri = self.env.app.builder.get_relative_uri(self.env.docname, PAGES + chapter)
        link = nodes.reference("", "where the bound comes from", refuri=f"{uri}#{anchor}")
        return nodes.paragraph("", "", link)

    def verdict(self, claim: claims.Claim, verdict: str) -> list[nodes.Node]:
        """Give the verdict, and the place that shows it."""
        classes = ["icl-verdict", f"icl-{verdict.replace(' ', '-')}"]
        return [
            nodes.paragraph("", "", nodes.inline("", verdict, classes=classes)),
            self.link("ref", claim.anchor.lower(), claim.chapter),
        ]


class ClaimRole(SphinxRole):
    """``{claim}`A-F1` ``: link to a row of the ledger."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Make the link; a row that the ledger does not have is an error."""
        if self.text not in {claim.id for claim in load(self.env)}:
            message = self.inliner.reporter.error(f"the ledger has no row {self.text!r}")
            return [self.inliner.problematic(self.rawtext, self.rawtext, message)], [message]
        page = self.env.app.builder.get_relative_uri(self.env.docname, CLAIMS)
        uri = f"{page}#{self.text}"
        return [nodes.reference("", self.text, refuri=uri, classes=["icl-claim"])], []


def load(env: BuildEnvironment) -> tuple[claims.Claim, ...]:
    """Read the book's ledger, once for each time that it was written."""
    path = Path(env.srcdir, env.config.icl_ledger)
    return parse_ledger(path, path.stat().st_mtime_ns)


@functools.cache
def parse_ledger(path: Path, _written: int) -> tuple[claims.Claim, ...]:
    """Read a ledger."""
    return claims.load(path)


def write_claims(app: Sphinx, exception: Exception | None) -> None:
    """Write ``claims.json``, and ``claims.html`` beside it, which leads on to the page."""
    if exception is not None or app.builder.format != "html":
        return
    rows = [ledger.report(claim, read_records(app.env, claim.chapter)) for claim in load(app.env)]
    text = json.dumps(rows, indent=1, ensure_ascii=False, allow_nan=False)
    Path(app.outdir, "claims.json").write_text(text + "\n", encoding="utf-8")
    page = app.builder.get_target_uri(CLAIMS)
    forward = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>Claims</title>\n'
        f'<script src="_static/forward.js" data-to="{page}"></script></head>\n'
        f'<body><p><a href="{page}">Claims and verdicts</a></p></body></html>\n'
    )
    Path(app.outdir, "claims.html").write_text(forward, encoding="utf-8")


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
    app.add_config_value("icl_ledger", "iclbook/claims.yml", "env", types=[str])
    app.add_config_value("icl_budget_seconds", 60, "env", types=[int, float])
    app.add_config_value("icl_budget_mib", 2048, "env", types=[int, float])
    app.add_directive("ledger", Ledger)
    app.add_directive("run-status", RunStatus)
    app.add_role("claim", ClaimRole())
    app.connect("build-finished", write_claims)
    app.connect("doctree-read", demand_alt_text)
    app.connect("doctree-read", load_mathjax_for_captions)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
