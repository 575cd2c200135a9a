"""A process for each contestant: its memory is its own, and so is what it sets and starts."""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import sys
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Final, NamedTuple

import torch

from raybench.bench.contestants import CONTESTANTS, Timed
from raybench.bench.memory import Watch
from raybench.bench.workloads import Work
from raybench.errors import RaybenchError

_PATIENCE: Final = 60.0  # seconds for a contestant to start, or to end what it has started
_READY: Final = "ready"


class Seen(NamedTuple):
    """One block of one contestant.

    Attributes:
        timed: what it took.
        driver: most memory of its process, in bytes; None if not known.
        workers: most memory of all that it started, in bytes; None if not known.
    """

    timed: Timed
    driver: int | None
    workers: int | None


class Driver:
    """A contestant in a process of its own; what it needs is started with its first block.

    Args:
        name: a key of `CONTESTANTS`.
        cores: that it may use.
    """

    def __init__(self, name: str, cores: int) -> None:
        self._name = name
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, name, cores))
        self._process.start()
        theirs.close()

    def wait(self) -> None:
        """Return when its process has been started and has imported what it needs."""
        self._pipe.poll(_PATIENCE)

    def block(self, work: Work, sample: int | None = None) -> Seen:
        """Have a block carried out, or a sample of its runs.

        Raises:
            RaybenchError: the contestant failed; why is on standard error.
        """
        try:
            self._pipe.send((work, sample))
            while not isinstance(seen := self._pipe.recv(), Seen):
                pass  # that it is ready
        except (EOFError, OSError) as error:
            raise RaybenchError(
                f"{self._name} failed on {work.workload}; its own message stands above. Leave it "
                "out by naming the other peers with --peer"
            ) from error
        return seen

    def close(self) -> None:
        """End it, and what it has started."""
        with contextlib.suppress(OSError):
            self._pipe.send(None)
        self._process.join(_PATIENCE)
        if self._process.is_alive():
            self._process.terminate()


@contextlib.contextmanager
def drivers(names: list[str], cores: int) -> Iterator[dict[str, Driver]]:
    """Give a driver for each contestant; they end with the context."""
    with contextlib.ExitStack() as stack:
        found = {name: Driver(name, cores) for name in names}
        for driver in found.values():
            stack.callback(driver.close)
        for driver in found.values():
            driver.wait()  # imports would disturb the first measurements
        yield found


def _serve(pipe: Connection, name: str, cores: int) -> None:
    torch.set_num_threads(1)
    pipe.send(_READY)
    with contextlib.suppress(KeyboardInterrupt, EOFError), contextlib.ExitStack() as stack:
        # Where libraries clean up, and multiprocessing ends a process without it.
        stack.callback(atexit._run_exitfuncs)
        # What peers print belongs beside the rows, not among them.
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        contestant = None
        while (order := pipe.recv()) is not None:
            if contestant is None:
                began = time.perf_counter()
                contestant = CONTESTANTS[name](cores)
                stack.callback(contestant.close)
                starting = time.perf_counter() - began
            with Watch() as watch:
                timed = contestant.block(*order)
            whole = timed._replace(start=starting + timed.start)
            pipe.send(Seen(whole, watch.driver, watch.workers))
