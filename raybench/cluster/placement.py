"""What a batch takes of a node, which nodes have it, and on which of them it goes.

A batch is a placement group of one bundle, or of one for each of its ranks. Ray puts a single one
on the node with the most left, which spreads batches; `_Packed` asks for the node with the least
left that still has room.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final, TypeAlias

import ray
from ray import tune
from ray._private.state import available_resources_per_node, state
from ray.util.placement_group import PlacementGroup, placement_group

from raybench.suite import Resources

Amounts: TypeAlias = Mapping[str, float]
"""Of resources, by Ray's names."""

SURE_SECONDS: Final = 20.0
"""Until Ray knows of a node that has died: it gives a silent one up after 15."""
_NOT_ASKED_FOR: Final = ("node:", "memory", "object_store_memory")


def bundle(resources: Resources) -> Amounts:
    """Return what one batch takes of one node; of several ranks, what each of them does."""
    asked = {"CPU": resources.cpu, "GPU": resources.gpu, **resources.custom}
    return {name: amount for name, amount in asked.items() if amount}


def nodes() -> dict[str, Amounts]:
    """Return what each living node has in all, by its id; those that are being drained are out."""
    leaving = draining()
    return {
        node["NodeID"]: node["Resources"]
        for node in ray.nodes()
        if node["Alive"] and node["NodeID"] not in leaving
    }


def draining() -> set[str]:
    """Return the ids of nodes that will soon be taken away: preempted, or scaled down."""
    return set(state.get_draining_nodes())


def room(resources: Resources, present: Iterable[Amounts]) -> int:
    """Return how many batches fit at a time in what nodes have, if nothing else is there."""
    needed = bundle(resources)
    return sum(_times(needed, node) for node in present) // resources.ranks


def lack(resources: Resources, present: Collection[Amounts]) -> str:
    """Return what a batch needs and what nodes there are, as part of a sentence."""
    needed = bundle(resources)
    kinds = Counter(_listed(node, needed) for node in present)
    there = ", ".join(f"{count} with {kind}" for kind, count in sorted(kinds.items())) or "none"
    who = f"each of the {resources.ranks} ranks of a batch" if resources.ranks > 1 else "a batch"
    places = sum(_times(needed, node) for node in present)
    some = f", which is room for {places}" if 0 < places < resources.ranks else ""
    return f"{who} needs {_listed(needed)} on one node; nodes: {there}{some}"


def _times(needed: Amounts, have: Amounts) -> int:
    """Return how often something fits in what a node has."""
    return min(math.floor(have.get(name, 0) / amount + 1e-9) for name, amount in needed.items())


def factory(resources: Resources) -> tune.PlacementGroupFactory:
    """Return what makes the placement group of a batch."""
    kind = _Packed if resources.placement == "pack" else tune.PlacementGroupFactory
    return kind([dict(bundle(resources))], strategy="STRICT_PACK")


class _Packed(tune.PlacementGroupFactory):  # type: ignore[misc]
    def to_placement_group(self) -> PlacementGroup:
        needed, open_to_us = self._bundles[0], nodes()
        left: Mapping[str, Amounts] = available_resources_per_node()
        fitting = [name for name in open_to_us if _times(needed, left.get(name, {})) > 0]
        # Of two nodes with as much left the choice must not flip: the id decides.
        fullest = min(
            fitting, key=lambda name: (_share(left[name], open_to_us[name]), name), default=None
        )
        return placement_group(self._bundles, strategy="STRICT_PACK", _soft_target_node_id=fullest)


def _share(left: Amounts, have: Amounts) -> float:
    """Return which part of a node's CPU and GPU nobody has taken."""
    return sum(left.get(name, 0) / have[name] for name in ("CPU", "GPU") if have.get(name))


def _listed(amounts: Amounts, needed: Iterable[str] = ()) -> str:
    """Return amounts in words: those that can be asked for, and those that are needed."""
    shown: dict[str, Any] = {
        name: amounts.get(name, 0)
        for name in sorted({*amounts, *needed})
        if not name.startswith(_NOT_ASKED_FOR)
    }
    return " + ".join(f"{amount:g} {name}" for name, amount in shown.items()) or "nothing"
