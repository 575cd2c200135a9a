"""Any `nn.Module` class becomes a model: its constructor's parameters are the fields."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import nn

from raybench.models.base import Dropout, Keep, Model, State, whole
from raybench.rng import Seed, key
from raybench.tables import from_signature

_SHAPES: dict[str, Callable[[tuple[int, ...], int], object]] = {
    "inputs": lambda inputs, outputs: math.prod(inputs),
    "in_features": lambda inputs, outputs: math.prod(inputs),
    "input_shape": lambda inputs, outputs: inputs,
    "in_channels": lambda inputs, outputs: inputs[0],
    "outputs": lambda inputs, outputs: outputs,
    "out_features": lambda inputs, outputs: outputs,
    "num_classes": lambda inputs, outputs: outputs,
}
"""Constructor parameters that the data decide; all others are the model's fields."""


class ModuleModel(Model):
    """A model from an `nn.Module` class; weights start as its constructor draws them.

    The constructor runs with PyTorch's global generator set from the run's stream `init`, and the
    generator is put back after it. `nn.Dropout` is replaced by dropout from the run's own stream;
    any other layer that draws noise in `forward` is refused when it first does.
    """

    make: ClassVar[Callable[..., nn.Module]]
    shapes: ClassVar[tuple[str, ...]] = ()

    def module(self, inputs: tuple[int, ...], outputs: int) -> nn.Module:
        """Return the module, its stock dropout replaced."""
        own = set(type(self).model_fields) - set(ModuleModel.model_fields)
        fields = {field: getattr(self, field) for field in own}
        shapes = {name: _SHAPES[name](inputs, outputs) for name in self.shapes}
        return _without_global_noise(type(self).make(**shapes, **fields))

    def skeleton(self, inputs: tuple[int, ...], outputs: int) -> nn.Module:
        """Return a module with storage: a foreign constructor may not work without."""
        with torch.random.fork_rng(devices=[]):
            return self.module(inputs, outputs)

    def state(
        self,
        skeleton: nn.Module,
        inputs: tuple[int, ...],
        outputs: int,
        seed: Seed,
        keep: Keep = whole,
    ) -> State:
        """Return what the constructor draws under the run's stream `init`."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed.of("init/weights"))
            module = self.module(inputs, outputs)
        buffers = {name: buffer.detach() for name, buffer in module.named_buffers()}
        for name, layer in module.named_modules():
            if isinstance(layer, Dropout):
                buffers[f"{name}.key"] = key(seed, f"noise/{name}.")
        return {name: keep(p.detach()) for name, p in module.named_parameters()}, buffers


def _without_global_noise(module: nn.Module) -> nn.Module:
    for name, child in module.named_children():
        if type(child) is nn.Dropout:
            setattr(module, name, Dropout(child.p))
        else:
            _without_global_noise(child)
    return module


def adapt(name: str, found: Any) -> type[Model]:
    """Return a model class for the `nn.Module` class `found`; TypeError if it is none."""
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise TypeError("name a Model class or an nn.Module class")
    fields: dict[str, tuple[Any, Any]] = {}
    shapes = []
    for parameter in inspect.signature(found).parameters.values():
        if parameter.name in _SHAPES:
            shapes.append(parameter.name)
        elif parameter.default is inspect.Parameter.empty:
            known = ", ".join(_SHAPES)
            raise TypeError(f"parameter {parameter.name!r} needs a default (or is one of {known})")
        else:
            fields[parameter.name] = (type(parameter.default), parameter.default)
    return from_signature(
        name, ModuleModel, fields, found.__doc__, make=staticmethod(found), shapes=tuple(shapes)
    )
