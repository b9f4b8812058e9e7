"""Checks of training a CNN: references, and the cases to try them on.

The functions that train, evaluate and resume are judged by what they do to a real, tiny network:
its weights, its stored statistics, its mode, and the calls that it has seen.
"""

from __future__ import annotations

import copy
import inspect
import io
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shipyard.checks import Case, CheckFailed, Passed, check, compare, draws, require_signature

# --- the references -----------------------------------------------------------------------------


def normalize(images, mean, std):
    x = images / 255
    return (x - mean[:, None, None]) / std[:, None, None]


def flatten_size(image_shape, layers):
    channels, height, width = image_shape
    for kind, *numbers in layers:
        if kind == "conv":
            channels, *numbers = numbers
        k, s, p = numbers
        height = (height + 2 * p - k) // s + 1
        width = (width + 2 * p - k) // s + 1
    return channels * height * width


def label_smoothing(logits, labels, epsilon):
    K = logits.shape[1]
    one_hot = F.one_hot(labels, K).to(logits.dtype)
    q = (1 - epsilon) * one_hot + epsilon / K
    log_p = F.log_softmax(logits, dim=1)
    return -(q * log_p).sum(dim=1).mean()


def two_losses(logits, labels, epsilon):
    """`label_smoothing` as a mixture: the loss of the truth, and that of all classes alike."""
    log_p = F.log_softmax(logits, dim=1)
    truth = -log_p.gather(1, labels[:, None])[:, 0]
    everywhere = -log_p.mean(dim=1)
    return ((1 - epsilon) * truth + epsilon * everywhere).mean()


def train_step(model, images, labels, optimizer):
    model.train()
    optimizer.zero_grad()
    logits = model(images)
    loss = F.cross_entropy(logits, labels)
    loss.backward()
    optimizer.step()
    return loss.item()


def evaluate(model, loader):
    training = model.training
    model.eval()
    loss_sum, right, count = 0.0, 0, 0
    with torch.no_grad():
        for images, labels in loader:
            logits = model(images)
            loss_sum += F.cross_entropy(logits, labels).item() * len(labels)
            right += (logits.argmax(dim=1) == labels).sum().item()
            count += len(labels)
    model.train(training)
    return loss_sum / count, right / count


def confusion_matrix(predictions, labels, classes):
    place = labels * classes + predictions  # row by row
    counts = torch.bincount(place, minlength=classes**2)
    return counts.reshape(classes, classes)


def counted_in_turn(predictions, labels, classes):
    """`confusion_matrix` image by image."""
    counts = torch.zeros(classes, classes, dtype=torch.int64)
    for prediction, label in zip(predictions, labels, strict=True):
        counts[label, prediction] += 1
    return counts


def resume():
    def save_state(model, optimizer, scheduler, generator, step):
        state = {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "scheduler": scheduler.state_dict(),
            "generator": generator.get_state(),
            "random": torch.get_rng_state(),
            "step": step,
        }
        return copy.deepcopy(state)

    def load_state(state, model, optimizer, scheduler, generator):
        state = copy.deepcopy(state)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        scheduler.load_state_dict(state["scheduler"])
        generator.set_state(state["generator"])
        torch.set_rng_state(state["random"])
        return state["step"]

    return save_state, load_state


# --- tasks that are plain functions -------------------------------------------------------------


@check(normalize, tolerance=1e-5)  # float32
def check_normalize():
    """Bytes to floats, (x / 255 − mean) / std."""

    def case(seed, batch, channels, height, width, brightest=255, narrow=1.0):
        generator = torch.Generator().manual_seed(seed)
        shape = (batch, channels, height, width)
        images = torch.randint(brightest + 1, shape, generator=generator, dtype=torch.uint8)
        mean = 0.2 + 0.6 * torch.rand(channels, generator=generator)
        return Case(images, mean, narrow * (0.1 + 0.3 * torch.rand(channels, generator=generator)))

    return [
        *(case(2, 4, 3, 5, 7), case(6, 2, 3, 6, 5, brightest=90), case(5, 2, 4, 5, 4)),
        *(case(3, 2, 3, 3, 3), case(4, 3, 1, 4, 6), case(7, 2, 3, 4, 5, narrow=0.01)),
        case(1, 1, 3, 2, 2),
    ]


@check(
    flatten_size,
    forbidden=dict.fromkeys(
        ("conv2d", "max_pool2d", "avg_pool2d"),
        "The sizes can be known before any layer is built: compute them, side by side.",
    ),
)
def check_flatten_size():
    """Values for each image after these layers."""
    pool_2 = ("pool", 2, 2, 0)
    return [
        Case((3, 7, 9), [pool_2]),
        Case((3, 6, 10), [("conv", 5, 3, 1, 1)]),
        Case((1, 8, 9), [("conv", 4, 3, 1, 0)]),
        Case((2, 9, 7), [("conv", 4, 3, 2, 1)]),
        Case((1, 9, 12), [("pool", 3, 2, 0)]),
        Case((1, 8, 8), [("pool", 3, 2, 1)]),
        Case((2, 11, 8), [("pool", 2, 3, 0)]),
        Case((2, 6, 9), [("conv", 3, 5, 1, 3)]),
        Case((3, 32, 32), [("conv", 6, 5, 1, 0), pool_2, ("conv", 16, 5, 1, 0), pool_2]),
        Case((3, 32, 32), [("conv", 32, 3, 1, 1), pool_2, ("conv", 64, 3, 1, 1), pool_2]),
        Case((3, 31, 45), [("conv", 8, 4, 3, 2), ("pool", 3, 2, 1), ("conv", 5, 2, 2, 0)]),
        Case((4, 15, 15), [pool_2, pool_2, ("conv", 7, 1, 1, 0)]),
        Case((2, 5, 4), [("conv", 3, 4, 2, 0)]),
        Case((2, 5, 4), []),
    ]


@check(confusion_matrix, forms=[counted_in_turn])
def check_confusion_matrix():
    """Rows truth, columns answers."""

    def case(seed, count, classes, never=()):
        generator = torch.Generator().manual_seed(seed)
        used = torch.tensor([c for c in range(classes) if c not in never])
        places = torch.randint(len(used), (2, count), generator=generator)
        return Case(used[places[0]], used[places[1]], classes)

    return [
        case(3, 20, 3),
        case(4, 12, 5, never=(2,)),
        case(5, 15, 6, never=(4, 5)),
        case(6, 300, 10),
        case(7, 1500, 4, never=(0, 3)),  # more than 255 in one place
        Case(torch.tensor([0, 2, 2, 1]), torch.tensor([1, 1, 2, 1]), 4),
        Case(torch.tensor([3, 3, 1, 0]), torch.tensor([3, 2, 1, 3]), 4),
        Case(torch.tensor([1, 1, 0]), torch.tensor([0, 1, 0]), 2),
        case(2, 1, 3),
        case(8, 5, 1),
    ]


def _loss_and_gradient(function: Callable, logits: Tensor, labels: Tensor, epsilon: float):
    loss, gradient = function(logits.requires_grad_(), labels, epsilon), "missing"
    if isinstance(loss, Tensor) and loss.requires_grad:
        (gradient,) = torch.autograd.grad(loss.sum(), logits)
    return None if loss is None else (loss, gradient)


@check(
    label_smoothing,
    forms=[two_losses],
    forbidden={
        "cross_entropy(label_smoothing)": """The task is to build what this option does. Mix the
        target yourself: (1 − ε) · one-hot + ε / K."""
    },
    use=_loss_and_gradient,
    outputs=("The loss", "The gradient of the loss for the logits"),
    tolerance=1e-6,  # F.one_hot times a number is float32
)
def check_label_smoothing():
    """The loss, and its gradient."""

    def case(seed, batch, classes, epsilon, scale=1.0):
        generator = torch.Generator().manual_seed(seed)
        labels = torch.randint(classes, (batch,), generator=generator)
        return Case(scale * draws(seed)(batch, classes), labels, epsilon)

    return [
        case(3, 5, 10, 0.1),
        case(1, 4, 3, 0.3),
        case(2, 4, 10, 0.0),
        case(4, 7, 2, 0.2),
        case(5, 3, 3, 0.5),
        case(6, 2, 4, 1.0),
        case(7, 4, 6, 0.1, scale=1000.0),
        case(8, 1, 3, 0.3),
    ]


# --- a network that takes notes -----------------------------------------------------------------


class _Watched(nn.Sequential):
    """Layers that note each forward and backward pass."""

    recorded = False

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append("forward")
        logits = super().forward(x)
        if logits.requires_grad:
            self.recorded = True
            logits.register_hook(lambda gradient: self.calls.append("backward"))
        return logits


class _Made:
    """How to make something, told in a few words."""

    def __init__(self, text: str, make: Callable):
        self.text, self.make = text, make

    def __repr__(self) -> str:
        return self.text


def _network(text: str, *layers: Callable, training: bool = False, frozen: bool = False) -> _Made:
    """A small network of (batch, 2, 3, 3) images and three classes."""

    def make() -> _Watched:
        middle = [layer() for layer in layers]
        model = _Watched(nn.Flatten(), nn.Linear(18, 6), *middle, nn.Linear(6, 3))
        model.calls = []
        for name, value in model.named_buffers():
            if name.endswith("running_mean"):
                value.fill_(0.3)  # as after some training
        nn.init.constant_(model[-1].bias, -2.0)  # the largest logit may be negative
        if frozen:
            model[1].requires_grad_(False)
        for θ in model.double().parameters():
            θ.grad = torch.ones_like(θ)  # left by somebody before
        return model.train(training)

    return _Made(text, make)


def _numbers(model: nn.Module) -> dict[str, Tensor]:
    """A copy of all weights and stored statistics."""
    return {name: value.clone() for name, value in model.state_dict().items()}


def _mode(model: nn.Module) -> str:
    modes = {module.training for module in model.modules()}
    return "mixed" if len(modes) == 2 else "train" if modes == {True} else "eval"


def _images(seed: int, *sizes: int) -> list[tuple[Tensor, Tensor]]:
    """Batches of these sizes: images (batch, 2, 3, 3) and labels (batch,)."""
    draw, generator = draws(seed), torch.Generator().manual_seed(seed)
    return [(draw(n, 2, 3, 3), torch.randint(3, (n,), generator=generator)) for n in sizes]


_norm = partial(nn.BatchNorm1d, 6)
_dropout = partial(nn.Dropout, 0.4)
_SGD = _Made("SGD", partial(torch.optim.SGD, lr=0.1))
_MOMENTUM = _Made("SGD with momentum", partial(torch.optim.SGD, lr=0.05, momentum=0.9))
_ADAM = _Made("AdamW", partial(torch.optim.AdamW, lr=0.02))


# --- one step, and a fair score -----------------------------------------------------------------


def _take_steps(
    function: Callable, model: _Made, images: Tensor, labels: Tensor, optimizer: _Made
) -> list[dict]:
    """What each step did, its loss, and what it left; a batch of images and labels for each."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = model.make()
        stepper = optimizer.make(network.parameters())
        stepper.register_step_post_hook(lambda *_: network.calls.append("step"))
        found = []
        for x, y in zip(images, labels, strict=True):
            network.calls.clear()
            loss = function(network, x, y, stepper)
            found.append(
                {
                    "what it did": ", ".join(network.calls),
                    "loss": loss.detach() if isinstance(loss, Tensor) else loss,
                    "loss holds its graph": isinstance(loss, Tensor) and loss.requires_grad,
                    "network afterwards": _numbers(network),
                }
            )
        return found


@check(train_step, use=_take_steps, outputs=("Step 1", "Step 2", "Step 3"))
def check_train_step():
    """It returns the loss."""

    def case(seed, model, optimizer, size=5):
        images, labels = map(torch.stack, zip(*_images(seed, size, size, size), strict=True))
        return Case(model, images, labels, optimizer)  # (steps, batch, ...) both

    plain, norm = _network("a linear network"), _network("one with batch norm", _norm, nn.ReLU)
    return [
        case(2, plain, _MOMENTUM),
        case(3, norm, _SGD),
        case(4, _network("one with dropout", nn.ReLU, _dropout), _MOMENTUM),
        case(5, _network("batch norm and dropout", _norm, _dropout), _ADAM, size=7),
        case(1, plain, _SGD, size=1),
    ]


def _score(function: Callable, model: _Made, loader: list) -> tuple:
    """The answer, whether gradients were recorded, and all that should be as it was."""
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        network = model.make()
        answer = function(network, loader)
        afterwards = {
            "recording of gradients": "on" if torch.is_grad_enabled() else "off",
            "mode": _mode(network),
            "weights and statistics": _numbers(network),
            "requires_grad": {name: θ.requires_grad for name, θ in network.named_parameters()},
            "grad": {name: θ.grad for name, θ in network.named_parameters()},
        }
        recorded = "on" if network.recorded else "off"
        return None if answer is None else (answer, recorded, afterwards)


@check(
    evaluate,
    use=_score,
    outputs=("(loss, accuracy)", "Recording of gradients while it ran", "Afterwards"),
)
def check_evaluate():
    """It returns (loss, accuracy)."""

    def case(seed, sizes, text, *layers, training, frozen=False):
        mode = "train" if training else "eval"
        model = _network(f"{text}, in {mode} mode", *layers, training=training, frozen=frozen)
        return Case(model, _images(seed, *sizes))

    return [
        case(2, (5, 5), "linear", training=True),
        case(3, (6, 6, 2), "linear", training=False),
        case(4, (5, 5, 3), "batch norm", _norm, training=True),
        case(6, (7, 4), "batch norm", _norm, training=False),
        case(7, (3, 3, 2), "linear, first layer frozen", training=True, frozen=True),
        case(1, (4,), "linear", training=False),
        case(5, (3, 3, 1), "dropout", _dropout, training=True),
    ]


# --- stop, and go on ----------------------------------------------------------------------------

LAST_STEP = 3


def _training(text: str, optimizer: Callable, step_size: int = 9, dropout: float = 0.0) -> _Made:
    """A tiny training as a new process makes it, which also sets torch's random state."""

    def make(seed: int) -> tuple:
        torch.manual_seed(seed)
        layers = [nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(dropout), nn.Linear(4, 2)]
        model = nn.Sequential(*layers).double()
        stepper = optimizer.make(model.parameters())
        scheduler = torch.optim.lr_scheduler.StepLR(stepper, step_size, gamma=0.5)
        return model, stepper, scheduler, torch.Generator().manual_seed(seed)

    return _Made(text, make)


def _train(training: tuple, start: int, stop: int = LAST_STEP) -> dict[str, Tensor]:
    """Train in train mode from step ``start`` to ``stop``; a copy of all numbers of the model."""
    model, optimizer, scheduler, generator = training
    model.train()
    x, y = draws(5)(24, 3), torch.arange(24) % 2  # (images, features), (images,)
    for _ in range(start, stop):
        batch = torch.randint(len(x), (6,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
        scheduler.step()
    return _numbers(model)


def _through_a_file(state: Any) -> Any:
    """What a file would give back of a state; refused is what is no dict of plain data."""
    if not isinstance(state, dict):
        raise _returned(state, "save_state", "a dict with all that the next step depends on")
    file = io.BytesIO()
    try:
        torch.save(state, file)
        file.seek(0)
        return torch.load(file, weights_only=True)
    except Exception as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = f"it refuses a {found[1]}" if found else f"{type(error).__name__}: {error}"
        raise CheckFailed(
            "The state that save_state returned cannot go through a file.\n"
            f"torch.load(weights_only=True) cannot read it back: {reason}.\nIt builds "
            "tensors, numbers, text, lists and dicts, and refuses whole objects, since to read\n"
            "one can run foreign code. Save what state_dict() and get_state() give.",
            "not-serialisable",
        ) from error


def _returned(value: Any, name: str, wanted: str) -> CheckFailed:
    kind = type(value).__name__.removesuffix("Type")
    slug = "returned-none" if value is None else "wrong-return"
    return CheckFailed(f"{name} returned {kind}. Return {wanted}.", slug)


def _stop_and_go_on(functions: Callable, training: _Made, stop_after: int, mode: str) -> list:
    """The modes that saving and loading left, then the numbers of the model at the end of four
    trainings, which must all be the same."""
    with torch.random.fork_rng(devices=[]):
        first = training.make(seed=0)
        modes = {"after save_state": mode, "after load_state": mode}
        if functions is resume:  # the truth: a training that nobody stopped
            return [modes, *4 * [_train(first, 0)]]
        save, load = functions()

        def saved(training, step):
            training[0].train(mode == "train")
            state = save(*training, step)
            modes["after save_state"] = _mode(training[0])
            return state

        def loaded(state, training):
            training[0].train(mode == "train")
            step = load(state, *training)
            if not hasattr(step, "__index__"):
                raise _returned(step, "load_state", "the step that was saved: there it goes on")
            modes["after load_state"] = _mode(training[0])
            return _train(training, step)

        _train(first, 0, stop_after)
        state = saved(first, stop_after)
        from_file = _through_a_file(state)
        went_on = _train(first, stop_after)
        second = training.make(seed=1)  # a new process: other weights, other random numbers
        saved(second, stop_after)  # this must leave the first state alone
        restarted = loaded(from_file, second)
        return [modes, restarted, went_on, loaded(state, first), loaded(state, first)]


def check_resume(save_state: Callable, load_state: Callable | None = None) -> Passed:
    """Check ``save_state`` and ``load_state``: a training that stopped ends at the same bits.

    The only argument may also be a function without arguments that returns the two.
    """
    if load_state is None:
        try:
            save_state, load_state = save_state()
        except NotImplementedError:  # a stub stands for both
            load_state = save_state
        except (TypeError, ValueError):  # it wants arguments, or is no function
            save_state = None
    if not (callable(save_state) and callable(load_state)):
        raise CheckFailed(
            "resume: the check needs your two functions, without brackets: "
            "check_resume(save_state, load_state).",
            "not-a-function",
        )
    for function, right in zip((save_state, load_state), resume(), strict=True):
        signature = f"{right.__name__}{inspect.signature(right)}"
        require_signature(function, signature, subject=f"resume: {right.__name__}")

    return compare(
        lambda: (save_state, load_state),
        signature="resume(training, stop_after, mode)",
        reference=resume,
        use=_stop_and_go_on,
        tolerance=0.0,  # bit for bit
        small_changes=False,  # each statement of the reference has its named mistake
        outputs=(
            "The mode of the model",
            "After a restart from the file, model",
            "After saving and going on, model",
            "After going back to the state in memory, model",
            "After going back to that state once more, model",
        ),
        cases=[
            Case(_training("SGD with momentum", _MOMENTUM), 1, "train"),
            Case(_training("SGD, learning rate falls", _SGD, step_size=2), 1, "eval"),
            Case(_training("SGD, with dropout", _SGD, dropout=0.4), 1, "train"),
            Case(_training("all of this, with AdamW", _ADAM, step_size=2, dropout=0.3), 2, "eval"),
        ],
    )
