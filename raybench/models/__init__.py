"""Models. The table is the list of all that exist; each concept has a file of its own."""

from raybench.models.adapter import adapt
from raybench.models.base import Model
from raybench.models.cnn import CNN
from raybench.models.mlp import MLP, Linear, RandomFeatures
from raybench.tables import Table

MODELS: Table[Model] = Table(
    "model",
    "raybench.models",
    {"linear": Linear, "mlp": MLP, "random_features": RandomFeatures, "cnn": CNN},
    adapt,
)

__all__ = ["MODELS", "Model"]
