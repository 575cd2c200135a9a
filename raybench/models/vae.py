"""The variational autoencoder of DeepOBS (Kingma and Welling 2014, arXiv:1312.6114)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from pydantic import Field
from torch import Tensor, nn

from raybench.errors import RaybenchError
from raybench.models.base import Dropout, Noise, Published
from raybench.models.convnets import image_sides
from raybench.models.initial import glorot_uniform
from raybench.models.same import Conv, ConvTranspose

_WINDOW = 4
_SLOPE = 0.3


class VAE(Published):
    """A convolutional variational autoencoder: DeepOBS' mnist_vae and fmnist_vae.

    Encoder: three convolutions 4 x 4 of `width` channels and strides 2, 2, 1 with leaky ReLU (0.3),
    then two dense heads: the mean of the latent numbers z, and twice their log deviation s.
    z = mean + noise * exp(s). Decoder: two dense layers with leaky ReLU, to a single-channel image
    of a quarter of the side; three transposed convolutions with ReLU, of strides 2, 1, 1; a dense
    layer with sigmoid to the pixels, which are in [0, 1]. Dropout follows each convolution but the
    last. Published: Glorot's uniform weights, biases 0.

    Outputs of a row are [reconstruction, mean, s]: for data with `target: input` and the loss
    `elbo`. In evaluation the noise of a row is fixed (see `Noise`).
    """

    width: int = Field(default=64, ge=1)
    """Channels of each convolution."""
    latent: int = Field(default=8, ge=1)
    """Numbers in z."""
    hidden: int = Field(default=24, ge=1)
    """Units of the first dense layer of the decoder."""
    dropout: float = Field(default=0.2, ge=0.0, lt=1.0)
    """Probability with which a number is zeroed in training."""

    def module(self, inputs: tuple[int, ...], outputs: int) -> nn.Module:
        """Return encoder and decoder; needs rows of shape [channels, height, width]."""
        channels, height, width = image_sides(self.name, inputs, 1)
        if outputs != channels * height * width:
            raise RaybenchError(
                f"model {self.name} reconstructs its input, {channels * height * width} numbers, "
                f"and {outputs} outputs are asked for; set data.target: input"
            )
        image = (-(-height // 4), -(-width // 4))
        encoder = nn.Sequential(*self._encoder(channels), nn.Flatten())
        return _Autoencoder(encoder, self._decoder(image, outputs), self._sizes(image))

    def published(
        self, layer: nn.Module, name: str, shape: torch.Size, draw: torch.Generator
    ) -> Tensor:
        """Return Glorot's uniform weights and zero biases."""
        return torch.zeros(shape) if name == "bias" else glorot_uniform(shape, draw)

    def _sizes(self, image: tuple[int, int]) -> tuple[int, int]:
        return self.width * image[0] * image[1], self.latent

    def _encoder(self, channels: int) -> Iterator[nn.Module]:
        for stride in (2, 2, 1):
            yield Conv(channels, self.width, _WINDOW, stride)
            yield nn.LeakyReLU(_SLOPE)
            yield Dropout(self.dropout)
            channels = self.width

    def _decoder(self, image: tuple[int, int], outputs: int) -> nn.Module:
        pixels = image[0] * image[1]
        return nn.Sequential(
            *(nn.Linear(self.latent, self.hidden), nn.LeakyReLU(_SLOPE)),
            *(nn.Linear(self.hidden, pixels), nn.LeakyReLU(_SLOPE), nn.Unflatten(1, (1, *image))),
            *(ConvTranspose(1, self.width, _WINDOW, 2), nn.ReLU(), Dropout(self.dropout)),
            *(ConvTranspose(self.width, self.width, _WINDOW), nn.ReLU(), Dropout(self.dropout)),
            *(ConvTranspose(self.width, self.width, _WINDOW), nn.ReLU(), nn.Flatten()),
            *(nn.Linear(self.width * 4 * pixels, outputs), nn.Sigmoid()),
        )


class _Autoencoder(nn.Module):
    def __init__(self, encoder: nn.Module, decoder: nn.Module, sizes: tuple[int, int]) -> None:
        super().__init__()
        self.encoder = encoder
        self.mean = nn.Linear(*sizes)
        self.log_variance = nn.Linear(*sizes)
        self.noise = Noise()
        self.decoder = decoder

    def forward(self, x: Tensor) -> Tensor:
        """Return [N, D + 2 L]: reconstruction, mean and log deviation of z."""
        code = self.encoder(x)
        mean, log_std = self.mean(code), 0.5 * self.log_variance(code)
        z = mean + self.noise(mean) * log_std.exp()
        return torch.cat([self.decoder(z), mean, log_std], dim=1)
