"""The stand-in for CIFAR-10: ten classes of generated pictures, deterministic and offline."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from shipyard.data import cache
from shipyard.data.sets import Arrays, Cifar10

STAND_IN_CLASSES = (
    "disc",
    "ring",
    "square",
    "frame",
    "triangle",
    "cross",
    "horizontal stripes",
    "vertical stripes",
    "checkerboard",
    "dots",
)
STAND_IN_SOURCE = "stand-in data (generated; not CIFAR-10)"


def load_stand_in(verbose: bool) -> Cifar10:
    """The stand-in of 10,000 and 2,000 pictures, from the cache where that has it."""
    train, test = 10_000, 2_000
    key = f"stand-in-v{cache.VERSION}-{train}-{test}"
    arrays = cache.cached(key, lambda: draw_sets(train, test, seed=0), verbose)
    return Cifar10.of(arrays, STAND_IN_SOURCE, True, STAND_IN_CLASSES)


def draw_sets(train: int, test: int, seed: int) -> Arrays:
    """Ten classes of generated 32×32 colour pictures, told apart by shape and texture alone.

    Colours, position, size, brightness, clutter and noise are drawn in the same way for every
    class, so that no single pixel says much. Same arguments, same pictures; train and test
    pictures come from generators apart.
    """
    arrays = {}
    for part, n in (("train", train), ("test", test)):
        rng = np.random.default_rng([seed, part == "test"])
        labels = rng.permutation(np.arange(n, dtype=np.int64) % 10)
        # Small groups stay in the processor's cache.
        images = [_draw(labels[i : i + 500], rng) for i in range(0, n, 500)]
        arrays[f"{part}_images"] = np.concatenate(images)
        arrays[f"{part}_labels"] = labels
    return arrays


def _draw(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Pictures (N, 3, 32, 32) of uint8, one for each label (N,)."""
    n = len(labels)

    def uniform(low: float, high: float, *shape: int) -> np.ndarray:
        return rng.uniform(low, high, (n, *shape)).astype(np.float32)

    def local_axes(turn: float, reach: float) -> tuple[np.ndarray, np.ndarray]:
        """Coordinates (N, 32, 32) in pixels around random centres, turned by random angles."""
        y, x = np.mgrid[-15.5:16, -15.5:16].astype(np.float32)
        x, y = x - uniform(-reach, reach, 1, 1), y - uniform(-reach, reach, 1, 1)
        angle = uniform(-turn, turn, 1, 1)
        return x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)

    def paint(picture: np.ndarray, inside: np.ndarray, colour: np.ndarray) -> None:
        """Lay ``colour`` (N, 3) over the pixels where the distance ``inside`` is positive."""
        alpha = np.clip(inside + 0.5, 0, 1)[:, None]
        picture += alpha * (colour[:, :, None, None] - picture)

    def speck() -> np.ndarray:
        u, v = local_axes(np.pi, 16)
        return 1 - np.hypot(u / uniform(1, 5, 1, 1), v / uniform(1, 2, 1, 1))

    blobs = torch.from_numpy(uniform(0.1, 0.9, 3, 3, 3))
    picture = F.interpolate(blobs, (32, 32), mode="bilinear", align_corners=True).numpy()
    for _ in range(4):
        paint(picture, speck(), uniform(0, 1, 3))
    u, v = local_axes(np.deg2rad(12), 5)
    inside = np.empty_like(u)
    size, period, phase = uniform(7, 10, 1, 1), uniform(4, 7, 1, 1), uniform(0, 6.28, 2, 1, 1)
    for label, shape in enumerate(STAND_IN_CLASSES):
        m = labels == label
        inside[m] = _shape(shape, u[m], v[m], size[m], period[m], phase[m])
    # Of three colours the one farthest from the background: the shape can be seen.
    colours = uniform(0, 1, 3, 3)
    contrast = np.abs(colours - picture.mean(axis=(2, 3))[:, None]).sum(axis=2)
    paint(picture, inside, colours[np.arange(n), contrast.argmax(axis=1)])
    for _ in range(2):
        paint(picture, speck(), uniform(0, 1, 3))
    picture += 0.08 * rng.standard_normal(picture.shape, dtype=np.float32)
    return (np.clip(picture, 0, 1) * 255).round().astype(np.uint8)


def _shape(
    name: str, u: np.ndarray, v: np.ndarray, size: np.ndarray, period: np.ndarray, phase: np.ndarray
) -> np.ndarray:
    """Distance in pixels to the edge of the shape, positive inside, at the points (u, v)."""
    radius = np.hypot(u, v)
    box = np.maximum(np.abs(u), np.abs(v))
    line = 1.2
    if name == "disc":
        return size - radius
    if name == "ring":
        return line - np.abs(radius - size)
    if name == "square":
        return 0.9 * size - box
    if name == "frame":
        return line - np.abs(box - 0.9 * size)
    if name == "triangle":
        return 0.6 * size - np.maximum(v, 0.87 * np.abs(u) - 0.5 * v)
    if name == "cross":
        bar = 0.3 * size
        return np.minimum(size - box, bar - np.minimum(np.abs(u), np.abs(v)))
    # Textures fill a disc; a wave of this period has edges about period / 4 from its crest.
    a = np.sin(2 * np.pi * u / period + phase[:, 0])
    b = np.sin(2 * np.pi * v / period + phase[:, 1])
    wave = {
        "horizontal stripes": b,
        "vertical stripes": a,
        "checkerboard": 2 * a * b,
        "dots": a + b - 0.6,
    }[name]
    return np.minimum(1.2 * size - radius, wave * period / 4)
