"""Execute batches in this process, one after the other: no Ray, and a debugger can step in.

Only runs under which a process has died before go to a process of their own, `python -m
raybench.local`, which can die without the suite.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

from raybench.errors import UnavailableError, UsageError
from raybench.journal import IN_PROCESS
from raybench.plan import Batch, decode
from raybench.progress import Progress
from raybench.store import SuiteStore
from raybench.work import run_batch


class LocalExecutor:
    """The executor of `--in-process`; the other one is `raybench.cluster.RayExecutor`."""

    slots = 1

    def run(
        self,
        batches: Sequence[Batch],
        store: SuiteStore,
        on_progress: Callable[[Progress], None],
    ) -> None:
        """Carry out the batches and report as their runs are stored.

        Raises:
            UsageError: some want several ranks.
        """
        most = max((batch.resources.ranks for batch in batches), default=1)
        if most > 1:
            raise UsageError(
                f"resources.ranks: {most} needs {most} processes, which Ray starts: leave out "
                "--in-process, or set resources.ranks=1, which gives the same numbers"
            )
        for batch in batches:
            if not batch.suspect:
                with closing(run_batch(batch, store, IN_PROCESS)) as work:
                    for progress in work:
                        on_progress(progress)
        with closing(_Child(store.root)) as child:
            for batch in batches:
                if batch.suspect:
                    for progress in child.run(batch):
                        on_progress(progress)

    def close(self) -> None:
        """Do nothing: this executor holds nothing."""


class _Child:
    """A process for batches that may end it; another is started when it has died."""

    def __init__(self, store: str) -> None:
        self._store = store
        self._process: subprocess.Popen[str] | None = None

    def run(self, batch: Batch) -> Iterator[Progress]:
        """Carry out a batch and yield what the process reports, as `run_batch` does."""
        process = self._process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        progress = Progress(batch.batch_id)
        try:
            process.stdin.write(batch.encode() + "\n")
            process.stdin.flush()
            while not progress.finished and (line := process.stdout.readline()):
                progress = Progress.of(json.loads(line))
                yield progress
        except BrokenPipeError:
            pass  # it died before it could listen
        if not progress.finished:
            self.close()
            yield Progress(batch.batch_id, finished=True, broken=_ending(process.returncode))

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    def _start(self) -> subprocess.Popen[str]:
        # The same modules are found there, plug-ins included.
        path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "raybench.local", self._store],
            env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )


def _ending(code: int) -> str:
    """Return how a process ended, in words."""
    if code >= 0:
        return f"the process ended with code {code}"
    name = signal.Signals(-code).name
    return f"the process died ({name}{', or out of memory' if name == 'SIGKILL' else ''})"


def _serve(store: str) -> None:
    """Carry out the batches that come on standard input, a line each, and report likewise."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what runs print must not get between
    for line in sys.stdin:
        batch = decode(line)
        try:
            for progress in run_batch(batch, SuiteStore(store, batch.suite), "subprocess"):
                print(json.dumps(progress.plain()), file=answers, flush=True)
        except UnavailableError as error:
            lost = Progress(batch.batch_id, finished=True, unstored=str(error))
            print(json.dumps(lost.plain()), file=answers, flush=True)


if __name__ == "__main__":
    _serve(sys.argv[1])
