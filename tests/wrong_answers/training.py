"""Wrong answers on training a CNN, and other correct ones."""

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


# Bytes to floats.


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


@NORMALIZE.fails_with("statistics-of-the-batch")
def lets_batch_norm_measure(images, mean, std):
    return F.batch_norm(images / 255, None, None, training=True, eps=1e-12)


@NORMALIZE.fails_with("byte-arithmetic")
def subtracts_bytes(images, mean, std):
    mean_byte = (mean * 255).round().to(torch.uint8)
    return (images - mean_byte[:, None, None]) / (255 * std[:, None, None])


@NORMALIZE.fails_with("changed-input")
def scales_the_statistics_in_place(images, mean, std):
    mean *= 255
    std *= 255
    return (images - mean[:, None, None]) / std[:, None, None]


# The size after some layers.


@FLATTEN_SIZE.fails_with("forbidden-call")
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
    c, *sides = image_shape
    for kind, *numbers in layers:
        c = numbers[0] if kind == "conv" else c
        k, s, p = numbers[-3:]
        sides = [(side + 2 * p - k) / s + 1 for side in sides]
    return c * math.prod(map(math.floor, sides))


@FLATTEN_SIZE.fails_with("rounded-at-the-end")
def rounds_once(image_shape, layers):
    c, *sides = image_shape
    for kind, *numbers in layers:
        c = numbers[0] if kind == "conv" else c
        k, s, p = numbers[-3:]
        sides = [(side + 2 * p - k) / s + 1 for side in sides]
    return int(c * sides[0] * sides[1])


@FLATTEN_SIZE.fails_with("ceil-instead-of-floor")
def rounds_poolings_up(image_shape, layers):
    c, *sides = image_shape
    for kind, *numbers in layers:
        c = numbers[0] if kind == "conv" else c
        k, s, p = numbers[-3:]
        up = math.floor if kind == "conv" else math.ceil
        sides = [up((side + 2 * p - k) / s) + 1 for side in sides]
    return c * sides[0] * sides[1]


# A softer loss.


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


@LABEL_SMOOTHING.fails_with("overflow")
def writes_softmax_out(logits, labels, epsilon):
    q = (1 - epsilon) * F.one_hot(labels, logits.shape[1]) + epsilon / logits.shape[1]
    p = torch.exp(logits) / torch.exp(logits).sum(dim=1, keepdim=True)
    return -(q * torch.log(p)).sum(1).mean()


@LABEL_SMOOTHING.fails_with("axis-of-one")
def keeps_an_axis(logits, labels, epsilon):
    return mixes_two_losses(logits, labels, epsilon).reshape(1)


@LABEL_SMOOTHING.fails_with("no-gradient")
@torch.no_grad()
def smooths_without_gradients(logits, labels, epsilon):
    return mixes_two_losses(logits, labels, epsilon)


@LABEL_SMOOTHING.fails_with("forbidden-call")
def takes_the_option(logits, labels, epsilon):
    return nn.CrossEntropyLoss(label_smoothing=epsilon)(logits, labels)


@LABEL_SMOOTHING.fails_with("wrong-signature")
def takes_no_epsilon(logits, labels):
    return F.cross_entropy(logits, labels, label_smoothing=0.1)


# A training step.


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


@TRAIN_STEP.fails_with("left-in-eval-mode")
def switches_only_the_outer_module(model, images, labels, optimizer):
    model.training = True
    optimizer.zero_grad()
    loss = F.cross_entropy(model(images), labels)
    loss.backward()
    optimizer.step()
    return loss.item()


MADE = {}


@TRAIN_STEP.fails_with("another-optimizer")
def keeps_an_optimizer_of_its_own(model, images, labels, optimizer):
    lr = optimizer.param_groups[0]["lr"]
    own = MADE.setdefault(model, torch.optim.SGD(model.parameters(), lr))
    return zeroes_after_the_forward_pass(model, images, labels, own)


@TRAIN_STEP.fails_with("returned-none")
def forgets_to_return_the_loss(model, images, labels, optimizer):
    model.train()
    optimizer.zero_grad()
    F.cross_entropy(model(images), labels).backward()
    optimizer.step()


@TRAIN_STEP.fails_with("wrong-signature")
def takes_a_batch_as_one(model, batch, optimizer):
    images, labels = batch
    return zeroes_after_the_forward_pass(model, images, labels, optimizer)


# Evaluation.


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


@EVALUATE.passes
def freezes_and_restores(model, loader):
    learn = {θ: θ.requires_grad for θ in model.parameters()}
    model.requires_grad_(False)
    answer = evaluates_all_logits_at_once(model, loader)
    for θ, before in learn.items():
        θ.requires_grad_(before)
    return answer


@EVALUATE.fails_with("parameters-frozen")
def leaves_the_parameters_frozen(model, loader):
    for θ in model.parameters():
        θ.requires_grad = False
    return evaluates_all_logits_at_once(model, loader)


@EVALUATE.fails_with("mean-of-batch-means")
def averages_the_batches(model, loader):
    scores = [evaluates_all_logits_at_once(model, [batch]) for batch in loader]
    return tuple(sum(column) / len(loader) for column in zip(*scores, strict=True))


@EVALUATE.fails_with("took-all-batches-for-full")
def counts_full_batches(model, loader):
    loss, accuracy = evaluates_all_logits_at_once(model, loader)
    sizes = [len(labels) for _, labels in loader]
    share = sum(sizes) / (len(sizes) * sizes[0])
    return loss * share, accuracy * share


@EVALUATE.fails_with("gradients-left-off")
def switches_gradients_off_for_good(model, loader):
    torch.set_grad_enabled(False)
    return evaluates_all_logits_at_once(model, loader)


# The confusion matrix.


@CONFUSION_MATRIX.passes
def counts_in_a_loop(predictions, labels, classes):
    matrix = torch.zeros(classes, classes, dtype=torch.long)
    for prediction, label in zip(predictions.tolist(), labels.tolist(), strict=True):
        matrix[label, prediction] += 1
    return matrix


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


@CONFUSION_MATRIX.fails_with("repeats-lost")
def adds_to_all_places_at_once(predictions, labels, classes):
    matrix = torch.zeros(classes, classes, dtype=torch.long)
    matrix[labels, predictions] += 1
    return matrix


@CONFUSION_MATRIX.fails_with("counted-in-bytes")
def adds_bytes(predictions, labels, classes):
    matrix = torch.zeros(classes, classes, dtype=torch.uint8)
    for prediction, label in zip(predictions, labels, strict=True):
        matrix[label, prediction] += 1
    return matrix.long()


@CONFUSION_MATRIX.fails_with("changed-input")
def multiplies_the_labels_in_place(predictions, labels, classes):
    labels *= classes
    labels += predictions
    return torch.bincount(labels, minlength=classes**2).reshape(classes, classes)


# Stop, and go on: each answer returns a pair, save_state and load_state.


def save_all(*parts_and_step):
    return copy.deepcopy(save_references(*parts_and_step))


def load_all(state, model, optimizer, scheduler, generator):
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
    scheduler.load_state_dict(state["scheduler"])
    generator.set_state(state["generator"])
    torch.set_rng_state(state["random"])
    return state["step"]


def save_references(model, optimizer, scheduler, generator, step):
    names, parts = ("model", "optimizer", "scheduler"), (model, optimizer, scheduler)
    state = {name: part.state_dict() for name, part in zip(names, parts, strict=True)}
    return state | {
        "generator": generator.get_state(),
        "random": torch.get_rng_state(),
        "step": step,
    }


@RESUME.passes
def copies_what_is_needed():
    return save_all, load_all


@RESUME.passes
def clones_tensors():
    def save_state(model, optimizer, scheduler, generator, step):
        return {
            "weights": {name: value.clone() for name, value in model.state_dict().items()},
            "others": [copy.deepcopy(part.state_dict()) for part in (optimizer, scheduler)],
            "random": [generator.get_state(), torch.random.get_rng_state()],
            "step": torch.tensor(step),
        }

    def load_state(state, model, optimizer, scheduler, generator):
        for part, saved in zip([optimizer, scheduler], state["others"], strict=True):
            part.load_state_dict(copy.deepcopy(saved))
        model.load_state_dict(state["weights"])
        generator.set_state(state["random"][0])
        torch.random.set_rng_state(state["random"][1])
        return state["step"].item()

    return save_state, load_state


@RESUME.passes
def keeps_bytes():
    def save_state(*parts_and_step):
        file = io.BytesIO()
        torch.save(save_references(*parts_and_step), file)
        return {"bytes": file.getvalue()}

    def load_state(state, *parts):
        return load_all(torch.load(io.BytesIO(state["bytes"]), weights_only=True), *parts)

    return save_state, load_state


@RESUME.fails_with("references-instead-of-copies")
def copies_the_dicts_alone():
    def save_state(*parts_and_step):
        return {k: copy.copy(v) for k, v in save_references(*parts_and_step).items()}

    return save_state, load_all


@RESUME.fails_with("only-model-and-optimizer")
def saves_as_tutorials_do():
    def load_state(state, model, optimizer, scheduler, generator):
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        return state["step"]

    return save_references, load_state


@RESUME.fails_with("optimizer-forgotten")
def loads_into_a_new_optimizer():
    def load_state(state, model, optimizer, scheduler, generator):
        optimizer = type(optimizer)(model.parameters(), lr=0.1)
        return load_all(state, model, optimizer, scheduler, generator)

    return save_all, load_state


@RESUME.fails_with("switched-to-train-mode")
def loads_for_training():
    def load_state(state, model, *others):
        model.train()
        return load_all(state, model, *others)

    return save_all, load_state


@RESUME.fails_with("wrong-values")
def keeps_the_state_in_a_cache():
    kept = {}

    def save_state(model, optimizer, scheduler, generator, step):
        kept[step] = save_all(model, optimizer, scheduler, generator, step)
        return {"step": step}

    def load_state(state, *parts):
        return load_all(kept[state["step"]], *parts)

    return save_state, load_state


@RESUME.fails_with("not-serialisable")
def saves_whole_objects():
    def save_state(model, optimizer, scheduler, generator, step):
        return copy.deepcopy({"model": model, "optimizer": optimizer, "step": step})

    return save_state, load_all


@RESUME.fails_with("returned-none")
def forgets_to_return_the_step():
    return save_all, lambda state, model, optimizer, scheduler, generator: None


@RESUME.fails_with("wrong-return")
def returns_the_model():
    return save_all, lambda state, model, optimizer, scheduler, generator: model


@RESUME.fails_with("raised-error")
def reads_a_key_that_was_not_saved():
    return lambda model, optimizer, scheduler, generator, step: {"step": step}, load_all


@RESUME.fails_with("wrong-signature")
def forgets_an_argument():
    return lambda model, optimizer, scheduler, step: {"step": step}, load_all
