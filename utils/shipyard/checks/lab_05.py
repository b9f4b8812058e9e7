"""Checks of lab 05, training a CNN. ``torch`` and a plain training are the reference.

The functions that train, evaluate and resume are judged by what they do to a real, tiny network:
its weights, its stored statistics, its mode, and the calls that it has seen.
"""

from __future__ import annotations

import copy
import inspect
import io
import itertools
import math
import operator
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shipyard.checks import Case, CheckFailed, Mistake, Passed, compare, draws


def _check_call(function: Any, signature: str, task: str = "") -> None:
    """``function`` can be called with the arguments of ``signature``."""
    name, _, arguments = signature.partition("(")
    if not callable(function):
        return  # compare says what is wrong with it
    try:
        inspect.signature(function).bind(*arguments.split(", "))
    except ValueError:  # a builtin does not tell
        pass
    except TypeError as error:
        raise CheckFailed(
            f"{task}{name} cannot be called as the task says: {error}.\n"
            f"The task asks for {signature}.",
            "wrong-signature",
        ) from error


# --- images to floats ---------------------------------------------------------------------------


def check_normalize(candidate: Callable) -> Passed:
    """Check ``normalize(images, mean, std)``: bytes to floats, (x / 255 − mean) / std."""

    def reference(images, mean, std):
        x = images.double() / 255
        mean, variance = mean.double(), std.double() ** 2
        return F.batch_norm(x, mean, variance, training=False, eps=0).float()

    def along(axis=1, scale=lambda x: x.double() / 255, shift=lambda x, m: m, size=lambda x, s: s):
        """The formula, with the statistics along another axis, or with one part replaced."""

        def answer(images, mean, std):
            shape = [-1 if i == axis else 1 for i in range(4)]
            x = scale(images)
            return ((x - shift(x, mean.view(shape))) / size(x, std.view(shape))).float()

        return answer

    def bytes_below(as_bytes):
        """The mean is subtracted while the images are still bytes."""

        def answer(images, mean, std):
            centred = images - as_bytes(255 * mean)[:, None, None]
            return (centred / (255 * std[:, None, None])).float()

        return answer

    def per_channel(statistic):
        return lambda x, given: statistic(x.transpose(0, 1).flatten(1))[:, None, None]

    def per_image(statistic):
        return lambda x, given: statistic(x.flatten(2))[..., None, None]

    def of_all(statistic):
        return lambda x, given: statistic(x.flatten()[None])

    def mean_of(x):
        return x.mean(-1)

    def std_of(x):
        return x.std(-1)

    def population_std_of(x):
        return x.std(-1, correction=0)

    def case(seed, batch, channels, height, width, brightest=255):
        generator = torch.Generator().manual_seed(seed)
        shape = (batch, channels, height, width)
        images = torch.randint(brightest + 1, shape, generator=generator, dtype=torch.uint8)
        mean = 0.2 + 0.6 * torch.rand(channels, generator=generator)
        return Case(images, mean, 0.1 + 0.3 * torch.rand(channels, generator=generator))

    ways = [(per, std) for per in (per_channel, per_image) for std in (std_of, population_std_of)]
    return compare(
        candidate,
        signature="normalize(images, mean, std)",
        reference=reference,
        tolerance=1e-5,  # float32
        cases=[
            case(1, 1, 3, 2, 2),
            case(2, 4, 3, 5, 7),
            case(3, 2, 3, 3, 3),
            case(4, 3, 1, 4, 6),
            case(5, 2, 4, 5, 4),
            case(6, 2, 3, 6, 5, brightest=90),
        ],
        mistakes=[
            Mistake(
                "not-divided-by-255",
                """You did not bring the bytes to the range 0 to 1 first. The given mean and
                standard deviation belong to values between 0 and 1, so divide the images by 255
                before you use them.""",
                along(scale=lambda x: x.double()),
            ),
            Mistake(
                "divided-by-256",
                """You divided by 256. A byte holds 0 to 255, and the largest must become 1, so
                divide by 255.""",
                along(scale=lambda x: x.double() / 256),
            ),
            Mistake(
                "divided-by-the-largest",
                """You divided by the largest value of this batch. A dark batch would then look as
                bright as a sunny one. The largest possible byte is 255, whatever the batch
                holds.""",
                along(scale=lambda x: x.double() / x.max()),
            ),
            Mistake(
                "statistics-of-the-batch",
                """You computed mean or standard deviation from the images in hand. The same
                picture would then get other values in another batch. Use the given mean and std:
                they were measured once, on all training images.""",
                *[along(shift=per(mean_of), size=per(std)) for per, std in ways],
                *[along(size=per(std)) for per, std in ways],
                along(shift=per_channel(mean_of)),
                along(shift=per_image(mean_of)),
                along(shift=of_all(mean_of), size=of_all(std_of)),
                along(shift=of_all(mean_of), size=of_all(population_std_of)),
            ),
            Mistake(
                "one-mean-for-all-channels",
                """You used one number for all channels. Red, green and blue have different means
                and spreads: channel c uses mean[c] and std[c].""",
                along(shift=lambda x, m: m.mean(), size=lambda x, s: s.mean()),
                along(shift=lambda x, m: m.mean()),
                along(size=lambda x, s: s.mean()),
                along(shift=lambda x, m: m.flatten()[0], size=lambda x, s: s.flatten()[0]),
            ),
            Mistake(
                "fixed-half",
                """You used 0.5 for mean and standard deviation, as some tutorials do. Use the
                numbers that are given.""",
                along(shift=lambda x, m: 0.5, size=lambda x, s: 0.5),
            ),
            Mistake(
                "variance-for-std",
                """You divided by the square or by the root of std. It is the standard deviation
                itself that brings the spread of a channel to 1.""",
                along(size=lambda x, s: s**2),
                along(size=lambda x, s: s.sqrt()),
            ),
            Mistake(
                "statistics-along-another-axis",
                """Your mean and std meet the wrong axis. torch lines shapes up from the right, so
                a tensor of shape (channels,) meets the width. Give it the shape (channels, 1, 1),
                for example with mean[:, None, None].""",
                along(axis=3),
                along(axis=2),
                along(axis=0),
            ),
            Mistake(
                "returned-channels-last",
                """You moved the channels to the end, and left them there. Images in torch are
                (batch, channels, height, width), so move them back, or leave them where they are
                and give mean and std the shape (channels, 1, 1).""",
                lambda *given: reference(*given).permute(0, 2, 3, 1),
            ),
            Mistake(
                "brackets-missing",
                """You divided the mean alone by std: x − mean / std. The whole difference is
                divided: (x − mean) / std.""",
                lambda images, mean, std: (
                    images / 255 - (mean / std)[:, None, None].double()
                ).float(),
            ),
            Mistake(
                "not-centred",
                """You did not subtract the mean. Without it all values stay positive.""",
                along(shift=lambda x, m: 0),
            ),
            Mistake(
                "not-divided-by-std",
                """You did not divide by std. After the mean is subtracted, the spread must become
                1.""",
                along(size=lambda x, s: 1),
            ),
            Mistake(
                "upside-down",
                """You turned the formula round: x · std + mean brings normalised values back to
                pixels. Subtract the mean first, and then divide by std.""",
                along(shift=lambda x, m: -m / x.new_tensor(1), size=lambda x, s: 1 / s),
                lambda images, mean, std: (
                    images.double() / 255 * std[:, None, None] + mean[:, None, None]
                ).float(),
                lambda images, mean, std: (
                    (images.double() / 255 - mean[:, None, None]) * std[:, None, None]
                ).float(),
            ),
            Mistake(
                "byte-arithmetic",
                """You computed with bytes. A uint8 knows only whole numbers from 0 to 255: 3 − 5
                becomes 254, and 100 // 255 becomes 0. Turn the images into floats before anything
                else: images / 255, or images.float().""",
                bytes_below(lambda m: m.byte()),
                bytes_below(lambda m: m.round().byte()),
                along(scale=lambda x: x // 255),
            ),
        ],
    )


# --- how many numbers are left ------------------------------------------------------------------


def check_flatten_size(candidate: Callable) -> Passed:
    """Check ``flatten_size(image_shape, layers)``: values for each image after these layers."""

    def reference(image_shape, layers):
        x = torch.zeros(1, *image_shape)
        for kind, *numbers in layers:
            if kind == "conv":
                channels, kernel_size, stride, padding = numbers
                x = F.conv2d(
                    x, x.new_zeros(channels, x.shape[1], kernel_size, kernel_size), None, stride,
                    padding,
                )  # fmt: skip
            else:
                x = F.max_pool2d(x, *numbers)
        return x.numel()

    def window(size, kernel_size, stride, padding, sides=2, plus=1, rounded=math.floor):
        return rounded((size + sides * padding - kernel_size) / stride) + plus

    def walk(
        conv=window,
        pool=window,
        channels=lambda old, new: new,
        result=lambda c, h, w: c * h * w,
    ):
        """The walk through the layers with one part replaced."""

        def answer(image_shape, layers):
            c, h, w = image_shape
            for kind, *numbers in layers:
                if kind == "conv":
                    c, numbers = channels(c, numbers[0]), numbers[1:]
                length = conv if kind == "conv" else pool
                h, w = length(h, *numbers), length(w, *numbers)
            return result(c, h, w)

        return answer

    def both(**replaced):
        def length(*numbers):
            return window(*numbers, **replaced)

        return walk(conv=length, pool=length)

    def one(length):
        """Convolutions alone, poolings alone, or both with another length."""
        return [walk(conv=length), walk(pool=length), walk(conv=length, pool=length)]

    def keep(size, *numbers):
        return size

    def unrounded(size, kernel_size, stride, padding):
        return window(size, kernel_size, stride, padding, rounded=float)

    pool_2 = ("pool", 2, 2, 0)
    return compare(
        candidate,
        signature="flatten_size(image_shape, layers)",
        reference=reference,
        cases=[
            Case((2, 5, 4), []),
            Case((3, 8, 8), [pool_2]),
            Case((1, 8, 8), [("conv", 4, 3, 1, 0)]),
            Case((3, 7, 9), [pool_2]),
            Case((3, 6, 10), [("conv", 5, 3, 1, 1)]),
            Case((2, 9, 7), [("conv", 4, 3, 2, 1)]),
            Case((1, 9, 12), [("pool", 3, 2, 0)]),
            Case((1, 8, 8), [("pool", 3, 2, 1)]),
            Case((3, 32, 32), [("conv", 6, 5, 1, 0), pool_2, ("conv", 16, 5, 1, 0), pool_2]),
            Case((3, 32, 32), [("conv", 32, 3, 1, 1), pool_2, ("conv", 64, 3, 1, 1), pool_2]),
            Case((3, 31, 45), [("conv", 8, 4, 3, 2), ("pool", 3, 2, 1), ("conv", 5, 2, 2, 0)]),
            Case((4, 15, 15), [pool_2, pool_2, ("conv", 7, 1, 1, 0)]),
        ],
        mistakes=[
            Mistake(
                "padding-ignored",
                """You left out the padding. This is where the 64 · 6 · 6 of the article comes
                from: without padding, 32 → 30 → 15 → 13 → 6. With padding 1 a 3×3 convolution
                keeps the size: 32 → 32 → 16 → 16 → 8.""",
                both(sides=0),
                *one(lambda *numbers: window(*numbers, sides=0)),
            ),
            Mistake(
                "padding-on-one-side",
                """You counted the padding once. It is added at both ends of each axis, so the
                size grows by 2 · padding.""",
                *one(lambda *numbers: window(*numbers, sides=1)),
            ),
            Mistake(
                "ceil-instead-of-floor",
                """You rounded up. A window that would reach over the edge does not exist, so the
                division rounds down: // in Python.""",
                *one(lambda *numbers: window(*numbers, rounded=math.ceil)),
            ),
            Mistake(
                "rounded-at-the-end",
                """You multiplied first and rounded then. A side of the image is a whole number of
                pixels: 7 become 3 in a pooling, not 3.5. Round each side down, in each layer.""",
                walk(unrounded, unrounded, result=lambda c, h, w: int(c * h * w)),
            ),
            Mistake(
                "float-instead-of-int",
                """You returned a float. nn.Linear needs a whole number: divide with //, or round
                each size down.""",
                walk(unrounded, unrounded),
                walk(result=lambda c, h, w: float(c * h * w)),
            ),
            Mistake(
                "plus-one-missing",
                """You counted steps, not places. The window has a first place before it takes any
                step: the size is the number of steps + 1.""",
                *one(lambda *numbers: window(*numbers, plus=0)),
            ),
            Mistake(
                "stride-ignored",
                """You left out the stride. The window moves by stride pixels, so the room that it
                has is divided by stride.""",
                *one(
                    lambda size, kernel_size, stride, padding: window(size, kernel_size, 1, padding)
                ),
            ),
            Mistake(
                "pooling-not-counted",
                """You left the poolings out. A pooling is a window that slides, just like a
                convolution: the same formula gives its size.""",
                walk(pool=keep),
            ),
            Mistake(
                "pooling-as-plain-division",
                """You divided the size by a number in each pooling. That is right only where
                stride and kernel are equal and there is no padding. The formula of the
                convolution holds for every pooling.""",
                walk(pool=lambda size, kernel_size, stride, padding: size // 2),
                walk(pool=lambda size, kernel_size, stride, padding: size // kernel_size),
                walk(pool=lambda size, kernel_size, stride, padding: size // stride),
            ),
            Mistake(
                "convolution-keeps-the-size",
                """You took for granted that a convolution keeps the size. It does so only with
                stride 1 and padding (kernel_size − 1) / 2.""",
                walk(conv=keep),
                walk(conv=lambda size, kernel_size, stride, padding: size // stride),
            ),
            Mistake(
                "channels-left-out",
                """You returned height · width. A flattened image holds these values for each
                channel: channels · height · width.""",
                walk(result=lambda c, h, w: h * w),
            ),
            Mistake(
                "channels-of-the-image",
                """You kept the channels of the image. A convolution gives as many channels as it
                has kernels: the number in its second place.""",
                walk(channels=lambda old, new: old),
            ),
            Mistake(
                "channels-pile-up",
                """You multiplied or added the channels of all layers. Each convolution reads all
                channels that come in, and gives a new number of channels: the last one counts.
                """,
                walk(channels=lambda old, new: old * new),
                walk(channels=lambda old, new: old + new),
            ),
            Mistake(
                "took-the-image-for-square",
                """You used one side for both. An image may be wider than it is high: follow height
                and width apart.""",
                walk(result=lambda c, h, w: c * h * h),
                walk(result=lambda c, h, w: c * w * w),
            ),
            Mistake(
                "shape-instead-of-size",
                """You returned the shape. nn.Linear needs one number: channels · height · width.
                """,
                walk(result=lambda c, h, w: (c, h, w)),
                walk(result=lambda c, h, w: [c, h, w]),
            ),
        ],
    )


# --- a softer loss ------------------------------------------------------------------------------


def check_label_smoothing(candidate: Callable) -> Passed:
    """Check ``label_smoothing(logits, labels, epsilon)``: the loss, and its gradient."""

    def use(function, logits, labels, epsilon):
        logits.requires_grad_()
        loss = function(logits, labels, epsilon)
        if not isinstance(loss, Tensor):
            return loss, None
        scalar = loss.requires_grad and not loss.dim()
        return loss.detach(), torch.autograd.grad(loss, logits)[0] if scalar else None

    def reference(logits, labels, epsilon):
        return F.cross_entropy(logits, labels, label_smoothing=epsilon)

    def targets(others, truth):
        """The loss for targets made of K and ε: ``others`` everywhere, ``truth`` at the label."""

        def answer(logits, labels, epsilon):
            one_hot = F.one_hot(labels, logits.shape[1]).double()
            size, eps = logits.shape[1], epsilon
            target = truth(size, eps) * one_hot + others(size, eps) * (1 - one_hot)
            return -(target * logits.log_softmax(dim=1)).sum(dim=1).mean()

        return answer

    def mixed(log_p=lambda z: z.log_softmax(dim=1), reduce=lambda loss: loss.mean(), sign=-1):
        """The right targets, with another way to the loss."""

        def answer(logits, labels, epsilon):
            one_hot = F.one_hot(labels, logits.shape[1])
            target = (1 - epsilon) * one_hot + epsilon / logits.shape[1]
            return reduce(sign * target * log_p(logits))

        return answer

    def per_image(loss):
        return loss.sum(dim=1).mean()

    def unstable(logits):
        e = logits.exp()
        return (e / e.sum(dim=1, keepdim=True)).log()

    def of_probabilities(logits, labels, epsilon):
        p = logits.softmax(dim=1)
        smooth = (1 - epsilon) * p + epsilon / logits.shape[1]
        return F.nll_loss(smooth.log(), labels)

    def case(seed, batch, classes, epsilon, scale=1.0):
        draw = draws(seed)
        generator = torch.Generator().manual_seed(seed)
        labels = torch.randint(classes, (batch,), generator=generator)
        return Case(scale * draw(batch, classes), labels, epsilon)

    _check_call(candidate, "label_smoothing(logits, labels, epsilon)")
    return compare(
        candidate,
        signature="label_smoothing(logits, labels, epsilon)",
        reference=reference,
        use=use,
        outputs=("The loss", "The gradient of the loss for the logits"),
        tolerance=1e-6,  # F.one_hot times a number is float32
        cases=[
            case(1, 1, 3, 0.3),
            case(2, 4, 10, 0.0),
            case(3, 5, 10, 0.1),
            case(4, 7, 2, 0.2),
            case(5, 3, 3, 0.5),
            case(6, 2, 4, 1.0),
            case(7, 4, 6, 0.1, scale=1000.0),
        ],
        mistakes=[
            Mistake(
                "spread-over-the-others",
                """You gave 1 − ε to the truth and shared ε among the K − 1 other classes. In the
                usual definition all K classes share ε, the true one too: ε / K for each, and
                1 − ε more for the truth.""",
                targets(lambda k, e: e / (k - 1), lambda k, e: 1 - e),
            ),
            Mistake(
                "truth-without-its-share",
                """Your targets do not sum to 1: the truth gets 1 − ε, and each other class ε / K.
                The truth has its share of ε too: 1 − ε + ε / K.""",
                targets(lambda k, e: e / k, lambda k, e: 1 - e),
            ),
            Mistake(
                "too-much-in-all",
                """Your targets sum to more than 1. What the other classes gain, the truth must
                lose: (1 − ε) · one-hot + ε / K.""",
                targets(lambda k, e: e / k, lambda k, e: 1.0),
                targets(lambda k, e: e / k, lambda k, e: 1 + e / k),
                targets(lambda k, e: e / (k - 1), lambda k, e: 1.0),
            ),
            Mistake(
                "not-divided-by-classes",
                """You gave ε to each class. The K classes share it: ε / K for each.""",
                targets(lambda k, e: e, lambda k, e: 1.0),
                targets(lambda k, e: e, lambda k, e: 1 - e),
                targets(lambda k, e: e, lambda k, e: 1 - e + e),
            ),
            Mistake(
                "shares-swapped",
                """You changed ε and 1 − ε over. ε is the small part, and it goes to all classes
                alike: with ε = 0 the loss is the plain cross-entropy.""",
                targets(lambda k, e: (1 - e) / k, lambda k, e: e + (1 - e) / k),
            ),
            Mistake(
                "not-smoothed",
                """Your loss does not depend on epsilon. Mix the one-hot target with the same share
                for each class: (1 − ε) · one-hot + ε / K.""",
                targets(lambda k, e: 0.0, lambda k, e: 1.0),
            ),
            Mistake(
                "only-shrunk",
                """You multiplied the plain loss by 1 − ε. The other part is missing: ε / K for
                each class.""",
                targets(lambda k, e: 0.0, lambda k, e: 1 - e),
            ),
            Mistake(
                "smoothed-the-probabilities",
                """You mixed the network's probabilities with 1 / K. It is the target that becomes
                smooth; the answer of the network stays as it is.""",
                of_probabilities,
            ),
            Mistake(
                "softmax-twice",
                """There are two softmaxes in your loss. log_softmax (and F.cross_entropy) take
                logits.""",
                mixed(lambda z: z.softmax(dim=1).log_softmax(dim=1), per_image),
            ),
            Mistake(
                "softmax-over-the-batch",
                """Your softmax runs along the batch. The classes of one image compete with each
                other, so it runs along axis 1.""",
                mixed(lambda z: z.log_softmax(dim=0), per_image),
            ),
            Mistake(
                "no-logarithm",
                """You left out the logarithm. The loss is −Σ q · ln p.""",
                mixed(lambda z: z.softmax(dim=1), per_image),
            ),
            Mistake(
                "no-softmax",
                """You used the logits as if they were logarithms of probabilities. They are only
                after log_softmax.""",
                mixed(lambda z: z, per_image),
            ),
            Mistake(
                "sign-lost",
                """The minus is missing. A logarithm of a probability is negative, and a loss must
                fall when the answer gets better.""",
                mixed(reduce=per_image, sign=1),
            ),
            Mistake(
                "mean-over-classes",
                """You took the mean over the classes too. Along the classes the products are
                summed; the mean goes over the images alone.""",
                mixed(),
            ),
            Mistake(
                "sum-over-the-batch",
                """You summed over the images. The loss is their mean, so that it does not grow with
                the batch size.""",
                mixed(reduce=lambda loss: loss.sum()),
            ),
            Mistake(
                "one-loss-for-each-image",
                """You returned one loss for each image. Take their mean.""",
                mixed(reduce=lambda loss: loss.sum(dim=1)),
            ),
            Mistake(
                "overflow",
                """Your formula is right on paper, and breaks for large logits: e to the power of
                1000 is more than a float can hold, and the logarithm of 0 is −∞. log_softmax does
                both steps at once, and stays finite.""",
                mixed(unstable, per_image),
                mixed(lambda z: z.softmax(dim=1).log(), per_image),
            ),
            Mistake(
                "no-gradient",
                """The number is right, and it has no gradient: nothing could learn from it. Return
                the tensor itself, without .item() and .detach(), and do not compute it under
                no_grad.""",
                lambda *given: reference(*given).detach(),
                lambda *given: reference(*given).item(),
            ),
        ],
    )


# --- a network that takes notes -----------------------------------------------------------------


class _Watched(nn.Module):
    """Layers that note each forward and backward pass, and whether gradients were on."""

    def __init__(self, layers: nn.Module):
        super().__init__()
        self.layers = layers
        self.calls: list[str] = []
        self.gradients_on = False

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append("forward")
        logits = self.layers(x)
        self.gradients_on |= torch.is_grad_enabled()
        if logits.requires_grad:
            logits.register_hook(lambda gradient: self.calls.append("backward"))
        return logits

    def numbers(self) -> dict[str, Tensor]:
        """A copy of all weights and stored statistics."""
        return {name: value.clone() for name, value in self.layers.state_dict().items()}


class _Network:
    """How to make a small network of (batch, 2, 3, 3) images and three classes."""

    def __init__(self, text: str, *layers: Callable, training: bool = False):
        self.text, self.layers, self.training = text, layers, training

    def __repr__(self) -> str:
        return self.text

    def build(self) -> _Watched:
        layers = [nn.Flatten(), nn.Linear(18, 6), *(make() for make in self.layers)]
        model = _Watched(nn.Sequential(*layers, nn.Linear(6, 3)).double())
        for name, value in model.layers.state_dict().items():
            if name.endswith("running_mean"):
                value.fill_(0.3)  # as after some training
        return model.train(self.training)


class _Optimizer:
    """How to make an optimizer."""

    def __init__(self, text: str, kind: type, **options):
        self.text, self.kind, self.options = text, kind, options

    def __repr__(self) -> str:
        return self.text

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        return self.kind(model.parameters(), **self.options)


class _Batches:
    """One batch for each step, in few words."""

    def __init__(self, *batches: Tensor):
        self.batches = batches

    def __repr__(self) -> str:
        return f"({len(self.batches)} batches of {len(self.batches[0])})"

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.batches)


def _norm() -> nn.Module:
    return nn.BatchNorm1d(6)


def _dropout() -> nn.Module:
    return nn.Dropout(0.4)


def _images(seed: int, *sizes: int) -> list[tuple[Tensor, Tensor]]:
    """Batches of these sizes: images (batch, 2, 3, 3) and labels (batch,)."""
    draw, generator = draws(seed), torch.Generator().manual_seed(seed)
    return [(draw(n, 2, 3, 3), torch.randint(3, (n,), generator=generator)) for n in sizes]


# --- one step -----------------------------------------------------------------------------------

STEPS = 3


def check_train_step(candidate: Callable) -> Passed:
    """Check ``train_step(model, images, labels, optimizer)``, which returns the loss."""

    def use(function, model, images, labels, optimizer):
        """What each of three steps did, its loss, and the numbers of the network after it."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = model.build()
            stepper = optimizer.build(network)
            for θ in network.parameters():
                θ.grad = torch.ones_like(θ)  # left by somebody before
            stepper.register_step_post_hook(lambda *_: network.calls.append("step"))
            found = []
            for x, y in zip(images, labels, strict=True):
                network.calls.clear()
                loss = function(network, x, y, stepper)
                graph = isinstance(loss, Tensor) and loss.requires_grad
                loss = loss.detach() if isinstance(loss, Tensor) else loss
                found += [", ".join(network.calls), loss, "yes" if graph else "no"]
                found.append(network.numbers())
            return found

    def parts(
        before=lambda model: model.train(),
        loss_of=lambda logits, labels: F.cross_entropy(logits, labels),
        order="zero forward backward step",
        result=lambda loss, labels: loss.item(),
        zero=lambda optimizer: optimizer.zero_grad(),
    ):
        """A step from its parts, in this order."""

        def answer(model, images, labels, optimizer):
            before(model)
            for part in order.split():
                if part == "zero":
                    zero(optimizer)
                elif part == "forward":
                    loss = loss_of(model(images), labels)
                elif part == "backward":
                    loss.backward()
                elif part == "step":
                    optimizer.step()
            return result(loss, labels)

        return answer

    def anew(model, images, labels, optimizer):
        lr = optimizer.param_groups[0]["lr"]
        return parts()(model, images, labels, torch.optim.SGD(model.parameters(), lr=lr))

    def by_hand(model, images, labels, optimizer):
        loss = parts(order="zero forward backward")(model, images, labels, optimizer)
        with torch.no_grad():
            for θ in model.parameters():
                θ -= optimizer.param_groups[0]["lr"] * θ.grad
        return loss

    @torch.no_grad()
    def without_gradients(model, images, labels, optimizer):
        return parts()(model, images, labels, optimizer)

    def asked_twice(model, images, labels, optimizer):
        """One forward pass for the loss that is returned, another one for the gradient."""
        model.train()
        loss = F.cross_entropy(model(images), labels).item()
        parts()(model, images, labels, optimizer)
        return loss

    def zeros(optimizer):
        optimizer.zero_grad(set_to_none=False)

    def case(seed, model, optimizer, size=5):
        images, labels = zip(*_images(seed, *STEPS * [size]), strict=True)
        return Case(model, _Batches(*images), _Batches(*labels), optimizer)

    plain = _Network("a linear network")
    norm = _Network("one with batch norm", _norm, nn.ReLU)
    sgd = _Optimizer("SGD", torch.optim.SGD, lr=0.1)
    momentum = _Optimizer("SGD with momentum", torch.optim.SGD, lr=0.05, momentum=0.9)
    adam = _Optimizer("AdamW", torch.optim.AdamW, lr=0.02)
    signature = "train_step(model, images, labels, optimizer)"
    _check_call(candidate, signature)
    return compare(
        candidate,
        signature=signature,
        reference=parts(),
        use=use,
        outputs=[
            name
            for t in range(1, STEPS + 1)
            for name in (
                f"What step {t} did",
                f"The loss of step {t}",
                f"Whether the loss of step {t} holds its graph",
                f"After step {t}, network",
            )
        ],
        cases=[
            case(1, plain, sgd, size=1),
            case(2, plain, momentum),
            case(3, norm, sgd),
            case(4, _Network("one with dropout", nn.ReLU, _dropout), momentum),
            case(5, _Network("batch norm and dropout", _norm, _dropout), adam, size=7),
        ],
        mistakes=[
            Mistake(
                "gradients-not-zeroed",
                """You did not set the gradients to zero. backward() adds to what is in .grad
                already, so your step follows the sum of all gradients so far. Call
                optimizer.zero_grad() before backward().""",
                parts(order="forward backward step"),
            ),
            Mistake(
                "zeroed-after-the-step",
                """You set the gradients to zero at the end of the step. Then the first step still
                uses what somebody left there before. Call optimizer.zero_grad() before
                backward().""",
                parts(order="forward backward step zero"),
            ),
            Mistake(
                "zeroed-before-it-was-used",
                """You called zero_grad() between backward() and step(). The gradient is gone before
                the optimizer has seen it. The order is: zero_grad, backward, step.""",
                parts(order="forward backward zero step"),
                parts(order="forward backward zero step", zero=zeros),
                parts(order="zero forward backward zero step"),
            ),
            Mistake(
                "step-before-backward",
                """You called step() before backward(). The optimizer then moves along the gradients
                of the batch before, or not at all. The order is: zero_grad, backward, step.""",
                parts(order="zero forward step backward"),
                parts(order="zero forward step backward", zero=zeros),
                parts(order="forward zero step backward"),
                parts(order="forward step zero backward"),
                parts(order="forward step backward"),
                parts(order="forward step backward zero"),
            ),
            Mistake(
                "no-step",
                """You computed the gradients, and nothing moved. optimizer.step() changes the
                weights.""",
                parts(order="zero forward backward"),
            ),
            Mistake(
                "no-backward",
                """You never called loss.backward(), so there are no gradients for the optimizer.
                """,
                parts(order="zero forward step"),
                parts(order="zero forward"),
                parts(order="forward step"),
            ),
            Mistake(
                "left-in-eval-mode",
                """The network stayed in eval mode, as an evaluation had left it. Then dropout does
                nothing, and batch normalisation uses its stored statistics and never updates
                them. Call model.train() first.""",
                parts(before=lambda model: None),
                parts(before=lambda model: model.eval()),
            ),
            Mistake(
                "softmax-twice",
                """You applied softmax before the cross-entropy. F.cross_entropy takes logits and
                has the softmax inside; with two of them the gradients are small and the network
                learns slowly.""",
                parts(loss_of=lambda z, y: F.cross_entropy(z.softmax(dim=1), y)),
            ),
            Mistake(
                "softmax-forgotten",
                """You gave the logits to nll_loss as they are. It wants logarithms of
                probabilities; F.cross_entropy takes logits and does both steps.""",
                parts(loss_of=lambda z, y: F.nll_loss(z, y)),
                parts(loss_of=lambda z, y: F.nll_loss(z.softmax(dim=1), y)),
            ),
            Mistake(
                "squared-error",
                """You used the squared error. For classes the loss is the cross-entropy.""",
                parts(loss_of=lambda z, y: F.mse_loss(z, F.one_hot(y, 3).double())),
                parts(loss_of=lambda z, y: F.mse_loss(z.softmax(1), F.one_hot(y, 3).double())),
            ),
            Mistake(
                "sum-instead-of-mean",
                """You summed the losses of the images. Then the step grows with the batch size, and
                the learning rate would have to shrink with it. Use the mean.""",
                parts(loss_of=lambda z, y: F.cross_entropy(z, y, reduction="sum")),
            ),
            Mistake(
                "returned-the-sum",
                """The step is right, but you returned the loss times the batch size. Return the
                mean loss of the batch.""",
                parts(result=lambda loss, labels: loss.item() * len(labels)),
            ),
            Mistake(
                "returned-the-graph",
                """You returned the loss as a tensor that holds its graph. Whoever collects such
                losses keeps the memory of every step. loss.item() gives the number alone.""",
                parts(result=lambda loss, labels: loss),
            ),
            Mistake(
                "loss-after-the-step",
                """You returned the loss after the step, from another forward pass. Return the loss
                from which the gradients came: it costs nothing more.""",
                lambda model, images, labels, optimizer: (
                    parts()(model, images, labels, optimizer),
                    F.cross_entropy(model(images), labels).item(),
                )[1],
            ),
            Mistake(
                "two-forward-passes",
                """The images went through the network more than once. It costs time, batch
                normalisation counts the batch twice, and dropout draws other places. Keep the
                logits of the first pass in a variable.""",
                asked_twice,
                parts(order="forward zero forward backward step"),
            ),
            Mistake(
                "two-steps",
                """You took two steps with one gradient. One batch, one step.""",
                parts(order="zero forward backward step step"),
            ),
            Mistake(
                "another-optimizer",
                """You made a new optimizer, or moved the weights by hand. Momentum and the like are
                in the optimizer that you are given: call its step().""",
                anew,
                by_hand,
            ),
            Mistake(
                "no-gradients-recorded",
                """The forward pass ran under no_grad, so there is no way back from the loss to the
                weights. no_grad belongs to an evaluation.""",
                without_gradients,
            ),
        ],
    )


# --- a fair score -------------------------------------------------------------------------------


def check_evaluate(candidate: Callable) -> Passed:
    """Check ``evaluate(model, loader)``, which returns (loss, accuracy)."""

    def use(function, model, loader):
        """The answer, and what became of the network."""
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(0)
            network = model.build()
            answer = function(network, loader)
            return (
                answer,
                "on" if network.gradients_on else "off",
                "train" if network.training else "eval",
                network.numbers(),
                "on" if torch.is_grad_enabled() else "off",
            )

    def right(
        predict=lambda logits: logits.argmax(dim=1),
        result=lambda loss_sum, hits, count: (loss_sum / count, hits / count),
        score=F.cross_entropy,
        batches=lambda loader: loader,
    ):
        """An evaluation with one part replaced."""

        @torch.no_grad()
        def answer(model, loader):
            training = model.training
            model.eval()
            loss_sum, hits, count = 0.0, 0, 0
            for images, labels in batches(loader):
                logits = model(images)
                loss_sum += score(logits, labels).item() * len(labels)
                hits += (predict(logits) == labels).sum().item()
                count += len(labels)
            model.train(training)
            return result(loss_sum, hits, count)

        return answer

    def in_mode(before, after=None):
        """The evaluation with another mode before it, and afterwards."""

        def answer(model, loader):
            training = model.training
            before(model)
            found = batch_wise(mean_of_means=(False, False))(model, loader)
            (after or (lambda model: model.train(training)))(model)
            return found

        return answer

    def batch_wise(mean_of_means=(True, True), counted=len):
        """Sums or means over batches; no change of mode."""

        @torch.no_grad()
        def answer(model, loader):
            rows = []
            for images, labels in loader:
                logits = model(images)
                right = (logits.argmax(dim=1) == labels).double().mean()
                rows.append((F.cross_entropy(logits, labels).item(), right.item(), len(labels)))
            total = sum(n for *_, n in rows)
            means = [sum(row[i] for row in rows) / counted(rows) for i in (0, 1)]
            exact = [sum(row[i] * row[2] for row in rows) / total for i in (0, 1)]
            chosen = zip(mean_of_means, means, exact, strict=True)
            return tuple(mean if wrong else value for wrong, mean, value in chosen)

        return answer

    def in_eval(function):
        def answer(model, loader):
            training = model.training
            found = function(model.eval(), loader)
            model.train(training)
            return found

        return answer

    def with_gradients(model, loader):
        with torch.no_grad():  # its answer
            found = right()(model, loader)
        model.gradients_on = True
        return found

    def gradients_left_off(model, loader):
        found = right()(model, loader)
        torch.set_grad_enabled(False)
        return found

    def full_batches(loss_sum, hits, count):
        return loss_sum, hits

    def assumes_full_batches(model, loader):
        loss_sum, hits = right(result=full_batches)(model, loader)
        count = len(loader) * len(loader[0][1])
        return loss_sum / count, hits / count

    def losses_unweighted(model, loader):
        loss, accuracy = in_eval(batch_wise((True, False)))(model, loader)
        return loss * len(loader) / sum(len(labels) for _, labels in loader), accuracy

    def sums_of_losses(model, loader):
        loss, accuracy = right()(model, loader)
        return loss * sum(len(labels) for _, labels in loader) / len(loader), accuracy

    def nothing(model):
        pass

    def top_only(model):
        model.training = False

    def network(text, *layers, training):
        return _Network(text, *layers, training=training)

    signature = "evaluate(model, loader)"
    _check_call(candidate, signature)
    return compare(
        candidate,
        signature=signature,
        reference=right(),
        use=use,
        outputs=(
            "(loss, accuracy)",
            "Recording of gradients during the evaluation",
            "The mode of the network afterwards",
            "Afterwards, network",
            "Recording of gradients afterwards",
        ),
        cases=[
            Case(network("linear, in eval mode", training=False), _images(1, 4)),
            Case(network("linear, in train mode", training=True), _images(2, 5, 5)),
            Case(network("linear, in eval mode", training=False), _images(3, 6, 6, 2)),
            Case(network("batch norm, train mode", _norm, training=True), _images(4, 5, 5, 3)),
            Case(network("dropout, train mode", _dropout, training=True), _images(5, 3, 3, 1)),
            Case(network("batch norm, eval mode", _norm, training=False), _images(6, 7, 4)),
            Case(network("linear, in train mode", training=True), _images(7, 3, 3, 2)),
        ],
        mistakes=[
            Mistake(
                "evaluated-in-train-mode",
                """The network was in train mode. Dropout then throws answers away, and batch
                normalisation lets an answer depend on its neighbours and overwrites its stored
                statistics. Call model.eval() first; it reaches all layers, which
                model.training = False does not.""",
                in_mode(nothing),
                in_mode(lambda model: model.train()),
                in_mode(lambda model: model.train(), lambda model: model.train()),
                in_mode(top_only),
                batch_wise((True, True)),
            ),
            Mistake(
                "mean-of-batch-means",
                """You averaged over batches. The images of a short last batch then count more than
                the others. Sum over images, and divide once by the number of images.""",
                in_eval(batch_wise((True, True))),
                in_eval(batch_wise((True, False))),
                in_eval(batch_wise((False, True))),
            ),
            Mistake(
                "took-all-batches-for-full",
                """You took the number of images for batches · batch size. The last batch is often
                shorter: count the labels of each batch.""",
                assumes_full_batches,
            ),
            Mistake(
                "batch-loss-not-weighted",
                """You mixed means and sums in the loss. The loss of a batch is a mean over its
                images: multiply it by the size of the batch, sum, and divide by the number of all
                images.""",
                losses_unweighted,
                sums_of_losses,
            ),
            Mistake(
                "gradients-recorded",
                """The numbers are right, but gradients were recorded. That costs memory and time
                for nothing. Put the loop under torch.no_grad().""",
                with_gradients,
            ),
            Mistake(
                "gradients-left-off",
                """You switched gradients off for the whole program, and did not switch them on
                again. The next training step would fail. with torch.no_grad(): ends by itself.""",
                gradients_left_off,
            ),
            Mistake(
                "left-in-eval-mode",
                """The network was in train mode when it came, and you left it in eval mode. The
                training that goes on would then be without dropout. Remember model.training, and
                restore it: model.train(training).""",
                in_mode(lambda model: model.eval(), nothing),
            ),
            Mistake(
                "always-in-train-mode-afterwards",
                """You put the network into train mode at the end, although it came in eval mode.
                Remember model.training, and restore it: model.train(training).""",
                in_mode(lambda model: model.eval(), lambda model: model.train()),
            ),
            Mistake(
                "argmax-over-the-batch",
                """Your argmax runs along the batch. It looks for the image that is most like a
                class, and not for the class of an image: argmax(dim=1).""",
                right(predict=lambda logits: logits.argmax(dim=0)),
            ),
            Mistake(
                "argmax-of-everything",
                """Your argmax has no axis, so it gives one place in the whole batch. Each image has
                its own answer: argmax(dim=1).""",
                right(predict=lambda logits: logits.argmax()),
            ),
            Mistake(
                "compared-the-scores",
                """You compared the largest score with the label, and not its place. max(dim=1)
                gives both: the values and their indices.""",
                right(predict=lambda logits: logits.max(dim=1).values),
            ),
            Mistake(
                "softmax-twice",
                """You applied softmax before the cross-entropy, which has a softmax inside. Give it
                the logits.""",
                right(score=lambda z, y: F.cross_entropy(z.softmax(dim=1), y)),
            ),
            Mistake(
                "percent-instead-of-share",
                """You returned percent. The accuracy is a share, from 0 to 1.""",
                right(result=lambda loss, hits, count: (loss / count, 100 * hits / count)),
            ),
            Mistake(
                "count-instead-of-share",
                """You returned the number of right answers. Divide it by the number of images.""",
                right(result=lambda loss, hits, count: (loss / count, hits)),
                right(result=lambda loss, hits, count: (loss / count, float(hits))),
            ),
            Mistake(
                "swapped",
                """You returned (accuracy, loss). The task asks for (loss, accuracy).""",
                right(result=lambda loss, hits, count: (hits / count, loss / count)),
            ),
            Mistake(
                "only-one-batch",
                """You scored one batch. Does a return stand inside the loop, or does each batch
                overwrite the one before?""",
                right(batches=lambda loader: loader[:1]),
                right(batches=lambda loader: loader[-1:]),
            ),
        ],
    )


# --- who is taken for whom ----------------------------------------------------------------------


def check_confusion_matrix(candidate: Callable) -> Passed:
    """Check ``confusion_matrix(predictions, labels, classes)``: rows truth, columns answers."""

    def reference(predictions, labels, classes):
        return F.one_hot(labels, classes).T @ F.one_hot(predictions, classes)

    def flat(step):
        """Counting with one flat index, row · step + column."""

        def answer(predictions, labels, classes):
            index = labels * step(classes) + predictions
            return torch.bincount(index, minlength=classes**2).reshape(classes, classes)

        return answer

    def seen(predictions, labels, classes):
        return int(torch.cat([predictions, labels]).max()) + 1

    def sized(size):
        return lambda *given: reference(*given[:2], size(*given))

    def grown(predictions, labels, classes):
        return torch.bincount(labels * classes + predictions).reshape(classes, classes)

    def without_repeats(predictions, labels, classes):
        matrix = torch.zeros(classes, classes, dtype=torch.int64)
        matrix[labels, predictions] += 1
        return matrix

    def divided(by):
        def answer(*given):
            matrix = reference(*given)
            return matrix / by(matrix)

        return answer

    def off_diagonal(*given):
        matrix = reference(*given)
        return matrix - matrix.diag().diag()

    def diagonal(*given):
        return reference(*given).diag().diag()

    def case(seed, count, classes, never=()):
        generator = torch.Generator().manual_seed(seed)
        used = torch.tensor([c for c in range(classes) if c not in never])
        places = torch.randint(len(used), (2, count), generator=generator)
        return Case(used[places[0]], used[places[1]], classes)

    return compare(
        candidate,
        signature="confusion_matrix(predictions, labels, classes)",
        reference=reference,
        cases=[
            Case(torch.tensor([1, 1, 0]), torch.tensor([0, 1, 0]), 2),
            case(2, 1, 3),
            case(3, 20, 3),
            case(4, 12, 5, never=(2,)),
            case(5, 15, 6, never=(4, 5)),
            case(6, 300, 10),
            Case(torch.tensor([0, 2, 2, 1]), torch.tensor([1, 1, 2, 1]), 4),
            Case(torch.tensor([3, 3, 1, 0]), torch.tensor([3, 2, 1, 3]), 4),
        ],
        mistakes=[
            Mistake(
                "transposed",
                """Your matrix is transposed. Row: what the image is (labels). Column: what the
                network says (predictions).""",
                lambda predictions, labels, classes: reference(labels, predictions, classes),
            ),
            Mistake(
                "repeats-lost",
                """Pairs that occur several times were counted once. matrix[labels, predictions] +=
                1 reads all places first and then writes, so repeats overwrite each other. Count
                with a loop, with torch.bincount, or with index_put_(..., accumulate=True).""",
                without_repeats,
                lambda *given: without_repeats(*given).clamp(max=1),
                lambda *given: (reference(*given) > 0).long(),
            ),
            Mistake(
                "size-from-the-data",
                """You took the number of classes from the data. A class that does not occur in this
                batch still has its row and its column: the matrix is (classes, classes). (With
                torch.bincount, give minlength.)""",
                sized(seen),
                sized(lambda predictions, labels, classes: int(labels.max()) + 1),
                grown,
            ),
            Mistake(
                "wrong-flat-index",
                """Your flat index mixes up places. In row-major order the place (row, column) has
                the index row · classes + column, counted from 0.""",
                flat(lambda classes: classes - 1),
                flat(lambda classes: 1),
                flat(lambda classes: classes + 1),
            ),
            Mistake(
                "shares-instead-of-counts",
                """You divided the counts. Return the counts themselves, as whole numbers: shares
                can be made of counts, but not counts of shares.""",
                divided(lambda matrix: matrix.sum()),
                divided(lambda matrix: matrix.sum(dim=1, keepdim=True)),
                divided(lambda matrix: matrix.sum(dim=1, keepdim=True).clamp(min=1)),
                divided(lambda matrix: matrix.sum(dim=0)),
                divided(lambda matrix: matrix.sum(dim=0).clamp(min=1)),
            ),
            Mistake(
                "only-mistakes",
                """You counted the wrong answers alone. The right ones belong on the diagonal.""",
                off_diagonal,
            ),
            Mistake(
                "only-right-answers",
                """You counted the right answers alone. The wrong ones belong beside the diagonal,
                in the row of the truth.""",
                diagonal,
            ),
        ],
    )


# --- stop and go on -----------------------------------------------------------------------------

LAST_STEP = 6
SAVE = "save_state(model, optimizer, scheduler, generator, step)"
LOAD = "load_state(state, model, optimizer, scheduler, generator)"


class _Training:
    """How to make a tiny training: (model, optimizer, scheduler, generator)."""

    def __init__(self, text: str, optimizer: Callable, step_size: int = 100, dropout: float = 0.0):
        self.text, self.optimizer, self.step_size = text, optimizer, step_size
        self.dropout = dropout

    def __repr__(self) -> str:
        return self.text

    def build(self, seed: int) -> tuple:
        """As a new process makes it; it also sets torch's random state."""
        torch.manual_seed(seed)
        layers = [nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(self.dropout)]
        model = nn.Sequential(*layers, nn.Linear(4, 3)).double()
        optimizer = self.optimizer(model.parameters())
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, self.step_size, gamma=0.5)
        return model, optimizer, scheduler, torch.Generator().manual_seed(seed)


def _train(training: tuple, start: int) -> dict[str, Tensor]:
    """Train from step ``start`` to the last step; a copy of all numbers of the model."""
    return _steps(training, start, LAST_STEP)


def _steps(training: tuple, start: int, stop: int) -> dict[str, Tensor]:
    model, optimizer, scheduler, generator = training
    draw = draws(5)
    x, y = draw(24, 5), torch.arange(24) % 3  # (images, features), (images,)
    for _ in range(start, stop):
        batch = torch.randint(len(x), (6,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
        scheduler.step()
    return {name: value.clone() for name, value in model.state_dict().items()}


def _through_a_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def _uninterrupted() -> None:
    """Stands for the truth: the training that nobody stopped."""


def _stop_and_go_on(functions: Callable, training: _Training, stop_after: int) -> list:
    """The numbers of the model at the end of four trainings, which must all be the same."""
    with torch.random.fork_rng(devices=[]):
        first = training.build(seed=0)
        if functions is _uninterrupted:
            return 4 * [_train(first, 0)]
        save, load = functions()
        _steps(first, 0, stop_after)
        state = save(*first, stop_after)
        from_file = _through_a_file(state)
        went_on = _train(first, stop_after)
        second = training.build(seed=1)  # a new process: other weights, other random numbers
        restarted = _train(second, load(from_file, *second))
        back = _train(first, load(state, *first))
        back_again = _train(first, load(state, *first))
        return [restarted, went_on, back, back_again]


def _check_state(save: Callable, load: Callable, training: _Training) -> None:
    """The state is a dict that a file can hold, and load_state gives back the step."""
    with torch.random.fork_rng(devices=[]):
        try:
            first, second = training.build(seed=0), training.build(seed=1)
            state = save(*first, 0)
        except Exception:
            return  # the comparison that follows reports it, with its line
        if not isinstance(state, dict):
            raise CheckFailed(
                f"resume: save_state returned {type(state).__name__}; expected a dict with all "
                "that the next step depends on. Does it end with a return?",
                "returned-none" if state is None else "wrong-return",
            )
        try:
            state = _through_a_file(state)
        except Exception as error:
            refused = re.search(r"GLOBAL ([\w.]+)", str(error))
            reason = (
                f"It refuses a {refused[1]}." if refused else f"{type(error).__name__}: {error}"
            )
            raise CheckFailed(
                "resume: the state that save_state returned cannot go through a file.\n"
                "It is written with torch.save and read with torch.load(weights_only=True), which "
                "builds\ntensors, numbers, text, lists and dicts, and refuses whole objects: to "
                f"read one can run\nforeign code. {reason}\n"
                "Save what state_dict() and get_state() give.",
                "not-serialisable",
            ) from error
        try:
            step = load(state, *second)
        except Exception:
            return
        if step is None:
            raise CheckFailed(
                "resume: load_state returned None. The loop must know where to go on: return the "
                "step that was saved.",
                "returned-none",
            )
        try:
            operator.index(step)
        except TypeError as error:
            raise CheckFailed(
                f"resume: load_state returned a {type(step).__name__}; expected the step that was "
                "saved, a whole number.",
                "wrong-return",
            ) from error


_PARTS = {
    "optimizer": """The state of the optimizer is missing: momentum, or Adam's moments, begin again
        at zero. Save optimizer.state_dict(), and load it into the optimizer that you were given (a
        new one inside load_state helps nobody).""",
    "scheduler": """The state of the scheduler is missing: the schedule of the learning rate begins
        again from its start. Save scheduler.state_dict().""",
    "generator": """The state of the generator is missing: it draws the batches, so the training
        goes on with other images. Save generator.get_state().""",
    "random": """torch's own random state is missing: dropout draws from it. Save
        torch.get_rng_state().""",
}


def _pair(
    forgotten: tuple = (),
    copied: Callable = copy.deepcopy,
    loaded: Callable = copy.deepcopy,
    weights: Callable = lambda model: model.state_dict(),
    put_weights: Callable = lambda model, saved: model.load_state_dict(saved, strict=False),
    seeds: tuple = (),
    shift: Callable = lambda step: step,
    on_save: Callable = lambda model: None,
    on_load: Callable = lambda model: None,
) -> Callable:
    """save_state and load_state with something missing, or done in another way."""

    def save(model, optimizer, scheduler, generator, step):
        state = {
            "model": weights(model),
            "optimizer": optimizer.state_dict(),
            "scheduler": scheduler.state_dict(),
            "generator": generator.get_state(),
            "random": torch.get_rng_state(),
            "seeds": {"generator": generator.initial_seed(), "random": torch.initial_seed()},
            "step": step,
        }
        on_save(model)
        return copied(state)

    def load(state, model, optimizer, scheduler, generator):
        state = loaded(state)
        put_weights(model, state["model"])
        if "optimizer" not in forgotten:
            optimizer.load_state_dict(state["optimizer"])
        if "scheduler" not in forgotten:
            scheduler.load_state_dict(state["scheduler"])
        if "generator" in seeds:
            generator.manual_seed(state["seeds"]["generator"])
        elif "generator" not in forgotten:
            generator.set_state(state["generator"])
        if "random" in seeds:
            torch.manual_seed(state["seeds"]["random"])
        elif "random" not in forgotten:
            torch.set_rng_state(state["random"])
        on_load(model)
        return shift(state["step"])

    return lambda: (save, load)


def _as_it_is(state: Any) -> Any:
    return state


def _copies_of(*parts: str) -> Callable:
    """A copy of these parts of the state, with the others as they are."""
    return lambda state: {k: copy.deepcopy(v) if k in parts else v for k, v in state.items()}


def _forgetful() -> list[Mistake]:
    """Each set of forgotten parts, with and without copies; the first part gives the name."""
    found = []
    for count in range(1, 1 + len(_PARTS)):
        for forgotten in itertools.combinations(_PARTS, count):
            slug, start = f"{forgotten[0]}-forgotten", ""
            if count == len(_PARTS):
                slug, start = "only-the-weights", "You saved the weights, and nothing else. "
            # only the optimizer takes tensors of the state over without a copy
            loads = [_as_it_is] if "optimizer" in forgotten else [copy.deepcopy, _as_it_is]
            answers = [
                _pair(forgotten, copied, loaded)
                for copied in (copy.deepcopy, _as_it_is, _copies_of("model"))
                for loaded in loads
            ]
            advice = start + " ".join(_PARTS[part] for part in forgotten)
            found.append(Mistake(slug, advice, *answers))
    return found


def check_resume(save_state: Callable, load_state: Callable | None = None) -> Passed:
    """Check ``save_state`` and ``load_state``: a training that stopped ends at the same bits.

    Both functions may also be attributes of one object, which is then the only argument.
    """
    if load_state is None:
        both = save_state
        save_state = getattr(both, "save_state", both)
        load_state = getattr(both, "load_state", both)
    for function, signature in ((save_state, SAVE), (load_state, LOAD)):
        if not callable(function):
            raise CheckFailed(
                "resume: the check needs your two functions, without brackets: "
                "check_resume(save_state, load_state).",
                "not-a-function",
            )
        _check_call(function, signature, "resume: ")

    def sgd(params):
        return torch.optim.SGD(params, lr=0.2)

    def momentum(params):
        return torch.optim.SGD(params, lr=0.1, momentum=0.9)

    def adam(params):
        return torch.optim.AdamW(params, lr=0.05)

    trainings = [
        _Training("plain SGD", sgd),
        _Training("SGD with momentum", momentum),
        _Training("SGD, learning rate falls", sgd, step_size=3),
        _Training("SGD, with dropout", sgd, dropout=0.4),
        _Training("all of this, with AdamW", adam, step_size=2, dropout=0.3),
    ]
    _check_state(save_state, load_state, trainings[0])
    copies = [_as_it_is, *(_copies_of(part) for part in ("model", "optimizer", "scheduler"))]
    loads = [copy.deepcopy, _as_it_is]
    return compare(
        lambda: (save_state, load_state),
        signature="resume(training, stop_after)",
        reference=_uninterrupted,
        use=_stop_and_go_on,
        tolerance=0.0,  # bit for bit
        outputs=(
            "After a restart from the file, model",
            "After saving and going on, model",
            "After going back to the state in memory, model",
            "After going back to that state once more, model",
        ),
        cases=[Case(t, stop) for t, stop in zip(trainings, (3, 2, 2, 3, 3), strict=True)],
        mistakes=[
            *_forgetful(),
            Mistake(
                "references-instead-of-copies",
                """The file is right, but the state in memory changed while the training went on.
                state_dict() gives the tensors themselves, not copies, and the optimizer writes into
                them. Return copy.deepcopy(...) of the state.""",
                *[_pair(copied=copied, loaded=loaded) for copied in copies for loaded in loads],
            ),
            Mistake(
                "state-shared-after-loading",
                """Going back works once, and not a second time. optimizer.load_state_dict takes the
                tensors of the state over without a copy, and the next step writes into them. Load
                a copy: copy.deepcopy(state).""",
                _pair(loaded=_as_it_is),
                _pair(loaded=_copies_of("model")),
            ),
            Mistake(
                "statistics-forgotten",
                """You saved the parameters alone. Batch normalisation also has stored statistics,
                which are no parameters. model.state_dict() holds both.""",
                *[
                    _pair(
                        copied=copied, loaded=loaded, weights=lambda m: dict(m.named_parameters())
                    )
                    for copied in (copy.deepcopy, _as_it_is)
                    for loaded in loads
                ],
                _pair(weights=lambda m: {k: v.detach() for k, v in m.named_parameters()}),
            ),
            Mistake(
                "weights-not-loaded",
                """The weights did not arrive in the model. model.load_state_dict(...) writes them
                into it; to change the dict that model.state_dict() returned does nothing.""",
                _pair(put_weights=lambda model, saved: None),
                _pair(put_weights=lambda model, saved: None, copied=_as_it_is),
                _pair(put_weights=lambda model, saved: None, loaded=_as_it_is),
            ),
            Mistake(
                "seed-instead-of-state",
                """You saved the seed. A seed leads to the first random number, and the training
                needs the next one: get_state() and set_state(), torch.get_rng_state() and
                torch.set_rng_state().""",
                *[
                    _pair(forgotten, seeds=seeds, loaded=loaded)
                    for seeds in (("generator",), ("random",), ("generator", "random"))
                    for forgotten in ((), ("random",))
                    for loaded in loads
                ],
            ),
            Mistake(
                "step-lost",
                """The training began to count at 0 again, so it took more steps than were left.
                Save the step, and return it from load_state.""",
                _pair(shift=lambda step: 0),
                _pair(shift=lambda step: 0, loaded=_as_it_is),
            ),
            Mistake(
                "step-off-by-one",
                """The training took one step too few or too many. `step` counts the finished steps,
                so it is also the number of the next one when the first is step 0: return it as it
                is.""",
                _pair(shift=lambda step: step + 1),
                _pair(shift=lambda step: step - 1),
            ),
            Mistake(
                "switched-to-eval-mode",
                """You put the model into eval mode. Those who load a model to use it do so; a
                training that goes on would lose its dropout and the updates of its statistics.
                Leave the mode as it is.""",
                _pair(on_load=lambda model: model.eval()),
                _pair(on_save=lambda model: model.eval()),
                _pair(on_load=lambda model: model.eval(), on_save=lambda model: model.eval()),
            ),
        ],
    )
