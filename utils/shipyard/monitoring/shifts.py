"""Real shifts of real images, in five strengths: what a camera, a lens or a user may change."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter

from shipyard.errors import MonitoringError

RADIUS = (0.4, 0.6, 0.8, 1.0, 1.3)  # of Gaussian blur, in pixels of a 32 × 32 picture
NOISE = (4, 8, 14, 22, 32)  # standard deviation, in steps of a byte
BRIGHTER = (10, 20, 35, 55, 80)  # added to every byte
QUALITY = (70, 45, 25, 15, 8)  # of JPEG
SHARE = (0.15, 0.25, 0.4, 0.6, 0.8)  # of all pictures that show one class


def blur(images: np.ndarray, strength: int, rng: np.random.Generator) -> np.ndarray:
    """A lens out of focus."""
    soft = ImageFilter.GaussianBlur(RADIUS[strength - 1])
    return _each(images, lambda picture: picture.filter(soft))


def noise(images: np.ndarray, strength: int, rng: np.random.Generator) -> np.ndarray:
    """A sensor in the dark: independent Gaussian noise on every byte."""
    return _bytes(images + rng.normal(0, NOISE[strength - 1], images.shape))


def brightness(images: np.ndarray, strength: int, rng: np.random.Generator) -> np.ndarray:
    """A longer exposure: the same amount added to every byte."""
    return _bytes(images.astype(np.float64) + BRIGHTER[strength - 1])


def jpeg(images: np.ndarray, strength: int, rng: np.random.Generator) -> np.ndarray:
    """A client that saves bandwidth: encoded and decoded again at a lower quality."""

    def again(picture: Image.Image) -> Image.Image:
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=QUALITY[strength - 1])
        return Image.open(buffer)

    return _each(images, again)


PIXEL_SHIFTS: dict[str, Callable] = {
    "blur": blur,
    "noise": noise,
    "brightness": brightness,
    "JPEG": jpeg,
}
SHIFTS = (*PIXEL_SHIFTS, "class mix")


def class_mix(labels: np.ndarray, strength: int, rng: np.random.Generator, favourite: int = 3):
    """Places (n,) of pictures drawn again so that one class has a share of `SHARE`."""
    labels = np.asarray(labels)
    share = SHARE[strength - 1]
    often = labels == favourite
    if not 0 < often.sum() < len(labels):
        raise MonitoringError(
            f"Class {favourite} holds {often.sum()} of {len(labels)} pictures, so that the mix "
            "cannot change. Give pictures of several classes."
        )
    weights = np.where(often, share / often.sum(), (1 - share) / (~often).sum())
    return rng.choice(len(labels), size=len(labels), p=weights)


def shift(
    name: str, images: np.ndarray, labels: np.ndarray, strength: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """(images, labels) after one of `SHIFTS`; the arguments stay as they are.

    Args:
        images: uint8 (n, 3, height, width), with labels (n,).
        strength: 1 to 5; 0 changes nothing.

    Raises:
        MonitoringError: no such shift or strength, or images of another kind.

    Source for the idea of strengths: D. Hendrycks and T. Dietterich, "Benchmarking neural network
    robustness to common corruptions and perturbations", ICLR 2019. The amounts are our own.
    """
    images, labels = np.asarray(images), np.asarray(labels)
    if name not in SHIFTS or strength not in range(6):
        raise MonitoringError(
            f"There is no shift {name!r} of strength {strength!r}; expected one of "
            f"{', '.join(SHIFTS)} and a whole number from 0 to 5."
        )
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise MonitoringError(
            f"The images are {images.dtype} of shape {images.shape}; expected uint8 of shape "
            "(n, 3, height, width), before they are normalised."
        )
    if strength == 0:
        return images.copy(), labels.copy()
    rng = np.random.default_rng([seed, SHIFTS.index(name), strength])
    if name == "class mix":
        places = class_mix(labels, strength, rng)
        return images[places], labels[places]
    return PIXEL_SHIFTS[name](images, strength, rng), labels.copy()


def _bytes(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _each(images: np.ndarray, change: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    """``change`` made to every picture of (n, 3, height, width)."""
    pictures = images.transpose(0, 2, 3, 1)
    changed = [np.asarray(change(Image.fromarray(picture))) for picture in pictures]
    return np.ascontiguousarray(np.stack(changed).transpose(0, 3, 1, 2))
