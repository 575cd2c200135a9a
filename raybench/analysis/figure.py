"""A figure: data out of the tables, then a drawing of the data, then claims about the data.

    tables --data--> DataFrame (the CSV beside the picture) --draw--> PNG and SVG
                         `--check--> verdict of each claim

Where the rows that a figure or a claim needs are missing, it is NOT RUN, with what is missing.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure as Picture

from raybench.analysis import style
from raybench.analysis.rows import Missing, notes


@dataclass(frozen=True)
class Tables:
    """The result tables of one suite at one scale.

    Attributes:
        runs: one row a run.
        metrics: run_id, step, epoch, split, metric, value.
        reference: runs of published results, with the columns of `runs`; empty if there are none.
        scale: its name; empty where it is not known.
    """

    runs: pd.DataFrame
    metrics: pd.DataFrame
    reference: pd.DataFrame = field(default_factory=pd.DataFrame)
    scale: str = ""


@dataclass(frozen=True)
class Verdict:
    """What a claim comes to on the data at hand.

    Attributes:
        measured: the number, or a short statement of the numbers.
        threshold: what it was held against.
        passed: None where it was not run.
    """

    measured: str | float
    threshold: str
    passed: bool | None

    @property
    def status(self) -> str:
        """Return PASS, FAIL or NOT RUN."""
        return "NOT RUN" if self.passed is None else "PASS" if self.passed else "FAIL"


@dataclass(frozen=True)
class Claim:
    """A statement of a paper, with the code that checks it.

    Attributes:
        name: short, unique in its figure.
        text: the statement as it is checked, thresholds included.
        source: the paper and its figure.
        check: verdict on the figure's data; raises `Missing` where it cannot be told.
        expected: for scales at which the claim is known not to hold, why, and what was tried. There
            it still comes to FAIL, which is then no surprise.
    """

    name: str
    text: str
    source: str
    check: Callable[[pd.DataFrame], Verdict]
    expected: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Figure:
    """One figure of a paper.

    Attributes:
        title: what it shows.
        caption: how to read it; counts of runs and the intervals' name are added to it.
        data: the numbers, as they are saved; raises `Missing` where there are none.
        draw: the picture of `data`'s result.
        claims: what the paper says about it.
        tables: further texts of `data`'s result, by the suffix of the file they are written to
            (such as "md" and "tex").
    """

    title: str
    caption: str
    data: Callable[[Tables], pd.DataFrame]
    draw: Callable[[pd.DataFrame], Picture]
    claims: tuple[Claim, ...] = ()
    tables: Callable[[pd.DataFrame], Mapping[str, str]] | None = None

    def picture(self, data: pd.DataFrame, salt: str = "raybench") -> Picture:
        """Return the drawing of `data` in raybench's style."""
        with style.context(salt):
            return self.draw(data)


EXPECTED = "FAIL (expected)"
"""What a claim comes to that fails where its suite says that it does."""


@dataclass(frozen=True)
class Checked:
    """A claim and its verdict.

    Attributes:
        expected: why the claim is expected to fail at this scale; empty where it is not.
    """

    claim: Claim
    verdict: Verdict
    expected: str = ""

    @property
    def status(self) -> str:
        """Return PASS, FAIL, FAIL (expected) or NOT RUN."""
        known = self.verdict.status == "FAIL" and self.expected
        return EXPECTED if known else self.verdict.status


@dataclass(frozen=True)
class Evaluation:
    """A figure's data and verdicts.

    Attributes:
        data: None where rows are missing.
        missing: what is missing, in words; empty where nothing is.
        verdicts: one for each claim, in order.
    """

    data: pd.DataFrame | None
    missing: str
    verdicts: tuple[Checked, ...]


@dataclass(frozen=True)
class Rendered:
    """A figure on disk.

    Attributes:
        name: of the figure, unique in its suite.
        title: what it shows.
        caption: with counts and the intervals' name.
        csv: the data; None where the figure was not run.
        png: the picture; None where the figure was not run.
        svg: the picture; None where the figure was not run.
        missing: why it was not run; empty where it was.
        verdicts: one for each claim.
        extra: the figure's further tables.
    """

    name: str
    title: str
    caption: str
    csv: Path | None = None
    png: Path | None = None
    svg: Path | None = None
    missing: str = ""
    verdicts: tuple[Checked, ...] = field(default=())
    extra: tuple[Path, ...] = ()


def evaluate(figure: Figure, tables: Tables) -> Evaluation:
    """Return the figure's data and the verdicts of its claims; nothing is drawn."""
    try:
        data = figure.data(tables)
        if data.empty:
            raise Missing("no rows")
    except (Missing, KeyError) as error:
        missing = _reason(error)
        verdict = Verdict(missing, "", None)
        checked = tuple(_checked(claim, verdict, tables.scale) for claim in figure.claims)
        return Evaluation(None, missing, checked)
    checked = tuple(_checked(claim, _verdict(claim, data), tables.scale) for claim in figure.claims)
    return Evaluation(data, "", checked)


def _verdict(claim: Claim, data: pd.DataFrame) -> Verdict:
    try:
        return claim.check(data)
    except (Missing, KeyError) as error:
        return Verdict(_reason(error), "", None)


def _checked(claim: Claim, verdict: Verdict, scale: str) -> Checked:
    return Checked(claim, verdict, claim.expected.get(scale, ""))


def _reason(error: Exception) -> str:
    # pandas raises a KeyError for a column that is not there.
    return str(error) if isinstance(error, Missing) else f"no column {error}"


def render(figures: Mapping[str, Figure], tables: Tables, folder: Path) -> list[Rendered]:
    """Write each figure's CSV, PNG, SVG and further tables into `folder`; return what was written.

    Files appear whole or not at all. The same tables give the same bytes of CSV and SVG.
    """
    folder.mkdir(parents=True, exist_ok=True)
    return [_render_one(name, figure, tables, folder) for name, figure in figures.items()]


def _render_one(name: str, figure: Figure, tables: Tables, folder: Path) -> Rendered:
    found = evaluate(figure, tables)
    if found.data is None:
        return Rendered(
            name, figure.title, figure.caption, missing=found.missing, verdicts=found.verdicts
        )
    stem = "".join(c if c.isalnum() or c in "-_" else "-" for c in name)
    csv, png, svg = (folder / f"{stem}.{kind}" for kind in ("csv", "png", "svg"))
    data = found.data
    _whole(csv, lambda path: data.to_csv(path, index=False, lineterminator="\n"))
    with style.context(stem), warnings.catch_warnings():
        # Labels are the suite author's: a script that the font lacks is no reason to stop.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        try:
            picture = figure.draw(data)
        except Missing as error:  # the data are there, but too few to be drawn
            return Rendered(
                name, figure.title, figure.caption, missing=str(error), verdicts=found.verdicts
            )
        _whole(svg, lambda path: picture.savefig(path, format="svg", metadata={"Date": None}))
        picture.set_layout_engine("none")  # the places found once serve both files
        _whole(png, lambda path: picture.savefig(path, format="png"))
    extra = []
    for suffix, text in (figure.tables(data) if figure.tables else {}).items():
        extra.append(folder / f"{stem}.{suffix}")
        _whole(extra[-1], partial(Path.write_text, data=text, encoding="utf-8"))
    caption = " ".join(part for part in (figure.caption, notes(data)) if part)
    return Rendered(name, figure.title, caption, csv, png, svg, "", found.verdicts, tuple(extra))


def _whole(path: Path, write: Callable[[Path], object]) -> None:
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        write(unfinished)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def verdict_counts(rendered: Iterable[Rendered]) -> dict[str, int]:
    """Return how many claims came to PASS, FAIL, FAIL (expected) and NOT RUN."""
    counts = {"PASS": 0, "FAIL": 0, EXPECTED: 0, "NOT RUN": 0}
    for figure in rendered:
        for checked in figure.verdicts:
            counts[checked.status] += 1
    return counts
