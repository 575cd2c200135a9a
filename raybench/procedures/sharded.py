"""A network whose weights are divided among the ranks: PyTorch's FSDP2 around one run's module.

Each rank holds its rows of every weight, of its gradient and of the optimizer's state. A network is
cut into units; the weights of a unit are whole only while a pass goes through it. That is stage 3
of ZeRO (Rajbhandari et al. 2020, arXiv:1910.02054).
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor, nn

from raybench.lanes import Lanes, Params
from raybench.procedures.bound import Bound
from raybench.ranks import Ranks

_UNITS: Final = 8  # for each rank: a unit's weights are about what a rank holds, over this
_LARGE: Final = 2**22  # bytes of a block of memory that goes back to the system once it is free


class Shards:
    """Which rows of each weight are whose: along the first axis, cut as `torch.chunk` cuts.

    Args:
        ranks: that divide them.
        shapes: of the whole weights.
    """

    def __init__(self, ranks: Ranks, shapes: Mapping[str, torch.Size]) -> None:
        self._ranks = ranks
        self._shapes = dict(shapes)

    def own(self, whole: Tensor) -> Tensor:
        """Return this rank's rows of a weight, in memory of their own."""
        return torch.split(whole, self._lengths(len(whole)))[self._ranks.rank].clone()

    def whole(self, own: Params) -> Mapping[str, Tensor]:
        """Return the whole weights of which `own` are this rank's rows.

        Each is gathered when it is asked for, which all ranks have to do in one order.
        """
        return _Whole(self, own)

    def gathered(self, name: str, own: Tensor) -> Tensor:
        """Return one whole weight, by a collective call."""
        return self._ranks.gather(own, self._lengths(self._shapes[name][0]))

    def own_vector(self, whole: Tensor) -> Tensor:
        """Return this rank's rows of all weights as one vector, out of that of the whole ones."""
        parts = torch.split(whole, [shape.numel() for shape in self._shapes.values()])
        shapes = self._shapes.values()
        return torch.cat(
            [self.own(p.view(shape)).reshape(-1) for p, shape in zip(parts, shapes, strict=True)]
        )

    def whole_vector(self, own: Tensor) -> Tensor:
        """Return all whole weights as one vector on the CPU; on the first rank, nothing elsewhere.

        Args:
            own: this rank's rows of them as one vector.
        """
        found, start = [own.new_zeros(0, device="cpu")], 0
        for name, shape in self._shapes.items():
            rows = self._lengths(shape[0])[self._ranks.rank]
            end = start + rows * shape[1:].numel()
            whole = self.gathered(name, own[start:end].view(rows, *shape[1:]))
            start = end
            if self._ranks.first:
                found.append(whole.reshape(-1).cpu())
        return torch.cat(found)

    def _lengths(self, rows: int) -> list[int]:
        each = -(-rows // self._ranks.size)
        return [max(min(each, rows - rank * each), 0) for rank in range(self._ranks.size)]


class _Whole(Mapping[str, Tensor]):
    def __init__(self, shards: Shards, own: Params) -> None:
        self._shards, self._own = shards, own

    def __getitem__(self, name: str) -> Tensor:
        return self._shards.gathered(name, self._own[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._own)

    def __len__(self) -> int:
        return len(self._own)


class Sharded:
    """A module that holds a rank's rows of its weights, and gathers the others as it needs them.

    Args:
        module: whose weights are given at each pass; it is changed, and not to be used otherwise.
        units: the parts of it whose weights are whole at a time; the rest is one more.
        lanes: of one run, not lifted.

    Attributes:
        precision: of products in passes of training; None for that of the weights.
    """

    def __init__(self, module: nn.Module, units: list[str], lanes: Lanes) -> None:
        from torch.distributed.device_mesh import DeviceMesh
        from torch.distributed.fsdp import FSDPModule, fully_shard

        self.precision: torch.dtype | None = None
        group = dist.group.WORLD
        assert group is not None
        mesh = DeviceMesh.from_group(group, lanes.device.type)
        if lanes.device.type == "cpu":
            _give_back()
        module = module.to(device="meta", dtype=lanes.dtype)
        for part in (*(module.get_submodule(name) for name in units), module):
            fully_shard(part, mesh=mesh, reshard_after_forward=True)
        module.to_empty(device=lanes.device)
        for part in module.modules():
            if isinstance(part, FSDPModule):
                # Plain sums: losses are shares of the whole batch's, and gloo scales nothing.
                part.set_gradient_divide_factor(1.0)
                part.set_force_sum_reduction_for_comms(True)
        self._bound = Bound(module, weights=False)
        self._weights = dict(module.named_parameters())
        self._own = {name: _local(weight.detach()) for name, weight in self._weights.items()}
        self._held: Params = {}

    def outputs(self, params: Params, buffers: Params, x: Tensor) -> tuple[Tensor, Params]:
        """Return what the network says of rows when it is not trained, and no buffers."""
        with torch.no_grad():
            return self._pass(params, buffers, x, training=False), {}

    def traced(
        self, params: Params, buffers: Params, x: Tensor, *, training: bool
    ) -> tuple[Tensor, Params]:
        """Return outputs through which gradients flow, and the buffers after the pass."""
        buffers = {name: buffer.clone() for name, buffer in buffers.items()}
        return self._pass(params, buffers, x, training=training), buffers

    def gradients(self) -> Params:
        """Return this rank's rows of the gradients of all backward passes since the last call.

        They are sums over all ranks; zeros for a weight that no pass has reached.
        """
        found = {}
        for name, weight in self._weights.items():
            own = self._own[name]
            found[name] = torch.zeros_like(own) if weight.grad is None else _local(weight.grad)
            weight.grad = None
        return found

    def _pass(self, params: Params, buffers: Params, x: Tensor, *, training: bool) -> Tensor:
        if params is not self._held:
            for name, own in self._own.items():
                own.copy_(params[name])
            self._held = params
        self._bound.module.train(training)
        self._bound.precision = self.precision if training else None
        return self._bound({}, buffers, x)


def _give_back() -> None:
    """Let glibc give large blocks back to the system as soon as they are free.

    It keeps those below 32 MB else, in holes that others seldom fit: gathered weights that come and
    go have then doubled the memory of a process.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(-3, _LARGE)  # M_MMAP_THRESHOLD


def _local(tensor: Tensor) -> Tensor:
    """Return this rank's part of a tensor that FSDP has divided."""
    local: Tensor = tensor.to_local()  # type: ignore[attr-defined]
    return local


def units(network: nn.Module, inputs: tuple[int, ...], ranks: Ranks) -> list[str]:
    """Return the parts of a network whose weights are whole at a time, by name.

    The smallest parts with more than a small share of all weights. A part must be called as such,
    and once: only then is it known when its weights are needed.

    Args:
        network: whose weights they are.
        inputs: shape of a row that it takes.
        ranks: that divide the weights.
    """
    skeleton = copy.deepcopy(network).to("meta").eval()
    calls: Counter[str] = Counter()

    def count(name: str, *_: Any) -> None:
        calls[name] += 1

    for name, part in skeleton.named_modules():
        part.register_forward_pre_hook(partial(count, name))
    with torch.no_grad():
        skeleton(torch.empty(1, *inputs, device="meta"))
    total = sum(weight.numel() for weight in skeleton.parameters())
    least = total / (_UNITS * ranks.size)
    found: list[str] = []

    def visit(name: str, part: nn.Module) -> int:
        """Note units in a part; return how many of its weights are in none."""
        left = sum(weight.numel() for weight in part.parameters(recurse=False))
        dot = f"{name}." if name else ""
        left += sum(visit(dot + child, inner) for child, inner in part.named_children())
        if name and calls[name] == 1 and left > least:
            found.append(name)
            return 0
        return left

    visit("", skeleton)
    return found
