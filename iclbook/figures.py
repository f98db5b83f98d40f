"""The house style of the book's figures, and the one way to show them.

A figure is drawn once and read on light pages, on dark pages and on a phone. `show` writes it as
SVG inside the page: what matplotlib drew in black becomes the text colour of the page, white
becomes its background, and the colours of the palette become CSS variables with the colour itself
as the fallback, so that the drawing is right without the site's style sheet too (in JupyterLab).

::

    from iclbook import figures

    fig, ax = figures.subplots()
    ax.plot(steps, risk, **figures.series(0), label="LSA")
    ax.fill_between(steps, low, high, **figures.band(0))
    ax.set(xlabel="training step", ylabel="risk (dimensionless)")
    ax.legend()
    figures.show(fig, alt="...", caption="...")
"""

import hashlib
import html
import importlib
import io
import os
import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.legend import Legend

from iclbook import notebook

PALETTE: Mapping[str, str] = {
    "blue": "#2a67b0",
    "vermillion": "#e0530f",
    "green": "#0b9657",
    "magenta": "#bf2380",
    "sky": "#1e96ee",
    "ink": "#000000",
}
"""Colours by name: each has a contrast of 3 or more on white and (ink becomes the text colour) on
the dark page, and all pairs differ to the common forms of colour blindness. ``_static/icl.css``
has the brighter ones that dark pages use."""

SEQUENTIAL = "cividis"
"""Colour map for quantities that go from little to much."""

DIVERGING = LinearSegmentedColormap.from_list(
    "icl_diverging", ["#12427f", "#5b8cc3", "#dcdcdc", "#cd7a46", "#762900"]
)
"""Colour map for quantities with a middle, such as differences: blue, grey, vermillion. Its ends
are equally dark, so the middle must be put at the centre: ``vmin=-a, vmax=a``."""

_LINES = ("-", "--", "-.", ":", (0, (5, 1.5, 1, 1.5, 1, 1.5)), (0, (8, 2)))
_MARKERS = ("o", "s", "^", "D", "v", "P")

_STYLE: Any = {
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.prop_cycle": mpl.rcsetup.cycler(color=list(PALETTE.values()), linestyle=_LINES),
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 10.5,
    "axes.labelsize": 10,
    "grid.color": "#000000",
    "grid.alpha": 0.13,
    "grid.linewidth": 0.7,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: the same drawing everywhere
    "font.size": 10,
}
_SAVE: Any = {
    "svg.hashsalt": "iclbook",
    "svg.fonttype": "path",
    "path.simplify": True,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
}

_SVG = "http://www.w3.org/2000/svg"
_XLINK = "http://www.w3.org/1999/xlink"
_LARGEST, _SMALLEST = 1.15, 0.68  # bounds on the shown width, over the drawn width
_PHONE = 358  # CSS pixels of text width on a phone: a figure that needs more scrolls


def series(key: int | str) -> dict[str, Any]:
    """Colour, line style and marker that belong together, for ``ax.plot(x, y, **series(0))``.

    Args:
        key: Place in the palette, 0 to 5, or name of a colour in it.

    Returns:
        ``color``, ``linestyle``, ``linewidth``, ``marker`` and ``markersize``. For many points add
        ``markevery``; for points without lines, ``series(0) | {"linestyle": "none"}``.

    Raises:
        ValueError: If the palette has no such colour.
    """
    place = _place(key)
    return {
        "color": list(PALETTE.values())[place],
        "linestyle": _LINES[place],
        "linewidth": 1.7,
        "marker": _MARKERS[place],
        "markersize": 5,
    }


def band(key: int | str) -> dict[str, Any]:
    """Style of the interval around ``series(key)``.

    For ``ax.fill_between(x, low, high, **band(0))``.

    Raises:
        ValueError: If the palette has no such colour.
    """
    return {"color": list(PALETTE.values())[_place(key)], "alpha": 0.2, "linewidth": 0}


def _place(key: int | str) -> int:
    names = list(PALETTE)
    if isinstance(key, str) and key in names:
        return names.index(key)
    if isinstance(key, int) and 0 <= key < len(names):
        return key
    raise ValueError(f"the palette has {', '.join(names)} (0 to {len(names) - 1}), not {key!r}")


def subplots(
    rows: int = 1,
    columns: int = 1,
    *,
    width: float = 5.2,
    height: float = 3.3,
    **options: Any,  # noqa: ANN401 (matplotlib's)
) -> tuple[Figure, Any]:
    """Make a figure and its axes in the house style.

    The figure is not pyplot's: nothing is shown until `show`, and the reader's own rcParams stay as
    they are.

    Args:
        rows: Of the grid of axes.
        columns: Of the grid of axes.
        width: Of the whole figure, in inches. Up to 5.4 fit a phone; wider figures scroll there.
        height: Of the whole figure, in inches.
        **options: Of `matplotlib.figure.Figure.subplots`, such as ``sharey=True``.

    Returns:
        The figure and its axes, one or an array of them, as `matplotlib.pyplot.subplots` does.
    """
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        return figure, figure.subplots(rows, columns, **options)


def show(fig: Figure, *, alt: str, caption: str) -> None:
    """Show a figure in the page, with its caption, as SVG that fits light and dark pages.

    Its text form has the caption and the alt text. Where runs are compared, the environment's
    ICLBOOK_DESCRIBE names a module whose `describe(fig)` adds what is plotted.

    Args:
        fig: From `subplots`. It is not changed, except for the frames of its legends and the
            interpolation of its images.
        alt: What the figure shows, for readers who do not see it: the axes, the curves and what
            they do. Plain text.
        caption: What to see in the figure. Plain text with mathematics between single dollar signs.

    Raises:
        ValueError: If `alt` or `caption` is empty, if the caption has an odd number of dollar
            signs, or if axes with data lack a label on x or y (a colour bar needs one label). Axes
            that share an axis need its label once; axes that are switched off need none.
    """
    if not alt.strip():
        raise ValueError("a figure needs alt text: what it shows, for readers who do not see it")
    if not caption.strip():
        raise ValueError("a figure needs a caption: what to see in it")
    if caption.count("$") % 2:
        raise ValueError(f"the caption has an odd number of dollar signs: {caption!r}")
    _demand_labels(fig)
    alt, caption = " ".join(alt.split()), " ".join(caption.split())

    drawing = _markup(_draw(fig), alt, caption)  # which settles the limits
    text = f"Figure: {caption} [{alt}]"
    if module := os.environ.get("ICLBOOK_DESCRIBE"):
        text += f"\n{importlib.import_module(module).describe(fig)}"
    notebook.show({"text/html": drawing, "text/plain": text})
    _close(fig)


def _demand_labels(fig: Figure) -> None:
    for number, ax in enumerate(fig.axes, start=1):
        if not (ax.get_visible() and ax.axison and ax.has_data()):
            continue
        has_x = bool(fig.get_supxlabel()) or _labelled(ax, "x")
        has_y = bool(fig.get_supylabel()) or _labelled(ax, "y")
        if ax.get_label() == "<colorbar>":
            if not (_labelled(ax, "x") or _labelled(ax, "y")):
                raise ValueError(f"the colour bar (axes {number}) has no label")
        elif not (has_x and has_y):
            missing = " and ".join(name for name, has in (("x", has_x), ("y", has_y)) if not has)
            raise ValueError(
                f"axes {number} of {len(fig.axes)} have no {missing} label: say what the axis "
                'shows, with its unit or "(dimensionless)"'
            )


def _labelled(ax: Axes, name: str) -> bool:
    """Whether these axes, or others with the same x or y axis, label it."""
    shared = ax.get_shared_x_axes() if name == "x" else ax.get_shared_y_axes()
    return any(getattr(other, f"get_{name}label")().strip() for other in shared.get_siblings(ax))


def _close(fig: Figure) -> None:
    """Forget a figure that came from pyplot, lest the notebook shows it a second time."""
    if getattr(fig, "number", None) is not None:
        from matplotlib import pyplot as plt

        plt.close(fig)


def _draw(fig: Figure) -> str:
    """SVG of a figure, with the colours of the page and with identifiers of its own."""
    for legend in fig.findobj(Legend):
        legend.get_frame().set(facecolor="#ffffff", edgecolor="none", alpha=0.8)
    for image in fig.findobj(AxesImage):
        image.set_interpolation("none")  # each cell as it is, which no browser blurs
    drawn = io.BytesIO()
    with mpl.rc_context(_SAVE):
        fig.savefig(drawn, format="svg", facecolor="none", metadata={"Date": None})
    svg = ET.fromstring(drawn.getvalue())  # noqa: S314 (matplotlib wrote it a moment ago)
    _strip(svg)
    for element in svg.iter():
        element.tag = element.tag.removeprefix(f"{{{_SVG}}}")  # inside HTML, svg needs no namespace
        if f"{{{_XLINK}}}href" in element.attrib:
            element.set("href", element.attrib.pop(f"{{{_XLINK}}}href"))
        if "style" in element.attrib:
            element.set("style", _page_colours(element.attrib["style"]))
        for name in {"d", "points"} & element.attrib.keys():
            element.set(name, re.sub(r"-?\d+\.\d+", _rounded, element.attrib[name]))
    width, height = (float(svg.attrib[name].removesuffix("pt")) for name in ("width", "height"))
    pixels = width * 96 / 72
    svg.attrib.clear()
    svg.attrib.update(
        {
            "viewBox": f"0 0 {width:g} {height:g}",
            "fill": "currentColor",  # of text, which matplotlib leaves at the default
            "stroke-linejoin": "round",
            "stroke-linecap": "butt",
            "style": f"display: block; width: 100%; max-width: {_LARGEST * pixels:.0f}px; "
            f"min-width: {_SMALLEST * pixels:.0f}px; height: auto; margin: 0 auto",
        }
    )
    return _with_own_ids(ET.tostring(svg, encoding="unicode"))


def _strip(parent: ET.Element) -> None:
    """Drop what must not stand inside a page: metadata, and rules for all elements of the page."""
    for child in list(parent):
        if child.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"):
            parent.remove(child)
        else:
            _strip(child)


def _rounded(match: re.Match[str]) -> str:
    return f"{float(match[0]):.2f}".rstrip("0").rstrip(".")


def _page_colours(style: str) -> str:
    """Style with black as the page's ink, white as its paper and the palette as CSS variables."""
    style = style.replace("#000000", "currentColor")
    style = style.replace("#ffffff", "var(--icl-paper, var(--jp-layout-color0, transparent))")
    for name, colour in PALETTE.items():
        if name != "ink":
            style = style.replace(colour, f"var(--icl-{name}, {colour})")
    return style


def _with_own_ids(svg: str) -> str:
    """SVG whose identifiers are numbered under a prefix made from the drawing itself.

    Several drawings share one page, and matplotlib gives the same names in all of them. Names that
    nothing refers to are dropped.
    """
    names = dict.fromkeys(re.findall(r'(?<=url\(#)[^)]+|(?<=href="#)[^"]+', svg))
    for number, name in enumerate(names):
        names[name] = f"@{number}"
    svg = re.sub(r' id="([^"]+)"', lambda m: f' id="{names[m[1]]}"' if m[1] in names else "", svg)
    svg = re.sub(r'(url\(#|href="#)([^)"]+)', lambda m: f"{m[1]}{names[m[2]]}", svg)
    prefix = "icl" + hashlib.sha256(svg.encode()).hexdigest()[:10] + "-"
    return re.sub(r'(?<=url\(#)@|(?<=href="#)@|(?<= id=")@', prefix, svg)


def _markup(svg: str, alt: str, caption: str) -> str:
    """HTML of a figure: the drawing in a box of its own that scrolls, then the caption."""
    least = int(re.findall(r"min-width: (\d+)px", svg)[0])
    wide = ' tabindex="0" role="group" aria-label="Wide figure, scrolls sideways"'
    drawing = svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(alt)}" ', 1)
    return (
        '<figure class="icl-figure" style="margin: 1em 0">\n'
        # whoever uses the keyboard must reach what scrolls
        f'<div class="icl-drawing" style="overflow-x: auto"{wide if least > _PHONE else ""}>'
        f"{drawing}</div>\n<figcaption>{with_mathematics(caption)}</figcaption>\n</figure>"
    )


def with_mathematics(text: str) -> str:
    """HTML of a text with mathematics between dollar signs, in the class that MathJax looks in."""
    parts = html.escape(text, quote=False).split("$")
    return "".join(
        rf'<span class="math notranslate nohighlight">\({part}\)</span>' if place % 2 else part
        for place, part in enumerate(parts)
    )
