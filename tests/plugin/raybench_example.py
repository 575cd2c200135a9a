"""An optimizer, a model, a data set and a figure that know nothing of raybench's classes."""

import numpy as np
import torch
from torch import nn


class SignDescent(torch.optim.Optimizer):
    """Steps by the sign of the gradient (Bernstein et al. 2018), averaged by momentum."""

    def __init__(self, params, lr=0.01, momentum: float = 0.9):
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                mean = self.state[p].setdefault("mean", torch.zeros_like(p))
                mean.lerp_(p.grad, 1 - group["momentum"])
                p.sub_(mean.sign() * group["lr"])


class DropoutNet(nn.Module):
    """One hidden layer with dropout."""

    def __init__(self, in_features, num_classes, hidden=12, drop=0.25):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(in_features, hidden), nn.ReLU(), nn.Dropout(drop))
        self.head = nn.Linear(hidden, num_classes)

    def forward(self, x):
        return self.head(self.body(x.flatten(1)))


def stripes(rows=96, width=10, seed=7):
    """Rows of noise in which one of two stripes is brighter."""
    draw = np.random.default_rng(seed)
    y = draw.integers(0, 2, rows)
    x = draw.normal(size=(rows, width))
    x[np.arange(rows), y] += 2.0
    return x, y


class Lazy:
    """Figures are made of raybench's classes, which are imported where they are drawn."""

    @property
    def FIGURES(self):
        from matplotlib.figure import Figure as Picture

        from raybench.analysis.figure import Claim, Figure, Verdict

        def draw(frame):
            picture = Picture()
            picture.subplots().plot(frame["summary.test.error"])
            return picture

        def check(frame):
            worst = float(frame["summary.test.error"].max())
            return Verdict(worst, "at most 1", worst <= 1)

        claim = Claim("bounded", "Test error is at most 1.", "the plug-in", check)
        data = lambda tables: tables.runs[["run_id", "summary.test.error"]]  # noqa: E731
        return {"errors": Figure("Errors", "Of all runs.", data, draw, (claim,))}


figures = Lazy()
