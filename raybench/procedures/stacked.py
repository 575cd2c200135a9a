"""K networks as chains of layers on stacked values: what vmap does, with fewer and larger steps.

Fully connected layers of K lanes are one batched product, written so that values and gradients lie
in memory as the next step wants them; layers that work number by number are called as they are;
all others are lifted by vmap. On a CPU this takes half of the time of vmap over the whole network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from raybench.lanes import Lanes, Params

Layer: TypeAlias = Callable[[Params, Params, Tensor], tuple[Tensor, Params]]
"""From parameters, buffers and rows of K lanes to outputs and the buffers after the pass."""

_NUMBERWISE: Final = (nn.ReLU, nn.Tanh, nn.GELU, nn.Sigmoid, nn.SiLU, nn.Identity)
_FEW: Final = 32  # outputs of a network; so few are trained faster as columns than as rows


class Kind(NamedTuple):
    """How a fully connected layer is carried out.

    Attributes:
        as_columns: whether the product is W x^T: with few outputs the three products of forward
            and backward pass are two to four times faster, and a softmax over the outputs runs over
            an axis that PyTorch vectorizes.
        relu: whether ReLU follows; the next layer must be one `after_relu`.
        after_relu: whether the rows are ReLU's, whose gradient this layer then takes over: it is
            written in place, where a step of its own would need memory for another copy.
    """

    as_columns: bool = False
    relu: bool = False
    after_relu: bool = False


class Dense(torch.autograd.Function):
    """x W^T + b for K lanes, with ReLU if there is one, and its gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, kind: Kind) -> Tensor:
        """Return [K, N, O] from x [K, N, I], weight [K, O, I] and bias [K, O]."""
        ctx.save_for_backward(x, weight)
        ctx.kind = kind
        left, right = (weight, x.mT) if kind.as_columns else (x, weight.mT)
        if bias is None:
            outputs = torch.bmm(left, right)
        else:
            outputs = torch.baddbmm(
                bias[:, :, None] if kind.as_columns else bias[:, None], left, right
            )
        if kind.relu:
            outputs.relu_()
        return outputs.mT if kind.as_columns else outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None, None]:
        """Return the gradients of x, weight and bias."""
        x, weight = ctx.saved_tensors
        columns = grad.mT.contiguous() if ctx.kind.as_columns else grad.mT
        of_x = torch.bmm(columns.mT, weight) if ctx.needs_input_grad[0] else None
        if of_x is not None and ctx.kind.after_relu:
            torch.ops.aten.threshold_backward.grad_input(of_x, x, 0, grad_input=of_x)
        of_bias = columns.sum(-1) if ctx.needs_input_grad[2] else None
        return of_x, torch.bmm(columns, x), of_bias, None


def chain(
    lanes: Lanes, module: nn.Module, lifted: Callable[[nn.Module], Layer], *, trains: bool
) -> Layer | None:
    """Return the pass of K lanes through a module's layers; None if vmap does as well.

    Args:
        lanes: fused lanes.
        module: without storage of its own: weights are passed at each call, by their full names.
        lifted: returns the pass through a module by vmap, which is given the names in the module.
        trains: whether gradients will be asked for.
    """
    if not lanes.fused or type(module) is not nn.Sequential:
        return None
    layers = _flat("", module)
    if not any(type(layer) is nn.Linear for _, layer in layers):
        return None
    steps: list[Layer] = []
    others: list[tuple[str, nn.Module]] = []
    after_relu = skip = False
    for place, (name, layer) in enumerate(layers):
        if skip:  # a ReLU that the layer before it has carried out
            skip = False
            continue
        if type(layer) is nn.Linear:
            following = [type(each) for _, each in layers[place + 1 : place + 3]]
            relu = following == [nn.ReLU, nn.Linear]
            few = layer.out_features < _FEW and not following
            step = _dense(name, Kind(few and trains, relu, after_relu))
            after_relu = skip = relu
        elif type(layer) is nn.Flatten and (layer.start_dim, layer.end_dim) == (1, -1):
            step = _flatten
        elif type(layer) in _NUMBERWISE:
            step = _numberwise(layer)
        else:
            others.append((name, layer))
            continue
        steps += _of_others(others, lifted)
        others = []
        steps.append(step)
    return _in_turn([*steps, *_of_others(others, lifted)])


def _flat(prefix: str, module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the layers of nested chains, with their names in the whole."""
    found: list[tuple[str, nn.Module]] = []
    for name, layer in module.named_children():
        full = f"{prefix}{name}"
        nested = type(layer) is nn.Sequential
        found += _flat(f"{full}.", layer) if nested else [(full, layer)]
    return found


def _dense(name: str, kind: Kind) -> Layer:
    weight, bias = f"{name}.weight", f"{name}.bias"

    def dense(params: Params, buffers: Params, x: Tensor) -> tuple[Tensor, Params]:
        apply: Callable[..., Tensor] = Dense.apply
        outputs = apply(x.flatten(1, -2), params[weight], params.get(bias), kind)
        return outputs.view(*x.shape[:-1], -1) if x.dim() > 3 else outputs, buffers

    return dense


def _flatten(params: Params, buffers: Params, x: Tensor) -> tuple[Tensor, Params]:
    return x.flatten(2), buffers


def _numberwise(layer: nn.Module) -> Layer:
    return lambda params, buffers, x: (layer(x), buffers)


def _of_others(
    named: Sequence[tuple[str, nn.Module]], lifted: Callable[[nn.Module], Layer]
) -> list[Layer]:
    """Return the pass through layers that are lifted together; nothing for none."""
    if not named:
        return []
    inner = lifted(nn.Sequential(*(layer for _, layer in named)))
    names = {
        f"{place}.{name}": f"{full}.{name}"
        for place, (full, layer) in enumerate(named)
        for name in (*dict(layer.named_parameters()), *dict(layer.named_buffers()))
    }

    def several(params: Params, buffers: Params, x: Tensor) -> tuple[Tensor, Params]:
        own_params = {own: params[full] for own, full in names.items() if full in params}
        own_buffers = {own: buffers[full] for own, full in names.items() if full in buffers}
        outputs, after = inner(own_params, own_buffers, x)
        return outputs, buffers | {names[own]: value for own, value in after.items()}

    return [several]


def _in_turn(steps: Sequence[Layer]) -> Layer:
    def forward(params: Params, buffers: Params, x: Tensor) -> tuple[Tensor, Params]:
        for step in steps:
            x, buffers = step(params, buffers, x)
        return x, buffers

    return forward
