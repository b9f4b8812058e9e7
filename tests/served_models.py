"""Small models and pictures for tests of the server; no torch."""

from __future__ import annotations

import io
import json

import numpy as np
import onnx
from onnx import TensorProto, helper
from PIL import Image

CLASSES = ["red", "green", "blue"]
MEAN, STD = [0.5, 0.4, 0.3], [0.25, 0.2, 0.1]


def write_model(path, *, outputs=3, size=(8, 8), weight=1.0, drop=(), **changes):
    """A real ONNX model without torch: its logits are the mean of each normalised channel."""
    weights = np.where(np.eye(3, outputs) > 0, np.float32(weight), 0).ravel()
    weight = helper.make_tensor("w", TensorProto.FLOAT, [3, outputs], weights)
    graph = helper.make_graph(
        [
            helper.make_node("GlobalAveragePool", ["images"], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["flat"]),
            helper.make_node("MatMul", ["flat", "w"], ["logits"]),
        ],
        "colours",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, *size])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", outputs])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    how = {"size": [8, 8], "layout": "NCHW", "color": "RGB", "scale": 1 / 255}
    entries = {
        "name": "colours",
        "version": "7",
        "shipyard_version": "0.1.0",
        "classes": json.dumps(CLASSES),
        "preprocessing": json.dumps({**how, "mean": MEAN, "std": STD}),
        **changes,
    }
    helper.set_model_props(model, {k: v for k, v in entries.items() if k not in drop})
    onnx.save(model, path)
    return path


def encode(image, format="PNG", **options):
    if not isinstance(image, Image.Image):
        image = Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def colour(rgb, size=(8, 8)):
    return encode(Image.new("RGB", size, rgb))
