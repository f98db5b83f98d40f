"""The built site in a real browser: it loads, shows its mathematics, and works off the network.

Needs `_build/html` (`make book`) and Chromium: $CHROMIUM, or chromium or google-chrome on the PATH.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import jsonschema
import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from iclbook import claims

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "_build" / "html"
PAGES = sorted(
    path.relative_to(SITE).as_posix()
    for path in SITE.rglob("*.html")
    if path.relative_to(SITE).parts[0] != "_static" and path != SITE / "index.html"
)
BROWSER = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
VERDICTS = (
    *("holds", "holds in part", "not reproduced", "inconclusive"),
    *("proved here", "measured here"),
)
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
]

# Ink and ground of every figure, as [r, g, b]: the text colour, and what is painted behind it.
INK_AND_GROUND = """() => {
  const rgb = text => text.match(/[\\d.]+/g).map(Number);
  return [...document.querySelectorAll("figure.icl-figure svg")].map(svg => {
    let ground = svg;
    while (ground && (rgb(getComputedStyle(ground).backgroundColor)[3] ?? 1) === 0)
      ground = ground.parentElement;
    const ink = getComputedStyle(svg).color;
    const painted = [...svg.querySelectorAll("*")].map(node => getComputedStyle(node));
    return {
      label: svg.getAttribute("aria-label"),
      ink: rgb(ink).slice(0, 3),
      ground: ground ? rgb(getComputedStyle(ground).backgroundColor).slice(0, 3) : [255, 255, 255],
      used: painted.some(style => style.fill === ink || style.stroke === ink),
    };
  });
}"""


@dataclass(frozen=True)
class Visit:
    """A page that has loaded, and what it asked for and complained of meanwhile."""

    page: Page
    requests: list[str]
    errors: list[str]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if BROWSER is None:
        reason = "no browser: set CHROMIUM, or put chromium or google-chrome on the PATH"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module", params=PAGES)
def visit(request: pytest.FixtureRequest, browser: Browser) -> Iterator[Visit]:
    """A first visit: nothing is remembered from other pages."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(20_000)
    page = context.new_page()
    requests, errors = [], []
    page.on("request", lambda sent: requests.append(sent.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda told: errors.append(told.text) if told.type == "error" else None)
    page.goto((SITE / request.param).as_uri(), wait_until="load")
    page.evaluate("() => window.MathJax?.startup?.promise.then(() => document.fonts.ready)")
    yield Visit(page, requests, errors)
    context.close()


def test_the_site_opens_on_its_first_page(browser: Browser) -> None:
    assert (SITE / "index.html").is_file(), "there is no site in _build/html: run `make book`"
    page = browser.new_page()
    page.goto((SITE / "index.html").as_uri())
    page.wait_for_url("**/book/index.html")
    assert page.locator("article h1").count() == 1
    page.close()


def test_no_request_leaves_the_machine(visit: Visit) -> None:
    assert [url for url in visit.requests if not url.startswith(("file:", "data:", "blob:"))] == []


def test_no_errors_in_the_console(visit: Visit) -> None:
    assert visit.errors == []


def test_mathematics_is_set(visit: Visit) -> None:
    wanted = visit.page.locator("article .math").count()
    assert visit.page.locator("article mjx-container").count() >= wanted
    assert visit.page.locator("mjx-merror, [data-mjx-error]").all_inner_texts() == []
    prose = visit.page.evaluate(
        """() => {
          const copy = document.querySelector("article")?.cloneNode(true);
          copy?.querySelectorAll("pre, code, script, mjx-container").forEach(node => node.remove());
          return copy?.textContent ?? "";
        }"""
    )
    assert re.findall(r"\\[(\[].{0,40}|\$\$.{0,40}|.{0,20}\\(?:frac|mathbb|beta)\b", prose) == []


def test_pictures_have_a_text_alternative(visit: Visit) -> None:
    mute = visit.page.evaluate(
        """() => [...document.querySelectorAll("article img, article svg")]
          .filter(node => !node.closest("button, mjx-container, [aria-hidden=true]"))
          .filter(node => !(node.getAttribute("alt") ?? node.getAttribute("aria-label"))?.trim())
          .map(node => node.outerHTML.slice(0, 200))"""
    )
    assert mute == []


def test_links_inside_the_book_lead_somewhere(visit: Visit) -> None:
    links = visit.page.evaluate("() => [...document.querySelectorAll('a[href]')].map(a => a.href)")
    dead = []
    for link in sorted({link for link in links if link.startswith("file:")}):
        address, fragment = urldefrag(link)
        target = Path(unquote(urlsplit(address).path))
        if not target.is_file() or (fragment and not has_id(target, unquote(fragment))):
            dead.append(link)
    assert dead == []


def test_a_phone_need_not_scroll_sideways(visit: Visit) -> None:
    visit.page.set_viewport_size({"width": 390, "height": 844})
    try:
        assert visit.page.evaluate("() => document.documentElement.scrollWidth") <= 390
        assert visit.page.evaluate("() => document.body.scrollWidth") <= 390
    finally:
        visit.page.set_viewport_size({"width": 1280, "height": 900})


def test_dark_mode_and_figures_in_both(visit: Visit) -> None:
    for theme in ("light", "dark"):
        switch_to(visit.page, theme)
        for figure in visit.page.evaluate(INK_AND_GROUND):
            assert figure["used"], f"no line in the page's text colour: {figure['label']}"
            ratio = contrast(figure["ink"], figure["ground"])
            assert ratio > 4.5, f"{theme}: contrast {ratio:.1f} in {figure['label']}"


def has_id(page: Path, name: str) -> bool:
    return f'id="{name}"' in page.read_text("utf8")


def switch_to(page: Page, theme: str) -> None:
    """Press the page's own switch (automatic, light, dark) until it shows the theme."""
    for _ in range(3):
        mode = page.evaluate("() => document.documentElement.dataset.mode")
        if mode == theme:
            break
        page.locator(".theme-switch-button:visible").first.click()
    assert page.evaluate("() => document.documentElement.dataset.theme") == theme


def contrast(one: list[float], other: list[float]) -> float:
    """Contrast of two sRGB colours, 1 to 21 (WCAG 2.2, relative luminance)."""

    def luminance(colour: list[float]) -> float:
        linear = [
            c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
            for c in (channel / 255 for channel in colour)
        ]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


# The ledger for other programs


def test_the_published_ledger_is_as_its_schema_says_and_every_row_has_its_anchor() -> None:
    rows = json.loads((SITE / "claims.json").read_text("utf8"))
    jsonschema.validate(
        rows, json.loads((ROOT / "tools/claims_json.schema.json").read_text("utf8"))
    )
    assert [row["id"] for row in rows] == [claim.id for claim in claims.load()]
    page = (SITE / "book/claims.html").read_text("utf8")
    assert [row["id"] for row in rows if f'id="{row["id"]}"' not in page] == []
    assert {row["verdict"] for row in rows} <= {*VERDICTS, "not yet"}, "a chapter was not run"


def test_the_short_address_of_a_row_leads_to_it(browser: Browser) -> None:
    page = browser.new_page()
    page.goto((SITE / "claims.html").as_uri() + "#A-gap")
    page.wait_for_url("**/book/claims.html#A-gap")
    assert page.locator("#A-gap").is_visible()
    page.close()


def test_a_chapter_shows_its_checks_whole_on_a_phone(browser: Browser) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 840})
    page.goto((SITE / "book/nonlinear/pruning.html").as_uri())
    chips = page.locator("p.icl-chip")
    assert chips.count() > 10
    cut = chips.evaluate_all(
        "all => all.filter(chip => chip.scrollWidth > chip.clientWidth).length"
    )
    assert cut == 0
    page.close()


def test_the_download_menu_offers_the_notebooks_that_are_there(browser: Browser) -> None:
    page = browser.new_page()
    page.goto((SITE / "book/linear/prompts.html").as_uri())
    links = page.locator("a[download]").evaluate_all("all => all.map(a => a.href)")
    names = [Path(unquote(urlsplit(link).path)) for link in links]
    assert {"prompts.ipynb", "prompts-exercises.ipynb"} <= {name.name for name in names}
    assert all(name.is_file() for name in names)
    page.close()
