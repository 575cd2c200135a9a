"""The alarm of the wall limit, rung by hand: what it ends, and what it waits for."""

from __future__ import annotations

import importlib
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from raybench.deadline import WallLimit, deadline
from raybench.journal import Journal

LONG = 3600  # seconds; no test waits for it
NOWHERE = Journal(None, "batch", [], "in-process")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder whose modules can be imported."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    yield
    assert signal.getsignal(signal.SIGALRM) == signal.SIG_DFL
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def ring() -> None:
    signal.raise_signal(signal.SIGALRM)


def test_the_alarm_ends_the_body() -> None:
    with pytest.raises(WallLimit, match="still going after 3600 s"), deadline(LONG, NOWHERE):
        ring()


def test_a_library_cannot_take_it_for_a_failure_of_its_own() -> None:
    with pytest.raises(WallLimit), deadline(LONG, NOWHERE):
        try:
            ring()
        except Exception as error:
            raise RuntimeError("the network is down") from error


def test_an_import_is_left_to_end_first(folder: Path) -> None:
    (folder / "late_outer.py").write_text("import late_inner\nwhole = late_inner.whole\n")
    (folder / "late_inner.py").write_text(
        "import signal\nsignal.raise_signal(signal.SIGALRM)\nwhole = True\n"
    )
    seen = []
    with pytest.raises(WallLimit), deadline(LONG, NOWHERE):
        seen.append(importlib.import_module("late_outer").whole)
        time.sleep(LONG)  # until it rings again
    assert seen == [True]


def test_a_body_that_is_itself_imported_is_ended(folder: Path) -> None:
    (folder / "a_study.py").write_text(
        "import signal\n"
        "from raybench.deadline import WallLimit, deadline\n"
        "from raybench.journal import Journal\n"
        "ended = False\n"
        "try:\n"
        f"    with deadline({LONG}, Journal(None, 'batch', [], 'in-process')):\n"
        "        signal.raise_signal(signal.SIGALRM)\n"
        "except WallLimit:\n"
        "    ended = True\n"
    )
    assert importlib.import_module("a_study").ended
