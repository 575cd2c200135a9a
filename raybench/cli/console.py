"""What all verbs print with: tables or JSON on standard output, progress and errors beside it."""

from __future__ import annotations

import json
import math
import re
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from raybench.causes import cause

if TYPE_CHECKING:
    from raybench.progress import Progress

_WIDE: Final = 160  # where there is no terminal, whose width would be taken for 80
output = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else _WIDE)
errors = Console(
    stderr=True, highlight=False, soft_wrap=True, width=None if sys.stderr.isatty() else _WIDE
)

_PLAIN_SECONDS: Final = 5.0  # between two lines of progress where there is no terminal


def show(rows: Sequence[Mapping[str, Any]], *, as_json: bool, title: str = "") -> None:
    """Print rows as a table, or as JSON."""
    if as_json:
        print_json(rows)
        return
    names = list(dict.fromkeys(name for row in rows for name in row))
    if not output.is_terminal:
        _plain_table(rows, names, title)
        return
    table = Table(title=title or None, title_justify="left", box=None, pad_edge=False)
    for name in names:
        numeric = all(isinstance(row.get(name), int | float | None) for row in rows)
        table.add_column(name, justify="right" if numeric else "left", no_wrap=numeric)
    for row in rows:
        table.add_row(*(Text(cell(row.get(name))) for name in names))
    output.print(table)


def _plain_table(rows: Sequence[Mapping[str, Any]], names: Sequence[str], title: str) -> None:
    """Print aligned columns, a row a line and never wrapped: for pipes and files."""
    cells = [list(names), *([cell(row.get(name)) for name in names] for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(names))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) for line in cells]
    text = "\n".join(line.rstrip() for line in lines)
    sys.stdout.write((f"{title}\n" if title else "") + text + "\n")


def print_json(value: Any) -> None:
    """Print a value as JSON, and nothing else."""
    sys.stdout.write(json.dumps(_strict(value), default=str, indent=2, allow_nan=False) + "\n")


def _strict(value: Any) -> Any:
    # Strict JSON has no nan and no infinity, and many readers refuse them.
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _strict(item) for key, item in value.items()}
    return [_strict(item) for item in value] if isinstance(value, list | tuple) else value


def cell(value: Any) -> str:
    """Return a table cell."""
    if value is None or (isinstance(value, float) and value != value):
        return ""
    if isinstance(value, float):
        return f"{value:.5g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def duration(seconds: float) -> str:
    """Return `42 s`, `3 m 20 s`, `6 h 40 m` or `1,200 h`."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} m {whole % 60} s"
    if whole < 360_000:
        return f"{whole // 3600} h {whole % 3600 // 60} m"
    return f"{whole // 3600:,} h"


def size(num_bytes: float) -> str:
    """Return a size in the unit that suits it."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 999.5:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} TB"


def _begun(name: str, what: str, total: int, finished: int, to_do: int) -> str:
    return f"{name}: {total:,} {what}, {finished:,} finished before, {to_do:,} to do"


def _state(done: int, to_do: int, rest: Sequence[str]) -> str:
    filled = round(20 * done / to_do) if to_do else 20
    bar = "━" * filled + "─" * (20 - filled)
    return "  ".join([f"{done:,}/{to_do:,}", bar, *rest])


_BEGUN: Final = re.compile(r"\S+: [\d,]+ (?:.+ )?runs, [\d,]+ finished before, ([\d,]+) to do")
_STATE: Final = re.compile(r"([\d,]+)/([\d,]+)  [━─]+  (.*)")


def last_progress(lines: Sequence[str]) -> tuple[int, int, str] | None:
    """Return how far a LiveLine was that printed these lines: done, to do, and what else it said.

    None if it printed no progress in them.
    """
    for line in reversed(lines):
        if found := _STATE.fullmatch(line.rstrip()):
            done, to_do, rest = found.groups()
            return _number(done), _number(to_do), rest
        if found := _BEGUN.fullmatch(line.rstrip()):
            return 0, _number(found[1]), ""
    return None


def _number(text: str) -> int:
    return int(text.replace(",", ""))


class LiveLine:
    """The progress of a suite: one live line on a terminal, plain lines elsewhere."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._total = 0
        self._counts: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()
        self._examples: dict[str, str] = {}
        self._lanes: dict[str, int] = {}
        self._share = 0.0
        self._began = time.monotonic()
        self._printed = 0.0
        self._shown = 0
        self._live: Live | None = None

    def begin(self, phase: str, total: int, finished: int, to_do: int) -> None:
        """Show that a phase begins."""
        self.close()
        self._total = to_do
        self._counts, self._lanes, self._share = Counter(), {}, 0.0
        self._began = time.monotonic()
        self._printed = self._began
        what = "runs" if phase == "run" else f"{phase} runs"
        errors.print(_begun(self._name, what, total, finished, to_do))
        if to_do and errors.is_terminal:
            self._live = Live(console=errors, refresh_per_second=4, transient=True)
            self._live.start()
            self._live.update(self._text())

    def update(self, progress: Progress) -> None:
        """Count what has been stored; say what batches wait for."""
        if progress.waiting:
            errors.print(f"{self._name}: {progress.waiting}", markup=False)
            return
        self._counts.update(progress.statuses)
        for reason, count in progress.reasons.items():
            shared = cause(reason)
            self._reasons[shared] += count
            if self._examples.setdefault(shared, reason) != reason:
                self._examples[shared] = shared  # numbers differ, so none of them is told
        self._share = progress.share
        self._lanes[progress.batch_id] = progress.lanes
        if progress.finished:
            self._lanes.pop(progress.batch_id, None)
        if self._live is not None:
            self._live.update(self._text())
        elif time.monotonic() - self._printed > _PLAIN_SECONDS:
            self._printed = time.monotonic()
            errors.print(self._text())
            self._shown = sum(self._counts.values())

    def close(self) -> None:
        """Leave the last state on the screen."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        if sum(self._counts.values()) > self._shown:
            errors.print(self._text())
        self._counts, self._shown = Counter(), 0

    def _text(self) -> Text:
        new = sum(self._counts.values())
        done, seconds = new, time.monotonic() - self._began
        rate = new / seconds if seconds else 0.0
        left = self._total - done
        parts = [f"{rate:.1f} runs/s"]
        if left and self._share:
            # Not from runs/s: the runs that take longest come first.
            parts.append(f"eta {duration(seconds * max(1 / self._share - 1, 0.0))}")
        else:
            parts.append(f"in {duration(seconds)}")
        notable = ("stopped", "diverged", "failed")
        parts += [f"{name} {self._counts[name]:,}" for name in notable if self._counts[name]]
        if self._lanes:
            parts.append(f"{len(self._lanes)} batches x {max(self._lanes.values())} lanes")
        text = Text(_state(done, self._total, parts))
        for reason, count in self._reasons.most_common(3):
            text.append(f"\n  {count} x {self._examples[reason]}", style="red")
        return text
