"""Checks of optimizers: references in torch's form, and the cases to try them on.

An optimizer is judged by the parameters after each of `STEPS` steps, on several tensors, and
while a second run takes turns with it: an answer that keeps its memory anywhere but in
``state`` is found out.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from shipyard.checks import Case, CheckFailed, changed, check, draws
from shipyard.checks.telling import refusal

STEPS = 12
AFTER_EACH_STEP = [f"(params after step {t})" for t in range(1, STEPS + 1)]
FORBIDDEN_OPTIMIZERS = {
    "Optimizer.__init__": "You built an optimizer of torch.optim. It is what you are writing: "
    "write the formula of the step with operations on tensors."
}
FORBIDDEN_CLIPPING = dict.fromkeys(
    ("clip_grad_norm_", "clip_grads_with_norm_", "get_total_norm"),
    "It is what you are writing. Compute the norm and the factor with operations on tensors.",
)


NO_OTHER_MEMORY = """All memory must travel in state: read it from the argument, and return it. Keep
    nothing in a global variable, in a default argument or on the function."""


# --- the references ------------------------------------------------------------------------------


def zeros(params):
    return [torch.zeros_like(θ) for θ in params]


def gradient_descent(params, grads, state, lr):
    new_params = []
    for θ, g in zip(params, grads, strict=True):
        new_params.append(θ - lr * g)
    return new_params, None


def sgd_momentum(params, grads, state, lr, momentum=0.9):
    velocities = zeros(params) if state is None else state
    new_params, new_state = [], []
    for θ, g, v in zip(params, grads, velocities, strict=True):
        v = momentum * v + g
        new_params.append(θ - lr * v)
        new_state.append(v)
    return new_params, new_state


def nesterov(params, grads, state, lr, momentum=0.9):
    velocities = zeros(params) if state is None else state
    new_params, new_state = [], []
    for θ, g, v in zip(params, grads, velocities, strict=True):
        v = momentum * v + g
        new_params.append(θ - lr * (g + momentum * v))
        new_state.append(v)
    return new_params, new_state


def adagrad(params, grads, state, lr, eps=1e-10):
    sums = zeros(params) if state is None else state
    new_params, new_state = [], []
    for θ, g, G in zip(params, grads, sums, strict=True):
        G = G + g**2
        new_params.append(θ - lr * g / (G.sqrt() + eps))
        new_state.append(G)
    return new_params, new_state


def rmsprop(params, grads, state, lr, alpha=0.99, eps=1e-8):
    means = zeros(params) if state is None else state
    new_params, new_state = [], []
    for θ, g, v in zip(params, grads, means, strict=True):
        v = alpha * v + (1 - alpha) * g**2
        new_params.append(θ - lr * g / (v.sqrt() + eps))
        new_state.append(v)
    return new_params, new_state


def adam(params, grads, state, lr, betas=(0.9, 0.999), eps=1e-8):
    β1, β2 = betas
    t, means, squares = (0, zeros(params), zeros(params)) if state is None else state
    t = t + 1
    new_params, new_means, new_squares = [], [], []
    for θ, g, m, v in zip(params, grads, means, squares, strict=True):
        m = β1 * m + (1 - β1) * g
        v = β2 * v + (1 - β2) * g**2
        m_hat = m / (1 - β1**t)
        v_hat = v / (1 - β2**t)
        new_params.append(θ - lr * m_hat / (v_hat.sqrt() + eps))
        new_means.append(m)
        new_squares.append(v)
    return new_params, (t, new_means, new_squares)


def adamw(params, grads, state, lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01):
    β1, β2 = betas
    t, means, squares = (0, zeros(params), zeros(params)) if state is None else state
    t = t + 1
    new_params, new_means, new_squares = [], [], []
    for θ, g, m, v in zip(params, grads, means, squares, strict=True):
        θ = (1 - lr * weight_decay) * θ
        m = β1 * m + (1 - β1) * g
        v = β2 * v + (1 - β2) * g**2
        m_hat = m / (1 - β1**t)
        v_hat = v / (1 - β2**t)
        new_params.append(θ - lr * m_hat / (v_hat.sqrt() + eps))
        new_means.append(m)
        new_squares.append(v)
    return new_params, (t, new_means, new_squares)


def adamw_by_adam(params, grads, state, lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01):
    shrunk = [(1 - lr * weight_decay) * θ for θ in params]
    return adam(shrunk, grads, state, lr, betas, eps)


def warmup_cosine(step, total_steps, warmup_steps, peak_lr, final_lr=0.0):
    if step < warmup_steps:
        return peak_lr * (step + 1) / warmup_steps
    if step >= total_steps:
        return final_lr
    p = (step - warmup_steps) / (total_steps - warmup_steps)
    return final_lr + (peak_lr - final_lr) * (1 + math.cos(math.pi * p)) / 2


def clip_grad_norm(grads, max_norm):
    norm = math.sqrt(sum((g**2).sum().item() for g in grads))
    factor = min(1.0, max_norm / (norm + 1e-6))
    return [g * factor for g in grads], norm


def clip_where_too_long(grads, max_norm):
    norm = math.sqrt(sum((g**2).sum().item() for g in grads))
    if norm > max_norm:
        grads = [g * max_norm / norm for g in grads]
    return grads, norm


# --- one tensor, several tensors, many steps -----------------------------------------------------


SMALL = ((1,), (2, 3), (4,), ())
FALLING_LR = [0.2 * 0.7**t for t in range(STEPS)]


def _case(seed: int, shapes: tuple = ((3, 2), (5,), ()), scale: float = 1.0, **options) -> Case:
    """Parameters and `STEPS` gradients of these shapes; the first gradient holds a zero."""
    draw = draws(seed)
    params = [draw(*shape) for shape in shapes]
    grads = [[scale * draw(*shape) for shape in shapes] for _ in range(STEPS)]
    for step_grads in grads:
        step_grads[0].view(-1)[0] = 0
    return Case(params, grads, **options)


def _follow(step: Callable, params: list, grads: list, lr: Any, **options) -> list | None:
    """The parameters after each step; ``lr`` is one number, or one for each step."""
    rates = lr if isinstance(lr, list) else [lr] * len(grads)
    state, path, count = None, [], len(params)
    for step_grads, rate in zip(grads, rates, strict=True):
        params, step_grads = ([x.clone() for x in tensors] for tensors in (params, step_grads))
        answer = step(params, step_grads, state, rate, **options)
        match answer:
            case None:
                return None
            case [list() | tuple() as params, state] if len(params) == count:
                path.append(params)
            case [list() | tuple(), _]:
                text = f"It returned {len(answer[0])} of the {count} new params. Does the return "
                raise CheckFailed(f"{text}stand inside the loop?", "wrong-return")
            case _:
                text = f"It returned a {type(answer).__name__}. Expected is a pair, with a list of "
                text += "tensors first: return new_params, new_state."
                raise CheckFailed(text, "wrong-return")
    return path


def _require_pure_step(step: Callable, reference: Callable, cases: list[Case]) -> None:
    """It changes no input, and hides no memory, also while a second run takes turns with it."""
    (params, grads), options = cases[1].args, dict(cases[1].options)
    lr, title = options.pop("lr"), f"{reference.__name__} is not right yet."

    def take(run: tuple, grads: list[Tensor], twice: bool = False) -> tuple:
        """(new parameters, new state). ``twice``: the same call again must give the same."""
        # clones: memory hung on a tensor is lost
        given = {"params": [θ.clone() for θ in run[0]], "grads": list(grads), "state": run[1]}
        before = copy.deepcopy(given)
        new_params, state = step(*given.values(), lr, **options)
        for argument, value in before.items():
            if changed(value, given[argument]):
                text = (
                    f"It changed its argument {argument}. A step makes new tensors and leaves the "
                    "old ones as they were: write v = a * v + g, not v *= a, and use no method "
                    "whose name ends in _, such as add_."
                )
                raise refusal("changed-input", text, title=title)
        if twice and changed(new_params, step(*given.values(), lr, **options)[0]):
            text = "Two calls with the same params, grads, state and lr gave two answers."
            raise refusal("hidden-state", f"{text} {NO_OTHER_MEMORY}", title=title)
        return new_params, state

    alone, again, other = (params, None), (params, None), ([θ + 1 for θ in params], None)
    try:
        for g in grads[:4]:
            alone = take(alone, g, twice=True)
        for g in grads[:4]:
            again, other = take(again, g), take(other, [2 - part for part in g])
    except CheckFailed:
        raise
    except Exception:
        return  # the comparison that follows reports it, with its line
    if changed(alone[0], again[0]):
        text = (
            "Two runs that take turns disturb each other. The same params, grads and state gave "
            "another answer once a second run was under way."
        )
        raise refusal("hidden-state", f"{text} {NO_OTHER_MEMORY}", title=title)


def _check_step(reference: Callable, *options: dict, forms: Sequence[Callable] = ()) -> Callable:
    """The check of a step, with one case for each of the ``options``, which may name its shapes."""
    settings = {"use": _follow, "outputs": AFTER_EACH_STEP, "tolerance": 1e-10, "forms": forms}
    decorate = check(
        reference, before=_require_pure_step, forbidden=FORBIDDEN_OPTIMIZERS, **settings
    )
    return decorate(lambda: [_case(seed, **given) for seed, given in enumerate(options, 1)])


# --- the checks ----------------------------------------------------------------------------------

check_gradient_descent = _check_step(
    gradient_descent,
    {"lr": 0.1},
    {"lr": 0.5},
    {"lr": FALLING_LR},
    {"lr": 0.1, "shapes": ((2,),)},
    {"lr": 0.01, "shapes": SMALL},
)
_MOMENTUM = [
    {"lr": 0.1},
    {"lr": 0.05, "momentum": 0.5},
    {"lr": FALLING_LR, "momentum": 0.8},
    {"lr": 0.1, "momentum": 0.0, "shapes": ((2,),)},
    {"lr": 0.01, "momentum": 0.99, "shapes": SMALL},
]
check_sgd_momentum = _check_step(sgd_momentum, *_MOMENTUM)
check_nesterov = _check_step(nesterov, *_MOMENTUM)
check_adagrad = _check_step(
    adagrad,
    {"lr": 0.1},
    {"lr": 0.5, "eps": 0.1},
    {"lr": FALLING_LR},
    {"lr": 0.1, "scale": 1e-9},
    {"lr": 0.02, "eps": 0.01, "shapes": SMALL},
)
check_rmsprop = _check_step(
    rmsprop,
    {"lr": 0.01},
    {"lr": 0.05, "alpha": 0.9},
    {"lr": FALLING_LR, "alpha": 0.95},
    {"lr": 0.1, "scale": 1e-7},
    {"lr": 0.02, "alpha": 0.7, "eps": 0.1, "shapes": SMALL},
)
check_adam = _check_step(
    adam,
    {"lr": 0.1},
    {"lr": 0.05, "betas": (0.8, 0.95)},
    {"lr": FALLING_LR, "betas": (0.5, 0.9)},
    {"lr": 0.1, "scale": 1e-7},
    {"lr": 0.02, "eps": 0.1, "shapes": SMALL},
)
check_adamw = _check_step(
    adamw,
    {"lr": 0.1},
    {"lr": 0.05, "weight_decay": 0.5, "betas": (0.8, 0.95)},
    {"lr": FALLING_LR, "weight_decay": 0.3},
    {"lr": 0.1, "weight_decay": 0.0},
    {"lr": 0.1, "scale": 1e-7},
    {"lr": 0.02, "weight_decay": 0.1, "eps": 0.1, "shapes": SMALL},
    forms=(adamw_by_adam,),
)


@check(warmup_cosine, tolerance=1e-6, forbidden=FORBIDDEN_OPTIMIZERS)  # float32 cosines pass
def check_warmup_cosine():
    options = [
        (12, 4, 0.8),
        (12, 4, 0.1, 0.01),
        (11, 3, 0.5, 0.2),
        (9, 0, 1.0, 0.1),
        (5, 1, 2.0),
        (4, 4, 1.0, 0.3),
    ]
    return [Case(step, *rest) for rest in options for step in range(rest[0] + 3)]


@check(
    clip_grad_norm,
    outputs=("clipped", "norm"),
    tolerance=2e-7,  # with torch's 1e-6 in the denominator and without, and no larger number
    forms=(clip_where_too_long,),
    forbidden=FORBIDDEN_CLIPPING,
)
def check_clip_grad_norm():
    """It returns (clipped grads, norm before)."""

    def case(seed, max_norm, scale=1.0, shapes=((3, 2), (5,), ())):
        draw = draws(seed)
        return Case([scale * draw(*shape) for shape in shapes], max_norm)

    return [
        case(1, 1.0, scale=10.0),
        case(2, 8.0, scale=3.0),
        case(3, 50.0),
        case(4, 0.5, scale=10.0, shapes=[(2, 3), (4, 2), (1,), ()]),
        case(5, 2.5, scale=2.0, shapes=[(3,), (3,)]),
        case(6, 1.0, scale=0.0),
        case(7, 3.0, scale=5.0, shapes=[(1,), (2,)]),
    ]
