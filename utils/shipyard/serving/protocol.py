"""The Open Inference Protocol, version 2, over REST: bytes → tensors → bytes.

A request is JSON. With the binary extension the numbers of a tensor do not stand in the JSON but
follow it as raw little-endian bytes, and a header says where the JSON ends:

    {"inputs": [{"name", "shape", "datatype", "parameters": {"binary_data_size"}}]} | raw bytes

Specification: https://github.com/kserve/open-inference-protocol (REST), and Triton Inference
Server's docs/protocol/extension_binary_data.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from pydantic_core import from_json, to_json

from shipyard.errors import RequestError
from shipyard.serving.model import Classifier

HEADER_LENGTH = "Inference-Header-Content-Length"
FP32 = np.dtype("<f4")
SERVER = {"name": "shipyard", "extensions": ["binary_tensor_data"]}

# For the description at /openapi.json.
REQUEST_SCHEMA = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "id": {"type": "string"},
        "parameters": {"type": "object"},
        "inputs": {
            "type": "array",
            "minItems": 1,
            "maxItems": 1,
            "items": {
                "type": "object",
                "required": ["name", "shape", "datatype"],
                "properties": {
                    "name": {"type": "string"},
                    "shape": {"type": "array", "items": {"type": "integer", "minimum": 1}},
                    "datatype": {"type": "string", "enum": ["FP32"]},
                    "parameters": {"type": "object"},
                    "data": {"type": "array"},
                },
            },
        },
        "outputs": {"type": "array", "items": {"type": "object", "required": ["name"]}},
    },
}


@dataclass(frozen=True)
class InferRequest:
    """What a client asks: rows (n, 3, height, width) float32, and how it wants the answer."""

    rows: np.ndarray
    id: str | None
    binary: bool


def metadata(classifier: Classifier) -> dict:
    """The model's name, version, and tensors; −1 stands for any number of rows.

    A model whose answers depend on the batch takes one row at a time.
    """
    feed, output = classifier.session.get_inputs()[0], classifier.session.get_outputs()[0]
    batch = -1 if classifier.can_batch else 1
    rows = (batch, 3, classifier.input.height, classifier.input.width)
    return {
        "name": classifier.name,
        "versions": [classifier.version],
        "platform": "onnxruntime_onnx",
        "inputs": [_tensor(feed.name, rows)],
        "outputs": [_tensor(output.name, (batch, len(classifier.classes)))],
    }


def read_request(
    body: bytes, header_length: str | None, model: dict, largest_batch: int
) -> InferRequest:
    """The request in ``body`` to the model that `metadata` describes.

    Args:
        header_length: the header Inference-Header-Content-Length, None where there is none.
        largest_batch: rows that a request may have.

    Raises:
        RequestError: the body breaks the protocol, or is not what the model takes.
    """
    length = _header_length(header_length, len(body))
    try:
        request = from_json(body[:length], allow_inf_nan=False)
    except ValueError as error:
        raise RequestError(f"The body is not JSON: {error}.") from error
    request = _object(request, "the request")
    parameters = _object(request.get("parameters", {}), "parameters")
    inputs, expected = request.get("inputs"), model["inputs"][0]
    if not isinstance(inputs, list) or len(inputs) != 1:
        raise RequestError(f"inputs must be a list of one tensor, {expected['name']!r}.")
    tensor = _object(inputs[0], "the input")
    shape = _checked_shape(tensor, expected, largest_batch)
    rows = _read_rows(tensor, shape, memoryview(body)[length:])
    if not np.isfinite(rows).all():
        where = tuple(map(int, np.argwhere(~np.isfinite(rows))[0]))
        raise RequestError(f"{expected['name']} has {rows[where]} at {where}; send finite numbers.")
    identity = request.get("id")
    if not isinstance(identity, str | None):
        raise RequestError(f"id must be text, not {identity!r:.50}.")
    default = _flag(parameters, "binary_data_output", False)
    return InferRequest(rows, identity, _wants_binary(request, model["outputs"][0], default))


def write_response(
    rows: np.ndarray, request: InferRequest, model: dict
) -> tuple[bytes, dict[str, str]]:
    """The body and the headers of the answer to ``request``: rows (n, classes)."""
    output = {**model["outputs"][0], "shape": rows.shape}
    raw = b""
    if request.binary:
        raw = rows.astype(FP32).tobytes()
        output["parameters"] = {"binary_data_size": len(raw)}
    else:
        output["data"] = rows.ravel().tolist()
    answer = {"model_name": model["name"], "model_version": model["versions"][0]}
    if request.id is not None:
        answer["id"] = request.id
    text = to_json({**answer, "outputs": [output]})
    if not request.binary:
        return text, {"Content-Type": "application/json"}
    return text + raw, {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(text))}


def _tensor(name: str, shape: tuple[int, ...]) -> dict:
    return {"name": name, "datatype": "FP32", "shape": list(shape)}


def _header_length(declared: str | None, size: int) -> int:
    """Where the JSON ends: at the end of the body, unless the header says otherwise."""
    if declared is None:
        return size
    if not (declared.isascii() and declared.isdecimal() and int(declared) <= size):
        raise RequestError(
            f"{HEADER_LENGTH} is {declared!r:.50}; it must be the length of the JSON, at most the "
            f"{size} bytes of the body."
        )
    return int(declared)


def _object(value: object, what: str) -> dict:
    if not isinstance(value, dict):
        raise RequestError(f"{what} must be a JSON object, not {value!r:.50}.")
    return value


def _flag(parameters: dict, name: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise RequestError(f"{name} must be true or false, not {value!r:.50}.")
    return value


def _checked_shape(tensor: dict, expected: dict, largest_batch: int) -> tuple[int, ...]:
    for key in ("name", "datatype"):
        if tensor.get(key) != expected[key]:
            raise RequestError(
                f"the input's {key} is {tensor.get(key)!r:.50}; the model takes {expected[key]!r}."
            )
    shape = tensor.get("shape")
    is_shape = isinstance(shape, list) and all(type(side) is int for side in shape)
    wanted = ", ".join(["rows", *map(str, expected["shape"][1:])])
    if not is_shape or len(shape) != 4 or shape[1:] != expected["shape"][1:]:
        raise RequestError(f"the input's shape is {shape!r:.80}; the model takes [{wanted}].")
    if not 1 <= shape[0] <= largest_batch:
        raise RequestError(f"the input has {shape[0]} rows; send 1 to {largest_batch} at once.")
    return tuple(shape)


def _read_rows(tensor: dict, shape: tuple[int, ...], raw: memoryview) -> np.ndarray:
    size = _object(tensor.get("parameters", {}), "the input's parameters").get("binary_data_size")
    needed = FP32.itemsize * math.prod(shape)
    if size is None:
        if len(raw):
            raise RequestError(f"{len(raw)} bytes follow the JSON, but no binary_data_size.")
        return _rows_from_json(tensor.get("data"), shape)
    if "data" in tensor:
        raise RequestError("the input has data in the JSON and a binary_data_size; send one.")
    if size != needed or type(size) is not int or len(raw) != needed:
        raise RequestError(
            f"binary_data_size is {size!r:.50} and {len(raw)} bytes follow the JSON; "
            f"{list(shape)} in FP32 needs {needed}."
        )
    return np.frombuffer(raw, FP32).reshape(shape)


def _rows_from_json(data: object, shape: tuple[int, ...]) -> np.ndarray:
    """The numbers may stand flat, or nested as the shape is."""
    try:
        numbers = np.asarray(data)
    except ValueError as error:  # lists of different lengths
        raise RequestError(f"data is no tensor of {list(shape)}: {error}") from error
    if numbers.dtype.kind not in "iuf":
        raise RequestError("data must hold numbers alone.")
    if numbers.shape not in (shape, (math.prod(shape),)):
        raise RequestError(
            f"data has {numbers.size} numbers in shape {list(numbers.shape)}; {list(shape)} needs "
            f"{math.prod(shape)}, flat or nested as the shape is."
        )
    with np.errstate(over="ignore"):  # too large for FP32 becomes ∞, and is refused as such
        return numbers.astype(np.float32).reshape(shape)


def _wants_binary(request: dict, expected: dict, default: bool) -> bool:
    """Whether the one output shall come as raw bytes; it comes also where none is named."""
    outputs = request.get("outputs", [])
    if not isinstance(outputs, list) or len(outputs) > 1:
        raise RequestError(f"outputs must be a list of at most {expected['name']!r}.")
    for output in outputs:
        if _object(output, "the output").get("name") != expected["name"]:
            raise RequestError(
                f"the output's name is {output.get('name')!r:.50}; the model gives "
                f"{expected['name']!r}."
            )
        parameters = _object(output.get("parameters", {}), "the output's parameters")
        if "classification" in parameters:
            raise RequestError("the classification extension is not offered; POST /predict ranks.")
        return _flag(parameters, "binary_data", default)
    return default
