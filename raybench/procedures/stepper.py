"""Optimizers of K runs behind one face, each kind stepped in the fastest way that is exact."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from raybench.errors import RaybenchError
from raybench.lanes import Lanes, Params
from raybench.optim import ForeignOptimizer, Optimizer
from raybench.optim.numbers import Rate
from raybench.procedures.sharded import Shards
from raybench.ranks import Rows

_ALL = "all"


class Stepper:
    """The optimizers of K runs.

    Native rules are lifted; those that move each weight on its own see a run's weights as one
    vector, which takes a few large operations instead of many small ones. Foreign `torch.optim`
    classes have an object in each lane.

    Args:
        lanes: the runs' lanes.
        optimizers: one for each run, of one class, equal but for Hyper fields.
        shards: which rows of the weights this rank holds; None for all of them.

    Attributes:
        foreign: whether they are `torch.optim` objects, which write in place.
        rule: all of them as one, if they are not.

    Raises:
        RaybenchError: its state is to be divided among ranks, and cannot be.
    """

    def __init__(
        self, lanes: Lanes, optimizers: Sequence[Optimizer], shards: Shards | None = None
    ) -> None:
        self._lanes = lanes
        self._shards = shards
        self._own = list(optimizers)
        first = optimizers[0]
        self.foreign = isinstance(first, ForeignOptimizer)
        self._flat = first.elementwise and not self.foreign
        self._divided = lanes.ranks.size > 1 and lanes.ranks.shard == "optimizer"
        if (self._divided or shards) and (not self._flat or first.sums):
            raise RaybenchError(
                f"optimizer {first.name} does not move each weight on its own, so its state cannot "
                "be divided among ranks; set resources.shard: none"
            )
        self.rule = first if self.foreign else lanes.stack(optimizers)
        self._init = lanes.map(lambda rule, params: rule.init(params))
        self._own_evaluation: Callable[..., Params] | None = None
        if type(first).evaluated is not Optimizer.evaluated:
            self._own_evaluation = lanes.map(_evaluated)

    def init(self, params: Params) -> Any:
        """Return the state before the first step."""
        if self.foreign:
            # Foreign optimizers write in place: each lane gets weights of its own.
            own = self._lanes.each(lambda k, lane: _cloned(lane), params)
            made = [rule.init(lane) for rule, lane in zip(self._own, own, strict=True)]
            return params, own, made
        if self._flat:
            flat = {_ALL: self._part(self._join(params))}
            return params, flat, self._init(self.rule, flat)
        return self._init(self.rule, params)

    def update(
        self,
        grads: Params,
        state: Any,
        params: Params,
        factor: Rate,
        rule: Optimizer | None = None,
    ) -> tuple[Params, Any]:
        """Return parameters and state after a step at `factor` times the learning rate.

        Args:
            grads: of each weight.
            state: after the last step.
            params: before this one.
            factor: a number, or a 0-d float64 tensor.
            rule: what to go by instead of `rule`; equal but for Hypers.
        """
        if self.foreign:
            return self._update_each(grads, state, params, float(factor))
        rule = rule or self.rule

        def one(rule: Optimizer, grads: Params, state: Any, params: Params) -> tuple[Params, Any]:
            return rule.update(grads, state, params, rule.lr * factor)

        step = self._lanes.map(one)
        if not self._flat:
            return step(rule, grads, state, params)
        flat, inner = self.pack(params, state)
        flat, inner = step(rule, {_ALL: self._part(self._join(grads))}, inner, flat)
        moved = self._split(self._whole(flat[_ALL], params), params)
        return moved, (moved, flat, inner)

    def pack(self, params: Params, state: Any) -> tuple[Params, Any]:
        """Return what a step of rules that are not foreign starts from, each weight once."""
        if not self._flat:
            return params, state
        last, flat, inner = state
        if params is not last:  # changed since the last step, by a mask for instance
            flat = {_ALL: self._part(self._join(params))}
        return flat, inner

    def unpack(self, packed: tuple[Params, Any], like: Params) -> tuple[Params, Any]:
        """Return the parameters, in the shapes of `like`, and the state that were packed."""
        if not self._flat:
            return packed
        flat, inner = packed
        params = self._split(flat[_ALL], like)
        return params, (params, flat, inner)

    def evaluated(self, state: Any, params: Params) -> Params:
        """Return the weights that a run is measured with: mostly those that are trained."""
        if self._own_evaluation is None:
            return params
        if self.foreign:
            _, own, made = state
            lanes = zip(self._own, made, own, strict=True)
            return self._lanes.stack([rule.evaluated(inner, p) for rule, inner, p in lanes])
        if not self._flat:
            return self._own_evaluation(self.rule, state, params)
        _, flat, inner = state
        own = self._own_evaluation(self.rule, inner, flat)[_ALL]
        return self._split(self._whole(own, params), params)

    def take(self, state: Any, params: Params, places: Sequence[int]) -> Any:
        """Go on with the lanes at `places` only, and return their state.

        Args:
            state: of all lanes.
            params: of the lanes that are left.
            places: which they are.
        """
        self._own = [self._own[place] for place in places]
        if self.foreign:
            _, own, made = state
            return params, [own[place] for place in places], [made[place] for place in places]
        self.rule = self._lanes.take(self.rule, places)
        if self._flat:
            _, flat, inner = state
            return params, *self._lanes.take((flat, inner), places)
        return self._lanes.take(state, places)

    def plain(self, state: Any) -> Any:
        """Return what `restored` makes the state of, to be stored beside the weights.

        Where ranks divide it, it is whole on the first one only.
        """
        if self.foreign:
            return [each | {"optimizer": each["optimizer"].state_dict()} for each in state[2]]
        if not self._flat:
            return self._lanes.plain(state)
        params, _, inner = state
        if self._shards:
            inner = _of_weights(inner, self._shards.whole_vector)
        elif self._divided:
            inner = _of_weights(inner, lambda part: self._whole(part, params))
        return self._lanes.plain(inner)

    def restored(
        self,
        plain: Any,
        params: Params,
        places: Sequence[int],
        rows: Sequence[int],
        *,
        lifted: bool,
    ) -> Any:
        """Go on with the lanes at `places` only, from a state that was stored.

        Args:
            plain: the state of lanes of which these may be a part.
            params: the weights that were stored with it, of the lanes that are left.
            places: which lanes of this group are left.
            rows: which of the stored ones they were.
            lifted: whether those were lifted.
        """
        self._own = [self._own[place] for place in places]
        if self.foreign:
            state = self.init(params)
            for each, place in zip(state[2], rows, strict=True):
                each["optimizer"].load_state_dict(plain[place]["optimizer"])
                each.update({key: plain[place][key] for key in ("rates", "lr")})
            return state
        self.rule = self._lanes.take(self.rule, places)
        if not self._flat:
            return self._lanes.restored(plain, rows, lifted=lifted)
        own = self._shards.own_vector if self._shards else self._part
        inner = _of_weights(self._lanes.restored(plain, rows, lifted=lifted), own)
        return params, {_ALL: self._part(self._join(params))}, inner

    def _update_each(
        self, grads: Params, state: Any, params: Params, factor: float
    ) -> tuple[Params, Any]:
        last, own, made = state
        for k, (rule, weights) in enumerate(zip(self._own, own, strict=True)):
            if params is not last:  # changed since the last step, by a mask for instance
                for name, weight in self._lanes.lane(params, k).items():
                    weights[name].copy_(weight)
            rule.update(self._lanes.lane(grads, k), made[k], weights, rule.lr * factor)
        moved = self._lanes.stack([_cloned(weights) for weights in own])
        return moved, (moved, own, made)

    def _part(self, flat: Tensor) -> Tensor:
        """Return the weights that this rank moves: all of them, unless the state is divided."""
        if not self._divided:
            return flat
        rows = self._lanes.ranks.part(Rows.all_of(flat.shape[-1]))
        return flat[..., rows.start : rows.stop].clone()  # not to keep the whole

    def _whole(self, part: Tensor, like: Params) -> Tensor:
        """Return the weights that all ranks have moved."""
        if not self._divided:
            return part
        axes = 1 if self._lanes.lifted else 0
        total = sum(tensor.shape[axes:].numel() for tensor in like.values())
        parts = self._lanes.ranks.parts(Rows.all_of(total))
        return self._lanes.ranks.gather(part, [own.count for own in parts], dim=-1).contiguous()

    def _join(self, tensors: Params) -> Tensor:
        if not self._lanes.lifted:  # in one call, which one lane feels
            join: Callable[[list[Tensor]], Tensor] = _flatten_dense_tensors
            return join(list(tensors.values()))
        return torch.cat([tensor.flatten(1) for tensor in tensors.values()], dim=-1)

    def _split(self, flat: Tensor, like: Params) -> Params:
        if not self._lanes.lifted:
            split: Callable[[Tensor, list[Tensor]], tuple[Tensor, ...]] = _unflatten_dense_tensors
            return dict(zip(like, split(flat, list(like.values())), strict=True))
        sizes = [tensor.shape[1:].numel() for tensor in like.values()]
        parts = torch.split(flat, sizes, dim=-1)
        return {
            name: part.view(tensor.shape)
            for (name, tensor), part in zip(like.items(), parts, strict=True)
        }


def _of_weights(state: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return the state of a rule that sees all weights as one vector, with such vectors changed."""
    if not isinstance(state, Mapping):
        return state
    return {
        key: change(value) if key == _ALL else _of_weights(value, change)
        for key, value in state.items()
    }


def _evaluated(rule: Optimizer, state: Any, params: Params) -> Params:
    return rule.evaluated(state, params)


def _cloned(params: Params) -> Params:
    return {name: weight.clone() for name, weight in params.items()}
