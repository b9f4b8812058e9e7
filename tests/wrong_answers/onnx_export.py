"""Wrong answers on ONNX export, and other correct ones."""

import io
from collections import Counter

import numpy as np
import onnx
import torch
from torch import nn

from wrong_answers import Task

PARITY, DYNAMIC, PREPROCESSING, READING = (Task() for _ in range(4))
TASKS = {
    "export_parity": PARITY,
    "dynamic_batch": DYNAMIC,
    "preprocessing_in_graph": PREPROCESSING,
    "graph_reading": READING,
}


# The parity report.


def report(images, largest, scale, hits, passes):
    return {
        "images": images,
        "max_abs": largest,
        "max_rel": largest / scale,
        "same_labels": hits / images,
        "passes": passes,
    }


@PARITY.fails_with("nan-passes")
def looks_for_values_that_are_too_far_off(model, exported, batches, rtol=1e-3, atol=1e-5):
    a, b = (torch.cat(list(map(f, batches))).numpy() for f in (model, exported))
    gap = np.abs(a - b)
    too_far = bool(np.count_nonzero(gap > atol + rtol * np.abs(a)))
    hits = int((a.argmax(1) == b.argmax(1)).sum())
    return report(len(a), float(gap.max()), float(np.abs(a).max()), hits, not too_far)


@PARITY.fails_with("one-batch-only")
def overwrites_each_batch(model, exported, batches, rtol=1e-3, atol=1e-5):
    for batch in batches:
        a, b = model(batch), exported(batch)
        gap, size = (b - a).abs(), a.abs()
    hits = (a.argmax(1) == b.argmax(1)).sum().item()
    passes = bool((gap <= atol + rtol * size).all())
    return report(len(a), gap.max().item(), size.max().item(), hits, passes)


@PARITY.passes
def uses_allclose(model, exported, batches, rtol=1e-3, atol=1e-5):
    pairs = [(model(batch), exported(batch)) for batch in batches]
    a, b = map(torch.cat, zip(*pairs, strict=True))
    hits = sum(int(x.argmax() == y.argmax()) for x, y in zip(a, b, strict=True))
    largest, scale = torch.amax(torch.abs(a - b)).item(), a.abs().amax().item()
    return report(len(a), largest, scale, hits, torch.allclose(b, a, rtol=rtol, atol=atol))


@PARITY.passes
def adds_up_batch_by_batch(model, exported, batches, rtol=1e-3, atol=1e-5):
    images, hits, gaps, sizes, passes = 0, 0, [], [], True
    for batch in batches:
        a, b = model(batch), exported(batch)
        gap = (a - b).abs()
        images, hits = images + len(a), hits + (a.argmax(1) == b.argmax(1)).sum().item()
        gaps.append(gap.max())
        sizes.append(a.abs().max())
        passes = passes and bool((gap <= atol + rtol * a.abs()).all())
    return report(images, max_of(gaps), max_of(sizes), hits, passes)


def max_of(values):
    return torch.stack(values).max().item()


# A file for every batch size.


def exported(model, example, file=None, **options):
    shapes = {"dynamic_shapes": {"input": {0: torch.export.Dim.DYNAMIC}}}
    names = {"input_names": ["images"], "output_names": ["logits"]}
    settings = {**shapes, **names, **options}
    return torch.onnx.export(model, (example,), file, dynamo=True, verbose=False, **settings)


@DYNAMIC.fails_with("batch-size-fixed")
def trusts_a_large_example(model, example):
    was = model.training
    program = exported(model.eval(), example.repeat(2, *[1] * (example.dim() - 1))[: len(example)],
                       dynamic_shapes=None)  # fmt: skip
    model.train(was)
    return program.model_proto.SerializeToString()


@DYNAMIC.fails_with("exported-in-training-mode")
def evaluates_too_late(model, example):
    was = model.training
    content = exported(model, example).model_proto.SerializeToString()
    model.eval()
    model.train(was)
    return content


@DYNAMIC.passes
def writes_to_memory(model, example):
    was, file = model.training, io.BytesIO()
    exported(model.eval(), example, file)
    model.train(was)
    return file.getvalue()


@DYNAMIC.passes
def captures_first(model, example):
    was = model.training
    shapes = {"dynamic_shapes": ({0: torch.export.Dim("n", min=1)},)}
    program = torch.export.export(model.eval(), (example,), **shapes)
    model.train(was)
    names = {"input_names": ["images"], "output_names": ["logits"]}
    return torch.onnx.export(program, verbose=False, **names).model_proto.SerializeToString()


# The preprocessing inside.


class Statistics(nn.Module):
    """Scales the last axis, in which the colours still stand."""

    def __init__(self, mean, std):
        super().__init__()
        self.register_buffer("factor", 1 / (255 * std))
        self.register_buffer("offset", mean / std)

    def forward(self, pixels):
        return (pixels.float() * self.factor - self.offset).movedim(-1, 1)


@PREPROCESSING.fails_with("statistics-left-behind")
def keeps_a_closure(model, mean, std):
    class Normalised(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([model])

        def forward(self, pixels):
            x = pixels.movedim(-1, 1).float() / 255
            return self.layers[0]((x - mean[:, None, None]) / std[:, None, None])

    return Normalised()


@PREPROCESSING.fails_with("reshaped-instead-of-permuted")
def views_the_channels(model, mean, std):
    class Viewed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inside = model
            self.register_buffer("statistics", torch.stack([mean, std])[:, None, :, None, None])

        def forward(self, pixels):
            n, h, w, c = pixels.shape
            μ, σ = self.statistics
            return self.inside((pixels.view(n, c, h, w).float().div(255) - μ) / σ)

    return Viewed()


@PREPROCESSING.passes
def puts_modules_in_a_row(model, mean, std):
    return nn.Sequential(Statistics(mean, std), model)


@PREPROCESSING.passes
def normalises_the_last_axis(model, mean, std):
    class Batch(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = model
            self.register_buffer("mean", mean.clone(), persistent=False)
            self.register_buffer("std", std.clone(), persistent=False)

        def forward(self, pixels):
            x = (pixels / 255 - self.mean) / self.std
            return self.network(x.transpose(2, 3).transpose(1, 2))

    return Batch()


# Reading the file.


@READING.fails_with("branches-left-out")
def counts_the_main_graph(content):
    graph = onnx.ModelProto.FromString(content).graph
    floats = {onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16}
    weights = [
        onnx.numpy_helper.to_array(t).size for t in graph.initializer if t.data_type in floats
    ]
    return Counter(n.op_type for n in graph.node), sum(weights)


@READING.fails_with("scalars-lost")
def multiplies_from_the_first_size(content):
    operators, parameters = Counter(), 0
    for graph in walk(onnx.load_from_string(content).graph):
        operators.update(node.op_type for node in graph.node)
        for tensor in graph.initializer:
            if tensor.data_type in (1, 10, 11) and len(tensor.dims) > 0:
                parameters += int(np.prod(tensor.dims))
    return operators, parameters


def walk(graph):
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from walk(attribute.g)


@READING.passes
def reads_every_tensor(content):
    graphs = list(walk(onnx.load(io.BytesIO(content)).graph))
    tensors = [onnx.numpy_helper.to_array(t) for graph in graphs for t in graph.initializer]
    operators = Counter(node.op_type for graph in graphs for node in graph.node)
    return dict(operators), sum(t.size for t in tensors if t.dtype.kind == "f")


@READING.passes
def counts_by_recursion(content):
    def count(graph, found):
        total = 0
        for node in graph.node:
            found[node.op_type] = 1 + found.get(node.op_type, 0)
            total += sum(count(a.g, found) for a in node.attribute if a.HasField("g"))
        for tensor in graph.initializer:
            size = 1
            for n in tensor.dims:
                size *= n
            total += size if tensor.data_type in (1, 10, 11) else 0
        return total

    found = {}
    parameters = count(onnx.load_from_string(content).graph, found)
    return found, parameters
