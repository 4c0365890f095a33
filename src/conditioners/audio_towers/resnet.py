"""A residual network over spectra."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from ...core.registry import register
from .base import AudioTower


@register("audio_tower", "resnet")
class ResNet(AudioTower):
    """ResNet with bottleneck blocks over the spectrum as an image of one channel (arXiv 1512.03385).

    The defaults are those of ResNet-50. The second convolution of a block has the stride, as in torchvision. The output
    is the mean over time and frequency, projected to the embedding.

    Args:
        width: Channels of the first stage, between its convolutions; each stage has twice those of the one before.
        depths: Number of blocks of each stage.

    Raises:
        ValueError: A size is out of range.
    """

    def __init__(self, *, width: int = 64, depths: tuple[int, ...] = (3, 4, 6, 3)) -> None:
        super().__init__()
        if width < 1 or not depths or min(depths) < 1:
            raise ValueError(f"width and depths must be positive, not {width} and {list(depths)}")
        self.width, self.depths = width, tuple(depths)

    def build(self, frames: int, bands: int, dim: int) -> None:
        """Create the convolutions and the projection; they fit spectra of any size."""
        super().build(frames, bands, dim)
        self.stem = _convolution(1, self.width, 7, 2)
        blocks, channels = [], self.width
        for stage, depth in enumerate(self.depths):
            width = self.width * 2**stage
            for index in range(depth):
                blocks.append(Bottleneck(channels, width, 2 if stage and not index else 1))
                channels = width * Bottleneck.expansion
        self.blocks = nn.Sequential(*blocks)
        self.output = nn.Linear(channels, dim)

    def forward(self, spectrum: Tensor) -> Tensor:
        """Embed spectra ``[N, frames, bands]`` as ``[N, dim]``."""
        x = F.max_pool2d(F.relu(self.stem(spectrum[:, None])), 3, 2, 1)
        return self.output(self.blocks(x).mean((2, 3)))


class Bottleneck(nn.Module):
    """A residual block of three convolutions, of which the outer two change the number of channels.

    Args:
        inputs: Channels of the input.
        width: Channels between the convolutions.
        stride: Stride of the block in both axes.
    """

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = self.expansion * width
        last = _convolution(width, outputs, 1, 1)
        nn.init.zeros_(last.get_parameter("1.weight"))  # each block begins as the identity (arXiv 1706.02677)
        self.layers = nn.Sequential(
            _convolution(inputs, width, 1, 1),
            nn.ReLU(),
            _convolution(width, width, 3, stride),
            nn.ReLU(),
            last,
        )
        unchanged = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if unchanged else _convolution(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, inputs, H, W]`` to ``[N, 4 · width, H / stride, W / stride]``."""
        return F.relu(self.layers(x) + self.shortcut(x))


def _convolution(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Sequential:
    """A convolution and its batch normalization."""
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(layer, nn.BatchNorm2d(outputs))
