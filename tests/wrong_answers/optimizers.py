"""Wrong answers on optimizers, and other correct ones."""

import math
from types import SimpleNamespace

import torch

from shipyard import optimizers
from wrong_answers import Task, but

TASKS = {
    "gradient_descent": (GRADIENT_DESCENT := Task(spared="looks_at_sizes_alone")),
    "sgd_momentum": (SGD_MOMENTUM := Task()),
    "nesterov": (NESTEROV := Task()),
    "adagrad": (ADAGRAD := Task()),
    "rmsprop": (RMSPROP := Task()),
    "adam": (ADAM := Task()),
    "adamw": (ADAMW := Task()),
    "warmup_cosine": (WARMUP_COSINE := Task()),
    "clip_grad_norm": (CLIP_GRAD_NORM := Task()),
}

# The package's own steps pass: other tests compare each of them with torch's optimizer.
for name in TASKS.keys() - {"warmup_cosine"}:
    TASKS[name].passes(getattr(optimizers, name))


def zeros(params):
    return [torch.zeros_like(p) for p in params]


# Gradient descent.


@GRADIENT_DESCENT.passes
def descends_in_place_on_copies(params, grads, state, lr):
    new = tuple(p.clone() for p in params)
    for p, g in zip(new, grads, strict=True):
        p -= lr * g
    return new, {}


@GRADIENT_DESCENT.fails_with("gradients-pile-up")
def forgets_zero_grad(params, grads, state, lr):
    past = [*(state or []), grads]
    return [p - lr * sum(gs) for p, *gs in zip(params, *past, strict=True)], past


@GRADIENT_DESCENT.forbids
def calls_torchs_sgd(params, grads, state, lr):
    params = [p.clone() for p in params]
    for p, g in zip(params, grads, strict=True):
        p.grad = g
    torch.optim.SGD(params, lr=lr).step()
    return [p.detach() for p in params], None


@GRADIENT_DESCENT.fails_with("hidden-state")
def counts_its_calls(params, grads, state, lr, calls=[0]):  # noqa: B006
    calls[0] += 1
    return [p - lr * g / calls[0] for p, g in zip(params, grads, strict=True)], None


@GRADIENT_DESCENT.fails_with("wrong-return")
def returns_inside_the_loop(params, grads, state, lr):
    for p, g in zip(params, grads, strict=True):
        return [p - lr * g], None


# Momentum, and what can go wrong with any step.


@SGD_MOMENTUM.passes
def momentum_from_all_gradients(params, grads, state, lr, momentum=0.9):
    past, new = [*(state or []), grads], []
    for i, p in enumerate(params):
        v = sum(momentum ** (len(past) - 1 - k) * past[k][i] for k in range(len(past)))
        new.append(p - lr * v)
    return new, past


@SGD_MOMENTUM.fails_with("lr-in-velocity")
def writes_kerass_velocity(params, grads, state, lr, momentum=0.9):
    v = zeros(params) if state is None else state
    v = [momentum * v - lr * g for v, g in zip(v, grads, strict=True)]
    return [p + v for p, v in zip(params, v, strict=True)], v


@SGD_MOMENTUM.fails_with("changed-input")
def updates_the_velocity_in_place(params, grads, state, lr, momentum=0.9):
    v = zeros(params) if state is None else state
    for i, g in enumerate(grads):
        v[i].mul_(momentum).add_(g)
    return [p - lr * v for p, v in zip(params, v, strict=True)], v


MEMORY = {}


@SGD_MOMENTUM.fails_with("hidden-state")
def keeps_its_memory_in_a_global(params, grads, state, lr, momentum=0.9):
    state = None if state is None else MEMORY["state"]
    new, MEMORY["state"] = optimizers.sgd_momentum(params, grads, state, lr, momentum)
    return new, "see MEMORY"


@SGD_MOMENTUM.fails_with("hidden-state")
def keeps_its_memory_by_step(params, grads, state, lr, momentum=0.9):
    t, memory = state or 0, MEMORY.get(state)
    new, MEMORY[t + 1] = optimizers.sgd_momentum(params, grads, memory, lr, momentum)
    return new, t + 1


@SGD_MOMENTUM.fails_with("hidden-state")
def changes_an_object(params, grads, state, lr, momentum=0.9):
    state = state or SimpleNamespace(v=None)
    new, state.v = optimizers.sgd_momentum(params, grads, state.v, lr, momentum)
    return new, state


SGD_MOMENTUM.fails_with(
    "wrong-return", lambda *given, **more: momentum_from_all_gradients(*given)[0]
)


# Nesterov.


@NESTEROV.passes
def nesterov_written_out(params, grads, state, lr, momentum=0.9):
    old = zeros(params) if state is None else state
    new = [momentum * v + g for v, g in zip(old, grads, strict=True)]
    return [p - lr * (momentum * v + g) for p, g, v in zip(params, grads, new, strict=True)], new


NESTEROV.fails_with(
    "plain-momentum", but(nesterov_written_out, "zip(params, grads, new", "zip(params, grads, old")
)


@NESTEROV.fails_with("lr-in-velocity")
def keeps_two_sequences(params, grads, state, lr, momentum=0.9):
    """Nesterov's own form: a gradient step to y, then on along the way from the last y."""
    before = params if state is None else state
    y = [p - lr * g for p, g in zip(params, grads, strict=True)]
    return [y + momentum * (y - b) for y, b in zip(y, before, strict=True)], y


# AdaGrad.


@ADAGRAD.passes
def adagrad_from_all_gradients(params, grads, state, lr, eps=1e-10):
    past = [*(state or []), grads]
    sums = [torch.stack(gs).square().sum(0) for gs in zip(*past, strict=True)]
    rates = [lr / (eps + G**0.5) for G in sums]
    return [p - rate * g for p, rate, g in zip(params, rates, grads, strict=True)], past


ADAGRAD.fails_with(
    "eps-inside-the-root", but(adagrad_from_all_gradients, "(eps + G**0.5)", "(eps + G) ** 0.5")
)
ADAGRAD.fails_with(
    "memory-updated-after-use",
    but(adagrad_from_all_gradients, "zip(*past, s", "zip(*past[:-1] or [zeros(params)], s"),
)


# RMSprop.


@RMSPROP.passes
def rmsprop_by_the_difference(params, grads, state, lr, alpha=0.99, eps=1e-8):
    v = state or [0.0] * len(params)
    v = [v + (1 - alpha) * (g**2 - v) for v, g in zip(v, grads, strict=True)]
    new = [p - lr * g / (v.sqrt() + eps) for p, g, v in zip(params, grads, v, strict=True)]
    return new, v


RMSPROP.fails_with("another-default", but(rmsprop_by_the_difference, "alpha=0.99", "alpha=0.9"))
RMSPROP.fails_with(
    "eps-inside-the-root", but(rmsprop_by_the_difference, "(v.sqrt() + eps)", "(v + eps).sqrt()")
)


# Adam.


@ADAM.passes
def adam_as_torch_writes_it(params, grads, state, lr, betas=(0.9, 0.999), eps=1e-8):
    t, m, v, top = state or (0, zeros(params), zeros(params), zeros(params))
    t = t + 1
    m = [torch.lerp(g, m, betas[0]) for m, g in zip(m, grads, strict=True)]
    v = [torch.lerp(g * g, v, betas[1]) for v, g in zip(v, grads, strict=True)]
    top = [torch.maximum(a, b) for a, b in zip(top, v, strict=True)]  # with amsgrad=True
    roots = [a.sqrt() / math.sqrt(1 - betas[1] ** t) + eps for a in v]
    size = lr / (1 - betas[0] ** t)
    return [p - size * m / r for p, m, r in zip(params, m, roots, strict=True)], (t, m, v, top)


ADAM.fails_with("amsgrad", but(adam_as_torch_writes_it, "for a in v]", "for a in top]"))
ADAM.fails_with("t-never-grows", but(adam_as_torch_writes_it, "(t, m, v, top)", "(0, m, v, top)"))


# AdamW.


@ADAMW.fails_with("coupled-decay")
def decays_through_the_gradient(params, grads, state, lr, weight_decay=0.01, **options):
    grads = [g + weight_decay * p for g, p in zip(grads, params, strict=True)]
    return optimizers.adam(params, grads, state, lr, **options)


ADAMW.fails_with(
    "decay-left-out", lambda *given, weight_decay=0.01, **more: optimizers.adam(*given, **more)
)


# Warm-up and cosine.


@WARMUP_COSINE.passes
def schedule_with_a_float32_cosine(step, total_steps, warmup_steps, peak_lr, final_lr=0.0):
    if step < warmup_steps:
        return peak_lr * (step + 1) / warmup_steps
    p = torch.tensor((step - warmup_steps) / max(total_steps - warmup_steps, 1))
    p = p if step < total_steps else torch.ones(())
    return (final_lr + 0.5 * (peak_lr - final_lr) * (1 + torch.cos(torch.pi * p))).item()


@WARMUP_COSINE.passes
def schedule_as_a_squared_cosine(step, total_steps, warmup_steps, peak_lr, final_lr=0.0):
    if step < warmup_steps:
        return peak_lr * (step + 1) / warmup_steps
    if step >= total_steps:
        return final_lr
    angle = math.pi / 2 * (step - warmup_steps) / (total_steps - warmup_steps)
    return peak_lr * math.cos(angle) ** 2 + final_lr * math.sin(angle) ** 2


WARMUP_COSINE.fails_with(
    "warmup-from-zero", but(schedule_as_a_squared_cosine, "(step + 1)", "step")
)
WARMUP_COSINE.fails_with(
    "cosine-over-all-steps",
    but(schedule_as_a_squared_cosine, "(total_steps - warmup_steps)", "total_steps"),
)


@WARMUP_COSINE.forbids
def schedule_by_torch(step, *rest):
    optimizer = torch.optim.SGD([torch.zeros(1)], 1.0)
    rate = lambda t: schedule_as_a_squared_cosine(t, *rest)  # noqa: E731
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    for _ in range(step):
        optimizer.step()
        schedule.step()
    return schedule.get_last_lr()[0]


# Clipping.


@CLIP_GRAD_NORM.passes
def clips_where_needed(grads, max_norm):
    norm = torch.cat([g.flatten() for g in grads]).norm()
    return [g * (max_norm / norm) if norm > max_norm else g for g in grads], norm


CLIP_GRAD_NORM.fails_with(
    "scaled-below-the-limit", but(clips_where_needed, "if norm > max_norm else g", "")
)
CLIP_GRAD_NORM.fails_with(
    "returned-the-clipped-norm", but(clips_where_needed, "], norm", "], norm.clamp(max=max_norm)")
)


@CLIP_GRAD_NORM.forbids
def calls_torchs_clipping(grads, max_norm):
    leaves = [torch.zeros_like(g) for g in grads]
    for leaf, g in zip(leaves, grads, strict=True):
        leaf.grad = g.clone()
    norm = torch.nn.utils.clip_grad_norm_(leaves, max_norm)
    return [leaf.grad for leaf in leaves], norm
