"""Forms of TensorFlow 1, where they differ from PyTorch's.

The published runs of the Crowded Valley (Schmidt, Schneider and Hennig 2021, arXiv:2007.01547) were
made with them. Where the recursions agree (gradient descent, momentum, Adadelta) there is one rule.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from raybench.optim.adagrad import Adagrad
from raybench.optim.adam import Adam, AMSGrad
from raybench.optim.base import LearningRate, Optimizer, Params, Share, State, each, mix
from raybench.optim.numbers import Rate, as_for
from raybench.spec import Hyper


class AdamTF(Adam):
    """Adam with "epsilon hat" (Kingma and Ba 2015, end of section 2), in TensorFlow 1's form.

    p <- p - lr sqrt(1 - beta2^t) / (1 - beta1^t) m / (sqrt(s) + eps): eps is added before the bias
    correction of the root, so that early steps see a larger eps than in `adam`.
    """

    eps_hat: ClassVar[bool] = True


class AMSGradTF(AMSGrad):
    """AMSGrad as `adam_tf` is Adam: eps is added before the bias correction of the root.

    s_max <- max(s_max, s);  p <- p - lr sqrt(1 - beta2^t) / (1 - beta1^t) m / (sqrt(s_max) + eps).
    The maximum is of mean squares without bias correction, as in `amsgrad`. The learning rate is
    the Crowded Valley's default.
    """

    eps_hat: ClassVar[bool] = True

    lr: LearningRate = 0.01


class NadamTF(AdamTF):
    """Adam with Nesterov momentum in the form of TensorFlow 1's `contrib`: no schedule of mu.

    p <- p - lr sqrt(1 - beta2^t) / (1 - beta1^t) (beta1 m + (1 - beta1) g) / (sqrt(s) + eps), with
    m and s of this step. Also the mean's part has the correction of step t, not of t + 1.
    """

    def _direction(self, grads: Params, state: State) -> Params:
        return each(lambda m, g: mix(m, g, 1 - self.beta1), state["mean"], grads)


class AdagradTF(Adagrad):
    """Adagrad with TensorFlow 1's defaults: a begins at 0.1, and nothing is added to its root.

    a <- a + g^2;  p <- p - lr g / sqrt(a)  (Duchi et al. 2011).
    """

    initial_accumulator: Hyper = Field(default=0.1, ge=0)
    """The sum of squares a before the first step."""
    eps: Hyper = Field(default=0.0, ge=0)
    """Added to the root."""


class RMSPropTF(Optimizer):
    """RMSProp in TensorFlow 1's form: s begins at 1, and eps is inside the root.

    s <- decay s + (1 - decay) g^2;  p <- p - lr g / sqrt(s + eps)  (Tieleman, Hinton 2012).
    """

    decay: Share = 0.9
    """Of the running mean of squares."""
    eps: Hyper = Field(default=1e-10, ge=0)
    """Added inside the root."""

    def init(self, params: Params) -> State:
        """Return mean squares of 1."""
        return {"square": {name: p.new_ones(p.shape) for name, p in params.items()}}

    def update(self, grads: Params, state: State, params: Params, lr: Rate) -> tuple[Params, State]:
        """Take one step."""
        square = each(lambda s, g: mix(s, g * g, 1 - self.decay), state["square"], grads)

        def moved(p: Tensor, g: Tensor, s: Tensor) -> Tensor:
            return p - (g / (s + self.eps).sqrt_()).mul_(as_for(lr, s))

        return each(moved, params, grads, square), {"square": square}
