"""The text of a figure: it changes with what is plotted, and with nothing else."""

from collections.abc import Callable

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from iclbook import figures
from iclbook.checks import Array
from tools.plotted import describe

X = np.linspace(0, 3, 50)
HEAT = np.add.outer(np.arange(6.0) ** 2, np.arange(8.0))


def curves(jitter: Callable[[Array], Array] = lambda values: values) -> Figure:
    """One of everything."""
    fig, ((a, b), (c, d)) = figures.subplots(2, 2, width=8, height=6)
    a.plot(X, jitter(np.sin(X)), label="sine")
    a.plot(X, jitter(np.cos(X)), label="cosine")
    a.fill_between(X, jitter(np.sin(X) - 0.1), jitter(np.sin(X) + 0.1), label="band")
    a.axhline(float(jitter(np.array([0.0005]))[0]))  # between two steps of rounding
    a.legend()
    b.scatter(jitter(X[::5]), jitter(X[::5] ** 2), c=jitter(X[::5]))
    b.text(1, 2, "floor")
    b.annotate("here", (1, 1), (2, 0.5), arrowprops={"arrowstyle": "->"})
    image = c.imshow(jitter(HEAT))
    c.contour(jitter(HEAT), levels=[10.3, 20.3])
    fig.colorbar(image, label="ratio")
    d.bar(["u", "v", "w"], jitter(np.array([1.0, -2.0, 0.5])))
    for ax in (a, b, c, d):
        ax.set(xlabel="time (steps)", ylabel="risk", title="a title")
    return fig


def test_it_can_be_read() -> None:
    fig, ax = figures.subplots()
    ax.plot([1, 10, 100], [1, 0.1, 0.0123456], label="LSA")
    ax.plot([1, 10, 100], [1, 1, 1], label="LTB")
    ax.axhline(0.5)
    ax.set(xlabel="step", ylabel="risk", xscale="log", yscale="log", xlim=(1, 100), ylim=(0.01, 1))
    assert describe(fig).splitlines() == [
        'axes 1: x "step" log 1 to 100; y "risk" log 0.01 to 1',
        '  1 line "LSA": x 1 10 100; y 1 0.1 0.0123',
        '  2 line "LTB": x of 1; y 1 1 1',
        "  3 line: y 0.5 0.5",
    ]


def flip(fig: Figure) -> None:
    line = fig.axes[0].lines[0]
    line.set_ydata(-line.get_ydata())


def swap(fig: Figure) -> None:
    one, other = fig.axes[0].lines[:2]
    ours, theirs = one.get_ydata(), other.get_ydata()
    one.set_ydata(theirs)
    other.set_ydata(ours)


def bend(fig: Figure) -> None:
    """Change a stretch of a curve by 2 % of what the axis spans."""
    line = fig.axes[0].lines[0]
    line.set_ydata(line.get_ydata() + 0.04 * (np.abs(X - 1.5) < 0.3))


def move_band(fig: Figure) -> None:
    (band,) = fig.axes[0].collections
    for path in band.get_paths():
        path.vertices[:, 1] += 0.05


def roll(fig: Figure) -> None:
    fig.axes[2].images[0].set_data(np.roll(HEAT, 1, axis=1))


def grow(fig: Figure) -> None:
    fig.axes[3].patches[1].set_height(-1.9)


def far(ax: Axes) -> None:
    ax.collections[0].set_offsets([[0, 0.5], *ax.collections[0].get_offsets()[1:]])


@pytest.mark.parametrize(
    ("error", "place"),
    [
        (flip, "sine"),
        (swap, "cosine"),
        (bend, "sine"),
        (move_band, "band"),
        (roll, "image"),
        (grow, "bars"),
        (lambda fig: far(fig.axes[1]), "points"),
        (lambda fig: fig.axes[1].collections[0].set_array(np.arange(10.0)), "points"),
        (lambda fig: fig.axes[0].lines[1].set_label("cosinus"), "cosinus"),
        (lambda fig: fig.axes[0].lines[2].set_ydata([0.1, 0.1]), "line"),
        (lambda fig: fig.axes[0].lines[0].set_visible(False), "sine"),
        (lambda fig: fig.axes[0].get_legend().get_texts()[0].set_text("tangent"), "legend"),
        (lambda fig: fig.axes[0].set_xlabel("time (hours)"), "axes 1"),
        (lambda fig: fig.axes[0].set_title("another"), "axes 1"),
        (lambda fig: fig.axes[0].set_ylim(-1.2, 1.3), "axes 1"),
        (lambda fig: fig.axes[1].set_yscale("symlog"), "axes 2"),
        (lambda fig: fig.axes[2].invert_yaxis(), "axes 3"),
        (lambda fig: fig.axes[2].images[0].set_clim(0, 40), "axes 5"),
        (lambda fig: fig.axes[2].images[0].set_extent((0, 8, 6, 0)), "image"),
        (lambda fig: fig.axes[3].set_xticks(range(3), ["u", "w", "v"]), "axes 4"),
        (lambda fig: fig.axes[1].texts[0].set_text("ceiling"), "ceiling"),
        (lambda fig: fig.axes[1].texts[0].set_position((1, 3)), "floor"),
        (lambda fig: setattr(fig.axes[1].texts[1], "xy", (1, 1.5)), "here"),
        (lambda fig: fig.suptitle("all of it"), "all of it"),
    ],
)
def test_an_error_in_a_figure_is_seen(error: Callable[[Figure], object], place: str) -> None:
    right, wrong = curves(), curves()
    error(wrong)
    before, after = describe(right).splitlines(), describe(wrong).splitlines()
    changed = {line.strip() for line in set(before) ^ set(after)}
    assert any(place in line for line in changed), changed


@pytest.mark.parametrize("seed", range(4))
def test_last_digits_are_not_seen(seed: int) -> None:
    rng = np.random.default_rng(seed)

    def jitter(values: Array) -> Array:
        return values * (1 + 1e-12 * rng.uniform(-1, 1, values.shape))

    assert describe(curves(jitter)) == describe(curves())


def test_rounding_errors_on_a_logarithmic_axis_are_not_seen() -> None:
    texts = []
    for noise in (1e-16, 3e-16, 0):
        fig, ax = figures.subplots()
        ax.semilogy([0, 1, 2, 3], [1, 1e-3, 2.5e-8, noise])
        texts.append(describe(fig).splitlines()[1])
    assert set(texts) == {"  1 line: x 0 1 2 3; y 1 0.001 2.5e-08 0"}


def test_zero_has_no_sign_and_small_is_zero() -> None:
    fig, ax = figures.subplots()
    ax.plot([-1, 0, 1], [-0.0, -1e-5, 1])
    ax.set(xlim=(-1, 1), ylim=(0, 1))
    assert describe(fig).splitlines()[1] == "  1 line: x -1 0 1; y 0 0 1"


def test_what_lies_off_the_axis_keeps_three_digits() -> None:
    fig, ax = figures.subplots()
    ax.plot([0, 1, 2, 3], [1000.25, 1000.5, 123456.789, np.nan])
    ax.set(xlim=(0, 3), ylim=(1000, 1001))
    assert describe(fig).splitlines()[1] == "  1 line: x 0 1 2 3; y 1000.25 1000.5 123000 nan"


def test_a_curve_is_summed_up_by_its_ends_and_mean() -> None:
    fig, ax = figures.subplots()
    ax.plot(np.arange(5001) / 5000, (np.arange(5001) / 5000 - 0.5) ** 2)
    ax.set(xlim=(0, 1), ylim=(0, 1))
    line = describe(fig).splitlines()[1]
    assert "y 0 to 0.25, mean 0.083, of 5001: 0.25 " in line  # the mean is 1/12
    assert line.endswith(" 0.25")
    assert len(line.split("5001: ")[2].split()) == 24


def test_many_curves_stay_short() -> None:
    fig, ax = figures.subplots()
    for i in range(8):
        ax.plot(X, np.sin(X + i), label=f"run {i}")
    ax.set(xlabel="x", ylabel="y")
    assert len(describe(fig)) < 1500


def test_an_artist_without_points_is_named() -> None:
    fig, ax = figures.subplots()
    ax.plot([], [], label="for the legend only")
    assert '1 line "for the legend only": x none; y none' in describe(fig)
