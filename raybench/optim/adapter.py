"""Any `torch.optim.Optimizer` class becomes an optimizer, unported: stepped lane by lane."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from pydantic import Field

from raybench.optim.base import Optimizer, Params, State
from raybench.optim.numbers import Rate
from raybench.spec import Hyper
from raybench.tables import from_signature


class ForeignOptimizer(Optimizer):
    """An optimizer from a `torch.optim.Optimizer` class; its constructor's parameters are fields.

    Forward and backward passes stay fused over the lanes; each lane has an object of the class,
    which steps on that lane's slice of the weights, in place. A schedule sets the rates of its
    groups as `torch.optim.lr_scheduler.LambdaLR` does; where it changes nothing, rates are left to
    the object, which may have its own idea of them.
    """

    make: ClassVar[Callable[..., torch.optim.Optimizer]]

    def init(self, params: Params) -> State:
        """Return the optimizer object over `params`, one lane's own tensors."""
        own = set(type(self).model_fields) - {"lr"}
        fields = {field: getattr(self, field) for field in own}
        optimizer = type(self).make(list(params.values()), lr=self.lr, **fields)
        rates = [group.get("lr", self.lr) for group in optimizer.param_groups]
        return {"optimizer": optimizer, "rates": rates, "lr": self.lr}

    def update(self, grads: Params, state: State, params: Params, lr: Rate) -> tuple[Params, State]:
        """Take one step in place, on the tensors that `init` was given."""
        optimizer: torch.optim.Optimizer = state["optimizer"]
        for group, rate in zip(optimizer.param_groups, state["rates"], strict=True):
            if lr != state["lr"]:
                group["lr"] = lr if rate == self.lr else rate * (lr / self.lr)
            # Its own tensors: a lane of `params` is another view of the same storage.
            for p, name in zip(group["params"], params, strict=True):
                p.grad = grads[name].contiguous()  # as a backward pass of its own leaves it
        state["lr"] = lr
        optimizer.step()
        return params, state


def _of_eval(self: ForeignOptimizer, state: State, params: Params) -> Params:
    """Return the weights of `eval()`; the object and its tensors stay as they were, to the bit.

    Args:
        self: of a class with `train()` and `eval()`: trained and measured at different weights.
        state: with the object.
        params: the names of its weights, in their order.
    """
    optimizer = state["optimizer"]
    own = [p for group in optimizer.param_groups for p in group["params"]]
    before = [p.detach().clone() for p in own]
    optimizer.eval()
    measured = {name: p.detach().clone() for name, p in zip(params, own, strict=True)}
    optimizer.train()
    with torch.no_grad():
        for p, value in zip(own, before, strict=True):
            p.copy_(value)  # there and back again would round
    return measured


def adapt(name: str, found: Any) -> type[Optimizer]:
    """Return an optimizer class for a `torch.optim.Optimizer` class; TypeError if it is none."""
    if not (isinstance(found, type) and issubclass(found, torch.optim.Optimizer)):
        raise TypeError("name an Optimizer class or a torch.optim.Optimizer class")
    fields: dict[str, tuple[Any, Any]] = {}
    for parameter in list(inspect.signature(found).parameters.values())[1:]:
        default = parameter.default
        if parameter.name == "lr":
            rate = float(default) if isinstance(default, int | float) else 0.001
            fields["lr"] = (Hyper, Field(default=rate, gt=0))
        elif isinstance(default, float) and not math.isfinite(default):
            continue  # "without limit" is no number that a suite could give; it stays so
        elif isinstance(default, float) or (
            isinstance(default, int)
            and not isinstance(default, bool)
            and "float" in str(parameter.annotation)
        ):  # PyTorch writes `weight_decay: float = 0`, or `float | Tensor`
            fields[parameter.name] = (Hyper, float(default))
        elif isinstance(default, bool | int | str | tuple):
            fields[parameter.name] = (type(default), default)
    own: dict[str, Any] = {"make": staticmethod(found)}
    if callable(getattr(found, "eval", None)):
        own["evaluated"] = _of_eval
    return from_signature(name, ForeignOptimizer, fields, found.__doc__, **own)
