"""Checkpoints: what a group of runs needs to go on where it was when its process died.

    STORE/SUITE/checkpoints/GROUP/runs.json       the runs of the group, in the order of its lanes
    STORE/SUITE/checkpoints/GROUP/step-STEP.pt    tensors, numbers and text; nothing else is read

A group goes on from the furthest checkpoint that holds all of its runs: its own, or one of a larger
group that it is a piece of.
"""

from __future__ import annotations

import io
import json
import logging
import re
import time
import zipfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint

from raybench.errors import UnavailableError
from raybench.ranks import Ranks
from raybench.spec import Steps, digest
from raybench.storage import Storage

_FORMAT: Final = 1  # of what a file holds; files of another one are passed over
_RUNS: Final = "runs.json"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Stored:
    """A group that has checkpoints.

    Attributes:
        name: of its folder.
        run_ids: in the order of its lanes.
        steps: of its checkpoints, the latest first; at least one.
    """

    name: str
    run_ids: tuple[str, ...]
    steps: tuple[int, ...]


@dataclass(frozen=True)
class Saved:
    """A checkpoint that was read.

    Attributes:
        step: the step that comes next.
        state: what was given to `Saves.save`.
        places: where in the saved group the runs of this one are.
    """

    step: int
    state: Mapping[str, Any]
    places: tuple[int, ...]


class Saves:
    """The checkpoints of one group, for the procedure that trains it.

    Args:
        folder: of the suite's checkpoints.
        run_ids: of the group, in the order of its lanes.
        every: how often to save.
        keep: how many checkpoints are kept.
        ranks: the processes that train the group; the first one writes, and says where all of them
            go on.
        storage: where the folder lies; None for a folder of this machine.

    Attributes:
        every: see above.
        before: seconds that the runs took until the checkpoint that was loaded; else 0.
    """

    def __init__(
        self,
        folder: Path,
        run_ids: Sequence[str],
        every: Steps,
        keep: int,
        ranks: Ranks | None = None,
        storage: Storage | None = None,
    ) -> None:
        self.every = every
        self.before = 0.0
        self._storage = storage or Storage(folder)
        self._root = folder
        self._run_ids = tuple(run_ids)
        self._own = folder / digest([*run_ids])
        self._keep = keep
        self._ranks = ranks or Ranks.alone()
        self._began = time.perf_counter()
        self._kept: list[int] = []

    def load(self) -> Saved | None:
        """Return the furthest checkpoint that holds all of the runs; None to begin at the start.

        A file that cannot be read is passed over for the one before it.
        """
        found = self._furthest() if self._ranks.first else None
        own = (found[0], found[1].name, found[1].run_ids) if found else None
        place = self._ranks.agree(own)
        if place is None:
            return None
        step, name, run_ids = place
        form = found[2] if found else self._content(name, step)
        self.before = form["seconds"]
        self._began = time.perf_counter()
        places = tuple(run_ids.index(run_id) for run_id in self._run_ids)
        return Saved(step, form["state"], places)

    def _furthest(self) -> tuple[int, _Stored, dict[str, Any]] | None:
        wanted = set(self._run_ids)
        holding = [
            group for group in _stored(self._storage, self._root) if wanted <= set(group.run_ids)
        ]
        found = [(step, group) for group in holding for step in group.steps]
        found.sort(key=lambda item: item[0], reverse=True)
        self._kept = sorted(step for step, group in found if group.name == self._own.name)
        for step, group in found:
            try:
                return step, group, self._content(group.name, step)
            except (OSError, RuntimeError, ValueError) as error:
                path = self._root / group.name / _name(step)
                _log.warning("checkpoint %s is passed over: %s", path, error)
        return None

    def _content(self, group: str, step: int) -> dict[str, Any]:
        path = self._root / group / _name(step)
        self._storage.bring(path)
        return _plain(path)

    def seconds(self) -> float:
        """Return how long the runs have trained, lost attempts after a checkpoint left out."""
        return self.before + time.perf_counter() - self._began

    def save(self, step: int, state: Mapping[str, Any]) -> None:
        """Store what the runs need to go on with `step`; what is too old to be kept goes.

        Args:
            step: that comes next.
            state: tensors, numbers, text and None in dicts, lists and tuples.
        """
        if not self._ranks.first:
            return
        form = {"format": _FORMAT, "seconds": self.seconds(), "state": state}
        held = io.BytesIO()
        torch.save(form, held)
        try:
            _require_plain(held)
            if not self._kept:
                self._write(_RUNS, json.dumps(self._run_ids).encode())
            self._write(_name(step), held.getvalue())
        except (OSError, UnavailableError, ValueError) as error:
            # The runs can do without: they would only be longer under way after a death.
            _log.warning("checkpoint of step %d in %s was not written: %s", step, self._own, error)
            return
        self._kept = [*(kept for kept in self._kept if kept != step), step]
        while len(self._kept) > self._keep:
            self._storage.remove(self._own / _name(self._kept.pop(0)))

    def _write(self, name: str, content: bytes) -> None:
        self._own.mkdir(parents=True, exist_ok=True)
        self._storage.write(self._own / name, lambda file: file.write_bytes(content))

    def drop(self) -> None:
        """Remove the group's checkpoints: its rows are stored."""
        if self._ranks.first and self._kept:
            self._storage.remove_folder(self._own)


def begun(folder: Path, waiting: Sequence[str], storage: Storage | None = None) -> list[str]:
    """Return those of the waiting runs that are furthest in a checkpoint, a group; or none."""
    best: tuple[int, list[str]] = (0, [])
    for group in _stored(storage or Storage(folder), folder):
        own = set(group.run_ids)
        members = [run_id for run_id in waiting if run_id in own]
        if members:
            best = max(best, (group.steps[0], members))
    return best[1]


def forget(folder: Path, run_ids: Collection[str], storage: Storage | None = None) -> None:
    """Remove the checkpoints of groups that hold any of the runs."""
    storage = storage or Storage(folder)
    for group in _stored(storage, folder):
        if not set(run_ids).isdisjoint(group.run_ids):
            storage.remove_folder(folder / group.name)


def _plain(path: Path) -> dict[str, Any]:
    """Return what a checkpoint holds; ValueError or RuntimeError if it cannot be one of ours.

    Its tensors are read from the file where they are used: a rank needs a part of them only.
    """
    with path.open("rb") as file:
        if not zipfile.is_zipfile(file):
            raise ValueError("it is damaged")
    _require_plain(path)
    form = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    if not isinstance(form, dict) or form.get("format") != _FORMAT:
        raise ValueError("it was written by another version of raybench")
    return form


def _require_plain(file: Path | io.BytesIO) -> None:
    if isinstance(file, io.BytesIO):
        file.seek(0)
    if classes := get_unsafe_globals_in_checkpoint(file):
        raise ValueError(f"it holds {', '.join(classes)}, which is not read")


def _name(step: int) -> str:
    return f"step-{step:012d}.pt"


def _stored(storage: Storage, folder: Path) -> list[_Stored]:
    """Return the groups that have checkpoints."""
    found = []
    for name in storage.folders(folder):
        matches = [re.fullmatch(r"step-(\d+)\.pt", file) for file in storage.names(folder / name)]
        steps = sorted((int(match[1]) for match in matches if match), reverse=True)
        try:
            run_ids = tuple(json.loads(_read(storage, folder / name / _RUNS))) if steps else ()
        except (OSError, ValueError):
            continue  # removed meanwhile, or not written by us
        if run_ids:
            found.append(_Stored(name, run_ids, tuple(steps)))
    return found


def _read(storage: Storage, path: Path) -> bytes:
    storage.bring(path)
    return path.read_bytes()
