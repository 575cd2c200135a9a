"""K runs as one: a procedure written for ONE run is lifted to K lanes by three verbs.

`stack` turns K per-run values into one, `map` lifts a function, `grad` lifts a gradient. With one
lane nothing is lifted: values stay as they are and `grad` is plain autograd. Several lanes are
fused by vmap. Exact lanes, which float64 has unless told otherwise, are carried out one after the
other on copies of their own instead: a matrix product rounds otherwise at another place in memory,
and exact means that not even the last bit depends on what else is in the group.

Nothing here knows what is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, ParamSpec, TypeAlias, TypeVar, cast

import torch
from torch import Tensor
from torch.func import vmap

from raybench.clock import Clock
from raybench.ranks import Ranks, Sums
from raybench.spec import Spec, hyper_fields

Params: TypeAlias = dict[str, Tensor]


T = TypeVar("T")
R = TypeVar("R")
A = ParamSpec("A")

_EACH = "each lane's number"  # the key of numbers that differ, where they are stored


class Compiling(NamedTuple):
    """What a group is told about compiling its steps.

    Attributes:
        mode: `on` compiles whatever can be, `auto` only what is expected to pay, `off` nothing.
        runs: that this process is expected to train after those of the group, of the same kind.
        within: how long the group may take, in seconds; None for as long as it likes.
    """

    mode: Literal["auto", "on", "off"] = "off"
    runs: float = 0.0
    within: float | None = None


_NEVER = Compiling()


class Lanes:
    """K runs that train together.

    Args:
        size: K, the number of lanes.
        device: where stacked tensors live.
        dtype: the floating-point type of everything that is trained.
        clock: counts gradient steps.
        exact: whether lanes are looped over instead of fused; None for "in float64".
        compiling: whether steps are compiled.
        ranks: the processes that work on these lanes together; None for this one alone.

    Attributes:
        compiled: the most lanes with which a compiled step was taken; 0 for none.
        lifted: whether stacked values have a leading axis K; not so for one lane that is not exact.
        fused: whether they do and are worked on together.
        members: which of the lanes that it began with are left; see `narrow`.
        ranks: as given.
    """

    def __init__(
        self,
        size: int,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        clock: Clock | None = None,
        exact: bool | None = None,
        compiling: Compiling = _NEVER,
        ranks: Ranks | None = None,
    ) -> None:
        if size < 1:
            raise ValueError(f"a group has at least one lane, not {size}")
        self.size = size
        self.members = tuple(range(size))
        self.device = torch.device(device)
        self.dtype = dtype
        self.clock = clock or Clock()
        self.compiling = compiling
        self.compiled = 0
        self.ranks = ranks or Ranks.alone()
        self._exact = dtype == torch.float64 if exact is None else exact
        self.lifted = size > 1 or self._exact
        self.fused = self.lifted and not self._exact

    def stack(self, values: Sequence[T]) -> T:
        """Return one value that holds K: tensors gain a leading axis K, and move to the device.

        A spec becomes one whose Hyper fields hold K numbers where the lanes differ; dicts, tuples
        and lists are stacked leaf by leaf; other leaves (names, None, whole numbers) must agree.
        """
        if len(values) != self.size:
            raise ValueError(f"{len(values)} values for {self.size} lanes")
        return cast("T", self._stack(list(values)))

    def lane(self, value: T, k: int) -> T:
        """Return lane `k` of a stacked value, in memory of its own."""
        if not self.lifted:
            return value
        return cast("T", _rebuild(value, lambda leaf: leaf[k].clone(), lambda own: own.values[k]))

    def narrow(self, places: Sequence[int]) -> None:
        """Go on with the lanes at `places` only, which are called 0, 1, ... from here on.

        All that was stacked before has to be narrowed too, by `take`.
        """
        self.members = tuple(self.members[place] for place in places)
        self.size = len(places)

    def take(self, value: T, places: Sequence[int]) -> T:
        """Return a stacked value of the lanes at `places` only; what they share stays shared."""
        if not self.lifted:
            return value
        rows = torch.tensor(places, device=self.device)

        def chosen(leaf: Tensor) -> Tensor:
            if leaf.stride(0) == 0:
                return leaf[:1].expand(len(places), *leaf.shape[1:])
            return leaf.index_select(0, rows)

        def numbers(own: _Each) -> _Each:
            return _Each(tuple(own.values[place] for place in places))

        return cast("T", _rebuild(value, chosen, numbers))

    def plain(self, value: Any) -> Any:
        """Return a stacked value as tensors on the CPU, dicts and lists, to be stored."""
        return _rebuild(value, lambda leaf: leaf.detach().cpu(), lambda own: {_EACH: own.values})

    def restored(
        self,
        plain: Any,
        places: Sequence[int],
        *,
        lifted: bool,
        keep: Callable[[Tensor], Tensor] | None = None,
    ) -> Any:
        """Return what `plain` was made of, of the lanes at `places`, which are this group's.

        Args:
            plain: what was stored.
            places: of this group's lanes among those that were stored.
            lifted: whether those were lifted: one lane that is not may be out of several that
                were, or the other way round.
            keep: what is kept of a tensor of one lane that is not lifted; None for all of it.
        """
        rows = torch.tensor(places)

        def chosen(leaf: Tensor) -> Tensor:
            if self.lifted:
                leaf = leaf.index_select(0, rows) if lifted else leaf[None]
            else:
                leaf = leaf[places[0]] if lifted else leaf
                leaf = keep(leaf) if keep else leaf
            return leaf.to(self.device, copy=True)  # stored ones are a file's, or other lanes'

        def numbers(own: _Each) -> Any:
            left = tuple(own.values[place] for place in places)
            return _Each(left) if self.lifted else left[0]

        return _rebuild(plain, chosen, numbers)

    def map(self, fn: Callable[A, R]) -> Callable[A, R]:
        """Lift a function of one run over the lanes; every tensor in its arguments is stacked.

        What all lanes share goes in by closure. Randomness inside `fn` is an error: noise is
        drawn from `rng` keys, which are arguments like any other.
        """
        if not self.lifted:
            return fn
        return self._looped(fn) if self._exact else _fused(fn)

    def in_blocks(self, fn: Callable[A, R], most: int) -> Callable[A, R]:
        """Return `fn`, a function of stacked values, carried out on at most `most` lanes at once.

        For what needs much memory: on a CPU, temporaries that stay in its cache are several times
        faster. Lanes do not touch, so nothing changes but the time.
        """
        if not self.lifted or self._exact or most >= self.size:
            return fn

        def blocked(*args: A.args, **kwargs: A.kwargs) -> R:
            parts: list[R] = []
            for start in range(0, self.size, max(most, 1)):
                some = _rows(args, slice(start, start + max(most, 1)))
                parts.append(fn(*some, **kwargs))
            leaves = [flatten(part)[0] for part in parts]
            return cast("R", refill(parts, [torch.cat(own) for own in zip(*leaves, strict=True)]))

        return blocked

    def grad(
        self, loss: Callable[..., tuple[Tensor, Any]], *, stacked: bool = False
    ) -> Callable[..., tuple[Params, Tensor, Any]]:
        """Lift the gradient of one run's loss with respect to its first argument.

        Fused lanes do not touch one another, so the gradient of the sum of their losses is each
        lane's own gradient: one ordinary backward pass over the stacked values gives them all.

        Args:
            loss: `(params, *args) -> (loss, aux)` for one run.
            stacked: whether `loss` is for K fused lanes already: it takes stacked values and
                returns a loss for each, [K].

        Returns:
            `(params, *args, share=1.0, earlier=None) -> (gradients, loss [K], aux)`, everything
            stacked; gradients and losses are times `share`, for what is one part of a mean. With
            `earlier`, gradients of other parts (or none of any), the gradients are those and these
            summed over the ranks, which begins during the backward pass: not of exact lanes.
        """
        looped = self.lifted and self._exact
        inner = loss if looped or stacked else self.map(loss)

        def gradient(
            params: Params, *args: Any, share: float = 1.0, earlier: Params | None = None
        ) -> tuple[Params, Tensor, Any]:
            leaves = {name: p.detach().requires_grad_() for name, p in params.items()}
            sums = None if earlier is None else Sums(leaves, earlier)
            value, aux = inner(leaves, *args)
            # Before the backward pass, where parts may meet (statistics over several processes).
            value = value if share == 1 else value * share
            total = value.sum() if value.dim() else value
            found = torch.autograd.grad(total, list(leaves.values()), materialize_grads=True)
            grads = dict(zip(leaves, found, strict=True))
            return sums.of(grads) if sums else grads, value.detach(), _detach(aux)

        each = self._looped(gradient) if looped else gradient

        def timed(params: Params, *args: Any, **options: Any) -> tuple[Params, Tensor, Any]:
            self.clock.tick(self.device)
            return each(params, *args, **options)

        return timed

    def each(self, fn: Callable[..., R], *args: Any) -> list[R]:
        """Call `fn(k, *args of lane k)` lane by lane: for code that cannot be lifted."""
        return [fn(k, *(self.lane(arg, k) for arg in args)) for k in range(self.size)]

    def columns(self, value: Tensor) -> Tensor:
        """Return a per-run scalar as a vector [K], also when nothing was lifted."""
        return value if self.lifted else value[None]

    def _looped(self, fn: Callable[A, R]) -> Callable[A, R]:
        def looped(*args: A.args, **kwargs: A.kwargs) -> R:
            before = torch.get_rng_state()
            results = [fn(*self.lane(args, k), **kwargs) for k in range(self.size)]
            if not torch.equal(before, torch.get_rng_state()):
                raise RuntimeError("randomness out of PyTorch's global generator in lifted code")
            return cast("R", self._stack(results))

        return looped

    def _stack(self, values: list[Any]) -> Any:
        first = values[0]
        if isinstance(first, Tensor):
            moved = [self._place(value) for value in values]
            return torch.stack(moved) if self.lifted else moved[0]
        if isinstance(first, Spec):
            return self._stack_specs(values)
        if isinstance(first, Mapping):
            return {key: self._stack([value[key] for value in values]) for key in first}
        if isinstance(first, tuple | list):
            parts = [self._stack([value[i] for value in values]) for i in range(len(first))]
            return _like(first, parts)
        if all(value == first for value in values):
            return first
        if isinstance(first, float):
            return self._numbers(values)
        raise ValueError(f"lanes of one batch differ in {first!r}, which cannot be stacked")

    def _numbers(self, values: list[float]) -> Tensor | _Each:
        if self._exact:
            return _Each(tuple(values))
        # In float64 whatever the lanes' type: as with a Python number, what is computed from it
        # (1 - beta**t) is rounded only where it meets a weight.
        return torch.tensor(values, dtype=torch.float64, device=self.device)

    def _stack_specs(self, specs: list[Spec]) -> Spec:
        changes: dict[str, object] = {}
        fields = hyper_fields(type(specs[0]))
        for field in type(specs[0]).model_fields:
            values = [getattr(spec, field) for spec in specs]
            if field in fields or isinstance(values[0], Spec):
                changes[field] = self._stack(values)
        return specs[0].replace(**changes) if self.lifted else specs[0]

    def _place(self, value: Tensor) -> Tensor:
        dtype = self.dtype if value.is_floating_point() else value.dtype
        return value.to(device=self.device, dtype=dtype)


@dataclass(frozen=True)
class _Each:
    """Numbers of exact lanes that differ: each lane gets its own back as a plain number."""

    values: tuple[float, ...]


def _fused(fn: Callable[A, R]) -> Callable[A, R]:
    def lifted(*args: A.args, **kwargs: A.kwargs) -> R:
        leaves, restore = flatten(args)
        shape: list[R] = []

        def one(*parts: Tensor) -> tuple[Tensor, ...]:
            # vmap sees flat tuples of tensors only: its own walk over nested values is slow.
            result = fn(*restore(parts), **kwargs)
            shape.append(result)
            return tuple(flatten(result)[0])

        return cast("R", refill(shape, vmap(one, randomness="error")(*leaves)))

    return lifted


def _like(original: Any, parts: list[Any]) -> Any:
    return type(original)(*parts) if hasattr(original, "_fields") else type(original)(parts)


def _same(numbers: _Each) -> _Each:
    return numbers


def _rebuild(
    value: Any, change: Callable[[Tensor], Any], number: Callable[[_Each], Any] = _same
) -> Any:
    """Return `value` with every tensor leaf changed, and plain numbers that differ by `number`."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, _Each):
        return number(value)
    if isinstance(value, Spec):
        inside = {
            field: _rebuild(part, change, number)
            for field in type(value).model_fields
            if isinstance(part := getattr(value, field), Tensor | Spec | _Each)
        }
        return value.replace(**inside) if inside else value
    if isinstance(value, Mapping):
        if _EACH in value:
            return number(_Each(tuple(value[_EACH])))
        return {key: _rebuild(part, change, number) for key, part in value.items()}
    if isinstance(value, tuple | list):
        return _like(value, [_rebuild(part, change, number) for part in value])
    return value


def flatten(value: Any) -> tuple[list[Tensor], Callable[[Sequence[Tensor]], Any]]:
    """Return the tensor leaves of `value`, and what puts others in their place."""
    leaves: list[Tensor] = []
    _rebuild(value, leaves.append)
    return leaves, lambda parts: refill([value], parts)


def refill(shape: Sequence[Any], parts: Sequence[Tensor]) -> Any:
    """Return `shape[0]` with its tensor leaves replaced by `parts`, in order."""
    rest = iter(parts)
    return _rebuild(shape[0], lambda _: next(rest))


def _rows(value: Any, rows: slice) -> Any:
    return _rebuild(value, lambda leaf: leaf[rows])


def _detach(aux: Any) -> Any:
    return _rebuild(aux, lambda leaf: leaf.detach())
