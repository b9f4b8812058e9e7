"""The networks that later lessons start from: trained once on this machine, kept in the cache.

``shipyard train residual_net --profile full`` makes one ahead of the lesson that wants it. A
training that is interrupted goes on where it stopped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shipyard import data, metrics, models, text, training
from shipyard.data.sets import seeded_generator
from shipyard.number_formats import fastest_format
from shipyard.runtime import cache_dir, resolve_profile


@dataclass(frozen=True)
class Start:
    """A trained network.

    Attributes:
        model: in evaluation mode, in float32, on the CPU.
        validation: what was measured after the last epoch: ``val_loss``, ``val_accuracy``.
        path: the checkpoint.
    """

    model: nn.Module
    validation: dict[str, float]
    path: Path


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: ``epochs`` passes, and the peak of a one-cycle learning rate."""

    epochs: int
    batch_size: int
    learning_rate: float
    width: int


RESIDUAL_NET = {"fast": Recipe(4, 64, 0.1, 16), "full": Recipe(16, 128, 0.2, 32)}
RESIDUAL_NET_IMAGES = {"fast": 6_000, "full": 50_000}  # a tenth of them only to validate
CHAR_TRANSFORMER = {"fast": Recipe(1, 32, 3e-3, 64), "full": Recipe(8, 32, 3e-3, 128)}
CHAR_TRANSFORMER_STEPS = {"fast": 150, "full": 250}  # in an epoch
CONTEXT = 128  # characters in a window


def images_of(
    cifar: data.Cifar10, profile: str, seed: int = 0
) -> tuple[data.ImageSet, data.ImageSet]:
    """(training images, validation images) that `residual_net` uses."""
    count = min(RESIDUAL_NET_IMAGES[resolve_profile(profile)], len(cifar.train))
    return data.split(cifar.train.subset(count, seed=seed), held_out=0.1, seed=seed)


def residual_net(
    cifar: data.Cifar10,
    profile: str = "full",
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> Start:
    """A `models.ResidualNet` for the ten classes, read from the cache or trained now.

    Augmented with crops and flips; SGD with Nesterov momentum 0.9, weight decay 5e-4, one cycle;
    in the number format that is the fastest here.

    Args:
        cifar: the images; the network of other images is another network.
        profile: "fast" (width 16, 5,400 images, seconds) or "full" (width 32, 45,000 images).
    """
    recipe = RESIDUAL_NET[resolve_profile(profile)]
    train, validation = images_of(cifar, profile, seed)
    path = _path("residual_net", profile, seed, recipe, train.images.numpy().tobytes())
    torch.manual_seed(seed)
    model = models.ResidualNet(width=recipe.width)
    if path.is_file():
        return _read(model, path)
    loader = data.BatchLoader(
        train, recipe.batch_size, shuffle=True, seed=seed, transform=data.random_crop_flip()
    )
    model.to(device)
    batch = data.normalize(train.images[: recipe.batch_size]).to(device)
    number_format = fastest_format(model, batch)
    model.to(memory_format=number_format.memory_format)
    optimizer = torch.optim.SGD(
        model.parameters(), recipe.learning_rate, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    return _train(
        model, loader, optimizer, recipe, path, device, progress, F.cross_entropy,
        lambda model: metrics.evaluate(model, data.BatchLoader(validation, 500), device),
        number_format.autocast,
    )  # fmt: skip


def char_transformer(
    profile: str = "full",
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> Start:
    """A `models.CharTransformer` of `text.load_corpus`, read from the cache or trained now.

    Its vocabulary is ``text.Vocabulary.of`` the whole corpus; ``val_loss`` is in nats per
    character. AdamW, one cycle, gradients clipped at norm 1.

    Args:
        profile: "fast" (width 64, seconds) or "full" (width 128).
    """
    recipe = CHAR_TRANSFORMER[resolve_profile(profile)]
    corpus = text.load_corpus()
    vocabulary = vocabulary_of(corpus)
    path = _path("char_transformer", profile, seed, recipe, corpus.train.encode())
    torch.manual_seed(seed)
    model = models.CharTransformer(len(vocabulary), width=recipe.width)
    if path.is_file():
        return _read(model, path)
    loader = _Windows(
        vocabulary.encode(corpus.train), recipe.batch_size, CHAR_TRANSFORMER_STEPS[profile], seed
    )
    inputs, targets = text.windows(vocabulary.encode(corpus.validation), CONTEXT)
    model.to(device)

    @torch.no_grad()
    def evaluate(model: nn.Module) -> dict[str, float]:
        losses = [
            _loss(model(x.to(device)), y.to(device)) * len(x)
            for x, y in zip(inputs.split(64), targets.split(64), strict=True)
        ]
        return {"val_loss": float(sum(losses)) / len(inputs)}

    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate)
    return _train(
        model, loader, optimizer, recipe, path, device, progress, _loss, evaluate, clip_norm=1.0
    )


def vocabulary_of(corpus: text.Corpus) -> text.Vocabulary:
    """The vocabulary of `char_transformer`."""
    return text.Vocabulary.of(corpus.train + corpus.validation)


class _Windows:
    """``steps`` batches of random windows of ``tokens``, others in each epoch."""

    def __init__(self, tokens: Tensor, batch_size: int, steps: int, seed: int) -> None:
        self.tokens, self.batch_size, self.steps, self.seed = tokens, batch_size, steps, seed
        self.epoch = 0

    def __len__(self) -> int:
        return self.steps

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = seeded_generator(self.seed, self.epoch)
        return text.batches(self.tokens, self.batch_size, CONTEXT, self.steps, generator)


def _loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of logits (batch, time, vocabulary) with targets (batch, time)."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def _path(name: str, profile: str, seed: int, recipe: Recipe, content: bytes) -> Path:
    """The file of one network: another recipe, seed or training set is another file."""
    digest = hashlib.blake2b(content, digest_size=4)
    digest.update(repr((seed, recipe)).encode())
    return cache_dir() / "pretrained" / f"{name}-{profile}-{digest.hexdigest()}.pt"


def _read(model: nn.Module, path: Path) -> Start:
    found = training.load_checkpoint(path)
    training.require_keys(found["model"], model.state_dict(), "weights", path)
    model.load_state_dict(found["model"])
    return Start(model.eval(), found["validation"], path)


def _train(
    model, loader, optimizer, recipe, path, device, progress, loss_fn, evaluate,
    autocast=None, clip_norm=None,
) -> Start:  # fmt: skip
    """Train with one cycle of the learning rate, and keep what came out at ``path``."""
    unfinished = path.with_suffix(".unfinished.pt")
    steps = recipe.epochs * len(loader)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, steps)
    history = training.fit(
        model, loader, optimizer, epochs=recipe.epochs, device=device, loss_fn=loss_fn,
        scheduler=scheduler, evaluate=evaluate, checkpoint=unfinished, progress=progress,
        autocast=autocast, clip_norm=clip_norm,
    )  # fmt: skip
    model.to("cpu", memory_format=torch.contiguous_format)
    validation = {k: v for k, v in history.rows[-1].items() if k.startswith("val_")}
    training.save_checkpoint(path, {"model": model.state_dict(), "validation": validation})
    for leftover in (unfinished, training.previous_of(unfinished)):
        leftover.unlink(missing_ok=True)
    return Start(model.eval(), validation, path)
