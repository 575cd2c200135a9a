"""The report: one HTML page that needs nothing beside it, made of plain data.

Everything from a suite or a run is text and is escaped; the only markup taken over is the figures'
own SVG, and of that only drawing elements, with ids that are unique on the page. The page runs no
script and loads nothing, and says so in its content security policy.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jinja2
import pandas as pd
from markupsafe import Markup

from raybench.analysis.figure import Rendered, verdict_counts
from raybench.causes import Failure

STATUSES = ("done", "stopped", "diverged", "failed", "skipped")


@dataclass(frozen=True)
class ReportData:
    """All that a report says.

    Attributes:
        title: the suite's name.
        description: of the suite.
        paper: such as "arXiv:1912.02292".
        scale: which scale was run.
        protocol: sentences on runs, seeds, tuning, splits and intervals; see `protocol`.
        counts: runs by status, as (status, count); see `counts`.
        figures: in order.
        failures: see `raybench.causes.failures`.
        suite_yaml: the suite's text.
        environment: versions, git commit, hardware, as (name, value).
        commands: how to reproduce, a line each.
        retry: the command that tries failed runs again; empty leaves it out.
        generated: when, in words; empty leaves it out.
    """

    title: str
    description: str = ""
    paper: str = ""
    scale: str = ""
    protocol: Sequence[str] = ()
    counts: Sequence[tuple[str, int]] = ()
    figures: Sequence[Rendered] = ()
    failures: Sequence[Failure] = ()
    suite_yaml: str = ""
    environment: Sequence[tuple[str, str]] = ()
    commands: Sequence[str] = field(default=())
    retry: str = ""
    generated: str = ""


def write_report(target: Path, report: ReportData) -> Path:
    """Write the report to `target`, whole or not at all, and return the path."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("raybench", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    figures = [
        (figure, _inline(figure.svg, f"fig{place}", figure.title) if figure.svg else "")
        for place, figure in enumerate(report.figures, 1)
    ]
    html = environment.get_template("report.html.j2").render(
        report=report,
        figures=figures,
        verdicts=verdict_counts(report.figures),
        paper_link=_link(report.paper),
        total=sum(count for _, count in report.counts),
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{target.name}.unfinished")
    unfinished.write_text(html, encoding="utf-8")
    unfinished.replace(target)
    return target


def counts(runs: pd.DataFrame) -> list[tuple[str, int]]:
    """Return how many runs have each status, in a fixed order."""
    found = runs["status"].astype(str).value_counts()
    names = [*STATUSES, *sorted(set(found.index) - set(STATUSES))]
    return [(name, int(found.get(name, 0))) for name in names if name == "done" or name in found]


def protocol(runs: pd.DataFrame) -> list[str]:
    """Return sentences on how many runs there are, over which seeds, splits and searches."""
    said = [f"{len(runs)} runs with {runs['seed'].nunique()} different seeds."]
    if "label.phase" in runs.columns:
        phases = runs["label.phase"].dropna().astype(str).value_counts()
        searched = int(phases.get("search", 0) + phases.get("rung", 0))
        confirmed = int(phases.get("confirm", 0))
        if searched:
            said.append(
                f"Hyperparameters were tuned in {searched} runs on validation data; the chosen "
                f"settings were run again on fresh seeds in {confirmed} runs, and scores are those."
            )
    splits = {c.split(".")[1] for c in runs.columns if c.startswith("summary.")}
    known = [split for split in ("train", "valid", "test") if split in splits]
    if known:
        said.append(f"Measured on: {', '.join(known)}.")
    said.append(
        "Intervals are 95 % bootstrap intervals over seeds (BCa for means, percentile for ranks "
        "and locations; 2,000 resamples from a fixed seed) unless a caption says otherwise. "
        "Diverged and failed runs are counted and never dropped silently."
    )
    return said


def _link(paper: str) -> str:
    found = re.fullmatch(r"arXiv:(\d{4}\.\d{4,5})", paper.strip())
    return f"https://arxiv.org/abs/{found[1]}" if found else ""


_SVG = "http://www.w3.org/2000/svg"
_XLINK = "http://www.w3.org/1999/xlink"
_DRAWING = frozenset(
    {"svg", "g", "defs", "clipPath", "marker", "symbol", "use", "text", "tspan", "image"}
    | {"path", "rect", "circle", "ellipse", "line", "polyline", "polygon"}
    | {"linearGradient", "radialGradient", "stop"}
)


def _inline(path: Path, prefix: str, title: str) -> Markup:
    """Return the SVG file as markup to stand in a page: drawing elements only, ids with `prefix`.

    The ids in files of matplotlib (`figure_1`, `axes_1`, glyphs, clip paths) are the same in each.
    """
    root = ET.fromstring(path.read_text(encoding="utf-8"))
    _only_drawing(root)
    for element in root.iter():
        for name, value in list(element.attrib.items()):
            if name.startswith("on"):
                del element.attrib[name]
            elif name == "id":
                element.set(name, f"{prefix}-{value}")
            elif name.removeprefix(f"{{{_XLINK}}}") == "href":
                _relink(element, name, value, prefix)
            elif "url(" in value:
                element.set(name, re.sub(r"url\(#([^)]*)\)", rf"url(#{prefix}-\1)", value))
        element.tag = str(element.tag).removeprefix(f"{{{_SVG}}}")
    root.attrib.update({"xmlns": _SVG, "role": "img", "aria-label": title})
    for size in ("width", "height"):
        root.attrib.pop(size, None)
    root.set("style", f"max-width:{_points(root):.0f}pt;{_JOINS}")
    return Markup(ET.tostring(root, encoding="unicode"))


_JOINS = "stroke-linejoin:round;stroke-linecap:butt"


def _points(root: ET.Element) -> float:
    box = root.get("viewBox", "0 0 520 0").split()
    return float(box[2])


def _relink(element: ET.Element, name: str, value: str, prefix: str) -> None:
    # Only to things in the same picture, or to pixels in the file itself.
    del element.attrib[name]
    if value.startswith("#"):
        element.set("href", f"#{prefix}-{value[1:]}")
    elif value.startswith("data:image/png;base64,"):
        element.set("href", value)


def _only_drawing(parent: ET.Element) -> None:
    for child in list(parent):
        if not isinstance(child.tag, str) or child.tag.removeprefix(f"{{{_SVG}}}") not in _DRAWING:
            parent.remove(child)
        else:
            _only_drawing(child)
