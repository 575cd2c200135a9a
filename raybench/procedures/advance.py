"""One training step of K runs: carried out operation by operation, or compiled once that pays."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NamedTuple, TypeAlias

import torch
from torch import Tensor

from raybench import compiling
from raybench.compiling import Function, NotCompiled
from raybench.lanes import Lanes, Params, flatten, refill
from raybench.procedures.feed import Piece
from raybench.procedures.network import Network
from raybench.procedures.stepper import Stepper
from raybench.spec import Json, Spec, digest, hyper_fields

_TIMED: Final = 5  # steps of each kind that are timed, after one that warms up
_FASTER: Final = 0.95  # of the time as it was, which a compiled step must stay below
_ROUNDING: Final = 1e-3  # by how much of its length a result may differ, after one step

_log = logging.getLogger(__name__)


class Place(NamedTuple):
    """Where K runs stand between two steps; masks hold weights at 0."""

    params: Params
    state: Any
    buffers: Params
    masks: Params | None = None


Step: TypeAlias = tuple[Place, Tensor]
"""Where runs stand after a step, and their losses at it, [K]."""


@dataclass
class _Kind:
    """What this process knows of steps of one form and shape.

    Attributes:
        seconds: the least that one took.
        timed: how many were timed.
        function: one that is compiled.
        result: what it returns, with nothing in its tensors.
        nodes: operations of its graph; 0 if it was not traced yet.
        refused: whether it was said that compiling would not pay.
        settled: whether it is known what to do: to use the function, or to do without if it has
            none.
    """

    seconds: float = math.inf
    timed: int = 0
    function: Function | None = None
    result: Any = None
    nodes: int = 0
    refused: bool = False
    settled: bool = False


_kinds: dict[str, _Kind] = {}


@dataclass
class _Seen:
    """How often this fit has met a shape of step, and what to do with it.

    Attributes:
        kind: what the process knows of it.
        count: steps so far.
        asked: whether it was asked if compiling pays in this fit.
    """

    kind: _Kind
    count: int = 0
    asked: bool = False


class Advance:
    """The steps of one fit.

    Args:
        lanes: the runs' lanes.
        network: gives the gradients.
        stepper: the optimizers.
        form: what the runs share: equal forms with tensors of equal shapes compute the same. None
            for steps that cannot be compiled.
    """

    def __init__(self, lanes: Lanes, network: Network, stepper: Stepper, form: Json) -> None:
        self._lanes, self._network, self._stepper = lanes, network, stepper
        self._form = form
        self._able = (
            form is not None
            and lanes.compiling.mode != "off"
            and lanes.dtype == torch.float32  # float64 is for exactness
            and lanes.clock.stop_after is None
            and not stepper.foreign
            and lanes.ranks.size == 1
        )
        self._seen: dict[tuple[object, ...], _Seen] = {}
        self._total = 0
        self._numbers: tuple[Spec, Spec] | None = None

    def step(self, at: Place, pieces: Iterable[Piece], factor: float, left: int) -> Step:
        """Return where the runs are after a step.

        Args:
            at: where they are.
            pieces: of their rows and targets.
            factor: of the learning rate.
            left: steps of the fit that are still to come, this one included.
        """
        if not self._able or not self._total:  # the first step checks the model, and warms up
            self._total += 1
            return self.carry_out(at, pieces, factor)
        self._total += 1
        [piece] = pieces
        seen = self._seen_before(at, piece)
        seen.count += 1
        kind = seen.kind
        if not kind.settled and (kind.timed >= _TIMED or self._lanes.compiling.mode == "on"):
            if not seen.asked:
                seen.asked = True
                self._ask(seen, at, piece, factor, left)
        elif not kind.settled:
            return self._timed(kind, partial(self.carry_out, at, [piece], factor))
        if kind.function is None:
            return self.carry_out(at, [piece], factor)
        self._lanes.compiled = max(self._lanes.compiled, self._lanes.size)
        try:
            return self._called(kind.function, kind.result, at, piece, factor)
        except (
            RuntimeError,
            AssertionError,
        ) as error:  # no step has a side effect: it can be taken again
            kind.function = None
            _log.warning("a compiled step failed, and is taken as before: %s", error)
            return self.carry_out(at, [piece], factor)

    def carry_out(self, at: Place, pieces: Iterable[Piece], factor: float) -> Step:
        """Return where the runs are after a step that is not compiled."""
        grads, loss, buffers = self._network.step_gradient(at.params, at.buffers, pieces)
        grads = masked(grads, at.masks)
        params, state = self._stepper.update(grads, at.state, at.params, factor)
        return Place(masked(params, at.masks), state, buffers, at.masks), loss

    def function(
        self, at: Place, piece: Piece, factor: float
    ) -> tuple[Function, list[Tensor], list[Any]]:
        """Return a step as a function of tensors, those to call it with, and a list.

        The function appends to the list what it returns, in its own form.
        """
        tensors, restore = flatten(self._arguments(at, piece, factor))
        results: list[Any] = []

        def on_tensors(*values: Tensor) -> Sequence[Tensor]:
            rule, packed, buffers, masks, x, y, factor = restore(values)
            params, state = self._stepper.unpack(packed, at.params)
            rows = [Piece(x, y, piece.rows)]
            grads, loss, buffers = self._network.summed_gradient(rows, params, buffers)
            grads = masked(grads, masks)
            params, state = self._stepper.update(grads, state, params, factor, rule)
            results.append((self._stepper.pack(masked(params, masks), state), buffers, loss))
            return tuple(flatten(results[-1])[0])

        return on_tensors, tensors, results

    def _arguments(self, at: Place, piece: Piece, factor: float) -> tuple[Any, ...]:
        """Return what a step depends on; all numbers in it as tensors, lest they be constants."""
        rule = self._stepper.rule
        if self._numbers is None or self._numbers[0] is not rule:
            self._numbers = (rule, self._as_tensors(rule))
        packed = self._as_tensors(self._stepper.pack(at.params, at.state))
        rate = torch.full((), factor, dtype=torch.float64, device=self._lanes.device)
        return self._numbers[1], packed, at.buffers, at.masks, piece.x, piece.y, rate

    def _as_tensors(self, value: Any) -> Any:
        if isinstance(value, Spec):
            own = {name: getattr(value, name) for name in type(value).model_fields}
            hypers = hyper_fields(type(value))
            chosen = {k: v for k, v in own.items() if k in hypers or isinstance(v, Spec)}
            return value.replace(**{k: self._as_tensors(v) for k, v in chosen.items()})
        if isinstance(value, Mapping):
            return {key: self._as_tensors(part) for key, part in value.items()}
        if isinstance(value, tuple):
            return tuple(self._as_tensors(part) for part in value)
        if isinstance(value, int | float) and not isinstance(value, bool):
            shape = (self._lanes.size,) if self._lanes.lifted else ()
            return torch.full(shape, value, dtype=torch.float64, device=self._lanes.device)
        return value

    def _called(
        self, function: Function, result: Any, at: Place, piece: Piece, factor: float
    ) -> Step:
        tensors, _ = flatten(self._arguments(at, piece, factor))
        packed, buffers, loss = refill([result], function(*tensors))
        params, state = self._stepper.unpack(packed, at.params)
        return Place(params, state, buffers, at.masks), loss

    def _timed(self, kind: _Kind, step: Callable[[], Step]) -> Step:
        found: list[Step] = []
        seconds = compiling.seconds_of(lambda: found.append(step()), self._lanes.device)
        kind.seconds = min(kind.seconds, seconds)
        kind.timed += 1
        return found[0]

    def _seen_before(self, at: Place, piece: Piece) -> _Seen:
        # Within a fit all other shapes follow from these.
        shape = (self._lanes.size, piece.x.shape, piece.x.stride(), piece.y.stride())
        if shape not in self._seen:
            tensors, _ = flatten(self._arguments(at, piece, 1.0))
            kinds: Json = [[str(t.dtype), [*t.shape], [*t.stride()]] for t in tensors]
            names: Json = [*(at.masks or {})]
            key = digest([self._form, str(self._lanes.device), names, kinds])
            self._seen[shape] = _Seen(_kinds.setdefault(key, _Kind()))
        return self._seen[shape]

    def _ask(self, seen: _Seen, at: Place, piece: Piece, factor: float, left: int) -> None:
        """Compile a step if it is expected to pay, and keep it if it does."""
        kind, past, told = seen.kind, compiling.experience, self._lanes.compiling
        # A shape of a part of the steps is met as often from here on as it was so far.
        groups = 1 + told.runs // self._lanes.size
        share = seen.count / (self._total - 1)
        steps = share * (left + (groups - 1) * (self._total + left))
        always = told.mode == "on"

        def worth(nodes: int) -> bool:
            seconds = past.seconds(nodes)
            if told.within is not None and compiling.CLEARLY * seconds > told.within / 2:
                return False  # the group's time is for its runs
            return compiling.pays(steps, kind.seconds, seconds, past.saved())

        if past.broken:
            return
        if not always and not worth(kind.nodes):
            if not kind.refused:
                kind.refused = True
                _log.info(
                    "%d lanes: steps are not compiled: %.6g are expected, of %.3g ms each",
                    self._lanes.size,
                    steps,
                    1e3 * kind.seconds,
                )
            return
        # Whatever happens from here on, even the end of the group's time, is not tried again.
        kind.settled = True
        try:
            function, tensors, results = self.function(at, piece, factor)
            graph = compiling.traced(function, tensors)
            kind.nodes = compiling.nodes(graph)
            if not always and not worth(kind.nodes):
                kind.settled = False
                return
            result = _hollow(results[-1])
            made = compiling.compiled(graph, tensors)
            self._compare(made, result, at, piece, factor)
            before, after = self._times(made, result, at, piece, factor)
        except NotCompiled as error:
            _log.warning("steps are carried out as they are, not compiled: %s", error)
            return
        past.shares.append(1 - after / before)
        used = always or after <= _FASTER * before
        if used:
            kind.function, kind.result = made, result
        _log.info(
            "%d lanes: a step takes %.3g ms compiled and %.3g ms as it is; compiling took %.3g s, "
            "%.6g steps are expected: %s",
            self._lanes.size,
            1e3 * after,
            1e3 * before,
            past.rates[-1] * kind.nodes,
            steps,
            "compiled from here on" if used else "not compiled",
        )

    def _compare(self, made: Function, result: Any, at: Place, piece: Piece, factor: float) -> None:
        """Raise NotCompiled if a compiled step leads elsewhere than the step does as it is."""
        own, own_loss = self.carry_out(at, [piece], factor)
        other, other_loss = self._called(made, result, at, piece, factor)
        pairs = [(own_loss, other_loss, torch.zeros_like(own_loss))]
        pairs += [(own.params[name], other.params[name], at.params[name]) for name in at.params]
        for one, two, before in pairs:
            finite = one.isfinite() & two.isfinite()
            apart = ((one - two) * finite).nan_to_num().norm()
            moved = ((one - before) * finite).nan_to_num().norm()
            length = before.nan_to_num(posinf=0.0, neginf=0.0).norm()
            if bool(apart > _ROUNDING * moved + 1e-6 * length):
                raise NotCompiled(f"results differ by {float(apart):.3g} after one step")

    def _times(
        self, made: Function, result: Any, at: Place, piece: Piece, factor: float
    ) -> tuple[float, float]:
        """Return the least seconds of a step as it is and compiled, taken in turns."""
        device = self._lanes.device
        before = after = math.inf
        for _ in range(_TIMED):
            own = compiling.seconds_of(partial(self.carry_out, at, [piece], factor), device)
            other = compiling.seconds_of(
                partial(self._called, made, result, at, piece, factor), device
            )
            before, after = min(before, own), min(after, other)
        return before, after


def _hollow(value: Any) -> Any:
    """Return a nested value with nothing in its tensors: they would be kept for long."""
    tensors, restore = flatten(value)
    return restore([torch.empty(0) for _ in tensors])


def masked(values: Params, masks: Params | None) -> Params:
    """Return values with those under a zero of their mask set to 0."""
    if masks is None:
        return values
    return {name: value * masks[name] if name in masks else value for name, value in values.items()}
