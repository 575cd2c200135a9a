"""How figures look: one style, and colours that belong to labels.

Nothing here touches matplotlib's global settings: `context()` holds the style while a figure is
drawn and saved, and puts back what was there.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import matplotlib as mpl
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure as Picture
from matplotlib.ticker import LogLocator, NullFormatter, PercentFormatter, ScalarFormatter

COLUMN = 3.5
"""Width of a paper's column in inches."""
PAGE = 7.2
"""Width of both columns."""

PALETTE = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#882255",
    "#117733",
    "#332288",
    "#7F7F7F",
)
"""Told apart with the common kinds of colour blindness (Okabe and Ito 2008; Tol 2021)."""

FIXED = {
    "sgd": "#7F7F7F",
    "momentum": "#E69F00",
    "nesterov": "#882255",
    "nag": "#882255",
    "adagrad": "#CC79A7",
    "rmsprop": "#009E73",
    "adam": "#0072B2",
    "adamw": "#56B4E9",
    "nadam": "#332288",
    "radam": "#117733",
    "lion": "#D55E00",
    "muon": "#D55E00",
    "adam_mup": "#D55E00",
    "adam-mup": "#D55E00",
    "mup": "#D55E00",
    "train": "#7F7F7F",
    "valid": "#E69F00",
    "test": "#0072B2",
}
"""Labels that keep one colour through all papers."""

NOISE = {0.0: "#0072B2", 0.05: "#56B4E9", 0.1: "#E69F00", 0.15: "#CC79A7", 0.2: "#D55E00"}
"""Levels of label noise."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
INK, FAINT = "#222222", "#8A8A8A"

_RC: dict[Any, object] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8.0,
    "axes.titlesize": 8.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 8.0,
    "axes.edgecolor": "#555555",
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.5,
    "xtick.labelsize": 7.0,
    "ytick.labelsize": 7.0,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.width": 0.4,
    "ytick.minor.width": 0.4,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.minor.size": 1.5,
    "ytick.minor.size": 1.5,
    "legend.frameon": False,
    "legend.fontsize": 7.0,
    "legend.title_fontsize": 7.0,
    "legend.handlelength": 1.6,
    "lines.linewidth": 1.3,
    "lines.markersize": 3.2,
    "text.color": INK,
    "text.usetex": False,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "figure.dpi": 100.0,
    "savefig.dpi": 200.0,
    "savefig.bbox": None,
    "svg.fonttype": "path",
}


@contextmanager
def context(salt: str = "raybench") -> Iterator[None]:
    """Hold raybench's style; `salt` makes the ids inside an SVG file the same each time."""
    settings = {**_RC, "svg.hashsalt": salt}
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(settings)
        yield


def canvas(
    rows: int = 1, columns: int = 1, width: float = PAGE, height: float = 2.6
) -> tuple[Picture, list[list[Axes]]]:
    """Return an empty picture of `width` x `height` inches with its grid of axes."""
    picture = Picture(figsize=(width, height), layout="constrained")
    axes = picture.subplots(rows, columns, squeeze=False)
    return picture, [list(row) for row in axes]


def colour(label: str) -> str:
    """Return the colour of a label: the same in every figure, whatever stands beside it."""
    return FIXED.get(label.lower(), PALETTE[_stable(label) % len(PALETTE)])


def colours(labels: Iterable[str]) -> dict[str, str]:
    """Return the colours of labels that share a picture: each its own, or the next one free.

    What is taken depends on which labels there are, never on their order.
    """
    given = list(dict.fromkeys(labels))
    names = sorted(given, key=lambda name: (name.lower() not in FIXED, name))
    chosen: dict[str, str] = {}
    for name in names:
        home = colour(name)
        if home in chosen.values() and name.lower() not in FIXED:
            start = PALETTE.index(home)
            ring = [*PALETTE[start:], *PALETTE[:start]]
            home = next((c for c in ring if c not in chosen.values()), home)
        chosen[name] = home
    return {name: chosen[name] for name in given}


def marker(label: str) -> str:
    """Return the marker of a label; it tells apart two labels whose colours coincide."""
    return MARKERS[_stable(label) // len(PALETTE) % len(MARKERS)]


def noise_colour(level: float) -> str:
    """Return the colour of a level of label noise."""
    return NOISE.get(round(level, 4), colour(f"noise {level:g}"))


def scale_colour(value: float, low: float = 8.0, high: float = 2048.0) -> str:
    """Return the colour of a positive size (a width) on a fixed logarithmic scale."""
    where = math.log(max(value, 1e-12) / low) / math.log(high / low)
    return to_hex(colormaps["viridis"](0.92 * min(max(where, 0.0), 1.0)))


def text(label: object, limit: int = 40) -> str:
    """Return a label as plain text: no formulas, no hidden legend entries, not too long."""
    plain = "".join(c if c.isprintable() else " " for c in str(label)).strip()
    if len(plain) > limit:
        plain = plain[: limit - 1] + "…"
    return (
        plain.replace("$", r"\$") if not plain.startswith("_") else " " + plain.replace("$", r"\$")
    )


def percent(share: float) -> str:
    """Return a share in per cent, as labels have it."""
    return f"{100 * share:g} %"


def log_widths(axes: Axes, widths: Sequence[float]) -> None:
    """Make the x axis logarithmic with ticks at the widths, thinned where they would touch."""
    ordered = sorted(set(widths))
    if len(ordered) < 2 or any(width <= 0 for width in ordered):
        return
    axes.set_xscale("log")
    gap = math.log(ordered[-1] / ordered[0]) / 9.0
    ticks = [ordered[0]]
    for width in ordered[1:]:
        if math.log(width / ticks[-1]) >= gap:
            ticks.append(width)
    axes.set_xticks(ticks, [f"{width:g}" for width in ticks])
    axes.set_xticks([width for width in ordered if width not in ticks], minor=True)
    axes.xaxis.set_minor_formatter(NullFormatter())


def log_axis(axes: Axes, which: Literal["x", "y"], base: float = 10.0) -> None:
    """Make an axis logarithmic with few, readable ticks; call it when the data are drawn.

    Without a positive value to show, the axis stays as it is.
    """
    positive = axes.dataLim.minposx if which == "x" else axes.dataLim.minposy
    if not math.isfinite(positive):
        return
    (axes.set_xscale if which == "x" else axes.set_yscale)("log", base=base)
    axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = sorted(axis.get_view_interval())
    if base == 10.0 and low > 0 and high / low < 30.0:
        subs = (1.0, 2.0, 5.0) if high / low > 8.0 else (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)
        axis.set_major_locator(LogLocator(subs=subs))
        plain = ScalarFormatter()
        plain.set_scientific(False)
        axis.set_major_formatter(plain)
        axis.set_minor_formatter(NullFormatter())


def percent_axis(axes: Axes, decimals: int | None = 0) -> None:
    """Show the y axis, a share between 0 and 1, in per cent."""
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=decimals, symbol=" %"))


def _stable(label: str) -> int:
    # Python's own hash of a string changes with each process.
    return int.from_bytes(hashlib.sha256(label.encode()).digest()[:4], "big")
