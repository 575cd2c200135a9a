"""How a dozen optimizers and a handful of problems share a page.

There are fewer colours that can be told apart than optimizers, so that a look is a colour with a
dash and a marker; problems lie in panels, a few to a row.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture
from matplotlib.lines import Line2D

from raybench.analysis import style

DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1.2, 1.2)), (0, (5, 1.2, 1.2, 1.2)))
AXIS = {"error": "test error", "loss": "test loss"}
"""Metric of a problem to the name of its axis."""


@dataclass(frozen=True)
class Look:
    """What a label's lines and points look like.

    Attributes:
        colour: shared by few labels.
        dash: tells those apart.
        marker: tells those apart where there are only points.
    """

    colour: str
    dash: Any
    marker: str


def looks(labels: Iterable[str]) -> dict[str, Look]:
    """Return the look of each label; it depends on which labels there are, not on their order."""
    given = list(dict.fromkeys(labels))
    paint = style.colours(given)
    taken: dict[str, int] = {}
    found: dict[str, Look] = {}
    for name in sorted(given, key=lambda name: (name.lower() not in style.FIXED, name)):
        place = taken.get(paint[name], 0)
        taken[paint[name]] = place + 1
        found[name] = Look(
            paint[name],
            DASHES[place % len(DASHES)],
            style.MARKERS[place % len(style.MARKERS)],
        )
    return {name: found[name] for name in given}


def panels(
    count: int, height: float, across: int = 4, width: float = style.PAGE
) -> tuple[Picture, list[Axes]]:
    """Return a picture with `count` axes in rows of at most `across`, each row `height` inches.

    It is `width` inches wide, or less where there are few columns.
    """
    rows = math.ceil(count / across)
    columns = math.ceil(count / rows)
    picture, grid = style.canvas(rows, columns, min(width, 2.6 * columns + 1.6), height * rows)
    axes = [cell for row in grid for cell in row]
    for spare in axes[count:]:
        spare.set_visible(False)
    return picture, axes[:count]


def legend(picture: Picture, shown: Mapping[str, Look], *, points: bool = False) -> None:
    """Name the looks to the right of all panels."""
    handles = [
        Line2D(
            [],
            [],
            color=look.colour,
            ls="" if points else look.dash,
            marker=look.marker if points else "",
            label=style.text(name, 20),
        )
        for name, look in shown.items()
    ]
    length = 1.0 if points else 2.4
    picture.legend(handles=handles, loc="outside right upper", handlelength=length)


def names(picture: Axes, labels: Sequence[str], limit: int = 18) -> None:
    """Put a name to each row of a panel, the first at the top."""
    picture.set_yticks(range(len(labels)), [style.text(name, limit) for name in labels])
    picture.set_ylim(len(labels) - 0.4, -0.6)
