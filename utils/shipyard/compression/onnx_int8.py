"""An ONNX file of float32 turned into one of int8, in the form that is fast on this processor.

ONNX Runtime's static quantization writes QuantizeLinear and DequantizeLinear around each operator
("QDQ"); when the file is loaded, the runtime puts integer kernels in their place.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from shipyard import processor
from shipyard.errors import CompressionError


@dataclass(frozen=True)
class Int8Format:
    """How activations and weights are stored.

    Attributes:
        signed_activations: −128 … 127, else 0 … 255.
        reduce_range: weights of 7 bits: −64 … 63.
        because: what it was chosen for, in words.
    """

    signed_activations: bool
    reduce_range: bool
    because: str

    def __str__(self) -> str:
        sign, bits = "s" if self.signed_activations else "u", 7 if self.reduce_range else 8
        return f"{sign}8 activations, s{bits} weights per channel, because {self.because}"


def format_for(instructions: tuple[str, ...]) -> Int8Format:
    """The fast and exact form for a processor with these instructions (`processor.instructions`).

    Unsigned activations with signed weights where there are x86 instructions. With AVX2 or AVX-512
    but no VNNI, two products of bytes are added in 16 bits, which overflow with full weights.
    """
    if "NEON" in instructions or "SVE" in instructions:
        return Int8Format(True, False, "Arm multiplies signed bytes by signed bytes")
    if "VNNI" in instructions or "AMX" in instructions:
        return Int8Format(False, False, "VNNI adds its products of bytes in 32 bits")
    return Int8Format(False, True, "without VNNI two products of bytes are added in 16 bits")


def quantize_file(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    batches: list[Tensor],
    form: Int8Format | None = None,
    method: str = "minmax",
) -> Int8Format:
    """Write the int8 version of the ONNX file ``source`` to ``target``; return its format.

    Weights get a scale for each output channel. The file's metadata, which a server reads, stay.

    Args:
        batches: inputs for calibration, normalised as in use, on any device.
        form: None: the one for this processor.
        method: "minmax", "percentile" or "entropy": how ONNX Runtime chooses the ranges.

    Raises:
        CompressionError: no batch, a batch with NaN, an unknown method, or a file that cannot be
            read or quantized. An older ``target`` is then left untouched.
    """
    import onnx
    from onnxruntime import quantization

    methods = {name.lower(): value for name, value in vars(quantization.CalibrationMethod).items()}
    if method not in ("minmax", "percentile", "entropy"):
        raise CompressionError(f"method is {method!r}; choose minmax, percentile or entropy.")
    if not batches:
        raise CompressionError(
            f"There is nothing to calibrate {source} on. Hand in a few batches of training images."
        )
    if not all(torch.isfinite(batch).all() for batch in batches):
        raise CompressionError("A batch for calibration holds NaN or infinity; clean it first.")
    form = form or format_for(processor.instructions())
    source, target = Path(source), Path(target)
    unfinished = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    types = quantization.QuantType
    try:
        model = onnx.load(source)
        (feed,) = model.graph.input
        with _quiet():
            quantization.quantize_static(
                model, unfinished, _Batches(feed.name, batches),
                quant_format=quantization.QuantFormat.QDQ, per_channel=True,
                activation_type=types.QInt8 if form.signed_activations else types.QUInt8,
                weight_type=types.QInt8, reduce_range=form.reduce_range,
                calibrate_method=methods[method],
            )  # fmt: skip
        small = onnx.load(unfinished)
        onnx.helper.set_model_props(small, {p.key: p.value for p in model.metadata_props})
        unfinished.write_bytes(small.SerializeToString(deterministic=True))
        unfinished.replace(target)
    except Exception as error:  # ONNX Runtime's own error types have no public base class
        raise CompressionError(f"ONNX Runtime could not quantize {source}: {error}") from error
    finally:
        unfinished.unlink(missing_ok=True)
    return form


class _Batches:
    """A reader of calibration data, as `quantize_static` wants it."""

    def __init__(self, name: str, batches: list[Tensor]) -> None:
        self.feeds = iter([{name: batch.detach().float().cpu().numpy()} for batch in batches])

    def get_next(self) -> dict | None:
        return next(self.feeds, None)


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out the advice to run a pre-processing that the exporter has already done."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
