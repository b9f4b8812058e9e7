"""A torch network as one ONNX file, and the proof that both give the same answer.

`export` writes an image classifier with all that a server needs to use it: the weights, the class
names and the preprocessing. `shipyard.serving` reads it without torch. `write` does the same for
any exported program, and `count_operators` and `count_parameters` say what is in a file.
"""

from __future__ import annotations

import json
import logging
import math
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from shipyard import __version__
from shipyard.errors import ExportError

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto

INPUT_NAME, OUTPUT_NAME = "images", "logits"


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; afterwards each module has the mode it had before."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """Leave out what the exporter says of itself: notes about torchvision and its own internals.

    Errors still come through. Outside the block every logger and filter is as it was.
    """
    names = ("torch.onnx._internal.exporter._registration", "torch.fx.experimental.symbolic_shapes")
    levels = {logger: logger.level for logger in map(logging.getLogger, names)}
    for logger in levels:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
            warnings.filterwarnings("ignore", message=".*_check_is_size", category=FutureWarning)
            warnings.filterwarnings("ignore", message=".*_flat_weights", category=UserWarning)
            yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)


def _device_of(model: nn.Module) -> torch.device:
    tensor = next(iter([*model.parameters(), *model.buffers()]), None)
    return torch.device("cpu") if tensor is None else tensor.device


def _numbers(values: Tensor | Sequence[float]) -> list[float]:
    return torch.as_tensor(values, dtype=torch.float64).flatten().tolist()


def _check(example: Tensor, classes: Sequence[str], mean: list[float], std: list[float]) -> None:
    if example.ndim != 4 or example.shape[1] != 3 or not example.is_floating_point():
        raise ExportError(
            f"The example has shape {tuple(example.shape)} and type {example.dtype}; expected a "
            "batch of normalised RGB pictures: (batch, 3, height, width), floating point."
        )
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ExportError(
            f"mean is {mean} and std is {std}; expected three numbers each, one per colour "
            "channel, in units of pixel values from 0 to 1, and std above 0."
        )
    if not classes or not all(isinstance(name, str) for name in classes):
        raise ExportError("classes must be the class names in the order of the model's outputs.")


def export(
    model: nn.Module,
    path: str | os.PathLike[str],
    example: Tensor,
    *,
    classes: Sequence[str],
    mean: Tensor | Sequence[float],
    std: Tensor | Sequence[float],
    dynamic_batch: bool = True,
    name: str | None = None,
    version: str = "1",
) -> Path:
    """Write ``model`` to one ONNX file, weights inside, and return its path.

    The graph maps ``images`` (batch, 3, height, width), normalised float32, to ``logits``
    (batch, classes), in evaluation mode. The file is checked by ``onnx.checker`` before it
    replaces an older one in a single step; the model keeps its mode and its device.

    Its metadata hold ``name``, ``version``, ``shipyard_version``, ``classes`` (JSON list) and
    ``preprocessing`` (JSON: size, layout, color, scale, mean, std), which says how a picture
    becomes an input: ``(pixel * scale - mean) / std`` for each channel.

    Args:
        example: one batch of inputs; only its shape and type matter.
        classes: class names, in the order of the logits.
        mean, std: channel statistics of pixels in [0, 1], 3 numbers each.
        dynamic_batch: accept every batch size; otherwise only the example's.
        name, version: what the server shows; the name is the file's stem unless given.

    Raises:
        ExportError: the arguments do not fit together, torch cannot export the model, or the
            result is not a valid ONNX graph. An older file at ``path`` is then left untouched.
    """
    path = Path(path)
    mean, std = _numbers(mean), _numbers(std)
    _check(example, classes, mean, std)
    example = example.to(_device_of(model))
    batch = {0: torch.export.Dim("batch")} if dynamic_batch else {}

    with _evaluating(model), quiet_exporter(), torch.no_grad():
        logits = model(example)  # (batch, classes)
        if logits.shape != (len(example), len(classes)):
            raise ExportError(
                f"The model's output has shape {tuple(logits.shape)}; expected "
                f"{(len(example), len(classes))}: one logit for each of {len(classes)} classes."
            )
        try:
            program = torch.onnx.export(
                model,
                (example,),
                input_names=[INPUT_NAME],
                output_names=[OUTPUT_NAME],
                dynamic_shapes=(batch,),
                dynamo=True,
                verbose=False,
            )
        except (torch.onnx.OnnxExporterError, ImportError) as error:
            reason = str(error.__cause__ or error).strip().splitlines()
            raise ExportError(
                f"torch could not export {type(model).__name__}: {' '.join(reason[:3])}\n"
                "Common reasons: forward() decides with a tensor's value (if x.sum() > 0), or "
                "onnxscript is missing (pip install onnxscript)."
            ) from error

    graph = program.model_proto.graph
    axes = [value.type.tensor_type.shape.dim[0] for value in (*graph.input, *graph.output)]
    if dynamic_batch and not all(axis.dim_param for axis in axes):
        # The exporter does not fail here: it quietly writes the example's batch size.
        raise ExportError(
            f"{type(model).__name__} runs at batch size {len(example)} only: its forward() fixes "
            f"the batch size, as in x.view({len(example)}, -1). Write x.flatten(1) or "
            "x.view(x.shape[0], -1), or export with dynamic_batch=False."
        )
    preprocessing = {
        "size": list(example.shape[2:]),
        "layout": "NCHW",
        "color": "RGB",
        "scale": 1 / 255,
        "mean": mean,
        "std": std,
    }
    metadata = {
        "name": name or path.stem,
        "version": version,
        "classes": json.dumps(list(classes)),
        "preprocessing": json.dumps(preprocessing),
    }
    return write(program.model_proto, path, metadata)


def write(
    model: ModelProto, path: str | os.PathLike[str], metadata: Mapping[str, str] | None = None
) -> Path:
    """Write an ONNX model, such as ``torch.onnx.export(…).model_proto``, and return its path.

    It goes to one file, with the weights inside, without the exporter's notes on each node, which
    hold paths of this machine, and with ``metadata`` beside ``shipyard_version``. It is checked by
    ``onnx.checker`` before it replaces an older file in a single step. ``model`` is not changed.

    Raises:
        ExportError: the model is not valid ONNX. An older file at ``path`` is left untouched.
    """
    import onnx

    path = Path(path)
    written = type(model)()
    written.CopyFrom(model)
    for graph in _graphs(written.graph):
        for node in graph.node:
            node.ClearField("metadata_props")
    onnx.helper.set_model_props(written, {"shipyard_version": __version__, **(metadata or {})})
    try:
        onnx.checker.check_model(written, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"The exported graph is not valid ONNX: {error}") from error

    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        unfinished.write_bytes(written.SerializeToString(deterministic=True))
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


class FromPixels(nn.Module):
    """A classifier that takes bytes: its preprocessing and its softmax are part of the graph.

    p = softmax(model((pixels / 255 − mean) / std)), with the axes of ``pixels`` brought from
    (batch, height, width, 3), as a picture lies in memory, to (batch, 3, height, width).

    Args:
        model: maps normalised images (batch, 3, height, width) to logits (batch, classes).
        mean, std: statistics of the three colour channels, of pixels in [0, 1].
    """

    def __init__(self, model: nn.Module, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", mean.detach().reshape(3, 1, 1).clone())
        self.register_buffer("std", std.detach().reshape(3, 1, 1).clone())

    def forward(self, pixels: Tensor) -> Tensor:
        """Map pixels (batch, height, width, 3), uint8, to probabilities (batch, classes)."""
        x = pixels.permute(0, 3, 1, 2).to(self.mean.dtype) / 255  # (batch, 3, height, width)
        return self.model((x - self.mean) / self.std).softmax(1)


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """``graph``, and the graphs in the attributes of its nodes: the branches of an If."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _graphs(inner)


def count_operators(model: ModelProto) -> Counter[str]:
    """How often each operator stands in ``model``, those in the branches of an If included."""
    return Counter(node.op_type for graph in _graphs(model.graph) for node in graph.node)


def count_parameters(model: ModelProto) -> int:
    """The number of values in the weights of ``model``: initializers of a floating-point type."""
    from onnx import TensorProto

    floats = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)
    tensors = (tensor for graph in _graphs(model.graph) for tensor in graph.initializer)
    return sum(math.prod(t.dims) for t in tensors if t.data_type in floats)


@dataclass(frozen=True)
class ParityRow:
    """The comparison at one batch size."""

    batch_size: int
    images: int
    max_abs_difference: float
    max_rel_difference: float
    agreeing_labels: float


@dataclass(frozen=True)
class Parity:
    """How far ONNX Runtime's logits are from torch's; prints as a table.

    ``max_abs_difference`` is max |torch − onnx|, ``max_rel_difference`` is that over
    max |torch|, and ``agreeing_labels`` the share of pictures with the same top class: each
    the worst over all batch sizes.
    """

    rows: tuple[ParityRow, ...]

    @property
    def max_abs_difference(self) -> float:
        return max(row.max_abs_difference for row in self.rows)

    @property
    def max_rel_difference(self) -> float:
        return max(row.max_rel_difference for row in self.rows)

    @property
    def agreeing_labels(self) -> float:
        return min(row.agreeing_labels for row in self.rows)

    def __str__(self) -> str:
        head = "batch size | images | max |difference| | relative | equal labels"
        lines = [
            f"{row.batch_size:>10} | {row.images:>6} | {row.max_abs_difference:>16.1e} "
            f"| {row.max_rel_difference:>8.1e} | {row.agreeing_labels:>12.2%}"
            for row in self.rows
        ]
        return "\n".join([head, "-" * len(head), *lines])


def parity_report(
    model: nn.Module,
    path: str | os.PathLike[str],
    inputs: Tensor,
    batch_sizes: Sequence[int] = (1, 2, 7),
) -> Parity:
    """Compare ``model`` (torch) with the ONNX file at ``path`` on the same ``inputs``.

    All inputs (n, 3, height, width) run once per batch size, on the CPU in ONNX Runtime and on
    the model's own device in torch, in evaluation mode. A file exported with a fixed batch size
    is compared at that size alone, and a remainder that does not fill a batch is left out.

    Raises:
        ExportError: there is nothing to compare, or the file or the inputs do not fit.
    """
    import onnxruntime

    if len(inputs) == 0 or not batch_sizes or min(batch_sizes) < 1:
        raise ExportError("Nothing to compare: give at least one input and batch sizes from 1 up.")
    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own error types have no public base class
        raise ExportError(f"ONNX Runtime cannot load {path}: {error}") from error
    (feed,) = session.get_inputs()
    fixed = feed.shape[0] if isinstance(feed.shape[0], int) else None

    device = _device_of(model)
    rows = []
    for batch_size in [fixed] if fixed else batch_sizes:
        batches = [b for b in inputs.split(batch_size) if fixed is None or len(b) == fixed]
        if not batches:
            raise ExportError(f"{path} takes batches of {fixed}; only {len(inputs)} inputs given.")
        try:
            with _evaluating(model), torch.no_grad():
                expected = torch.cat([model(batch.to(device)).cpu() for batch in batches])
            got = torch.cat(
                [
                    torch.from_numpy(session.run(None, {feed.name: batch.cpu().numpy()})[0])
                    for batch in batches
                ]
            )
        except Exception as error:
            raise ExportError(
                f"Inputs of shape {tuple(inputs.shape)} do not fit {path}, which takes "
                f"{feed.shape}: {error}"
            ) from error
        difference = (expected - got).abs().max().item()
        rows.append(
            ParityRow(
                batch_size=batch_size,
                images=len(expected),
                max_abs_difference=difference,
                max_rel_difference=difference / max(expected.abs().max().item(), 1e-12),
                agreeing_labels=(expected.argmax(1) == got.argmax(1)).double().mean().item(),
            )
        )
    return Parity(tuple(rows))
