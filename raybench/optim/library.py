"""The optimizers of the package `pytorch_optimizer`, as far as they need nothing special.

A rule is eligible if its constructor takes weights, a learning rate `lr` and otherwise only
parameters with defaults, and if its `step()` needs nothing but gradients.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Mapping
from functools import cache
from typing import Final

import torch

from raybench.errors import MissingError

PACKAGE: Final = "pytorch_optimizer"
revision: int = 1
"""Of what is made of the package's classes here: this module is a source of an optimizer table."""

_GROUPS: Final = "needs groups of parameters that say which are matrices; `muon` is built in"
_SECOND: Final = "needs second derivatives: a backward pass through the gradients"
_DRAWS: Final = "draws from PyTorch's global generator, so that a run would depend on its lane"

EXCLUDED: Final[Mapping[str, str]] = {
    "A2Grad": "has no learning rate, so that neither `lr` nor a schedule would do anything",
    "AdaGO": _GROUPS,
    "AdaMuon": _GROUPS,
    "DistributedMuon": _GROUPS,
    "Muon": _GROUPS,
    "MuonClip": _GROUPS,
    "NorMuon": _GROUPS,
    "AdaHessian": _SECOND,
    "SophiaH": _SECOND,
    "DASH": _DRAWS,
    "Gravity": _DRAWS,
    "Kron": _DRAWS,
    "SPAM": _DRAWS,
    "DeMo": "needs torch.distributed and the package einops",
    "FAdam": "mixes types: fails with float64 weights",
    "LBFGS": "needs a closure that evaluates the loss again",
    "LoRARite": "takes pairs of LoRA factors only",
    "SaRA": "made for fine-tuning: moves only weights that begin near zero",
    "SpectralSphere": "takes matrices only",
}
"""Rules with an ordinary constructor that cannot be used here, each with its reason."""


def names() -> list[str]:
    """Return the eligible class names in order; none if the package is not installed."""
    if importlib.util.find_spec(PACKAGE) is None:
        return []
    return sorted(_eligible())


def find(name: str) -> type[torch.optim.Optimizer]:
    """Return the class called `name`, such as `SOAP`.

    Raises:
        MissingError: the package is not installed.
        KeyError: there is no such class, or it needs more than gradients; the reason is told.
    """
    if importlib.util.find_spec(PACKAGE) is None:
        raise MissingError(
            f"optimizer '{PACKAGE}:{name}' needs the package {PACKAGE}, which is not installed; "
            'install it with: pip install "raybench[optim]"'
        )
    eligible = _eligible()
    if name not in eligible:
        raise KeyError(f"{PACKAGE}:{name} {_why_not(name)}")
    return eligible[name]


@cache
def _classes() -> dict[str, type[torch.optim.Optimizer]]:
    # Imported when first asked for: it takes a second, and few runs need it.
    package = importlib.import_module(PACKAGE)
    return {
        name: found
        for name, found in vars(package).items()
        if isinstance(found, type)
        and issubclass(found, torch.optim.Optimizer)
        and found.__module__.startswith(PACKAGE)
        and not inspect.isabstract(found)
    }


@cache
def _eligible() -> dict[str, type[torch.optim.Optimizer]]:
    return {
        name: found
        for name, found in _classes().items()
        if name not in EXCLUDED and _is_plain(found)
    }


def _is_plain(found: type) -> bool:
    """Return whether a constructor takes weights, a rate and otherwise what has a default."""
    first, *others = inspect.signature(found).parameters.values()
    named = [p for p in others if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    rate = any(parameter.name == "lr" for parameter in named)
    return (
        first.name == "params"
        and rate
        and all(parameter.default is not parameter.empty for parameter in named)
    )


def _why_not(name: str) -> str:
    if name in EXCLUDED:
        return f"cannot be used: {EXCLUDED[name]}"
    if name in _classes():
        return "cannot be used: its constructor needs more than weights and numbers"
    return "does not exist"
