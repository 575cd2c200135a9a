"""Models. The table is the list of all that exist; each concept has a file of its own."""

from raybench.models.adapter import adapt
from raybench.models.analytic import QuadraticDeep, TwoD
from raybench.models.base import Model
from raybench.models.char_rnn import CharRNN
from raybench.models.cnn import CNN
from raybench.models.convnets import AllCNN, CNN2c2d, CNN3c3d
from raybench.models.mlp import MLP, Linear, RandomFeatures
from raybench.models.resnet import CNN5, ResNet18k
from raybench.models.transformer import Transformer
from raybench.models.vae import VAE
from raybench.models.vgg import VGG
from raybench.models.wide import WideMLP
from raybench.models.wide_resnet import WideResNet
from raybench.tables import Table

MODELS: Table[Model] = Table(
    "model",
    "raybench.models",
    {
        "linear": Linear,
        "mlp": MLP,
        "random_features": RandomFeatures,
        "cnn": CNN,
        "quadratic_deep": QuadraticDeep,
        "two_d": TwoD,
        "cnn_2c2d": CNN2c2d,
        "cnn_3c3d": CNN3c3d,
        "all_cnn_c": AllCNN,
        "vae": VAE,
        "vgg": VGG,
        "wide_resnet": WideResNet,
        "wide_mlp": WideMLP,
        "char_rnn": CharRNN,
        "resnet18k": ResNet18k,
        "cnn5": CNN5,
        "transformer": Transformer,
    },
    adapt,
)

__all__ = ["MODELS", "Model"]
