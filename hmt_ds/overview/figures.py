"""Draw the pictures of a report, as text (SVG or encoded PNG) for its HTML page."""

import base64
import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

POINTS = 600  # of a curve at most, so that a page of long runs stays small
SMOOTH, WINDOWS = 20, 15  # logged steps of the mean drawn over noisy values; at most a fifteenth of the curve
NAME = 32  # letters of a curve's name
COLOURS = ("#1f5fa8", "#d1651f", "#2a8a4a", "#8a3fa0", "#b02a4a", "#6b6b6b")  # told apart in print and by most eyes
STYLE = {"svg.fonttype": "none", "svg.hashsalt": "hmt_ds", "font.family": "sans-serif", "font.size": 10}

NAMED = re.compile(r"<metadata>.*?</metadata>|(?<=<g) id=\"[^\"]*\"", re.DOTALL)  # not needed, and not unique on a page


class Curve(NamedTuple):
    """A curve of a report's picture: one run's values with their 95% intervals.

    Attributes:
        number: index of the run on the page, which gives the curve's colour.
        name: text of the legend.
        x, y: values, equally many; None in ``y`` for a missing one.
        low, high: ends of the 95% interval of each value; None without intervals.
    """

    number: int
    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    low: Sequence[float | None] | None = None
    high: Sequence[float | None] | None = None


def svg(draw: Callable[[Axes], object], *, size: tuple[float, float] = (6.0, 3.2)) -> str:
    """Draw a picture and return it as an SVG element without a fixed size, so that the page can scale it.

    Args:
        draw: draws into the given axes.
        size: width and height in inches, which determine the ratio and the size of the text.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        draw(axes)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    rest = NAMED.sub("", text.partition(">")[2]).replace("xlink:href", "href")
    width, height = (round(72 * side) for side in size)
    return f'<svg viewBox="0 0 {width} {height}" role="img">{rest}'


def curves(found: Sequence[Curve], x_label: str, y_label: str, *, smooth: bool = False, log: bool = False) -> str:
    """Draw the curves of some runs over optimizer steps; return an SVG element.

    Args:
        found: the curves.
        x_label, y_label: labels of the axes.
        smooth: draw a running mean as well, and the values themselves paler.
        log: whether the vertical axis is logarithmic.
    """

    def draw(axes: Axes) -> None:
        for curve in found:
            colour = COLOURS[curve.number % len(COLOURS)]
            x, y = np.array(curve.x, float), np.array([np.nan if v is None else v for v in curve.y], float)
            if smooth and is_smoothed(curve):
                axes.plot(*thinned(x, y), color=colour, alpha=0.3, linewidth=0.8)
                y = running_mean(y, window_of(curve))
            axes.plot(*thinned(x, y), color=colour, linewidth=1.6, label=short(curve.name))
        axes.set(xlabel=x_label, ylabel=y_label)
        if log:
            axes.set_yscale("log")
        legend(axes, len(found))

    return svg(draw)


def intervals(found: Sequence[Curve], x_label: str, y_label: str, *, line: float | None = None) -> str:
    """Draw the values of some runs with their 95% intervals; return an SVG element.

    The values of the horizontal axis are spaced evenly, each labelled with its number.

    Args:
        found: the curves.
        x_label, y_label: labels of the axes.
        line: a value to mark with a horizontal line, such as 0 or the fraction that guessing gets right; None for none.
    """

    def draw(axes: Axes) -> None:
        ticks = sorted({x for curve in found for x in curve.x})
        places = {x: number for number, x in enumerate(ticks)}
        for number, curve in enumerate(found):
            colour = COLOURS[curve.number % len(COLOURS)]
            beside = 0.08 * (number - (len(found) - 1) / 2)  # so that no bar hides another
            x = [places[value] + beside for value in curve.x]
            bars = None if curve.low is None or curve.high is None else error_bars(curve)
            axes.errorbar(x, curve.y, bars, fmt="o-", color=colour, capsize=3, linewidth=1.4, label=short(curve.name))  # type: ignore[arg-type]
        axes.set_xticks(range(len(ticks)), [f"{x:g}" for x in ticks])
        axes.set(xlabel=x_label, ylabel=y_label)
        if line is not None:
            axes.axhline(line, color="#555", linewidth=0.9, linestyle="--")
        legend(axes, len(found))

    return svg(draw)


def error_bars(curve: Curve) -> list[list[float]]:
    """Return how far a curve's 95% intervals reach below and above its values: two lists of distances, 0 without
    interval.

    Args:
        curve: the curve.
    """
    assert curve.low is not None and curve.high is not None
    ends = list(zip(curve.y, curve.low, curve.high, strict=True))
    below = [0.0 if y is None or low is None else max(0.0, y - low) for y, low, _ in ends]
    above = [0.0 if y is None or high is None else max(0.0, high - y) for y, _, high in ends]
    return [below, above]


def rank_map(steps: Sequence[int], seconds: Sequence[Sequence[float]]) -> str:
    """Draw how many seconds each rank's own work took, as a map over steps and ranks; return an SVG element.

    Args:
        steps: optimizer steps at which ranks were compared.
        seconds: for each of ``steps``, the seconds of each rank.
    """

    def draw(axes: Axes) -> None:
        values = np.array(seconds, float).T
        values /= np.median(values, axis=0)
        axes.grid(visible=False)
        most = max(1.5, values.max())  # small differences stay pale
        image = axes.imshow(
            values, aspect="auto", origin="lower", cmap="YlOrRd", interpolation="nearest", vmin=1, vmax=most
        )
        at = sorted({round(place) for place in np.linspace(0, len(steps) - 1, 6)})
        axes.set_xticks(at, [f"{steps[place]}" for place in at])
        axes.set(xlabel="optimizer step", ylabel="rank")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        assert axes.figure is not None
        axes.figure.colorbar(image, ax=axes, label="times the median of the ranks")

    return svg(draw)


def embedded(file: Path) -> str:
    """Return a PNG file as a ``data:`` URL for an HTML image element."""
    return "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode()


def window_of(curve: Curve) -> int:
    """Return the number of logged steps over which a curve's running mean is taken."""
    return min(SMOOTH, len(curve.y) // WINDOWS)


def is_smoothed(curve: Curve) -> bool:
    """Return whether a curve is long enough to draw a running mean beside it: one over at least two logged steps."""
    return window_of(curve) > 1


def short(name: str) -> str:
    """Shorten a long name of a run to its beginning and end, to leave room for the curves in a picture."""
    return name if len(name) <= NAME else f"{name[: NAME // 2]}...{name[-NAME // 2 :]}"


def legend(axes: Axes, number: int) -> None:
    """Show a picture's legend if the picture has several curves.

    Args:
        axes: matplotlib's axes.
        number: number of curves.
    """
    if number > 1:
        axes.legend(frameon=False, fontsize=9)


def thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a curve with at most ``POINTS`` points, evenly chosen, the last one included.

    Args:
        x, y: ``[points]``, the curve.
    """
    if len(x) <= POINTS:
        return x, y
    at = np.unique(np.linspace(0, len(x) - 1, POINTS).round().astype(int))
    return x[at], y[at]


def running_mean(y: np.ndarray, window: int) -> np.ndarray:
    """Return for each value the mean of the last ``window`` values up to it, ignoring nan.

    Args:
        y: ``[points]``; nan for a missing value.
        window: number of values that a mean is taken of.

    Returns:
        ``[points]``.
    """
    found = np.isfinite(y)
    sums, numbers = np.cumsum(np.where(found, y, 0.0)), np.cumsum(found)
    sums[window:], numbers[window:] = sums[window:] - sums[:-window], numbers[window:] - numbers[:-window]
    return np.where(numbers > 0, sums / np.maximum(numbers, 1), np.nan)
