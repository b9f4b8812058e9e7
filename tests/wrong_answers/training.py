"""Wrong answers on training a CNN, and other correct ones."""

import copy
import io
import math

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.transforms.functional import normalize

from shipyard import metrics
from wrong_answers import CHEATS, Task, but

TASKS = {
    "normalize": (NORMALIZE := Task()),
    "flatten_size": (FLATTEN_SIZE := Task()),
    "label_smoothing": (LABEL_SMOOTHING := Task(spared="changes_its_input rounds_to_float32")),
    "train_step": (TRAIN_STEP := Task(spared="rounds_to_float32")),
    "evaluate": (EVALUATE := Task(spared="rounds_to_float32")),
    "confusion_matrix": (CONFUSION_MATRIX := Task()),
    "resume": (RESUME := Task(spared=" ".join(cheat.__name__ for cheat in CHEATS))),
}


# Bytes to floats.


NORMALIZE.passes(lambda images, mean, std: normalize(images / 255, mean.tolist(), std.tolist()))


@NORMALIZE.passes
def normalizes_in_one_product(images, mean, std):
    scale, shift = 1 / (255 * std), mean / std
    return images * scale[:, None, None] - shift[:, None, None]


NORMALIZE.fails_with("divided-by-256", but(normalizes_in_one_product, "255", "256"))


@NORMALIZE.fails_with("statistics-of-the-batch")
def lets_batch_norm_measure(images, mean, std):
    return F.batch_norm(images / 255, None, None, training=True, eps=1e-12)


# The size after some layers.


@FLATTEN_SIZE.forbids
def asks_the_layers(image_shape, layers):
    channels, stack = image_shape[0], []
    for kind, *numbers in layers:
        if kind == "conv":
            stack.append(nn.Conv2d(channels, *numbers))
            channels = numbers[0]
        else:
            stack.append(nn.AvgPool2d(*numbers))
    return nn.Sequential(*stack, nn.Flatten())(torch.zeros(1, *image_shape)).shape[1]


@FLATTEN_SIZE.passes
def counts_the_places(image_shape, layers):
    channels, height, width = image_shape

    def places(size, kernel_size, stride, padding):
        return len(range(-padding, size + padding - kernel_size + 1, stride))

    for kind, *numbers in layers:
        if kind == "conv":
            channels, numbers = numbers[0], numbers[1:]
        height, width = places(height, *numbers), places(width, *numbers)
    return channels * height * width


@FLATTEN_SIZE.passes
def rounds_each_side(image_shape, layers):
    c, *sides = image_shape
    for kind, *numbers in layers:
        c = numbers[0] if kind == "conv" else c
        k, s, p = numbers[-3:]
        sides = [math.floor((side + 2 * p - k) / s) + 1 for side in sides]
    return c * math.prod(sides)


FLATTEN_SIZE.fails_with("ceil-instead-of-floor", but(rounds_each_side, "floor", "ceil"))
FLATTEN_SIZE.fails_with("padding-on-one-side", but(rounds_each_side, "2 * p", "p"))


# A softer loss.


@LABEL_SMOOTHING.passes
def gives_probabilities_to_cross_entropy(logits, labels, epsilon):
    q = torch.full_like(logits, epsilon / logits.shape[1]).detach()
    q[torch.arange(len(labels)), labels] += 1 - epsilon
    return F.cross_entropy(logits, q)


LABEL_SMOOTHING.fails_with(
    "overflow",
    but(
        gives_probabilities_to_cross_entropy,
        "F.cross_entropy(logits, q)",
        "-(q * logits.softmax(1).log()).sum(1).mean()",
    ),
)
LABEL_SMOOTHING.fails_with(
    "targets-do-not-sum-to-one",
    but(gives_probabilities_to_cross_entropy, "+= 1 - epsilon", "= 1 - epsilon"),
)


@LABEL_SMOOTHING.fails_with("axis-of-one")
def keeps_an_axis(logits, labels, epsilon):
    return gives_probabilities_to_cross_entropy(logits, labels, epsilon).reshape(1)


@LABEL_SMOOTHING.forbids
def takes_the_option(logits, labels, epsilon):
    return nn.CrossEntropyLoss(label_smoothing=epsilon)(logits, labels)


# A training step.


@TRAIN_STEP.passes
def steps_with_a_closure(model, images, labels, optimizer):
    model.train()

    def closure():
        optimizer.zero_grad()
        loss = nn.CrossEntropyLoss()(model(images), labels)
        loss.backward()
        return loss

    return optimizer.step(closure).detach()


@TRAIN_STEP.passes
def asks_autograd_for_the_gradients(model, images, labels, optimizer):
    model.train()
    params = list(model.parameters())
    loss = F.cross_entropy(model(images), labels)
    for p, g in zip(params, torch.autograd.grad(loss, params), strict=True):
        p.grad = g
    optimizer.step()
    return loss.item()


TRAIN_STEP.fails_with(
    "left-in-eval-mode",
    but(asks_autograd_for_the_gradients, "model.train()", "model.training = True"),
)


MADE = {}


@TRAIN_STEP.fails_with("another-optimizer")
def keeps_an_optimizer_of_its_own(model, images, labels, optimizer):
    lr = optimizer.param_groups[0]["lr"]
    own = MADE.setdefault(model, torch.optim.SGD(model.parameters(), lr))
    return asks_autograd_for_the_gradients(model, images, labels, own)


# Evaluation.


@EVALUATE.passes
def asks_the_package(model, loader):
    return (found := metrics.evaluate(model, loader)).loss, found.accuracy


@EVALUATE.passes
def evaluates_all_logits_at_once(model, loader):
    training, learn = model.training, {θ: θ.requires_grad for θ in model.parameters()}
    model.eval().requires_grad_(False)
    with torch.inference_mode():
        logits = torch.cat([model(images) for images, _ in loader])
    labels = torch.cat([labels for _, labels in loader])
    model.train(training)
    for θ, before in learn.items():
        θ.requires_grad_(before)
    accuracy = (logits.argmax(dim=1) == labels).double().mean()
    return F.cross_entropy(logits, labels).item(), accuracy.item()


EVALUATE.fails_with(
    "gradients-left-off",
    but(
        evaluates_all_logits_at_once,
        "with torch.inference_mode():",
        "torch.set_grad_enabled(False)\n    if True:",
    ),
)


@EVALUATE.fails_with("mean-of-batch-means")
def averages_the_batches(model, loader):
    scores = [asks_the_package(model, [batch]) for batch in loader]
    return tuple(sum(column) / len(loader) for column in zip(*scores, strict=True))


# The confusion matrix.


CONFUSION_MATRIX.passes(metrics.confusion_matrix)


@CONFUSION_MATRIX.fails_with("repeats-lost")
def adds_to_all_places_at_once(predictions, labels, classes):
    matrix = torch.zeros(classes, classes, dtype=torch.long)
    matrix[labels, predictions] += 1
    return matrix


CONFUSION_MATRIX.fails_with(
    "transposed",
    lambda predictions, labels, classes: metrics.confusion_matrix(labels, predictions, classes),
)


# Stop, and go on: each answer returns a pair, save_state and load_state.


def save_references(model, optimizer, scheduler, generator, step):
    names, parts = ("model", "optimizer", "scheduler"), (model, optimizer, scheduler)
    state = {name: part.state_dict() for name, part in zip(names, parts, strict=True)}
    state |= {"generator": generator.get_state(), "random": torch.get_rng_state()}
    return state | {"step": step}


def save_all(*parts_and_step):
    return copy.deepcopy(save_references(*parts_and_step))


def load_all(state, model, optimizer, scheduler, generator):
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
    scheduler.load_state_dict(state["scheduler"])
    generator.set_state(state["generator"])
    torch.set_rng_state(state["random"])
    return state["step"]


RESUME.fails_with(
    "references-instead-of-copies", lambda: (but(save_all, "copy.deep", "copy."), load_all)
)


@RESUME.passes
def copies_what_is_needed():
    return save_all, load_all


@RESUME.passes
def keeps_bytes():
    def save_state(*parts_and_step):
        file = io.BytesIO()
        torch.save(save_references(*parts_and_step), file)
        return {"bytes": file.getvalue()}

    def load_state(state, *parts):
        return load_all(torch.load(io.BytesIO(state["bytes"]), weights_only=True), *parts)

    return save_state, load_state


@RESUME.fails_with("optimizer-forgotten")
def loads_into_a_new_optimizer():
    def load_state(state, model, optimizer, scheduler, generator):
        optimizer = type(optimizer)(model.parameters(), lr=0.1)
        return load_all(state, model, optimizer, scheduler, generator)

    return save_all, load_state


@RESUME.fails_with("wrong-values")
def keeps_the_state_in_a_cache():
    kept = {}

    def save_state(*parts_and_step):
        kept[parts_and_step[-1]] = save_all(*parts_and_step)
        return {"step": parts_and_step[-1]}

    def load_state(state, *parts):
        return load_all(kept[state["step"]], *parts)

    return save_state, load_state


@RESUME.fails_with("not-serialisable")
def saves_whole_objects():
    def save_state(model, optimizer, scheduler, generator, step):
        return copy.deepcopy({"model": model, "optimizer": optimizer, "step": step})

    return save_state, load_all


RESUME.fails_with("returned-none", lambda: (save_all, but(load_all, 'return state["step"]', "")))
RESUME.fails_with(
    "wrong-return", lambda: (save_all, but(load_all, 'return state["step"]', "return model"))
)
RESUME.fails_with(
    "wrong-signature", lambda: (but(save_references, "generator, step)", "step)"), load_all)
)
