"""From the bytes of a PNG or JPEG file to the numbers that a model wants."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from shipyard.errors import ImageError

MEDIA_TYPES = ("image/png", "image/jpeg")
MAX_PIXELS = 40_000_000  # decoded: 120 MB
MAX_SIDE = 20_000  # a long side costs memory of its own when a picture is resized


@dataclass(frozen=True)
class InputSpec:
    """How a picture becomes an input: ``(pixel * scale - mean) / std``, channels first."""

    height: int
    width: int
    scale: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def normalise(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 (height, width, 3) → float32 (3, height, width)."""
        mean, std = np.float32(self.mean), np.float32(self.std)
        x = (pixels.astype(np.float32) * np.float32(self.scale) - mean) / std
        return np.ascontiguousarray(x.transpose(2, 0, 1))


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """PNG or JPEG bytes → RGB picture, turned as its EXIF orientation says, on white.

    The size is read from the header and checked before any pixel is decoded, so that a small
    file that claims to be huge (a decompression bomb) costs nothing.

    Raises:
        ImageError: no PNG or JPEG, damaged, more than ``max_pixels`` pixels, or a side of more
            than ``MAX_SIDE``.
    """
    if not data:
        raise ImageError("The body is empty; send the bytes of a PNG or JPEG file.")
    try:
        image = Image.open(io.BytesIO(data), formats=("PNG", "JPEG"))
    except Image.DecompressionBombError as error:
        raise ImageError(f"The picture is too large: {error}") from error
    except Exception as error:  # hostile bytes can raise nearly anything in a decoder
        raise ImageError(
            f"The {len(data)} bytes are not a PNG or JPEG picture; they begin with {data[:8]!r}."
        ) from error
    if image.width * image.height > max_pixels or max(image.size) > MAX_SIDE:
        raise ImageError(
            f"The picture has {image.width} × {image.height} pixels; at most {max_pixels:,} are "
            f"accepted, and {MAX_SIDE:,} along a side. Make it smaller and send it again."
        )
    try:
        image.load()
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):  # 16 bits per pixel
            image = Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert("RGB")
    except Exception as error:
        raise ImageError(f"The picture is damaged and cannot be decoded: {error}") from error


def resize_and_crop(image: Image.Image, height: int, width: int) -> Image.Image:
    """The largest centred part with the target's shape, resized to height × width.

    Like "resize the shortest side to fit, then crop the centre", in one step.
    """
    if image.size == (width, height):
        return image
    return ImageOps.fit(image, (width, height), method=Image.Resampling.BILINEAR)
