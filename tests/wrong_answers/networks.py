"""Wrong answers on neural networks from zero, and other correct ones."""

import math

import numpy as np
import torch
import torch.nn.functional as F

from wrong_answers import Task

GRAPH, SOFTMAX, CROSS_ENTROPY, BACKWARD, MLP = (Task() for _ in range(5))
SCALE = Task(spared="looks_at_sizes_alone")  # the answer is one of the sizes alone
TASKS = {
    "backward_graph": GRAPH,
    "softmax": SOFTMAX,
    "cross_entropy": CROSS_ENTROPY,
    "linear_backward": BACKWARD,
    "mlp": MLP,
    "init_scale": SCALE,
}

# The computation graph.

FORWARD = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "square": lambda a: a**2,
    "relu": lambda a: a if a > 0 else 0.0,
}


def forward(inputs, steps):
    values = list(inputs)
    for name, *places in steps:
        values.append(FORWARD[name](*(values[p] for p in places)))
    return values


@GRAPH.fails_with("gradients-overwritten")
def assigns_each_gradient(inputs, steps):
    values = forward(inputs, steps)
    grads = dict.fromkeys(range(len(values)), 0.0)
    out = len(values) - 1
    grads[out] = 1.0
    for name, *p in steps[::-1]:
        g = grads[out]
        if name in ("add", "sub"):
            grads[p[0]] = g
            grads[p[1]] = g if name == "add" else -g
        elif name == "mul":
            grads[p[0]] = g * values[p[1]]
            grads[p[1]] = g * values[p[0]]
        elif name == "square":
            grads[p[0]] = g * 2 * values[p[0]]
        else:
            grads[p[0]] = g if values[p[0]] > 0 else 0.0
        out -= 1
    return values, list(grads.values())


@GRAPH.fails_with("relu-lets-everything-back")
def forgets_that_a_relu_shuts(inputs, steps):
    values = forward(inputs, steps)
    open_steps = [("add", s[1], len(values)) if s[0] == "relu" else s for s in steps]
    grads = [0.0] * len(values) + [0.0]
    grads[len(values) - 1] = 1.0
    for place in range(len(values) - 1, len(inputs) - 1, -1):
        hand_back(grads, [*values, 0.0], place, *open_steps[place - len(inputs)])
    return values, grads[:-1]


def hand_back(grads, values, place, name, i, j=None):
    g = grads[place]
    if name == "mul":
        first, second = g * values[j], g * values[i]
        grads[i] += first
        grads[j] += second
    elif name == "square":
        grads[i] += 2 * values[i] * g
    elif name == "relu":
        grads[i] += g * (values[i] > 0)
    else:
        grads[i] += g
        grads[j] += -g if name == "sub" else g


@GRAPH.passes
def hands_back_step_by_step(inputs, steps):
    values = forward(inputs, steps)
    grads = [0.0] * len(values)
    grads[-1] = 1.0
    for place in range(len(values) - 1, len(inputs) - 1, -1):
        hand_back(grads, values, place, *steps[place - len(inputs)])
    return values, grads


@GRAPH.passes
def asks_every_later_value_by_recursion(inputs, steps):
    values = forward(inputs, steps)
    users = [[] for _ in values]
    for n, (name, *places) in enumerate(steps, start=len(inputs)):
        for side, place in enumerate(places):
            users[place].append((n, name, side, places))

    def slope(name, side, places):
        v = [values[p] for p in places]
        return {
            "add": 1.0,
            "sub": 1.0 - 2 * side,
            "mul": v[1 - side] if len(v) == 2 else None,
            "square": 2 * v[0],
            "relu": float(v[0] > 0),
        }[name]

    def gradient(place):
        if place == len(values) - 1:
            return 1.0
        return sum((gradient(n) * slope(*rest) for n, *rest in users[place]), start=0.0)

    return values, [gradient(place) for place in range(len(values))]


# Softmax.


@SOFTMAX.fails_with("forbidden-call")
def calls_torch(logits):
    return logits.softmax(-1)


@SOFTMAX.fails_with("overflow")
def follows_the_formula_alone(logits):
    return torch.exp(logits) / torch.exp(logits).sum(-1).unsqueeze(-1)


@SOFTMAX.fails_with("largest-of-all")
def shifts_all_rows_alike(logits):
    powers = math.e ** (logits - torch.max(logits))
    return powers / powers.sum(-1, keepdim=True)


@SOFTMAX.passes
def compares_every_pair(logits):
    return 1 / (logits.unsqueeze(-2) - logits.unsqueeze(-1)).exp().sum(-1)


@SOFTMAX.passes
def goes_over_the_logarithms(logits):
    m = logits.amax(-1, keepdim=True)
    return torch.exp(logits - (m + torch.log(torch.exp(logits - m).sum(-1, keepdim=True))))


@SOFTMAX.passes
def takes_row_after_row(logits):
    rows = logits.reshape(-1, logits.shape[-1])
    out = [(row - row.max()).exp() for row in rows]
    return torch.stack([e / e.sum() for e in out]).reshape(logits.shape)


# Cross-entropy.


@CROSS_ENTROPY.fails_with("forbidden-call")
def calls_torchs_loss(logits, labels):
    return F.cross_entropy(logits, labels)


@CROSS_ENTROPY.fails_with("logarithm-of-zero")
def takes_the_logarithm_of_a_softmax(logits, labels):
    p = goes_over_the_logarithms(logits)
    return -torch.log(p.gather(1, labels[:, None])).mean()


@CROSS_ENTROPY.fails_with("softmax-before")
def gets_probabilities(logits, labels):
    p = compares_every_pair(logits)
    return loops_over_the_examples(p, labels)


@CROSS_ENTROPY.passes
def loops_over_the_examples(logits, labels):
    total = 0.0
    for z, label in zip(logits, labels, strict=True):
        total = total + (z - z[label] - (z - z[label]).max()).exp().sum().log()
        total = total + (z - z[label]).max()
    return total / len(labels)


@CROSS_ENTROPY.passes
def uses_one_hot(logits, labels):
    z = logits - logits.amax(1, keepdim=True)
    one_hot = torch.eye(logits.shape[1], dtype=logits.dtype)[labels]
    return -(one_hot * (z - z.exp().sum(1, keepdim=True).log())).sum() / logits.shape[0]


# A linear layer, backwards.


@BACKWARD.fails_with("forbidden-call")
def asks_autograd(grad, x, weight):
    parts = [t.clone().requires_grad_() for t in (x, weight, weight.new_zeros(len(weight)))]
    return torch.autograd.grad(parts[0] @ parts[1].T + parts[2], parts, grad)


@BACKWARD.fails_with("averaged-over-the-batch")
def divides_by_the_batch(grad, x, weight):
    n = x.shape[0]
    return torch.einsum("no,oi->ni", grad, weight), (1 / n) * (grad.T @ x), grad.sum(0) / n


@BACKWARD.fails_with("bias-over-the-outputs")
def sums_along_the_outputs(grad, x, weight):
    return grad @ weight, torch.einsum("no,ni->oi", grad, x), torch.einsum("no->n", grad)


@BACKWARD.passes
def writes_every_index(grad, x, weight):
    dx, dw = torch.zeros_like(x), torch.zeros_like(weight)
    db = torch.zeros(len(weight), dtype=grad.dtype)
    for n in range(len(x)):
        for o in range(len(weight)):
            dx[n] += grad[n, o] * weight[o]
            dw[o] += grad[n, o] * x[n]
            db[o] += grad[n, o]
    return dx, dw, db


@BACKWARD.passes
def adds_outer_products(grad, x, weight):
    dw = sum(torch.outer(g, row) for g, row in zip(grad, x, strict=True))
    return (weight.T @ grad.T).T, dw, torch.ones(len(grad), dtype=grad.dtype) @ grad


# A multilayer perceptron.


@MLP.fails_with("forbidden-call")
def calls_torchs_linear(x, weights, biases):
    for n, (w, b) in enumerate(zip(weights, biases, strict=True)):
        x = F.linear(x if n == 0 else x.clamp(min=0), w, b)
    return x


@MLP.fails_with("relu-after-the-last")
def activates_every_layer(x, weights, biases):
    for w, b in zip(weights, biases, strict=True):
        x = torch.maximum(x @ w.T + b, torch.zeros(()).double())
    return x


@MLP.fails_with("no-activation")
def multiplies_the_weights_together(x, weights, biases):
    w, b = torch.eye(x.shape[1]).double(), torch.zeros(x.shape[1]).double()
    for weight, bias in zip(weights, biases, strict=True):
        w, b = weight @ w, weight @ b + bias
    return x @ w.T + b


@MLP.passes
def activates_before_each_later_layer(x, weights, biases):
    for n, (w, b) in enumerate(zip(weights, biases, strict=True)):
        x = torch.einsum("ni,oi->no", x if n == 0 else x * (x > 0), w) + b
    return x


@MLP.passes
def calls_itself(x, weights, biases):
    z = torch.addmm(biases[0], x, weights[0].T)
    return z if len(weights) == 1 else calls_itself(z.clip(0), weights[1:], biases[1:])


# The scale of the first weights.


@SCALE.fails_with("sides-exchanged")
def reads_the_shape_from_the_left(weight, activation):
    rows = len(weight)
    return (2 / rows) ** 0.5 if activation == "relu" else (2 / sum(weight.shape)) ** 0.5


@SCALE.fails_with("half-of-relu-forgotten")
def treats_the_relu_as_a_line(weight, activation):
    n = weight.size(1)
    return n**-0.5 if activation == "relu" else math.sqrt(2 / (n + weight.size(0)))


@SCALE.passes
def averages_both_sides(weight, activation):
    fan = {"relu": weight.shape[1] / 2, "tanh": sum(weight.shape) / 2}[activation]
    return 1 / math.sqrt(fan)


@SCALE.passes
def uses_numpy(weight, activation):
    out, into = weight.shape
    return np.sqrt(2.0 / (into if activation == "relu" else into + out))
