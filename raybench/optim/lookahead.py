"""Slow weights that follow the fast ones of another rule (Zhang et al. 2019, arXiv:1907.08610).

The plain form: after every k steps slow <- slow + alpha (fast - slow) and fast <- slow; the
inner rule keeps its momentum. Measured are the fast weights, which equal the slow ones after every
k-th step.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from raybench.optim.base import Optimizer, Params, State, each, mix
from raybench.optim.numbers import Rate
from raybench.optim.rectified import RAdam
from raybench.optim.sgd import Momentum
from raybench.spec import Hyper


class Lookahead(Optimizer):
    """What a rule with slow weights has beside those of its inner rule."""

    k: Hyper = Field(default=5.0, ge=1, multiple_of=1)
    """Steps of the inner rule between two of the slow weights, a whole number."""
    alpha: Hyper = Field(default=0.5, gt=0, le=1)
    """Share of the way to the fast weights that the slow ones go."""

    def _beside(self, inner: State, params: Params) -> State:
        """Return the state before the first step, around that of the inner rule."""
        return {"inner": inner, "slow": params, "turn": 0}

    def _followed(self, fast: Params, inner: State, state: State) -> tuple[Params, State]:
        """Return the weights after the inner rule's step to `fast`, with the state around it."""
        turn, slow = state["turn"] + 1, state["slow"]
        due = turn % self.k == 0
        if due is not False:
            reached = each(lambda s, f: mix(s, f, self.alpha), slow, fast)
            if isinstance(due, Tensor):  # lanes with k of their own
                fast = each(lambda r, f: torch.where(due, r, f), reached, fast)
                slow = each(lambda r, s: torch.where(due, r, s), reached, slow)
            else:
                fast = slow = reached
        return fast, {"inner": inner, "slow": slow, "turn": turn}


class LookaheadMomentum(Lookahead, Momentum):
    """Lookahead around momentum: every k steps slow <- slow + alpha (fast - slow); fast <- slow.

    Zhang et al. 2019 (arXiv:1907.08610); inside, v <- momentum v + g;  fast <- fast - lr v. The
    velocity is kept when the weights are set back.
    """

    def init(self, params: Params) -> State:
        """Return zero velocity, and slow weights at the fast ones."""
        return self._beside(Momentum.init(self, params), params)

    def update(self, grads: Params, state: State, params: Params, lr: Rate) -> tuple[Params, State]:
        """Take one step."""
        fast, inner = Momentum.update(self, grads, state["inner"], params, lr)
        return self._followed(fast, inner, state)


class LookaheadRAdam(Lookahead, RAdam):
    """Lookahead around RAdam: every k steps slow <- slow + alpha (fast - slow); fast <- slow.

    Zhang et al. 2019 (arXiv:1907.08610); inside, `radam`, whose moments are kept when the
    weights are set back. With these defaults also known as Ranger.
    """

    def init(self, params: Params) -> State:
        """Return zero moments, and slow weights at the fast ones."""
        return self._beside(RAdam.init(self, params), params)

    def update(self, grads: Params, state: State, params: Params, lr: Rate) -> tuple[Params, State]:
        """Take one step."""
        fast, inner = RAdam.update(self, grads, state["inner"], params, lr)
        return self._followed(fast, inner, state)
