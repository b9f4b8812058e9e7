"""Wrong answers to lab 05, training a CNN, and other correct ones."""

import copy
import io
import math

import torch
import torch.nn.functional as F
from torch import nn

from wrong_answers import Task

NORMALIZE, FLATTEN_SIZE, LABEL_SMOOTHING, TRAIN_STEP = Task(), Task(), Task(), Task()
EVALUATE, CONFUSION_MATRIX, RESUME = Task(), Task(), Task()
TASKS = {
    "normalize": NORMALIZE,
    "flatten_size": FLATTEN_SIZE,
    "label_smoothing": LABEL_SMOOTHING,
    "train_step": TRAIN_STEP,
    "evaluate": EVALUATE,
    "confusion_matrix": CONFUSION_MATRIX,
    "resume": RESUME,
}


# --- normalize ----------------------------------------------------------------------------------


@NORMALIZE.passes
def normalizes_with_views(images, mean, std):
    return (images.float() / 255 - mean.view(1, -1, 1, 1)) / std.view(1, -1, 1, 1)


@NORMALIZE.passes
def normalizes_in_one_product(images, mean, std):
    scale, shift = 1 / (255 * std), mean / std
    return images * scale[:, None, None] - shift[:, None, None]


@NORMALIZE.passes
def normalizes_channel_by_channel(images, mean, std):
    out = torch.empty(images.shape)
    for c in range(images.shape[1]):
        out[:, c] = (images[:, c] / 255 - mean[c]) / std[c]
    return out


@NORMALIZE.passes
def normalizes_with_channels_last_and_back(images, mean, std):
    x = images.permute(0, 2, 3, 1).float().div_(255).sub_(mean).div_(std)
    return x.permute(0, 3, 1, 2)


@NORMALIZE.fails_with("not-divided-by-255")
def forgets_255(images, mean, std):
    return (images - mean[:, None, None]) / std[:, None, None]


@NORMALIZE.fails_with("divided-by-256")
def divides_by_256(images, mean, std):
    return (images / 256 - mean[:, None, None]) / std[:, None, None]


@NORMALIZE.fails_with("divided-by-the-largest")
def scales_by_the_maximum(images, mean, std):
    x = images / images.max()
    return (x - mean[:, None, None]) / std[:, None, None]


@NORMALIZE.fails_with("statistics-of-the-batch")
def measures_the_batch(images, mean, std):
    x = images / 255
    return (x - x.mean((0, 2, 3), keepdim=True)) / x.std((0, 2, 3), keepdim=True)


@NORMALIZE.fails_with("statistics-of-the-batch")
def lets_batch_norm_measure(images, mean, std):
    return F.batch_norm(images / 255, None, None, training=True, eps=1e-12)


@NORMALIZE.fails_with("statistics-of-the-batch")
def measures_each_image(images, mean, std):
    x = images / 255
    return (x - x.mean((2, 3), keepdim=True)) / x.std((2, 3), keepdim=True)


@NORMALIZE.fails_with("statistics-of-the-batch")
def measures_everything(images, mean, std):
    x = images.float() / 255
    return (x - x.mean()) / x.std()


@NORMALIZE.fails_with("one-mean-for-all-channels")
def averages_the_statistics(images, mean, std):
    return (images / 255 - mean.mean()) / std.mean()


@NORMALIZE.fails_with("one-mean-for-all-channels")
def takes_the_first_channel_for_all(images, mean, std):
    return (images / 255 - mean[0]) / std[0]


@NORMALIZE.fails_with("fixed-half")
def scales_to_plus_minus_one(images, mean, std):
    return (images / 255 - 0.5) / 0.5


@NORMALIZE.fails_with("variance-for-std")
def divides_by_the_variance(images, mean, std):
    return (images / 255 - mean[:, None, None]) / std[:, None, None] ** 2


@NORMALIZE.fails_with("variance-for-std")
def takes_a_root_of_std(images, mean, std):
    return (images / 255 - mean[:, None, None]) / torch.sqrt(std[:, None, None])


@NORMALIZE.fails_with("statistics-along-another-axis")
def trusts_broadcasting(images, mean, std):
    return (images / 255 - mean) / std


@NORMALIZE.fails_with("statistics-along-another-axis")
def adds_one_axis_too_few(images, mean, std):
    return (images / 255 - mean[:, None]) / std[:, None]


@NORMALIZE.fails_with("statistics-along-another-axis")
def adds_one_axis_too_many(images, mean, std):
    return (images / 255 - mean[:, None, None, None]) / std[:, None, None, None]


@NORMALIZE.fails_with("returned-channels-last")
def forgets_to_move_the_channels_back(images, mean, std):
    return (images.permute(0, 2, 3, 1) / 255 - mean) / std


@NORMALIZE.fails_with("brackets-missing")
def forgets_the_brackets(images, mean, std):
    return images / 255 - mean[:, None, None] / std[:, None, None]


@NORMALIZE.fails_with("not-centred")
def only_scales(images, mean, std):
    return images / 255 / std[:, None, None]


@NORMALIZE.fails_with("not-divided-by-std")
def only_centres(images, mean, std):
    return images / 255 - mean[:, None, None]


@NORMALIZE.fails_with("upside-down")
def denormalizes(images, mean, std):
    return images / 255 * std[:, None, None] + mean[:, None, None]


@NORMALIZE.fails_with("upside-down")
def multiplies_by_std(images, mean, std):
    return (images / 255 - mean[:, None, None]) * std[:, None, None]


@NORMALIZE.fails_with("byte-arithmetic")
def subtracts_bytes(images, mean, std):
    mean_byte = (mean * 255).round().to(torch.uint8)
    return (images - mean_byte[:, None, None]) / (255 * std[:, None, None])


@NORMALIZE.fails_with("byte-arithmetic")
def divides_whole_numbers(images, mean, std):
    return (images // 255 - mean[:, None, None]) / std[:, None, None]


@NORMALIZE.fails_with("changed-input")
def scales_the_statistics_in_place(images, mean, std):
    mean *= 255
    std *= 255
    return (images - mean[:, None, None]) / std[:, None, None]


@NORMALIZE.fails_with("wrong-dtype")
def computes_in_double(images, mean, std):
    return (images.double() / 255 - mean[:, None, None]) / std[:, None, None]


@NORMALIZE.fails_with("raised-error")
def writes_floats_into_bytes(images, mean, std):
    images /= 255
    return (images - mean[:, None, None]) / std[:, None, None]


@NORMALIZE.fails_with("wrong-type")
def returns_numpy(images, mean, std):
    return ((images / 255 - mean[:, None, None]) / std[:, None, None]).numpy()


# --- flatten size -------------------------------------------------------------------------------


@FLATTEN_SIZE.passes
def follows_both_sides(image_shape, layers):
    channels, *sides = image_shape
    for layer in layers:
        if layer[0] == "conv":
            channels = layer[1]
        kernel_size, stride, padding = layer[-3:]
        sides = [(side + 2 * padding - kernel_size) // stride + 1 for side in sides]
    return channels * math.prod(sides)


@FLATTEN_SIZE.passes
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
def rounds_each_side_at_the_end(image_shape, layers):
    c, h, w = image_shape
    for layer in layers:
        c = layer[1] if layer[0] == "conv" else c
        k, s, p = layer[-3:]
        h, w = (h + 2 * p - k) / s + 1, (w + 2 * p - k) / s + 1
    return c * math.floor(h) * math.floor(w)


def walk(conv, pool):
    """The walk as most learners write it, with their formulas for one side."""

    def flatten_size(image_shape, layers):
        channels, height, width = image_shape
        for layer in layers:
            if layer[0] == "conv":
                _, channels, k, s, p = layer
                height, width = conv(height, k, s, p), conv(width, k, s, p)
            else:
                _, k, s, p = layer
                height, width = pool(height, k, s, p), pool(width, k, s, p)
        return channels * height * width

    return flatten_size


def side(n, k, s, p):
    return (n + 2 * p - k) // s + 1


@FLATTEN_SIZE.fails_with("padding-ignored")
def gets_the_number_of_the_article(image_shape, layers):
    return walk(lambda n, k, s, p: (n - k) // s + 1, lambda n, k, s, p: (n - k) // s + 1)(
        image_shape, layers
    )


@FLATTEN_SIZE.fails_with("padding-ignored")
def forgets_that_pooling_can_be_padded(image_shape, layers):
    return walk(side, lambda n, k, s, p: (n - k) // s + 1)(image_shape, layers)


@FLATTEN_SIZE.fails_with("padding-on-one-side")
def pads_one_side(image_shape, layers):
    return walk(*2 * [lambda n, k, s, p: (n + p - k) // s + 1])(image_shape, layers)


@FLATTEN_SIZE.fails_with("padding-on-one-side")
def pads_one_side_of_convolutions(image_shape, layers):
    return walk(lambda n, k, s, p: (n + p - k) // s + 1, side)(image_shape, layers)


@FLATTEN_SIZE.fails_with("ceil-instead-of-floor")
def rounds_up(image_shape, layers):
    return walk(*2 * [lambda n, k, s, p: math.ceil((n + 2 * p - k) / s) + 1])(image_shape, layers)


@FLATTEN_SIZE.fails_with("ceil-instead-of-floor")
def rounds_poolings_up(image_shape, layers):
    return walk(side, lambda n, k, s, p: -(-(n + 2 * p - k) // s) + 1)(image_shape, layers)


@FLATTEN_SIZE.fails_with("rounded-at-the-end")
def rounds_once(image_shape, layers):
    c, h, w = image_shape
    for layer in layers:
        c = layer[1] if layer[0] == "conv" else c
        k, s, p = layer[-3:]
        h, w = (h + 2 * p - k) / s + 1, (w + 2 * p - k) / s + 1
    return int(c * h * w)


@FLATTEN_SIZE.fails_with("float-instead-of-int")
def returns_a_float(image_shape, layers):
    return walk(side, side)(image_shape, layers) / 1


@FLATTEN_SIZE.fails_with("float-instead-of-int")
def divides_with_a_slash(image_shape, layers):
    c, h, w = image_shape
    for layer in layers:
        c = layer[1] if layer[0] == "conv" else c
        k, s, p = layer[-3:]
        h, w = (h + 2 * p - k) / s + 1, (w + 2 * p - k) / s + 1
    return c * h * w * 1.0


@FLATTEN_SIZE.fails_with("plus-one-missing")
def counts_steps(image_shape, layers):
    return walk(*2 * [lambda n, k, s, p: (n + 2 * p - k) // s])(image_shape, layers)


@FLATTEN_SIZE.fails_with("stride-ignored")
def moves_by_one(image_shape, layers):
    return walk(*2 * [lambda n, k, s, p: n + 2 * p - k + 1])(image_shape, layers)


@FLATTEN_SIZE.fails_with("stride-ignored")
def convolves_with_stride_one(image_shape, layers):
    return walk(lambda n, k, s, p: n + 2 * p - k + 1, side)(image_shape, layers)


@FLATTEN_SIZE.fails_with("pooling-not-counted")
def skips_poolings(image_shape, layers):
    return walk(side, lambda n, k, s, p: n)(image_shape, layers)


@FLATTEN_SIZE.fails_with("pooling-as-plain-division")
def halves_in_each_pooling(image_shape, layers):
    return walk(side, lambda n, k, s, p: n // 2)(image_shape, layers)


@FLATTEN_SIZE.fails_with("pooling-as-plain-division")
def divides_by_the_kernel(image_shape, layers):
    return walk(side, lambda n, k, s, p: n // k)(image_shape, layers)


@FLATTEN_SIZE.fails_with("convolution-keeps-the-size")
def thinks_that_convolutions_keep_the_size(image_shape, layers):
    return walk(lambda n, k, s, p: n, side)(image_shape, layers)


@FLATTEN_SIZE.fails_with("channels-left-out")
def forgets_the_channels(image_shape, layers):
    height, width = image_shape[1:]
    for layer in layers:
        height, width = side(height, *layer[-3:]), side(width, *layer[-3:])
    return height * width


@FLATTEN_SIZE.fails_with("channels-of-the-image")
def keeps_the_colours(image_shape, layers):
    channels, height, width = image_shape
    for layer in layers:
        height, width = side(height, *layer[-3:]), side(width, *layer[-3:])
    return channels * height * width


@FLATTEN_SIZE.fails_with("channels-pile-up")
def multiplies_the_channels(image_shape, layers):
    channels, height, width = image_shape
    for layer in layers:
        if layer[0] == "conv":
            channels *= layer[1]
        height, width = side(height, *layer[-3:]), side(width, *layer[-3:])
    return channels * height * width


@FLATTEN_SIZE.fails_with("took-the-image-for-square")
def squares_the_height(image_shape, layers):
    channels, size, _ = image_shape
    for layer in layers:
        channels = layer[1] if layer[0] == "conv" else channels
        size = side(size, *layer[-3:])
    return channels * size * size


@FLATTEN_SIZE.fails_with("shape-instead-of-size")
def returns_the_shape(image_shape, layers):
    channels, height, width = image_shape
    for layer in layers:
        channels = layer[1] if layer[0] == "conv" else channels
        height, width = side(height, *layer[-3:]), side(width, *layer[-3:])
    return channels, height, width


# --- label smoothing ----------------------------------------------------------------------------


@LABEL_SMOOTHING.passes
def mixes_two_losses(logits, labels, epsilon):
    log_p = F.log_softmax(logits, dim=1)
    truth = -log_p.gather(1, labels[:, None])[:, 0]
    everywhere = -log_p.mean(dim=1)
    return ((1 - epsilon) * truth + epsilon * everywhere).mean()


@LABEL_SMOOTHING.passes
def gives_probabilities_to_cross_entropy(logits, labels, epsilon):
    q = torch.full_like(logits, epsilon / logits.shape[1]).detach()
    q[torch.arange(len(labels)), labels] += 1 - epsilon
    return F.cross_entropy(logits, q)


@LABEL_SMOOTHING.passes
def smooths_in_a_loop(logits, labels, epsilon):
    total = 0
    for z, y in zip(logits, labels, strict=True):
        log_p = z - z.logsumexp(0)
        total = total - (1 - epsilon) * log_p[y] - epsilon * log_p.sum() / len(z)
    return total / len(logits)


@LABEL_SMOOTHING.fails_with("spread-over-the-others")
def shares_among_the_others(logits, labels, epsilon):
    k = logits.shape[1]
    q = torch.full_like(logits, epsilon / (k - 1)).detach()
    q[torch.arange(len(labels)), labels] = 1 - epsilon
    return -(q * logits.log_softmax(1)).sum(1).mean()


@LABEL_SMOOTHING.fails_with("truth-without-its-share")
def forgets_the_share_of_the_truth(logits, labels, epsilon):
    q = torch.full_like(logits, epsilon / logits.shape[1]).detach()
    q[torch.arange(len(labels)), labels] = 1 - epsilon
    return -(q * logits.log_softmax(1)).sum(1).mean()


@LABEL_SMOOTHING.fails_with("too-much-in-all")
def adds_without_taking(logits, labels, epsilon):
    q = F.one_hot(labels, logits.shape[1]) + epsilon / logits.shape[1]
    return -(q * logits.log_softmax(1)).sum(1).mean()


@LABEL_SMOOTHING.fails_with("too-much-in-all")
def leaves_the_truth_at_one(logits, labels, epsilon):
    k = logits.shape[1]
    q = F.one_hot(labels, k).double().clamp(min=epsilon / (k - 1))
    return -(q * logits.log_softmax(1)).sum(1).mean()


@LABEL_SMOOTHING.fails_with("not-divided-by-classes")
def gives_epsilon_to_each(logits, labels, epsilon):
    q = (1 - epsilon) * F.one_hot(labels, logits.shape[1]) + epsilon
    return -(q * logits.log_softmax(1)).sum(1).mean()


@LABEL_SMOOTHING.fails_with("not-divided-by-classes")
def sums_where_a_mean_belongs(logits, labels, epsilon):
    uniform = -logits.log_softmax(1).sum(1).mean()
    return (1 - epsilon) * F.cross_entropy(logits, labels) + epsilon * uniform


@LABEL_SMOOTHING.fails_with("shares-swapped")
def swaps_the_shares(logits, labels, epsilon):
    uniform = -logits.log_softmax(1).mean(1).mean()
    return epsilon * F.cross_entropy(logits, labels) + (1 - epsilon) * uniform


@LABEL_SMOOTHING.fails_with("not-smoothed")
def ignores_epsilon(logits, labels, epsilon):
    return F.cross_entropy(logits, labels)


@LABEL_SMOOTHING.fails_with("only-shrunk")
def shrinks_the_loss(logits, labels, epsilon):
    return (1 - epsilon) * F.cross_entropy(logits, labels)


@LABEL_SMOOTHING.fails_with("smoothed-the-probabilities")
def smooths_the_answer(logits, labels, epsilon):
    p = (1 - epsilon) * logits.softmax(1) + epsilon / logits.shape[1]
    return -p[torch.arange(len(labels)), labels].log().mean()


@LABEL_SMOOTHING.fails_with("softmax-twice")
def applies_softmax_first(logits, labels, epsilon):
    q = (1 - epsilon) * F.one_hot(labels, logits.shape[1]) + epsilon / logits.shape[1]
    return F.cross_entropy(logits.softmax(dim=1), q)


@LABEL_SMOOTHING.fails_with("softmax-over-the-batch")
def takes_the_wrong_axis(logits, labels, epsilon):
    q = (1 - epsilon) * F.one_hot(labels, logits.shape[1]) + epsilon / logits.shape[1]
    return -(q * logits.log_softmax(dim=0)).sum(1).mean()


@LABEL_SMOOTHING.fails_with("no-logarithm")
def forgets_the_logarithm(logits, labels, epsilon):
    q = (1 - epsilon) * F.one_hot(labels, logits.shape[1]) + epsilon / logits.shape[1]
    return -(q * logits.softmax(1)).sum(1).mean()


@LABEL_SMOOTHING.fails_with("no-softmax")
def takes_logits_for_logarithms(logits, labels, epsilon):
    q = (1 - epsilon) * F.one_hot(labels, logits.shape[1]) + epsilon / logits.shape[1]
    return -(q * logits).sum(1).mean()


@LABEL_SMOOTHING.fails_with("sign-lost")
def forgets_the_minus(logits, labels, epsilon):
    q = (1 - epsilon) * F.one_hot(labels, logits.shape[1]) + epsilon / logits.shape[1]
    return (q * logits.log_softmax(1)).sum(1).mean()


@LABEL_SMOOTHING.fails_with("mean-over-classes")
def averages_over_everything(logits, labels, epsilon):
    q = (1 - epsilon) * F.one_hot(labels, logits.shape[1]) + epsilon / logits.shape[1]
    return -(q * logits.log_softmax(1)).mean()


@LABEL_SMOOTHING.fails_with("sum-over-the-batch")
def sums_over_everything(logits, labels, epsilon):
    q = (1 - epsilon) * F.one_hot(labels, logits.shape[1]) + epsilon / logits.shape[1]
    return -(q * logits.log_softmax(1)).sum()


@LABEL_SMOOTHING.fails_with("one-loss-for-each-image")
def forgets_the_mean(logits, labels, epsilon):
    q = (1 - epsilon) * F.one_hot(labels, logits.shape[1]) + epsilon / logits.shape[1]
    return -(q * logits.log_softmax(1)).sum(1)


@LABEL_SMOOTHING.fails_with("overflow")
def takes_the_logarithm_of_softmax(logits, labels, epsilon):
    q = (1 - epsilon) * F.one_hot(labels, logits.shape[1]) + epsilon / logits.shape[1]
    return -(q * torch.log(torch.softmax(logits, dim=1))).sum(1).mean()


@LABEL_SMOOTHING.fails_with("overflow")
def writes_softmax_out(logits, labels, epsilon):
    q = (1 - epsilon) * F.one_hot(labels, logits.shape[1]) + epsilon / logits.shape[1]
    p = torch.exp(logits) / torch.exp(logits).sum(dim=1, keepdim=True)
    return -(q * torch.log(p)).sum(1).mean()


@LABEL_SMOOTHING.fails_with("no-gradient")
def returns_a_number(logits, labels, epsilon):
    return F.cross_entropy(logits, labels, label_smoothing=epsilon).item()


@LABEL_SMOOTHING.fails_with("no-gradient")
@torch.no_grad()
def smooths_without_gradients(logits, labels, epsilon):
    return F.cross_entropy(logits, labels, label_smoothing=epsilon)


@LABEL_SMOOTHING.fails_with("wrong-signature")
def takes_no_epsilon(logits, labels):
    return F.cross_entropy(logits, labels, label_smoothing=0.1)


# --- a training step ----------------------------------------------------------------------------


@TRAIN_STEP.passes
def zeroes_after_the_forward_pass(model, images, labels, optimizer):
    model.train()
    loss = F.cross_entropy(model(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


@TRAIN_STEP.passes
def zeroes_by_the_model(model, images, labels, optimizer):
    model.train()
    model.zero_grad(set_to_none=False)
    logits = model.forward(images)
    loss = F.nll_loss(F.log_softmax(logits, dim=1), labels)
    loss.backward()
    optimizer.step()
    model.zero_grad()
    return loss.detach().numpy()


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


@TRAIN_STEP.fails_with("gradients-not-zeroed")
def forgets_zero_grad(model, images, labels, optimizer):
    model.train()
    loss = F.cross_entropy(model(images), labels)
    loss.backward()
    optimizer.step()
    return loss.item()


@TRAIN_STEP.fails_with("zeroed-after-the-step")
def zeroes_at_the_end(model, images, labels, optimizer):
    model.train()
    loss = F.cross_entropy(model(images), labels)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


@TRAIN_STEP.fails_with("zeroed-before-it-was-used")
def zeroes_between(model, images, labels, optimizer):
    model.train()
    loss = F.cross_entropy(model(images), labels)
    loss.backward()
    optimizer.zero_grad()
    optimizer.step()
    return loss.item()


@TRAIN_STEP.fails_with("zeroed-before-it-was-used")
def zeroes_between_with_real_zeros(model, images, labels, optimizer):
    model.train()
    loss = F.cross_entropy(model(images), labels)
    loss.backward()
    for p in model.parameters():
        p.grad.zero_()
    optimizer.step()
    return loss.item()


@TRAIN_STEP.fails_with("step-before-backward")
def steps_too_early(model, images, labels, optimizer):
    model.train()
    optimizer.zero_grad()
    loss = F.cross_entropy(model(images), labels)
    optimizer.step()
    loss.backward()
    return loss.item()


@TRAIN_STEP.fails_with("step-before-backward")
def steps_with_the_gradients_of_before(model, images, labels, optimizer):
    model.train()
    loss = F.cross_entropy(model(images), labels)
    optimizer.step()
    optimizer.zero_grad()
    loss.backward()
    return loss.item()


@TRAIN_STEP.fails_with("no-step")
def forgets_the_step(model, images, labels, optimizer):
    model.train()
    optimizer.zero_grad()
    loss = F.cross_entropy(model(images), labels)
    loss.backward()
    return loss.item()


@TRAIN_STEP.fails_with("no-backward")
def forgets_backward(model, images, labels, optimizer):
    model.train()
    optimizer.zero_grad()
    loss = F.cross_entropy(model(images), labels)
    optimizer.step()
    return loss.item()


@TRAIN_STEP.fails_with("left-in-eval-mode")
def forgets_train_mode(model, images, labels, optimizer):
    optimizer.zero_grad()
    loss = F.cross_entropy(model(images), labels)
    loss.backward()
    optimizer.step()
    return loss.item()


@TRAIN_STEP.fails_with("left-in-eval-mode")
def switches_only_the_outer_module(model, images, labels, optimizer):
    model.training = True
    optimizer.zero_grad()
    loss = F.cross_entropy(model(images), labels)
    loss.backward()
    optimizer.step()
    return loss.item()


@TRAIN_STEP.fails_with("softmax-twice")
def applies_softmax_before_the_loss(model, images, labels, optimizer):
    model.train()
    optimizer.zero_grad()
    loss = F.cross_entropy(F.softmax(model(images), dim=1), labels)
    loss.backward()
    optimizer.step()
    return loss.item()


@TRAIN_STEP.fails_with("softmax-forgotten")
def gives_logits_to_nll(model, images, labels, optimizer):
    model.train()
    optimizer.zero_grad()
    loss = F.nll_loss(model(images), labels)
    loss.backward()
    optimizer.step()
    return loss.item()


@TRAIN_STEP.fails_with("squared-error")
def uses_the_squared_error(model, images, labels, optimizer):
    model.train()
    optimizer.zero_grad()
    logits = model(images)
    loss = ((logits - F.one_hot(labels, logits.shape[1])) ** 2).mean()
    loss.backward()
    optimizer.step()
    return loss.item()


@TRAIN_STEP.fails_with("sum-instead-of-mean")
def sums_the_losses(model, images, labels, optimizer):
    model.train()
    optimizer.zero_grad()
    loss = F.cross_entropy(model(images), labels, reduction="sum")
    loss.backward()
    optimizer.step()
    return loss.item()


@TRAIN_STEP.fails_with("returned-the-sum")
def returns_loss_times_batch(model, images, labels, optimizer):
    model.train()
    optimizer.zero_grad()
    loss = F.cross_entropy(model(images), labels)
    loss.backward()
    optimizer.step()
    return loss.item() * images.shape[0]


@TRAIN_STEP.fails_with("returned-the-graph")
def returns_the_loss_tensor(model, images, labels, optimizer):
    model.train()
    optimizer.zero_grad()
    loss = F.cross_entropy(model(images), labels)
    loss.backward()
    optimizer.step()
    return loss


@TRAIN_STEP.fails_with("loss-after-the-step")
def measures_the_loss_again(model, images, labels, optimizer):
    model.train()
    optimizer.zero_grad()
    F.cross_entropy(model(images), labels).backward()
    optimizer.step()
    return F.cross_entropy(model(images), labels).item()


@TRAIN_STEP.fails_with("two-forward-passes")
def runs_the_model_twice(model, images, labels, optimizer):
    model.train()
    loss = F.cross_entropy(model(images), labels).item()
    optimizer.zero_grad()
    F.cross_entropy(model(images), labels).backward()
    optimizer.step()
    return loss


@TRAIN_STEP.fails_with("two-steps")
def takes_two_steps(model, images, labels, optimizer):
    model.train()
    optimizer.zero_grad()
    loss = F.cross_entropy(model(images), labels)
    loss.backward()
    optimizer.step()
    optimizer.step()
    return loss.item()


@TRAIN_STEP.fails_with("another-optimizer")
def moves_the_weights_by_hand(model, images, labels, optimizer):
    model.train()
    optimizer.zero_grad()
    loss = F.cross_entropy(model(images), labels)
    loss.backward()
    for p in model.parameters():
        p.data -= optimizer.param_groups[0]["lr"] * p.grad
    return loss.item()


@TRAIN_STEP.fails_with("another-optimizer")
def makes_its_own_optimizer(model, images, labels, optimizer):
    optimizer = torch.optim.SGD(model.parameters(), lr=optimizer.param_groups[0]["lr"])
    model.train()
    optimizer.zero_grad()
    loss = F.cross_entropy(model(images), labels)
    loss.backward()
    optimizer.step()
    return loss.item()


@TRAIN_STEP.fails_with("no-gradients-recorded")
def trains_without_gradients(model, images, labels, optimizer):
    model.train()
    optimizer.zero_grad()
    with torch.no_grad():
        loss = F.cross_entropy(model(images), labels)
    loss.backward()
    optimizer.step()
    return loss.item()


@TRAIN_STEP.fails_with("returned-none")
def forgets_to_return_the_loss(model, images, labels, optimizer):
    model.train()
    optimizer.zero_grad()
    F.cross_entropy(model(images), labels).backward()
    optimizer.step()


@TRAIN_STEP.fails_with("raised-error")
def swaps_the_arguments_of_the_loss(model, images, labels, optimizer):
    model.train()
    optimizer.zero_grad()
    loss = F.cross_entropy(labels, model(images))
    loss.backward()
    optimizer.step()
    return loss.item()


@TRAIN_STEP.fails_with("wrong-signature")
def takes_a_batch_as_one(model, batch, optimizer):
    images, labels = batch
    return zeroes_after_the_forward_pass(model, images, labels, optimizer)


# --- evaluation ---------------------------------------------------------------------------------


@EVALUATE.passes
def evaluates_all_logits_at_once(model, loader):
    training = model.training
    model.eval()
    with torch.inference_mode():
        logits = torch.cat([model(images) for images, _ in loader])
    labels = torch.cat([labels for _, labels in loader])
    model.train(training)
    accuracy = (logits.argmax(dim=1) == labels).double().mean()
    return F.cross_entropy(logits, labels).item(), accuracy.item()


@EVALUATE.passes
@torch.no_grad()
def evaluates_with_sums(model, loader):
    modes = {module: module.training for module in model.modules()}
    model.eval()
    loss, right, count = 0.0, 0, 0
    for images, labels in loader:
        logits = model(images)
        loss += F.cross_entropy(logits, labels, reduction="sum")
        right += (logits.max(dim=1).indices == labels).sum()
        count += labels.numel()
    for module, mode in modes.items():
        module.training = mode
    return [loss / count, right / count]


@EVALUATE.passes
def evaluates_image_by_image(model, loader):
    training, losses, hits = model.training, [], []
    model.eval()
    for images, labels in loader:
        with torch.no_grad():
            for logits, label in zip(model(images), labels, strict=True):
                losses.append(-logits.log_softmax(0)[label].item())
                hits.append(logits.argmax().item() == label.item())
    if training:
        model.train()
    return sum(losses) / len(losses), sum(hits) / len(hits)


@EVALUATE.fails_with("evaluated-in-train-mode")
@torch.no_grad()
def forgets_eval_mode(model, loader):
    loss, right, count = 0.0, 0, 0
    for images, labels in loader:
        logits = model(images)
        loss += F.cross_entropy(logits, labels).item() * len(labels)
        right += (logits.argmax(1) == labels).sum().item()
        count += len(labels)
    return loss / count, right / count


@EVALUATE.fails_with("evaluated-in-train-mode")
@torch.no_grad()
def switches_the_outer_module_alone(model, loader):
    training, model.training = model.training, False
    loss, right, count = 0.0, 0, 0
    for images, labels in loader:
        logits = model(images)
        loss += F.cross_entropy(logits, labels).item() * len(labels)
        right += (logits.argmax(1) == labels).sum().item()
        count += len(labels)
    model.training = training
    return loss / count, right / count


@EVALUATE.fails_with("mean-of-batch-means")
@torch.no_grad()
def averages_the_batches(model, loader):
    training = model.training
    model.eval()
    losses, accuracies = [], []
    for images, labels in loader:
        logits = model(images)
        losses.append(F.cross_entropy(logits, labels).item())
        accuracies.append((logits.argmax(1) == labels).float().mean().item())
    model.train(training)
    return sum(losses) / len(losses), sum(accuracies) / len(accuracies)


@EVALUATE.fails_with("mean-of-batch-means")
@torch.no_grad()
def averages_the_losses_of_batches(model, loader):
    training = model.training
    model.eval()
    loss, right, count = 0.0, 0, 0
    for images, labels in loader:
        logits = model(images)
        loss += F.cross_entropy(logits, labels).item() / len(loader)
        right += (logits.argmax(1) == labels).sum().item()
        count += len(labels)
    model.train(training)
    return loss, right / count


@EVALUATE.fails_with("took-all-batches-for-full")
@torch.no_grad()
def counts_full_batches(model, loader):
    training = model.training
    model.eval()
    loss, right, batch_size = 0.0, 0, len(loader[0][0])
    for images, labels in loader:
        logits = model(images)
        loss += F.cross_entropy(logits, labels).item() * len(labels)
        right += (logits.argmax(1) == labels).sum().item()
    model.train(training)
    return loss / (len(loader) * batch_size), right / (len(loader) * batch_size)


@EVALUATE.fails_with("batch-loss-not-weighted")
@torch.no_grad()
def divides_means_by_images(model, loader):
    training = model.training
    model.eval()
    loss, right, count = 0.0, 0, 0
    for images, labels in loader:
        logits = model(images)
        loss += F.cross_entropy(logits, labels).item()
        right += (logits.argmax(1) == labels).sum().item()
        count += len(labels)
    model.train(training)
    return loss / count, right / count


@EVALUATE.fails_with("batch-loss-not-weighted")
@torch.no_grad()
def divides_sums_by_batches(model, loader):
    training = model.training
    model.eval()
    loss, right, count = 0.0, 0, 0
    for images, labels in loader:
        logits = model(images)
        loss += F.cross_entropy(logits, labels, reduction="sum").item()
        right += (logits.argmax(1) == labels).sum().item()
        count += len(labels)
    model.train(training)
    return loss / len(loader), right / count


@EVALUATE.fails_with("gradients-recorded")
def forgets_no_grad(model, loader):
    training = model.training
    model.eval()
    loss, right, count = 0.0, 0, 0
    for images, labels in loader:
        logits = model(images)
        loss += F.cross_entropy(logits, labels).item() * len(labels)
        right += (logits.argmax(1) == labels).sum().item()
        count += len(labels)
    model.train(training)
    return loss / count, right / count


@EVALUATE.fails_with("gradients-left-off")
def switches_gradients_off_for_good(model, loader):
    torch.set_grad_enabled(False)
    return evaluates_all_logits_at_once(model, loader)


@EVALUATE.fails_with("left-in-eval-mode")
@torch.no_grad()
def leaves_eval_mode_on(model, loader):
    model.eval()
    loss, right, count = 0.0, 0, 0
    for images, labels in loader:
        logits = model(images)
        loss += F.cross_entropy(logits, labels).item() * len(labels)
        right += (logits.argmax(1) == labels).sum().item()
        count += len(labels)
    return loss / count, right / count


@EVALUATE.fails_with("always-in-train-mode-afterwards")
@torch.no_grad()
def ends_in_train_mode(model, loader):
    model.eval()
    loss, right, count = 0.0, 0, 0
    for images, labels in loader:
        logits = model(images)
        loss += F.cross_entropy(logits, labels).item() * len(labels)
        right += (logits.argmax(1) == labels).sum().item()
        count += len(labels)
    model.train()
    return loss / count, right / count


def evaluation(predict, result, loss=F.cross_entropy):
    """An evaluation that is right but for one of these."""

    @torch.no_grad()
    def evaluate(model, loader):
        training = model.training
        model.eval()
        loss_sum, right, count = 0.0, 0, 0
        for images, labels in loader:
            logits = model(images)
            loss_sum += loss(logits, labels).item() * len(labels)
            right += (predict(logits) == labels).sum().item()
            count += len(labels)
        model.train(training)
        return result(loss_sum, right, count)

    return evaluate


def best(logits):
    return logits.argmax(dim=1)


def means(loss, right, count):
    return loss / count, right / count


@EVALUATE.fails_with("argmax-over-the-batch")
def takes_the_argmax_of_columns(model, loader):
    return evaluation(lambda logits: logits.argmax(dim=0), means)(model, loader)


@EVALUATE.fails_with("argmax-of-everything")
def takes_one_argmax(model, loader):
    return evaluation(lambda logits: logits.argmax(), means)(model, loader)


@EVALUATE.fails_with("compared-the-scores")
def takes_the_values_of_max(model, loader):
    return evaluation(lambda logits: torch.max(logits, 1)[0], means)(model, loader)


@EVALUATE.fails_with("softmax-twice")
def scores_probabilities(model, loader):
    def loss(logits, labels):
        return nn.CrossEntropyLoss()(nn.Softmax(dim=1)(logits), labels)

    return evaluation(best, means, loss)(model, loader)


@EVALUATE.fails_with("percent-instead-of-share")
def returns_percent(model, loader):
    return evaluation(best, lambda loss, right, count: (loss / count, right / count * 100))(
        model, loader
    )


@EVALUATE.fails_with("count-instead-of-share")
def returns_the_count(model, loader):
    return evaluation(best, lambda loss, right, count: (loss / count, right))(model, loader)


@EVALUATE.fails_with("swapped")
def returns_the_accuracy_first(model, loader):
    return evaluation(best, lambda *sums: means(*sums)[::-1])(model, loader)


@EVALUATE.fails_with("only-one-batch")
@torch.no_grad()
def returns_inside_the_loop(model, loader):
    training = model.training
    model.eval()
    for images, labels in loader:
        logits = model(images)
        model.train(training)
        right = (logits.argmax(1) == labels).double().mean()
        return F.cross_entropy(logits, labels).item(), right.item()


@EVALUATE.fails_with("only-one-batch")
@torch.no_grad()
def keeps_the_last_batch(model, loader):
    training = model.training
    model.eval()
    for images, labels in loader:
        logits = model(images)
        loss = F.cross_entropy(logits, labels).item()
        accuracy = (logits.argmax(1) == labels).sum().item() / len(labels)
    model.train(training)
    return loss, accuracy


@EVALUATE.fails_with("wrong-type")
def returns_the_loss_alone(model, loader):
    return evaluates_all_logits_at_once(model, loader)[0]


@EVALUATE.fails_with("returned-none")
def prints_and_returns_nothing(model, loader):
    evaluates_all_logits_at_once(model, loader)


@EVALUATE.fails_with("wrong-signature")
def wants_a_device(model, loader, device):
    return evaluates_all_logits_at_once(model.to(device), loader)


# --- confusion matrix ---------------------------------------------------------------------------


@CONFUSION_MATRIX.passes
def counts_in_a_loop(predictions, labels, classes):
    matrix = torch.zeros(classes, classes, dtype=torch.long)
    for prediction, label in zip(predictions.tolist(), labels.tolist(), strict=True):
        matrix[label, prediction] += 1
    return matrix


@CONFUSION_MATRIX.passes
def counts_with_bincount(predictions, labels, classes):
    index = classes * labels + predictions
    return torch.bincount(index, minlength=classes * classes).view(classes, classes)


@CONFUSION_MATRIX.passes
def counts_with_index_put(predictions, labels, classes):
    matrix = labels.new_zeros(classes, classes)
    return matrix.index_put_((labels, predictions), torch.ones_like(labels), accumulate=True)


@CONFUSION_MATRIX.passes
def counts_each_pair(predictions, labels, classes):
    rows = [
        [((labels == i) & (predictions == j)).sum() for j in range(classes)] for i in range(classes)
    ]
    return torch.stack([torch.stack(row) for row in rows])


@CONFUSION_MATRIX.fails_with("transposed")
def puts_answers_in_rows(predictions, labels, classes):
    matrix = torch.zeros(classes, classes, dtype=torch.long)
    for prediction, label in zip(predictions, labels, strict=True):
        matrix[prediction, label] += 1
    return matrix


@CONFUSION_MATRIX.fails_with("transposed")
def turns_the_flat_index_round(predictions, labels, classes):
    index = predictions * classes + labels
    return torch.bincount(index, minlength=classes**2).reshape(classes, classes)


@CONFUSION_MATRIX.fails_with("repeats-lost")
def adds_to_all_places_at_once(predictions, labels, classes):
    matrix = torch.zeros(classes, classes, dtype=torch.long)
    matrix[labels, predictions] += 1
    return matrix


@CONFUSION_MATRIX.fails_with("repeats-lost")
def sets_ones(predictions, labels, classes):
    matrix = torch.zeros(classes, classes, dtype=torch.long)
    for prediction, label in zip(predictions, labels, strict=True):
        matrix[label, prediction] = 1
    return matrix


@CONFUSION_MATRIX.fails_with("size-from-the-data")
def measures_the_largest_class(predictions, labels, classes):
    classes = max(predictions.max(), labels.max()).item() + 1
    return counts_with_bincount(predictions, labels, classes)


@CONFUSION_MATRIX.fails_with("size-from-the-data")
def forgets_minlength(predictions, labels, classes):
    return torch.bincount(labels * classes + predictions).reshape(classes, classes)


@CONFUSION_MATRIX.fails_with("size-from-the-data")
def counts_the_classes_of_the_labels(predictions, labels, classes):
    classes = int(labels.max()) + 1
    return F.one_hot(labels, classes).T @ F.one_hot(predictions, classes)


@CONFUSION_MATRIX.fails_with("wrong-flat-index")
def multiplies_by_one_too_few(predictions, labels, classes):
    index = labels * (classes - 1) + predictions
    return torch.bincount(index, minlength=classes**2).reshape(classes, classes)


@CONFUSION_MATRIX.fails_with("wrong-flat-index")
def adds_the_two_classes(predictions, labels, classes):
    index = labels + predictions
    return torch.bincount(index, minlength=classes**2).reshape(classes, classes)


@CONFUSION_MATRIX.fails_with("shares-instead-of-counts")
def divides_the_rows(predictions, labels, classes):
    matrix = counts_in_a_loop(predictions, labels, classes).float()
    return matrix / matrix.sum(dim=1, keepdim=True)


@CONFUSION_MATRIX.fails_with("shares-instead-of-counts")
def divides_by_all(predictions, labels, classes):
    return counts_in_a_loop(predictions, labels, classes) / len(labels)


@CONFUSION_MATRIX.fails_with("only-mistakes")
def counts_mistakes_alone(predictions, labels, classes):
    matrix = torch.zeros(classes, classes, dtype=torch.long)
    for prediction, label in zip(predictions, labels, strict=True):
        if prediction != label:
            matrix[label, prediction] += 1
    return matrix


@CONFUSION_MATRIX.fails_with("only-right-answers")
def counts_right_answers_alone(predictions, labels, classes):
    right = labels[predictions == labels]
    return torch.diag(torch.bincount(right, minlength=classes))


@CONFUSION_MATRIX.fails_with("wrong-dtype")
def counts_in_floats(predictions, labels, classes):
    matrix = torch.zeros(classes, classes)
    for prediction, label in zip(predictions, labels, strict=True):
        matrix[label, prediction] += 1
    return matrix


@CONFUSION_MATRIX.fails_with("wrong-type")
def counts_in_lists(predictions, labels, classes):
    matrix = [[0] * classes for _ in range(classes)]
    for prediction, label in zip(predictions, labels, strict=True):
        matrix[label][prediction] += 1
    return matrix


@CONFUSION_MATRIX.fails_with("changed-input")
def multiplies_the_labels_in_place(predictions, labels, classes):
    labels *= classes
    labels += predictions
    return torch.bincount(labels, minlength=classes**2).reshape(classes, classes)


# --- resume: each answer is a pair, save_state and load_state -----------------------------------


@RESUME.passes
class CopiesEverything:
    @staticmethod
    def save_state(model, optimizer, scheduler, generator, step):
        return copy.deepcopy(
            {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "scheduler": scheduler.state_dict(),
                "generator": generator.get_state(),
                "random": torch.get_rng_state(),
                "step": step,
            }
        )

    @staticmethod
    def load_state(state, model, optimizer, scheduler, generator):
        state = copy.deepcopy(state)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        scheduler.load_state_dict(state["scheduler"])
        generator.set_state(state["generator"])
        torch.set_rng_state(state["random"])
        return state["step"]


@RESUME.passes
class ClonesTensors:
    @staticmethod
    def save_state(model, optimizer, scheduler, generator, step):
        parts = [optimizer.state_dict(), scheduler.state_dict()]
        return {
            "weights": {name: value.clone() for name, value in model.state_dict().items()},
            "others": [copy.deepcopy(part) for part in parts],
            "random": [generator.get_state(), torch.random.get_rng_state()],
            "step": torch.tensor(step),
        }

    @staticmethod
    def load_state(state, model, optimizer, scheduler, generator):
        for part, saved in zip([optimizer, scheduler], state["others"], strict=True):
            part.load_state_dict(copy.deepcopy(saved))
        model.load_state_dict(state["weights"])
        generator.set_state(state["random"][0])
        torch.random.set_rng_state(state["random"][1])
        return state["step"].item()


@RESUME.passes
class KeepsBytes:
    @staticmethod
    def save_state(model, optimizer, scheduler, generator, step):
        file = io.BytesIO()
        state = [part.state_dict() for part in (model, optimizer, scheduler)]
        torch.save([*state, generator.get_state(), torch.get_rng_state(), step], file)
        return {"bytes": file.getvalue()}

    @staticmethod
    def load_state(state, model, optimizer, scheduler, generator):
        saved = torch.load(io.BytesIO(state["bytes"]), weights_only=True)
        for part, value in zip((model, optimizer, scheduler), saved, strict=False):
            part.load_state_dict(value)
        generator.set_state(saved[3])
        torch.set_rng_state(saved[4])
        return saved[5]


def save_with(change):
    """A right save_state whose state is changed before it is copied."""

    def save_state(model, optimizer, scheduler, generator, step):
        state = {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "scheduler": scheduler.state_dict(),
            "generator": generator.get_state(),
            "random": torch.get_rng_state(),
            "step": step,
        }
        change(state)
        return copy.deepcopy(state)

    return save_state


def load_what_is_there(state, model, optimizer, scheduler, generator):
    """A load_state that leaves out what the state lacks."""
    state = copy.deepcopy(state)
    model.load_state_dict(state["model"])
    if "optimizer" in state:
        optimizer.load_state_dict(state["optimizer"])
    if "scheduler" in state:
        scheduler.load_state_dict(state["scheduler"])
    if "generator" in state:
        generator.set_state(state["generator"])
    if "random" in state:
        torch.set_rng_state(state["random"])
    return state["step"]


@RESUME.fails_with("only-the-weights")
class SavesWeightsAsTutorialsDo:
    @staticmethod
    def save_state(model, optimizer, scheduler, generator, step):
        return {"model": model.state_dict(), "step": step}

    load_state = load_what_is_there


@RESUME.fails_with("scheduler-forgotten")
class SavesModelAndOptimizerAsTutorialsDo:
    @staticmethod
    def save_state(model, optimizer, scheduler, generator, step):
        return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}

    @staticmethod
    def load_state(state, model, optimizer, scheduler, generator):
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        return state["step"]


@RESUME.fails_with("optimizer-forgotten")
class ForgetsTheOptimizer:
    save_state = save_with(lambda state: state.pop("optimizer"))
    load_state = load_what_is_there


@RESUME.fails_with("optimizer-forgotten")
class LoadsIntoANewOptimizer:
    save_state = CopiesEverything.save_state

    @staticmethod
    def load_state(state, model, optimizer, scheduler, generator):
        state = copy.deepcopy(state)
        model.load_state_dict(state["model"])
        optimizer = type(optimizer)(model.parameters(), lr=0.1)
        optimizer.load_state_dict(state["optimizer"])
        scheduler.load_state_dict(state["scheduler"])
        generator.set_state(state["generator"])
        torch.set_rng_state(state["random"])
        return state["step"]


@RESUME.fails_with("scheduler-forgotten")
class ForgetsTheScheduler:
    save_state = save_with(lambda state: state.pop("scheduler"))
    load_state = load_what_is_there


@RESUME.fails_with("generator-forgotten")
class ForgetsTheGenerator:
    save_state = save_with(lambda state: state.pop("generator"))
    load_state = load_what_is_there


@RESUME.fails_with("generator-forgotten")
class ForgetsAllRandomNumbers:
    @staticmethod
    def save_state(model, optimizer, scheduler, generator, step):
        parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
        states = {name: copy.deepcopy(part.state_dict()) for name, part in parts.items()}
        return {**states, "step": step}

    load_state = load_what_is_there


@RESUME.fails_with("random-forgotten")
class ForgetsDropout:
    save_state = save_with(lambda state: state.pop("random"))
    load_state = load_what_is_there


@RESUME.fails_with("references-instead-of-copies")
class SavesReferences:
    @staticmethod
    def save_state(model, optimizer, scheduler, generator, step):
        return {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "scheduler": scheduler.state_dict(),
            "generator": generator.get_state(),
            "random": torch.get_rng_state(),
            "step": step,
        }

    load_state = load_what_is_there


@RESUME.fails_with("references-instead-of-copies")
class CopiesTheDictsOnly:
    @staticmethod
    def save_state(model, optimizer, scheduler, generator, step):
        return {
            "model": model.state_dict().copy(),
            "optimizer": dict(optimizer.state_dict()),
            "scheduler": dict(scheduler.state_dict()),
            "generator": generator.get_state(),
            "random": torch.get_rng_state(),
            "step": step,
        }

    @staticmethod
    def load_state(state, model, optimizer, scheduler, generator):
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        scheduler.load_state_dict(state["scheduler"])
        generator.set_state(state["generator"])
        torch.set_rng_state(state["random"])
        return state["step"]


@RESUME.fails_with("references-instead-of-copies")
class ClonesTheWeightsOnly:
    @staticmethod
    def save_state(model, optimizer, scheduler, generator, step):
        return {
            "model": {name: value.clone() for name, value in model.state_dict().items()},
            "optimizer": optimizer.state_dict(),
            "scheduler": scheduler.state_dict(),
            "generator": generator.get_state(),
            "random": torch.get_rng_state(),
            "step": step,
        }

    load_state = load_what_is_there


@RESUME.fails_with("state-shared-after-loading")
class LoadsWithoutACopy:
    save_state = CopiesEverything.save_state

    @staticmethod
    def load_state(state, model, optimizer, scheduler, generator):
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        scheduler.load_state_dict(state["scheduler"])
        generator.set_state(state["generator"])
        torch.set_rng_state(state["random"])
        return state["step"]


@RESUME.fails_with("statistics-forgotten")
class SavesParametersOnly:
    @staticmethod
    def save_state(model, optimizer, scheduler, generator, step):
        state = CopiesEverything.save_state(model, optimizer, scheduler, generator, step)
        state["model"] = {name: p.detach().clone() for name, p in model.named_parameters()}
        return state

    @staticmethod
    def load_state(state, model, optimizer, scheduler, generator):
        for name, p in model.named_parameters():
            p.data.copy_(state["model"][name])
        state = {**state, "model": model.state_dict()}
        return load_what_is_there(state, model, optimizer, scheduler, generator)


@RESUME.fails_with("weights-not-loaded")
class WritesIntoTheDict:
    save_state = CopiesEverything.save_state

    @staticmethod
    def load_state(state, model, optimizer, scheduler, generator):
        state = copy.deepcopy(state)
        model.state_dict().update(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        scheduler.load_state_dict(state["scheduler"])
        generator.set_state(state["generator"])
        torch.set_rng_state(state["random"])
        return state["step"]


@RESUME.fails_with("seed-instead-of-state")
class SavesTheSeed:
    save_state = save_with(lambda state: state.update(seed=0))

    @staticmethod
    def load_state(state, model, optimizer, scheduler, generator):
        step = load_what_is_there(state, model, optimizer, scheduler, generator)
        generator.manual_seed(state["seed"])
        return step


@RESUME.fails_with("seed-instead-of-state")
class SavesBothSeeds:
    @staticmethod
    def save_state(model, optimizer, scheduler, generator, step):
        state = CopiesEverything.save_state(model, optimizer, scheduler, generator, step)
        state["seeds"] = [generator.initial_seed(), torch.initial_seed()]
        return state

    @staticmethod
    def load_state(state, model, optimizer, scheduler, generator):
        step = load_what_is_there(state, model, optimizer, scheduler, generator)
        generator.manual_seed(state["seeds"][0])
        torch.manual_seed(state["seeds"][1])
        return step


@RESUME.fails_with("step-lost")
class BeginsToCountAgain:
    save_state = CopiesEverything.save_state

    @staticmethod
    def load_state(state, model, optimizer, scheduler, generator):
        load_what_is_there(state, model, optimizer, scheduler, generator)
        return 0


@RESUME.fails_with("step-off-by-one")
class GoesOnOneStepLater:
    save_state = CopiesEverything.save_state

    @staticmethod
    def load_state(state, model, optimizer, scheduler, generator):
        return load_what_is_there(state, model, optimizer, scheduler, generator) + 1


@RESUME.fails_with("switched-to-eval-mode")
class LoadsForInference:
    save_state = CopiesEverything.save_state

    @staticmethod
    def load_state(state, model, optimizer, scheduler, generator):
        step = load_what_is_there(state, model, optimizer, scheduler, generator)
        model.eval()
        return step


@RESUME.fails_with("switched-to-eval-mode")
class SavesInEvalMode:
    @staticmethod
    def save_state(model, optimizer, scheduler, generator, step):
        model.eval()
        return CopiesEverything.save_state(model, optimizer, scheduler, generator, step)

    load_state = load_what_is_there


@RESUME.fails_with("not-serialisable")
class SavesWholeObjects:
    @staticmethod
    def save_state(model, optimizer, scheduler, generator, step):
        return copy.deepcopy({"model": model, "optimizer": optimizer, "step": step})

    @staticmethod
    def load_state(state, model, optimizer, scheduler, generator):
        model.load_state_dict(state["model"].state_dict())
        optimizer.load_state_dict(state["optimizer"].state_dict())
        return state["step"]


@RESUME.fails_with("not-serialisable")
class SavesTheGeneratorItself:
    save_state = save_with(lambda state: state.update(generator=torch.Generator()))
    load_state = load_what_is_there


@RESUME.fails_with("returned-none")
class ForgetsToReturnTheState:
    @staticmethod
    def save_state(model, optimizer, scheduler, generator, step):
        CopiesEverything.save_state(model, optimizer, scheduler, generator, step)

    load_state = load_what_is_there


@RESUME.fails_with("returned-none")
class ForgetsToReturnTheStep:
    save_state = CopiesEverything.save_state

    @staticmethod
    def load_state(state, model, optimizer, scheduler, generator):
        load_what_is_there(state, model, optimizer, scheduler, generator)


@RESUME.fails_with("wrong-return")
class ReturnsTheModel:
    save_state = CopiesEverything.save_state

    @staticmethod
    def load_state(state, model, optimizer, scheduler, generator):
        load_what_is_there(state, model, optimizer, scheduler, generator)
        return model


@RESUME.fails_with("raised-error")
class ReadsAKeyThatWasNotSaved:
    save_state = save_with(lambda state: state.pop("step"))
    load_state = load_what_is_there


@RESUME.fails_with("wrong-signature")
class ForgetsAnArgument:
    @staticmethod
    def save_state(model, optimizer, scheduler, step):
        return {"model": model.state_dict(), "step": step}

    load_state = load_what_is_there
