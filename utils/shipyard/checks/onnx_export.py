"""Checks of ONNX export: references, and the cases to try them on.

An exported file is judged by what ONNX Runtime answers with it, at several batch sizes; the truth
is the torch network itself, so that only the learner's files are made.
"""

from __future__ import annotations

import copy
import functools
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from shipyard.checks import (
    Case,
    CheckFailed,
    Passed,
    compare,
    draws,
    require_signature,
)
from shipyard.checks.telling import refusal

# --- the references -----------------------------------------------------------------------------


def export_parity(model, exported, batches, rtol=1e-3, atol=1e-5):
    expected = torch.cat([model(batch) for batch in batches])
    got = torch.cat([exported(batch) for batch in batches])
    difference = (got - expected).abs()
    return {
        "images": len(expected),
        "max_abs": difference.max().item(),
        "max_rel": (difference.max() / expected.abs().max()).item(),
        "same_labels": (got.argmax(1) == expected.argmax(1)).double().mean().item(),
        "passes": (difference <= atol + rtol * expected.abs()).all().item(),
    }


def dynamic_batch(model, example):
    training = model.training
    model.eval()
    program = torch.onnx.export(
        model,
        (example,),
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        verbose=False,
    )
    model.train(training)
    return program.model_proto.SerializeToString()


def preprocessing_in_graph(model, mean, std):
    class FromPixels(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model
            self.register_buffer("mean", mean.reshape(3, 1, 1))
            self.register_buffer("std", std.reshape(3, 1, 1))

        def forward(self, pixels):
            x = pixels.permute(0, 3, 1, 2) / 255
            x = (x - self.mean) / self.std
            return self.model(x)

    return FromPixels()


def graph_reading(content):
    operators, parameters = {}, 0
    graphs = [onnx.load_from_string(content).graph]
    for graph in graphs:
        for node in graph.node:
            operators[node.op_type] = operators.get(node.op_type, 0) + 1
            graphs += [a.g for a in node.attribute if a.HasField("g")]
        for tensor in graph.initializer:
            if tensor.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE):
                parameters += math.prod(tensor.dims)
    return operators, parameters


# --- task 1: parity -----------------------------------------------------------------------------


class _Logits:
    """The network x W, and with ``wrong`` a copy of it that is off by ``wrong(logits)``.

    ``only_at``: a batch size at which a copy is right all the same, as a file with a fixed size.
    """

    def __init__(self, W: Tensor, wrong: Any = None, only_at: int | None = None):
        self.W, self.wrong, self.only_at = W, wrong, only_at

    def __repr__(self) -> str:
        return "<the exported copy>" if self.wrong else "<the torch network>"

    def __call__(self, x: Tensor) -> Tensor:
        logits = x @ self.W
        if self.wrong is None or len(x) == self.only_at:
            return logits
        return self.wrong(logits)


class _Off:
    """logits → scale · logits + shift · a pattern of signs; nan where ``nan_above`` is passed."""

    def __init__(self, scale: float = 1.0, shift: float = 0.0, nan_above: float = math.inf):
        self.scale, self.shift, self.nan_above = scale, shift, nan_above

    def __call__(self, logits: Tensor) -> Tensor:
        signs = torch.sin(1000 * logits).sign()
        off = self.scale * logits + self.shift * signs
        return off.masked_fill(logits > self.nan_above, math.nan)


def check_export_parity(candidate: Callable) -> Passed:
    """Check ``export_parity(model, exported, batches, rtol=1e-3, atol=1e-5)``, a dict of five."""
    draw = draws(61)

    def case(sizes, classes, off, only_at=None, scale=1.0, **options):
        W = scale * draw(4, classes)
        batches = [draw(size, 4) for size in sizes]
        return Case(_Logits(W), _Logits(W, off, only_at), batches, **options)

    cases = [
        case([5, 3], 3, _Off(shift=1e-6)),
        case([4, 4, 2], 5, _Off(shift=0.3)),
        case([7, 2], 6, _Off(scale=1.0008)),  # inside rtol of each value
        case([3, 6, 1], 4, _Off(shift=0.02), atol=0.03, rtol=0.0),
        case([6, 5], 3, _Off(scale=0.96), rtol=0.05, atol=0.0),
        case([3, 3], 4, _Off(scale=1.04), rtol=0.039, atol=0.0),  # of the truth, not of the copy
        case([4, 4, 3], 3, _Off(shift=2.0), only_at=4),
        case([3, 4, 3], 3, _Off(shift=2.0), only_at=3),
        case([5, 2, 4], 4, _Off(nan_above=2.0)),
        case([6, 4], 5, _Off(shift=0.01), scale=30.0),  # small for the largest, not for small ones
        case([4, 3], 3, _Off(shift=8e-6), scale=1e-3),  # only atol lets them pass
        case([4, 3], 3, _Off(shift=1.3e-5), scale=1e-3),
        case([8], 3, _Off(scale=-1.0)),
        case([1, 1], 2, _Off()),
    ]
    return compare(candidate, reference=export_parity, cases=cases, tolerance=1e-9)


# --- task 2: a file for every batch size --------------------------------------------------------


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on itself and on training mode, which a fact reports."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logger.setLevel(before)


def _session(content: bytes, optimized: bool = True) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    if not optimized:
        level = onnxruntime.GraphOptimizationLevel
        options.graph_optimization_level = level.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _answer(session: onnxruntime.InferenceSession, inputs: Tensor) -> Tensor | str:
    feed = session.get_inputs()[0].name
    try:
        return torch.from_numpy(session.run(None, {feed: inputs.numpy()})[0])
    except Exception:  # ONNX Runtime's own error types have no public base class
        return "refused"


class _Network:
    """How to make a small network, told in a few words."""

    def __init__(self, text: str, seed: int, *layers: Callable, training: bool = False):
        self.text, self.seed, self.layers, self.training = text, seed, layers, training

    def __repr__(self) -> str:
        return self.text

    def make(self, size: float = 1.0) -> nn.Module:
        """The network, with numbers of this size."""
        model, draw = nn.Sequential(*(layer() for layer in self.layers)), draws(self.seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(size * draw(*parameter.shape) / 3)
        return model.train(self.training)


class _Layer:
    """A layer to be made: ``_Layer(nn.Linear, 3, 4)`` stands for ``nn.Linear(3, 4)``."""

    def __init__(self, kind: type[nn.Module], *args: Any):
        self.kind, self.args = kind, args

    def __call__(self) -> nn.Module:
        return self.kind(*self.args)


def _once_for_each_edit(use: Callable) -> Callable:
    """``use``, which remembers what an edit of a reference did: each export takes a second."""
    known = {}

    @functools.wraps(use)
    def remembering(function, network, *rest, **options):
        code = getattr(function, "__code__", None)
        if code is None or not code.co_filename.endswith(", edited>"):
            return use(function, network, *rest, **options)
        key = function, network.text, *(x.sum().item() for x in rest if isinstance(x, Tensor))
        if key not in known:
            known[key] = use(function, network, *rest, **options)
        return known[key]

    return remembering


SIZES = (1, 2, 5)
_FILE_FACTS = (
    "the name of the input", "the name of the output", "the input's batch axis",
    "answers at batch size", "the same input twice", "model.training afterwards",
)  # fmt: skip


@_once_for_each_edit
def _in_onnx_runtime(function: Callable, model: _Network, example: Tensor) -> list | None:
    """What can be seen of the file, as `_FILE_FACTS` says; of the truth without a file.

    With other numbers in the example come others in the network: no file may be remembered.
    """
    size = example.std().item()
    network, truth = model.make(size), model.make(size).eval()
    inputs = {size: draws(size)(size, *example.shape[1:]).float() for size in SIZES}
    if function is dynamic_batch:
        with torch.no_grad():
            answers = {size: truth(x) for size, x in inputs.items()}
        return ["images", "logits", "any size", answers, "the same answer", model.training]
    with _quiet():
        content = function(network, example)
    if not isinstance(content, bytes):
        if content is None:
            return None
        raise CheckFailed(
            f"dynamic_batch is not right yet: it returned a {type(content).__name__}.\n\n"
            "A file is bytes. torch.onnx.export returns a program; the model of its attribute\n"
            "model_proto becomes bytes by SerializeToString().",
            "not-bytes",
        )
    try:
        session, plain = _session(content), _session(content, optimized=False)
    except Exception as error:  # ONNX Runtime's own error types have no public base class
        advice = """These bytes are no file that ONNX Runtime can load. torch.onnx.export returns a
        program: return program.model_proto.SerializeToString()."""
        raise refusal("not-a-file", advice, f"ONNX Runtime says: {error}") from error
    (feed, *_), (result, *_) = session.get_inputs(), session.get_outputs()
    size = feed.shape[0]
    twice = [_answer(plain, x) for x in 2 * [inputs[2].expand(2, *example.shape[1:])]]
    same = twice[0] == "refused" if isinstance(twice[0], str) else torch.equal(*twice)
    return [
        feed.name,
        result.name,
        f"always {size}" if isinstance(size, int) else "any size",
        {size: _answer(session, x) for size, x in inputs.items()},
        "the same answer" if same else "another answer: something is drawn at random",
        network.training,
    ]


def check_dynamic_batch(candidate: Callable) -> Passed:
    """Check ``dynamic_batch(model, example)``, which returns the bytes of an ONNX file."""
    if callable(candidate):
        require_signature(candidate, "dynamic_batch(model, example)")
    draw, layer = draws(62), _Layer
    linear = (layer(nn.Flatten), layer(nn.Linear, 12, 6), layer(nn.ReLU))
    dropout = (layer(nn.Dropout, 0.5), layer(nn.Linear, 6, 3))
    convolution = (layer(nn.Conv2d, 2, 4, 3), layer(nn.Flatten), layer(nn.Linear, 24, 5))
    cases = [
        Case(_Network("a network in training mode", 1, *linear, *dropout, training=True),
             draw(2, 3, 4).float()),
        Case(_Network("one in evaluation mode", 2, *convolution), draw(3, 2, 4, 5).float()),
    ]  # fmt: skip
    settings = {"outputs": _FILE_FACTS, "use": _in_onnx_runtime, "small_changes": False}
    return compare(candidate, reference=dynamic_batch, cases=cases, tolerance=1e-4, **settings)


# --- task 3: the preprocessing inside -----------------------------------------------------------

_MODULE_FACTS = (
    "what came back", "answers to a batch of", "learned numbers", "after .to(another device)",
    "answers of the exported file to a batch of",
)  # fmt: skip


@_once_for_each_edit
def _from_pixels(
    function: Callable, model: _Network, mean: Tensor, std: Tensor, height: int, width: int,
    exported: bool = False,
) -> list | None:  # fmt: skip
    """What the wrapped network answers, what it learns, and whether all of it can move."""
    network = model.make()
    wrapped = function(network, mean, std)
    if not isinstance(wrapped, nn.Module):
        if wrapped is None:
            return None
        return [f"no module, but {type(wrapped).__name__}", *4 * ["not tried"]]
    generator = torch.Generator().manual_seed(height)
    pixels = [
        torch.randint(256, (n, height, width, 3), generator=generator, dtype=torch.uint8)
        for n in (2, 1, 4)
    ]
    with torch.no_grad():
        answers = {len(p): wrapped(p.clone()) for p in pixels}
        learned = sum(p.numel() for p in wrapped.parameters() if p.requires_grad)
        if not all(isinstance(answer, Tensor) for answer in answers.values()):
            return ["a module", answers, learned, "not tried", "not tried"]
        try:
            moved = copy.deepcopy(wrapped).to("meta")(pixels[0].to("meta")).device.type
        except RuntimeError as error:
            moved = f"{type(error).__name__}: {error}".splitlines()[0]
    in_file = answers
    if exported and function is not preprocessing_in_graph:
        shapes = ({0: torch.export.Dim("batch")},)
        with _quiet():
            program = torch.onnx.export(
                wrapped.eval(), (pixels[0],), dynamic_shapes=shapes, dynamo=True, verbose=False
            )
        session = _session(program.model_proto.SerializeToString())
        in_file = {len(p): _answer(session, p) for p in pixels}
    return ["a module", answers, learned, moved, in_file]


def check_preprocessing_in_graph(candidate: Callable) -> Passed:
    """Check ``preprocessing_in_graph(model, mean, std)``: a module that takes the bytes."""
    if callable(candidate):
        require_signature(candidate, "preprocessing_in_graph(model, mean, std)")
    draw, layer = draws(63), _Layer

    def case(seed, height, width, classes, **options):
        places = 4 * (height - 1) * (width - 1)
        layers = (layer(nn.Conv2d, 3, 4, 2), layer(nn.Flatten), layer(nn.Linear, places, classes))
        mean, std = draw(3).sigmoid().float(), 0.1 + draw(3).sigmoid().float() / 3
        network = _Network(f"a network of {height} × {width} images", seed, *layers)
        return Case(network, mean, std, height, width, **options)

    cases = [case(1, 4, 5, 3), case(2, 3, 3, 4), case(3, 6, 4, 2, exported=True)]
    settings = {"outputs": _MODULE_FACTS, "use": _from_pixels, "tolerance": 1e-4}
    return compare(candidate, reference=preprocessing_in_graph, cases=cases, **settings)


# --- task 4: reading the file -------------------------------------------------------------------


def _weights(name: str, *dims: int, dtype: str = "float32", raw: bool = True) -> TensorProto:
    values = draws(len(name))(*dims).mul(10).numpy().astype(dtype)
    if raw:
        return numpy_helper.from_array(values, name)
    kind = helper.np_dtype_to_tensor_dtype(values.dtype)
    return helper.make_tensor(name, kind, dims, values.flatten().tolist())


def _file(nodes: Sequence, weights: Sequence[TensorProto]) -> bytes:
    """An ONNX file that maps x to y. The numbers of its weights are drawn."""
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ("batch", 4)) for n in "xy")
    graph = helper.make_graph(nodes, "main", [x], [y], weights)
    return helper.make_model(graph).SerializeToString()


def _branch(nodes: Sequence, output: str, weights: Sequence[TensorProto] = ()):
    value = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
    return helper.make_graph(nodes, f"branch of {output}", [], [value], weights)


def _files() -> list[bytes]:
    node, w = helper.make_node, _weights
    dense = [node("Gemm", ["x", "w1", "b1"], ["h"], name="first"), node("Relu", ["h"], ["r"])]
    dense += [node("Gemm", ["r", "w2", "b2"], ["y"], name="last")]
    shared = [node("MatMul", ["x", "w"], ["a"]), node("Relu", ["a"], ["b"])]
    shared += [node("MatMul", ["b", "w"], ["c"]), node("Relu", ["c"], ["d"])]
    shared += [node("Reshape", ["d", "shape"], ["e"]), node("Mul", ["e", "scale"], ["y"])]
    one = helper.make_tensor("one", TensorProto.FLOAT, [3], [1.0, 2.0, 3.0])
    constant = [node("Constant", [], ["k"], value=one), node("Add", ["x", "k"], ["a"])]
    constant += [
        node("Cast", ["a"], ["b"], to=TensorProto.FLOAT16),
        node("MatMul", ["b", "h"], ["y"]),
    ]
    inner = node(
        "If", ["other"], ["t"],
        then_branch=_branch([node("Relu", ["x"], ["p"]), node("Neg", ["p"], ["p2"])], "p2"),
        else_branch=_branch([node("Mul", ["x", "v"], ["q"])], "q", [w("v", 4, dtype="float64")]),
    )  # fmt: skip
    outer = [node("ReduceSum", ["x"], ["s"], keepdims=0), node("Greater", ["s", "zero"], ["yes"])]
    outer += [node("If", ["yes"], ["y"],
                   then_branch=_branch([node("MatMul", ["x", "u"], ["z"])], "z", [w("u", 4, 5)]),
                   else_branch=_branch([inner, node("Relu", ["t"], ["t2"])], "t2"))]  # fmt: skip
    fused = [node("FusedConv", ["x", "f"], ["a"], domain="com.microsoft", activation="Relu")]
    fused += [node("Conv", ["a", "g"], ["c1"]), node("Conv", ["c1", "g"], ["c2"])]
    fused += [node("Conv", ["c2", "g"], ["y"])]
    return [
        _file(dense, [w("w1", 4, 7), w("b1", 7), w("w2", 7, 3, raw=False), w("b2", 3)]),
        _file(shared, [w("w", 4, 4), w("shape", 2, dtype="int64"), w("scale")]),
        _file(constant, [w("h", 4, 6, dtype="float16"), w("unused", 2, dtype="int64")]),
        _file(outer, [w("zero"), w("axes", 3, dtype="int64")]),
        _file(fused, [w("f", 5, 3, 2, 2), w("g", 6, 5, 1, 3)]),
        _file([node("Identity", ["x"], ["y"])], []),
    ]


def check_graph_reading(candidate: Callable) -> Passed:
    """Check ``graph_reading(content)``: (operators, parameters) of the bytes of an ONNX file."""
    cases = [Case(content) for content in _files()]
    outputs = ("operators", "parameters")
    return compare(candidate, reference=graph_reading, cases=cases, outputs=outputs)
