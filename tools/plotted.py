"""What a figure shows, in words and numbers that another machine repeats.

`describe` is the text that `iclbook.figures.show` gives beside the drawing: titles, labels, limits,
and of each curve, band, image and bar some of its points. The numbers are rounded to what an eye
could tell apart, so that a curve which changed is noticed, and a last digit is not.
"""

import math
from collections.abc import Iterator, Sequence
from typing import cast

import numpy as np
from matplotlib import cm, collections, container, contour, image, lines, patches, ticker
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text
from numpy.typing import ArrayLike

from iclbook.checks import Array

_KINDS: dict[type, str] = {
    collections.LineCollection: "lines",
    collections.PathCollection: "points",
    collections.PolyCollection: "band",
    collections.QuadMesh: "image",
    contour.ContourSet: "contours",
    image.AxesImage: "image",
    lines.Line2D: "line",
    patches.Patch: "shape",
}
_MOST, _LEAST = 24, 6  # printed points of one curve
_ALL = 200  # printed numbers of a figure, about
_NOISE = 1e-9  # what is smaller on a logarithmic axis differs from machine to machine
# Round numbers lie on the edge of rounding, as 0.0005 does; moved by this share of a step, none.
_OFF_EDGE = 0.0137


def describe(fig: Figure) -> str:
    """Titles, labels, limits and points of a figure.

    Of each artist the first, the last and some points evenly between are given, and the least, the
    greatest and the mean of all. On a linear axis the steps of rounding are about 1/1000 of what
    it spans, or less; on others, and for what lies far off the axis, three digits are kept.

    Returns:
        Some lines, without the caption.
    """
    every = [cast("Axes", own) for ax in fig.axes for own in (ax, *ax.child_axes)]
    shown = [ax for ax in every if ax.get_visible()]
    parts = [list(_parts(ax)) for ax in shown]
    columns = sum(len(part[1]) for own in parts for part in own)
    most = min(_MOST, max(_LEAST, _ALL // max(columns, 1)))
    made = [f"text {_quoted(text)}" for text in fig.texts if text.get_text()]
    made += [f"legend {_quoted(*legend.get_texts())}" for legend in fig.legends]
    for number, (ax, own) in enumerate(zip(shown, parts, strict=True), start=1):
        made.append(f"axes {number}: {_frame(ax)}")
        seen: dict[str, int] = {}  # what curves share is given once
        for place, (name, given) in enumerate(own, start=1):
            texts = [f"{axis} {_summary(values, r, most)}" for axis, r, values in given]
            short = [f"{t[0]} of {seen[t]}" if t in seen else t for t in texts]
            made.append(f"  {place} {name}: {'; '.join(short)}")
            seen = dict.fromkeys(texts, place) | seen
        made += [f"  {text}" for text in _texts(ax)]
    return "\n".join(made)


class _Rounding:
    """Rounds numbers for one axis, or for the colours of an image."""

    def __init__(self, limits: tuple[float, float], scale: str) -> None:
        self.low, self.high = sorted(limits)
        self.linear = scale == "linear"

    def __call__(self, number: float) -> str:
        if number == 0 or not math.isfinite(number):
            return f"{abs(number) if number == 0 else number:g}"
        step = -math.inf
        span, size = self.high - self.low, abs(number)
        if self.linear:
            step = math.floor(math.log10(span)) - 3 if span > 0 else -3
            size = max(0.0, self.low - span - number, number - self.high - span)
        elif size <= _NOISE * min(abs(self.high), 1):
            return "0"
        if size > 0:
            step = max(step, math.floor(math.log10(size)) - 2)
        steps = math.floor(number / 10.0 ** int(step) + 0.5 + _OFF_EDGE)
        return f"{float(f'{steps}e{int(step)}'):.10g}"


_Column = tuple[str, _Rounding, Array]


def _roundings(ax: Axes) -> tuple[_Rounding, _Rounding]:
    """Those of the x and the y axis."""
    return _Rounding(ax.get_xlim(), ax.get_xscale()), _Rounding(ax.get_ylim(), ax.get_yscale())


def _summary(values: Array, rounding: _Rounding, most: int) -> str:
    """Some of the values; where that is not all, their number, ends and mean before."""
    count = len(values)
    chosen = values if count <= most else values[np.arange(most) * (count - 1) // (most - 1)]
    text = " ".join(rounding(float(value)) for value in chosen)
    finite = values[np.isfinite(values)]
    if count <= most or not len(finite):
        return text or "none"
    low, high, mean = (rounding(float(v)) for v in (finite.min(), finite.max(), finite.mean()))
    return f"{low} to {high}, mean {mean}, of {count}: {text}"


def _frame(ax: Axes) -> str:
    """Title, and label, scale, limits and named ticks of both axes."""
    words = [_quoted(ax.get_title())] if ax.get_title() else []
    for name, axis, limits in (("x", ax.xaxis, ax.get_xlim()), ("y", ax.yaxis, ax.get_ylim())):
        rounding = _Rounding(limits, axis.get_scale())
        scale = "" if rounding.linear else f" {axis.get_scale()}"
        label = f" {_quoted(axis.get_label())}" if axis.get_label().get_text() else ""
        words.append(f"{name}{label}{scale} {rounding(limits[0])} to {rounding(limits[1])}")
        formatter = axis.get_major_formatter()
        if (
            isinstance(formatter, ticker.FixedFormatter)
            or "StrCategory" in type(formatter).__name__
        ):
            words.append(f"ticks {_quoted(*axis.get_ticklabels())}")
    return "; ".join(words)


def _parts(ax: Axes) -> Iterator[tuple[str, list[_Column]]]:
    """Each thing that is drawn in these axes, with its columns of numbers."""
    if ax.get_label() == "<colorbar>":
        return  # its frame says it all
    x, y = _roundings(ax)
    groups = [group for group in ax.containers if isinstance(group, container.BarContainer)]
    bars = {bar: group for group in groups for bar in group}
    frame = {ax.patch, *ax.spines.values()}
    for artist in ax.get_children():
        kind = next((name for own, name in _KINDS.items() if isinstance(artist, own)), None)
        if kind is None or artist in frame or not artist.get_visible():
            continue
        points, label = _points(artist), str(artist.get_label() or artist.get_gid() or "_")
        if (group := bars.get(artist)) is not None:
            if artist is not group[0]:
                continue
            kind, label = "bars", str(group.get_label())
            points = np.concatenate([bar.get_bbox().get_points() for bar in group])
        moves = artist.get_transform()
        if isinstance(artist, collections.PathCollection):
            moves = artist.get_offset_transform()
        in_data = moves.contains_branch_seperately(ax.transData)
        columns: list[_Column] = []
        # A line across the axes has one of the coordinates only.
        columns += [("x", x, points[:, 0])] if in_data[0] else []
        columns += [("y", y, points[:, 1])] if in_data[1] else []
        if isinstance(artist, cm.ScalarMappable) and artist.get_array() is not None:
            scale = "log" if "Log" in type(artist.norm).__name__ else "linear"
            rounding = _Rounding(artist.get_clim(), scale)
            columns.append(("value", rounding, _flat(artist.get_array())))
        if columns:
            yield kind if label.startswith("_") else f"{kind} {_quoted(label)}", columns


def _points(artist: Artist) -> Array:
    """Points (n, 2) of what is drawn."""
    if isinstance(artist, lines.Line2D):
        return np.column_stack([_flat(values) for values in artist.get_data(orig=False)])
    if isinstance(artist, image.AxesImage):
        return np.reshape(artist.get_extent(), (2, 2)).T
    if isinstance(artist, collections.QuadMesh):
        return _flat(artist.get_coordinates()).reshape(-1, 2)
    if isinstance(artist, collections.PathCollection):
        return _flat(artist.get_offsets()).reshape(-1, 2)
    if isinstance(artist, collections.Collection):
        return np.concatenate([np.empty((0, 2)), *(path.vertices for path in artist.get_paths())])
    if isinstance(artist, patches.Patch):
        return np.asarray(artist.get_patch_transform().transform(artist.get_path().vertices))
    raise TypeError(f"no points are known of {artist}")


def _flat(values: ArrayLike | None) -> Array:
    """Values in one row, with NaN for those that are masked."""
    return np.ma.filled(np.ma.asarray(values, dtype=float), np.nan).ravel()


def _texts(ax: Axes) -> Iterator[str]:
    """Texts in the axes, with what they point at, and those of the legend."""
    for text in ax.texts:
        in_data: Sequence[bool]
        if isinstance(text, Annotation):
            point, in_data = text.xy, (text.xycoords == "data",) * 2
        else:
            point = text.get_position()
            in_data = text.get_transform().contains_branch_seperately(ax.transData)
        at = [r(v) for r, v, own in zip(_roundings(ax), point, in_data, strict=True) if own]
        if text.get_visible() and text.get_text():
            yield f"text {_quoted(text)}" + (f" at {' '.join(at)}" if at else "")
    if (legend := ax.get_legend()) is not None:
        yield f"legend {_quoted(*legend.get_texts())}"


def _quoted(*texts: Text | str) -> str:
    """Texts in one line, each in quotes."""
    plain = (text if isinstance(text, str) else text.get_text() for text in texts)
    return ", ".join('"' + " ".join(text.split()) + '"' for text in plain)
