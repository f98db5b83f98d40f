"""Figures: right on both themes, well-formed, repeatable, never without labels and alt text."""

import itertools
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from iclbook import figures, notebook

STYLE_SHEET = Path(__file__).parents[1] / "book/_static/icl.css"
LIGHT_PAGE, DARK_PAGE = "#ffffff", "#121212"  # backgrounds of sphinx-book-theme
CONTRAST = 3.0  # WCAG 2.2, success criterion 1.4.11: graphics

# Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB
VISION = {
    "full": np.eye(3),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    "tritanopia": np.array(
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ]
    ),
}


def linear(colour: str) -> np.ndarray:
    """Linear RGB of a hex colour, by the sRGB standard."""
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def luminance(colour: str) -> float:
    return float(linear(colour) @ [0.2126, 0.7152, 0.0722])


def contrast(one: str, other: str) -> float:
    """WCAG contrast ratio."""
    dark, light = sorted([luminance(one), luminance(other)])
    return (light + 0.05) / (dark + 0.05)


def oklab(rgb: np.ndarray) -> np.ndarray:
    """Ottosson's OKLab of linear RGB, times 100: about 2 is the least difference that is seen."""
    to_lms = np.array(
        [
            [0.4122214708, 0.5363325363, 0.0514459929],
            [0.2119034982, 0.6806995451, 0.1073969566],
            [0.0883024619, 0.2817188376, 0.6299787005],
        ]
    )
    to_lab = np.array(
        [
            [0.2104542553, 0.7936177850, -0.0040720468],
            [1.9779984951, -2.4285922050, 0.4505937099],
            [0.0259040371, 0.7827717662, -0.8086757660],
        ]
    )
    return 100 * to_lab @ np.cbrt(to_lms @ np.clip(rgb, 0, 1))


def site_colours(theme: str) -> dict[str, str]:
    """Values of the palette's variables for a theme, from the style sheet itself."""
    rules = re.findall(
        r"([^{}]+)\{([^{}]*)\}", re.sub(r"(?s)/\*.*?\*/", "", STYLE_SHEET.read_text())
    )
    body = next(
        text for selector, text in rules if selector.strip() == f'html[data-theme="{theme}"]'
    )
    return dict(re.findall(r"--icl-([\w-]+):\s*(#[0-9a-f]{6})", body))


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """Everything that `show` displays."""
    bundles: list[dict[str, str]] = []
    monkeypatch.setattr(notebook, "show", bundles.append)
    return bundles


def curve(shift: float = 0.0, **size: float) -> Figure:
    fig, ax = figures.subplots(**size)
    x = np.linspace(0, 3, 20)
    for i in range(len(figures.PALETTE)):
        ax.plot(x, x * i + shift, **figures.series(i), label=f"$\\beta_{i}$")
        ax.fill_between(x, x * i - 0.1, x * i + 0.1, **figures.band(i))
    ax.set(xlabel="time (steps)", ylabel="risk (dimensionless)")
    ax.legend()
    return fig


def drawing(bundle: dict[str, str]) -> ET.Element:
    """The page's figure, parsed strictly: XML forgives less than HTML does."""
    return ET.fromstring(bundle["text/html"])  # noqa: S314 (made by the test)


@pytest.mark.parametrize(
    ("theme", "page", "least"), [("light", LIGHT_PAGE, CONTRAST), ("dark", DARK_PAGE, 4.5)]
)
def test_the_site_gives_every_colour_enough_contrast(theme: str, page: str, least: float) -> None:
    colours = site_colours(theme)
    assert colours.pop("paper") == page
    assert set(colours) == set(figures.PALETTE) - {"ink"}
    low = {name: contrast(colour, page) for name, colour in colours.items()}
    assert min(low.values()) >= least, low


def test_the_light_theme_has_the_palette_itself() -> None:
    light = site_colours("light")
    assert {n: c for n, c in figures.PALETTE.items() if n != "ink"}.items() <= light.items()


@pytest.mark.parametrize("page", [LIGHT_PAGE, DARK_PAGE, "#111111"])  # the last is JupyterLab's
def test_the_fallback_colours_suit_both_pages(page: str) -> None:
    for name, colour in figures.PALETTE.items():
        assert name == "ink" or contrast(colour, page) >= CONTRAST, name


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize(("theme", "ink"), [("light", "#212529"), ("dark", "#ced6dd")])
def test_the_colours_differ_for_colour_blind_readers(theme: str, ink: str, vision: str) -> None:
    colours = site_colours(theme) | {"ink": ink}
    del colours["paper"]
    seen = {name: oklab(VISION[vision] @ linear(colour)) for name, colour in colours.items()}
    for (a, one), (b, other) in itertools.combinations(seen.items(), 2):
        assert np.linalg.norm(one - other) >= (5 if vision == "tritanopia" else 7.5), (a, b)


def test_no_two_series_share_a_colour_a_line_or_a_marker() -> None:
    styles = [figures.series(i) for i in range(len(figures.PALETTE))]
    for part in ("color", "linestyle", "marker"):
        assert len({style[part] for style in styles}) == len(styles)
    for place, name in enumerate(figures.PALETTE):
        assert figures.series(name) == styles[place]
        assert figures.band(name)["color"] == styles[place]["color"]


@pytest.mark.parametrize("key", [-1, 6, "red", 0.0, None])
def test_a_colour_outside_the_palette_is_refused(key: object) -> None:
    with pytest.raises(ValueError, match="palette"):
        figures.series(key)
    with pytest.raises(ValueError, match="palette"):
        figures.band(key)


def test_the_colour_maps_are_ordered_by_lightness() -> None:
    def lightness(name: str | mpl.colors.Colormap) -> np.ndarray:
        rgb = mpl.colormaps.get_cmap(name)(np.linspace(0, 1, 65))[:, :3]
        return np.array([oklab(linear(mpl.colors.to_hex(c)))[0] for c in rgb])

    assert (np.diff(lightness(figures.SEQUENTIAL)) > 0).all()
    diverging = lightness(figures.DIVERGING)
    assert (np.diff(diverging)[:32] > 0).all()
    assert (np.diff(diverging)[32:] < 0).all()
    assert np.abs(diverging - diverging[::-1]).max() < 6  # neither side looks stronger


def test_what_is_plotted_is_told_only_where_runs_are_compared(
    shown: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ICLBOOK_DESCRIBE", raising=False)
    figures.show(curve(), alt="A line", caption="It rises.")
    assert [bundle["text/plain"] for bundle in shown] == ["Figure: It rises. [A line]"]


def test_one_bundle_is_shown_and_it_has_the_words(
    shown: list[dict[str, str]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caption = "At $d < 5$ & more,\n  the risk is 0.25 at $x = 1$."
    monkeypatch.setenv("ICLBOOK_DESCRIBE", "tools.plotted")
    figures.show(curve(), alt='Six "rising" lines', caption=caption)
    assert capsys.readouterr() == ("", "")
    (bundle,) = shown
    assert set(bundle) == {"text/html", "text/plain"}
    one_line = "At $d < 5$ & more, the risk is 0.25 at $x = 1$."
    words, what, *plotted = bundle["text/plain"].splitlines()
    assert words == f'Figure: {one_line} [Six "rising" lines]'
    assert what.startswith('axes 1: x "time (steps)" -0.15 to 3.15; y "risk (dimensionless)" ')
    assert sum(" line " in line for line in plotted) == len(figures.PALETTE)
    page = drawing(bundle)
    assert (page.tag, page.get("class")) == ("figure", "icl-figure")
    svg = page.find("div/svg")
    assert svg is not None
    assert svg.get("role") == "img"
    assert svg.get("aria-label") == 'Six "rising" lines'
    spans = page.findall("figcaption/span")
    assert [span.text for span in spans] == [r"\(d < 5\)", r"\(x = 1\)"]
    assert all("math" in span.get("class", "").split() for span in spans)


def test_ink_and_palette_follow_the_page(shown: list[dict[str, str]]) -> None:
    figures.show(curve(), alt="a", caption="c")
    styles = " ".join(e.get("style", "") for e in drawing(shown[0]).iter())
    assert "currentColor" in styles
    for name, colour in figures.PALETTE.items():
        if name != "ink":
            assert f"var(--icl-{name}, {colour})" in styles
    bare = re.sub(r"var\(--icl-[^;]*", "", styles)
    assert re.findall(r"#[0-9a-f]{6}", bare) == []  # no colour that stays as it is


def test_what_is_drawn_in_black_by_hand_is_ink_too(shown: list[dict[str, str]]) -> None:
    fig, ax = figures.subplots()
    ax.plot([0, 1], [0, 1], "k--")
    ax.text(0.5, 0.2, "floor", bbox={"facecolor": "white"})
    ax.set(xlabel="x", ylabel="y")
    figures.show(fig, alt="a", caption="c")
    html = shown[0]["text/html"]
    assert "#000000" not in html
    assert "#ffffff" not in html
    assert drawing(shown[0]).find("div/svg").get("fill") == "currentColor"


def test_figures_on_one_page_share_no_identifier(shown: list[dict[str, str]]) -> None:
    for shift in (0.0, 1.0):
        figures.show(curve(shift), alt="a", caption="c")
    named: list[str] = []
    for bundle in shown:
        elements = list(drawing(bundle).iter())
        own = {e.get("id") for e in elements} - {None}
        named += own
        refers = {
            a or b
            for e in elements
            for value in e.attrib.values()
            for a, b in re.findall(r"url\(#(.+?)\)|^#(.+)", value)
        }
        assert refers == own  # nothing dangles, nothing is named in vain
        assert own
    assert len(named) == len(set(named))


def test_nothing_in_a_drawing_reaches_beyond_it(shown: list[dict[str, str]]) -> None:
    figures.show(curve(), alt="a", caption="c")
    tags = {e.tag for e in drawing(shown[0]).iter()}
    assert not tags & {"style", "script", "metadata", "title"}
    assert not re.search(r"https?:|xmlns|<!|<\?", shown[0]["text/html"])


def test_the_same_figure_gives_the_same_bytes(shown: list[dict[str, str]]) -> None:
    for _ in range(2):
        figures.show(curve(), alt="a", caption="c")
        mpl.rcParams["svg.hashsalt"] = "other"  # the reader's settings are no part of the drawing
    mpl.rcdefaults()
    assert shown[0] == shown[1]


@pytest.mark.parametrize(("width", "scrolls"), [(5.2, False), (9.0, True)])
def test_a_drawing_scales_and_only_a_wide_one_scrolls_on_a_phone(
    shown: list[dict[str, str]], width: float, *, scrolls: bool
) -> None:
    figures.show(curve(width=width, height=3), alt="a", caption="c")
    page = drawing(shown[0])
    box, svg = page.find("div"), page.find("div/svg")
    assert svg.get("viewBox") == f"0 0 {72 * width:g} 216"
    sizes = dict(re.findall(r"([\w-]+): (\d+)(?:px|%)", svg.get("style", "")))
    assert sizes["width"] == "100"
    assert (int(sizes["min-width"]) > 358) == scrolls
    assert 96 * width < int(sizes["max-width"]) < 1.3 * 96 * width
    # the type is 10 points: not below 9 CSS pixels however narrow the page
    assert 10 * int(sizes["min-width"]) / (72 * width) >= 9
    assert (box.get("tabindex") == "0") == scrolls


def test_heat_maps_keep_their_cells(shown: list[dict[str, str]]) -> None:
    fig, ax = figures.subplots()
    image = ax.imshow(np.arange(12.0).reshape(3, 4), cmap=figures.DIVERGING)
    ax.set(xlabel="x", ylabel="y")
    fig.colorbar(image, label="ratio")
    figures.show(fig, alt="a", caption="c")
    images = drawing(shown[0]).findall(".//image")
    assert images
    assert all(i.get("href", "").startswith("data:image/png;base64,") for i in images)
    assert "pixelated" in images[0].get("style", "")


@pytest.mark.parametrize("words", [{"alt": " "}, {"caption": ""}, {"caption": "costs $5"}])
def test_missing_words_are_refused(shown: list[dict[str, str]], words: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"alt text|caption"):
        figures.show(curve(), **({"alt": "a", "caption": "c"} | words))
    assert shown == []


@pytest.mark.parametrize("missing", ["x", "y"])
def test_axes_with_data_need_labels(shown: list[dict[str, str]], missing: str) -> None:
    fig = curve()
    getattr(fig.axes[0], f"set_{missing}label")("  ")
    with pytest.raises(ValueError, match=f"no {missing} label"):
        figures.show(fig, alt="a", caption="c")
    assert shown == []


def test_shared_axes_need_their_label_once(shown: list[dict[str, str]]) -> None:
    fig, axes = figures.subplots(1, 2, sharey=True)
    for ax in axes:
        ax.plot([0, 1], **figures.series(0))
        ax.set_xlabel("x")
    with pytest.raises(ValueError, match="no y label"):
        figures.show(fig, alt="a", caption="c")
    axes[0].set_ylabel("y")
    figures.show(fig, alt="a", caption="c")
    assert len(shown) == 1


def test_a_label_of_the_whole_figure_serves_all_axes(shown: list[dict[str, str]]) -> None:
    fig, axes = figures.subplots(2, 2)
    for ax in axes.flat:
        ax.plot([0, 1])
    fig.supxlabel("x")
    fig.supylabel("y")
    figures.show(fig, alt="a", caption="c")
    assert len(shown) == 1


def test_a_colour_bar_needs_a_label(shown: list[dict[str, str]]) -> None:
    fig, ax = figures.subplots()
    bar = fig.colorbar(ax.imshow(np.eye(3)))
    ax.set(xlabel="x", ylabel="y")
    with pytest.raises(ValueError, match="colour bar"):
        figures.show(fig, alt="a", caption="c")
    bar.set_label("weight")
    figures.show(fig, alt="a", caption="c")
    assert len(shown) == 1


def test_empty_and_switched_off_axes_need_no_labels(shown: list[dict[str, str]]) -> None:
    fig, axes = figures.subplots(1, 2)
    axes[1].plot([0, 1])
    axes[1].set_axis_off()
    figures.show(fig, alt="a", caption="c")
    assert len(shown) == 1


def test_the_reader_s_settings_and_pyplot_are_left_alone(shown: list[dict[str, str]]) -> None:
    before = dict(mpl.rcParams)
    figures.show(curve(), alt="a", caption="c")
    assert dict(mpl.rcParams) == before
    assert plt.get_fignums() == []
    fig, ax = plt.subplots()
    ax.set(xlabel="x", ylabel="y")
    figures.show(fig, alt="a", caption="c")  # a figure from pyplot is shown once only
    assert plt.get_fignums() == []
    assert len(shown) == 2
