"""Functions of tensors compiled to machine code where that pays, and what was learnt of it.

A function is traced once into a graph of tensor operations, backward pass included, and the graph
is compiled by PyTorch's inductor: operations that go number by number become one pass over memory.
On a GPU the whole graph is one CUDA graph. Nothing is compiled again behind one's back: a graph is
of one form and of fixed shapes, and whoever calls it keeps one for each.

Nothing here knows what is computed.
"""

from __future__ import annotations

import contextlib
import logging
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor

Function: TypeAlias = Callable[..., Sequence[Tensor]]
"""From tensors to tensors, changing none of them."""


CLEARLY: Final = 2.0  # times the seconds of compiling that it must be expected to save
_SAVED: Final = 0.3  # of a step's time, where none was compiled yet: measured were 0.26 to 0.59
_LEAST_SECONDS: Final = 8.0  # of compiling; small networks on an idle core take so long
_SECONDS_A_NODE: Final = 0.12  # of a graph, likewise; a rough rate, 0.07 to 0.35 were measured


def pays(steps: float, seconds: float, compiling: float, saved: float = _SAVED) -> bool:
    """Return whether compiling a step clearly saves time.

    Args:
        steps: that are still to be carried out.
        seconds: of one of them, as it is.
        compiling: seconds of compiling it.
        saved: the share of a step's time that the compiled one is expected to save.
    """
    return steps * seconds * saved > CLEARLY * compiling


@dataclass
class Experience:
    """What compiling has taken and saved in this process.

    Attributes:
        rates: seconds a node of the graphs that were compiled.
        shares: of their time that compiled steps saved.
        broken: why nothing can be compiled in this process; empty if it can.
    """

    rates: list[float] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)
    broken: str = ""

    def seconds(self, nodes: int = 0) -> float:
        """Return the expected seconds of compiling a graph; the least ones if it is not known."""
        rate = max(self.rates, default=_SECONDS_A_NODE)
        return max(_LEAST_SECONDS if not self.rates else 0.0, rate * nodes)

    def saved(self) -> float:
        """Return the expected saving, as a share of a step's time."""
        return sum(self.shares) / len(self.shares) if self.shares else _SAVED


experience: Final = Experience()

_log = logging.getLogger(__name__)


class NotCompiled(Exception):  # noqa: N818  (reads as the reason it is)
    """A function could not be compiled, and why."""


def traced(function: Function, values: Sequence[Tensor]) -> torch.fx.GraphModule:
    """Return a function's operations on tensors of these shapes, as a graph.

    Raises:
        NotCompiled: it decides by the numbers in a tensor, or does what cannot be traced.
    """
    from torch.fx.experimental.proxy_tensor import make_fx

    with _refused():
        return make_fx(function)(*values)


def nodes(graph: torch.fx.GraphModule) -> int:
    """Return how many operations a graph has."""
    return len(graph.graph.nodes)


def compiled(graph: torch.fx.GraphModule, values: Sequence[Tensor]) -> Function:
    """Return a graph as machine code, which it has carried out once on `values`.

    Raises:
        NotCompiled: there is no compiler, or it failed; `experience` remembers it.
    """
    device = values[0].device.type
    began = time.perf_counter()
    try:
        with _refused(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the compiler, about itself
            made = _inductor(graph, values, device)
            made(*values)
            _wait(device)
    except NotCompiled as error:
        experience.broken = str(error)
        raise
    experience.rates.append((time.perf_counter() - began) / nodes(graph))
    return made


@contextlib.contextmanager
def _refused() -> Iterator[None]:
    """Raise whatever fails in the body as NotCompiled."""
    try:
        yield
    except Exception as error:
        raise NotCompiled(_first_line(error)) from error


def _inductor(graph: torch.fx.GraphModule, values: Sequence[Tensor], device: str) -> Function:
    import torch._inductor
    from torch._inductor import config

    # One process compiles: workers are as many as there are cores already.
    with torch.no_grad(), config.patch(compile_threads=1):
        options = {"triton.cudagraphs": True} if device == "cuda" else {}
        call: Any = torch._inductor.compile(graph, list(values), options=options)

    def carried_out(*values: Tensor) -> Sequence[Tensor]:
        with torch.no_grad():
            if device != "cuda":
                return tuple(call(*values))
            # The next replay writes where this one has written.
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
            return tuple(value.clone() for value in call(*values))

    return carried_out


def seconds_of(function: Callable[[], object], device: torch.device) -> float:
    """Return the seconds that a call takes on a device."""
    _wait(device.type)
    began = time.perf_counter()
    function()
    _wait(device.type)
    return time.perf_counter() - began


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _first_line(error: BaseException) -> str:
    said = (str(error).strip().splitlines() or [""])[0][:200]
    return f"{type(error).__name__}: {said}"
