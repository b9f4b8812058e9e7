"""The networks of the series, all for 10 classes of 32×32 colour images."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


def count_parameters(model: nn.Module, trainable_only: bool = False) -> int:
    """The number of learned values in ``model``; a shared parameter counts once."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable_only)


class LeNet(nn.Module):
    """The small classic: two convolutions with pooling, then three linear layers.

    Shapes: (batch, 3, 32, 32) → conv 5×5 (6, 28, 28) → pool (6, 14, 14) → conv 5×5
    (16, 10, 10) → pool (16, 5, 5) → 400 → 120 → 84 → (batch, classes) logits.
    62,006 parameters with 10 classes.

    Source: after LeNet-5, Y. LeCun et al., "Gradient-based learning applied to document
    recognition", 1998, with ReLU and max pooling in place of tanh and averaging.
    """

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, kernel_size=5)
        self.conv2 = nn.Conv2d(6, 16, kernel_size=5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (batch, 3, 32, 32) to logits (batch, classes)."""
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)  # (batch, 6, 14, 14)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)  # (batch, 16, 5, 5)
        x = x.flatten(start_dim=1)  # (batch, 400)
        x = F.relu(self.fc1(x))
        x = F.relu(self.fc2(x))
        return self.fc3(x)


def conv_block(in_channels: int, out_channels: int, pool: bool = False) -> nn.Sequential:
    """3×3 convolution → batch normalisation → ReLU, and 2×2 max pooling where ``pool``.

    The convolution has no bias: batch normalisation would subtract it again.
    """
    layers = [
        nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    ]
    return nn.Sequential(*layers, *([nn.MaxPool2d(2)] if pool else []))


class SmallConvNet(nn.Module):
    """A better network that a laptop can train: 3×3 convolutions with batch normalisation.

    Shapes with ``width`` w: (batch, 3, 32, 32) → (w, 16, 16) → (2w, 8, 8) → (4w, 8, 8) →
    (4w, 4, 4) → mean over the 4×4 places → (batch, 4w) → (batch, classes) logits.

    Args:
        classes: the number of classes.
        width: channels of the first block; cost grows with its square.
        dropout: share of the features that is dropped in training, before the last layer.
    """

    def __init__(self, classes: int = 10, width: int = 32, dropout: float = 0.0) -> None:
        super().__init__()
        self.features = nn.Sequential(
            conv_block(3, width, pool=True),
            conv_block(width, 2 * width, pool=True),
            conv_block(2 * width, 4 * width),
            conv_block(4 * width, 4 * width, pool=True),
        )
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (batch, 3, height, width) to logits (batch, classes)."""
        x = self.features(x)  # (batch, 4w, 4, 4) for 32×32 images
        x = x.mean(dim=(2, 3))  # global average pooling: (batch, 4w)
        return self.head(self.dropout(x))
