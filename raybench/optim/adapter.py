"""Any `torch.optim.Optimizer` class becomes an optimizer, unported: stepped lane by lane."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from pydantic import Field

from raybench.optim.base import Optimizer, Params, Rate, State
from raybench.spec import Hyper
from raybench.tables import from_signature


class ForeignOptimizer(Optimizer):
    """An optimizer from a `torch.optim.Optimizer` class; its constructor's parameters are fields.

    Forward and backward passes stay fused over the lanes; each lane has an object of the class,
    which steps on that lane's slice of the weights, in place.
    """

    make: ClassVar[Callable[..., torch.optim.Optimizer]]

    def init(self, params: Params) -> State:
        """Return the optimizer object over `params`, one lane's own tensors."""
        own = set(type(self).model_fields) - {"lr"}
        fields = {field: getattr(self, field) for field in own}
        return {"optimizer": type(self).make(list(params.values()), lr=self.lr, **fields)}

    def update(self, grads: Params, state: State, params: Params, lr: Rate) -> tuple[Params, State]:
        """Take one step in place, on the tensors that `init` was given."""
        optimizer: torch.optim.Optimizer = state["optimizer"]
        for group in optimizer.param_groups:
            group["lr"] = lr
            # Its own tensors: a lane of `params` is another view of the same storage.
            for p, name in zip(group["params"], params, strict=True):
                p.grad = grads[name]
        optimizer.step()
        return params, state


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
        elif isinstance(default, float) or (
            isinstance(default, int)
            and not isinstance(default, bool)
            and "float" in str(parameter.annotation)
        ):  # PyTorch writes `weight_decay: float = 0`, or `float | Tensor`
            fields[parameter.name] = (Hyper, float(default))
        elif isinstance(default, bool | int | str | tuple):
            fields[parameter.name] = (type(default), default)
    return from_signature(name, ForeignOptimizer, fields, found.__doc__, make=staticmethod(found))
