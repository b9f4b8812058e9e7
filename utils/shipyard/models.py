"""The networks of the series: for 10 classes of 32×32 colour images, and for text."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shipyard import attention


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


class ResidualBlock(nn.Module):
    """x + body(x): the body learns a correction, and a shortcut hands x on unchanged.

    The body is two `conv_block`s. The shortcut has no weights, so the block keeps the shape:
    (batch, channels, height, width).

    Source: K. He et al., "Deep residual learning for image recognition", 2016, here with the
    last ReLU inside the body, so that the shortcut is the identity from end to end (K. He et
    al., "Identity mappings in deep residual networks", 2016).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv_block(channels, channels), conv_block(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """Map x (batch, channels, height, width) to the same shape."""
        return x + self.body(x)


class ResidualNet(nn.Module):
    """Seven 3×3 convolutions, four of them inside two residual blocks; the cost of SmallConvNet.

    Shapes with ``width`` w: (batch, 3, 32, 32) → (w, 16, 16) → (2w, 8, 8) → residual block
    (2w, 8, 8) → (4w, 4, 4) → residual block (4w, 4, 4) → mean over the 4×4 places →
    (batch, 4w) → (batch, classes) logits.

    Args:
        classes: the number of classes.
        width: channels of the first block; cost grows with its square.
    """

    def __init__(self, classes: int = 10, width: int = 32) -> None:
        super().__init__()
        self.features = nn.Sequential(
            conv_block(3, width, pool=True),
            conv_block(width, 2 * width, pool=True),
            ResidualBlock(2 * width),
            conv_block(2 * width, 4 * width, pool=True),
            ResidualBlock(4 * width),
        )
        self.head = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (batch, 3, height, width) to logits (batch, classes)."""
        x = self.features(x)  # (batch, 4w, 4, 4) for 32×32 images
        return self.head(x.mean(dim=(2, 3)))  # global average pooling, then (batch, classes)


def whitening_filters(images: Tensor, kernel_size: int = 2, eps: float = 5e-4) -> Tensor:
    """Filters w_i = v_i / √(λ_i + eps): a convolution with them gives uncorrelated channels.

    λ_i and v_i are the eigenvalues and eigenvectors of the covariance C = mean((p − μ)(p − μ)ᵀ),
    where p runs over all patches of kernel_size × kernel_size pixels of the images and μ is
    their mean. The outputs then have variance λ_i / (λ_i + eps), which is near 1, and
    covariance 0.

    Args:
        images: (batch, channels, height, width), normalised; a few thousand are enough.
        kernel_size: side of a patch.
        eps: keeps directions that hardly occur (λ near 0) from becoming amplified noise.

    Returns:
        (channels · kernel_size², channels, kernel_size, kernel_size), largest λ first.

    Source: D. Page, "How to train your ResNet 8: bag of tricks", 2019.
    """
    patches = F.unfold(images, kernel_size).transpose(1, 2).flatten(0, 1)  # (patches, ck²)
    centred = patches - patches.mean(dim=0)
    C = centred.T @ centred / len(centred)  # (ck², ck²)
    eigenvalues, eigenvectors = torch.linalg.eigh(C.double().cpu())  # columns, λ ascending
    filters = (eigenvectors / (eigenvalues.clamp(min=0) + eps).sqrt()).T.flip(0)
    return filters.to(images).view(-1, images.shape[1], kernel_size, kernel_size)


class WhitenedNet(nn.Module):
    """A network for fast training: a first layer that is computed, not learned, then few blocks.

    Shapes: (batch, 3, side, side) → whitening k×k, each filter with its negative
    (6k², side − k + 1, …) → for each of ``widths``: 3×3 convolution, 2×2 max pooling, batch
    norm, ReLU, and ``depth`` − 1 times convolution, batch norm, ReLU → maximum over the places
    → (batch, classes) logits. It takes images of any side from 16 up (with three widths).

    Args:
        classes: the number of classes.
        widths: channels of each block, each with half the side of the one before.
        depth: 3×3 convolutions in a block.
        kernel_size: side of the whitening filters.
        logit_scale: the last layer's output is multiplied by it, which keeps the first logits
            small while the learning rate is large.

    Source: after K. Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU", 2024
    (arXiv:2404.00498), with fewer channels, ReLU for GELU, and torch's own initial weights.
    """

    def __init__(
        self,
        classes: int = 10,
        widths: tuple[int, ...] = (32, 64, 128),
        depth: int = 1,
        kernel_size: int = 2,
        logit_scale: float = 0.5,
    ) -> None:
        super().__init__()
        channels = 2 * 3 * kernel_size**2
        self.whitening = nn.Conv2d(3, channels, kernel_size)
        self.whitening.weight.requires_grad_(False)
        layers: list[nn.Module] = [nn.ReLU()]
        for width in widths:
            for i in range(depth):
                layers.append(nn.Conv2d(channels, width, kernel_size=3, padding=1, bias=False))
                if i == 0:  # before the norm: it then works on a quarter of the values
                    layers.append(nn.MaxPool2d(2))
                layers += [nn.BatchNorm2d(width), nn.ReLU()]
                channels = width
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(channels, classes, bias=False)
        self.logit_scale = logit_scale

    @torch.no_grad()
    def whiten(self, images: Tensor) -> None:
        """Set the first layer to the `whitening_filters` of ``images`` and their negatives.

        ReLU drops negative values; with −w beside w, each sign reaches the next layer.
        """
        filters = whitening_filters(images, self.whitening.kernel_size[0])
        self.whitening.weight.copy_(torch.cat([filters, -filters]))
        self.whitening.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Map images (batch, 3, side, side) to logits (batch, classes)."""
        x = self.features(self.whitening(x))  # (batch, channels, places, places)
        return self.head(x.amax(dim=(2, 3))) * self.logit_scale


class TransformerBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), with rotary positions and a causal mask.

    The norm stands before each part, as in GPT-2, so that the sums form one straight path from
    input to output. ``mlp`` is two linear layers, four times as wide inside, with a GELU.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_qkv = nn.Linear(width, 3 * width, bias=False)
        self.to_out = nn.Linear(width, width, bias=False)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(
        self, x: Tensor, cache: attention.KeyValueCache | None = None
    ) -> tuple[Tensor, Tensor]:
        """Map x (batch, time, width) to (x', weights (batch, heads, time, past + time))."""
        past, time = cache.length if cache else 0, x.shape[1]
        positions = torch.arange(past, past + time, device=x.device)
        query, key, value = (
            attention.split_heads(part, self.heads)  # (batch, heads, time, d)
            for part in self.to_qkv(self.norm_attention(x)).chunk(3, dim=-1)
        )
        query = attention.rotary_encoding(query, positions)
        key = attention.rotary_encoding(key, positions)
        if cache is not None:
            key, value = cache.append(key, value)
        mask = attention.causal_mask(time, past + time, device=x.device)
        weights = attention.attention_weights(query, key, mask)
        x = x + self.to_out(attention.merge_heads(weights @ value))
        return x + self.mlp(self.norm_mlp(x)), weights


class CharTransformer(nn.Module):
    """A decoder-only Transformer: tokens so far → scores for the next token, at each position.

    Shapes: tokens (batch, time), int64 → embedding (batch, time, width) → blocks → norm →
    logits (batch, time, vocabulary). The output layer is the embedding's transpose.

    Args:
        vocabulary: the number of different tokens.
        width: numbers per position; ``heads`` must divide it, into an even share.
        heads: attention heads in each block.
        layers: the number of blocks.

    Source: A. Radford et al., "Language models are unsupervised multitask learners" (GPT-2),
    2019, here with rotary positions and without dropout.
    """

    def __init__(self, vocabulary: int, width: int = 128, heads: int = 4, layers: int = 2) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        nn.init.normal_(self.embedding.weight, std=0.02)  # as GPT-2: logits start near zero
        self.blocks = nn.ModuleList(TransformerBlock(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def new_caches(self) -> list[attention.KeyValueCache]:
        """One empty cache for each block, to be handed to `forward` call after call."""
        return [attention.KeyValueCache() for _ in self.blocks]

    def forward(
        self, tokens: Tensor, caches: list[attention.KeyValueCache] | None = None
    ) -> Tensor:
        """Map tokens (batch, time) to logits (batch, time, vocabulary).

        With ``caches``, ``tokens`` are only the new ones, which follow those already cached.
        """
        return self._run(tokens, caches)[0]

    def attention_maps(self, tokens: Tensor) -> Tensor:
        """Who looks where: (layers, batch, heads, time, time), each row adds up to one."""
        return torch.stack(self._run(tokens)[1])

    def _run(
        self, tokens: Tensor, caches: list[attention.KeyValueCache] | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        x = self.embedding(tokens)  # (batch, time, width)
        maps = []
        for block, cache in zip(self.blocks, caches or [None] * len(self.blocks), strict=True):
            x, weights = block(x, cache)
            maps.append(weights)
        return F.linear(self.norm(x), self.embedding.weight), maps
