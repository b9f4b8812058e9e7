"""Checks of optimizers: references in torch's form, and the cases to try them on.

An optimizer is judged by the parameters after each of `STEPS` steps, on several tensors, and
while a second run takes turns with it: an answer that keeps its memory anywhere but in
``state`` is found out.
"""

from __future__ import annotations

import copy
import inspect
import math
import textwrap
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from shipyard.checks import Case, CheckFailed, Passed, compare, draws, require_signature
from shipyard.checks.differences import difference

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


class _Tensors(list):
    """A list of tensors that a failing check shows by its shapes."""

    def __repr__(self) -> str:
        return f"[tensors of shapes {', '.join(str(tuple(t.shape)) for t in self)}]"


class _EachStep:
    """One value for each step, which a failing check shows in a few words."""

    def __init__(self, values: Iterable):
        self.values = tuple(values)

    def __deepcopy__(self, memo: dict) -> _EachStep:
        return self  # `_follow` hands out copies

    def __repr__(self) -> str:
        return "(new in each step)"


def _case(seed: int, shapes=((3, 2), (5,), ()), scale: float = 1.0, **options) -> Case:
    """Parameters and `STEPS` gradients of these shapes; the first gradient holds a zero."""
    draw = draws(seed)
    params = _Tensors(draw(*shape) for shape in shapes)
    grads = [[scale * draw(*shape) for shape in shapes] for _ in range(STEPS)]
    for step_grads in grads:
        step_grads[0].view(-1)[0] = 0
    return Case(params, _EachStep(grads), **options)


def _falling_lr() -> _EachStep:
    return _EachStep(0.2 * 0.7**t for t in range(STEPS))


SMALL = [(1,), (2, 3), (4,), ()]


def _follow(step: Callable, params: list, grads: _EachStep, lr: Any, **options) -> list:
    """The parameters after each step; ``lr`` is one number, or one for each step."""
    rates = lr.values if isinstance(lr, _EachStep) else [lr] * len(grads.values)
    state, path = None, []
    for step_grads, rate in zip(grads.values, rates, strict=True):
        params, step_grads = ([x.clone() for x in tensors] for tensors in (params, step_grads))
        params, state = step(params, step_grads, state, rate, **options)
        path.append(params)
    return path


def _judge(candidate: Callable, reference: Callable, cases: list[Case], **settings) -> Passed:
    if callable(candidate):
        _require_pure_step(candidate, reference, cases[1])
    return compare(
        candidate,
        reference=reference,
        cases=cases,
        outputs=AFTER_EACH_STEP,
        tolerance=1e-10,
        use=_follow,
        forbidden=FORBIDDEN_OPTIMIZERS,
        **settings,
    )


# --- a step function must be pure ----------------------------------------------------------------


def _require_pure_step(step: Callable, reference: Callable, case: Case) -> None:
    """It takes and returns what the task says, changes no input, and hides no memory."""
    name = reference.__name__
    (params, grads), options = case.args, dict(case.options)
    lr = options.pop("lr")
    signature = f"{name}{inspect.signature(reference)}"
    require_signature(step, signature, (params, grads.values[0], None, lr), options)
    few = grads.values[:4]
    starts = (params, params, [θ + 1 for θ in params])
    runs = [_Run(name, step, start, lr, options) for start in starts]
    try:
        wanted = [runs[0].take(g, twice=True) for g in few]
        got = [(runs[1].take(g), runs[2].take([2 - part for part in g]))[0] for g in few]
    except CheckFailed:
        raise
    except Exception:
        return  # the comparison that follows reports it, with its line
    if not _same(got, wanted):
        raise _refusal(
            name,
            "hidden-state",
            "Two runs that take turns disturb each other. The same params, grads and state gave "
            "another answer once a second run was under way.",
        )


def _refusal(name: str, slug: str, text: str) -> CheckFailed:
    if slug == "hidden-state":
        text += (
            " All memory must travel in state: read it from the argument, and return it. Keep "
            "nothing in a global variable, in a default argument or on the function."
        )
    text = textwrap.fill(text, width=92, initial_indent="  ", subsequent_indent="  ")
    return CheckFailed(f"{name} is not right yet.\n\nWhat went wrong ({slug}):\n{text}", slug)


class _Run:
    """One run of a step function: its parameters and its state so far."""

    def __init__(self, name: str, step: Callable, params: list, lr: float, options: dict):
        self.name, self.step, self.params, self.state = name, step, list(params), None
        self.lr, self.options = lr, options

    def take(self, grads: list[Tensor], twice: bool = False) -> list[Tensor]:
        """The new parameters. ``twice``: the same call again must give the same ones."""
        params = [θ.clone() for θ in self.params]  # memory hung on a tensor is lost
        given = {"params": params, "grads": list(grads), "state": self.state}
        before = copy.deepcopy(given)
        answer = self.step(*given.values(), self.lr, **self.options)
        self._require_form(answer)
        for argument, value in before.items():
            if not _same(value, given[argument]):
                text = (
                    f"It changed its argument {argument}. A step makes new tensors and leaves the "
                    "old ones as they were: write v = a * v + g, not v *= a, and use no method "
                    "whose name ends in _, such as add_."
                )
                raise _refusal(self.name, "changed-input", text)
        if twice and not _same(answer[0], self.step(*given.values(), self.lr, **self.options)[0]):
            text = "Two calls with the same params, grads, state and lr gave two answers."
            raise _refusal(self.name, "hidden-state", text)
        self.params, self.state = list(answer[0]), answer[1]
        return self.params

    def _require_form(self, answer: Any) -> None:
        pair = isinstance(answer, tuple | list) and len(answer) == 2
        if answer is None:
            slug, text = "returned-none", "It returned None. Does every path end with a return?"
        elif not pair or not isinstance(answer[0], tuple | list):
            slug = "wrong-return"
            text = f"It returned a {type(answer).__name__}. Expected is a pair, with a list of "
            text += "tensors first: return new_params, new_state."
        elif len(answer[0]) != len(self.params):
            slug = "wrong-return"
            text = f"It returned {len(answer[0])} of the {len(self.params)} new params. "
            text += "Does the return stand inside the loop?"
        else:
            return
        raise _refusal(self.name, slug, text)


def _same(a: Any, b: Any) -> bool:
    """Equal in every tensor, number and text; NaN equals NaN."""
    if isinstance(a, dict) and isinstance(b, dict):
        a, b = list(a.values()), list(b.values())
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    return not isinstance(a, Tensor | int | float | str) or difference(a, b) is None


# --- the checks ----------------------------------------------------------------------------------


def check_gradient_descent(candidate: Callable) -> Passed:
    """Check ``gradient_descent(params, grads, state, lr)``."""
    cases = [
        _case(1, lr=0.1),
        _case(2, lr=0.5),
        _case(3, lr=_falling_lr()),
        _case(4, [(2,)], lr=0.1),
        _case(5, SMALL, lr=0.01),
    ]
    return _judge(candidate, gradient_descent, cases)


def check_sgd_momentum(candidate: Callable) -> Passed:
    """Check ``sgd_momentum(params, grads, state, lr, momentum=0.9)``."""
    return _judge(candidate, sgd_momentum, _momentum_cases())


def check_nesterov(candidate: Callable) -> Passed:
    """Check ``nesterov(params, grads, state, lr, momentum=0.9)``."""
    return _judge(candidate, nesterov, _momentum_cases())


def _momentum_cases() -> list[Case]:
    return [
        _case(1, lr=0.1),
        _case(2, lr=0.05, momentum=0.5),
        _case(3, lr=_falling_lr(), momentum=0.8),
        _case(4, [(2,)], lr=0.1, momentum=0.0),
        _case(5, SMALL, lr=0.01, momentum=0.99),
    ]


def check_adagrad(candidate: Callable) -> Passed:
    """Check ``adagrad(params, grads, state, lr, eps=1e-10)``."""
    cases = [
        _case(1, lr=0.1),
        _case(2, lr=0.5, eps=0.1),
        _case(3, lr=_falling_lr()),
        _case(4, lr=0.1, scale=1e-9),
        _case(5, SMALL, lr=0.02, eps=0.01),
    ]
    return _judge(candidate, adagrad, cases)


def check_rmsprop(candidate: Callable) -> Passed:
    """Check ``rmsprop(params, grads, state, lr, alpha=0.99, eps=1e-8)``."""
    cases = [
        _case(1, lr=0.01),
        _case(2, lr=0.05, alpha=0.9),
        _case(3, lr=_falling_lr(), alpha=0.95),
        _case(4, lr=0.1, scale=1e-7),
        _case(5, SMALL, lr=0.02, alpha=0.7, eps=0.1),
    ]
    return _judge(candidate, rmsprop, cases)


def check_adam(candidate: Callable) -> Passed:
    """Check ``adam(params, grads, state, lr, betas=(0.9, 0.999), eps=1e-8)``."""
    cases = [
        _case(1, lr=0.1),
        _case(2, lr=0.05, betas=(0.8, 0.95)),
        _case(3, lr=_falling_lr(), betas=(0.5, 0.9)),
        _case(4, lr=0.1, scale=1e-7),
        _case(5, SMALL, lr=0.02, eps=0.1),
    ]
    return _judge(candidate, adam, cases)


def check_adamw(candidate: Callable) -> Passed:
    """Check ``adamw``: as ``adam``, and ``weight_decay=0.01`` at the end."""
    cases = [
        _case(1, lr=0.1),
        _case(2, lr=0.05, weight_decay=0.5, betas=(0.8, 0.95)),
        _case(3, lr=_falling_lr(), weight_decay=0.3),
        _case(4, lr=0.1, weight_decay=0.0),
        _case(5, lr=0.1, scale=1e-7),
        _case(6, SMALL, lr=0.02, weight_decay=0.1, eps=0.1),
    ]
    return _judge(candidate, adamw, cases, forms=(adamw_by_adam,))


def check_warmup_cosine(candidate: Callable) -> Passed:
    """Check ``warmup_cosine(step, total_steps, warmup_steps, peak_lr, final_lr=0.0)``."""
    options = [
        (12, 4, 0.8),
        (12, 4, 0.1, 0.01),
        (11, 3, 0.5, 0.2),
        (9, 0, 1.0, 0.1),
        (5, 1, 2.0),
        (4, 4, 1.0, 0.3),
    ]
    return compare(
        candidate,
        reference=warmup_cosine,
        cases=[Case(step, *rest) for rest in options for step in range(rest[0] + 3)],
        tolerance=1e-6,  # torch's cosine of a float32 number is right too
        forbidden=FORBIDDEN_OPTIMIZERS,
    )


def check_clip_grad_norm(candidate: Callable) -> Passed:
    """Check ``clip_grad_norm(grads, max_norm)``, which returns (clipped grads, norm before)."""

    def case(seed, max_norm, scale=1.0, shapes=((3, 2), (5,), ())):
        draw = draws(seed)
        return Case(_Tensors(scale * draw(*shape) for shape in shapes), max_norm)

    return compare(
        candidate,
        reference=clip_grad_norm,
        outputs=("clipped", "norm"),
        tolerance=2e-7,  # with torch's 1e-6 in the denominator and without, and no larger number
        cases=[
            case(1, 1.0, scale=10.0),
            case(2, 8.0, scale=3.0),
            case(3, 50.0),
            case(4, 0.5, scale=10.0, shapes=[(2, 3), (4, 2), (1,), ()]),
            case(5, 2.5, scale=2.0, shapes=[(3,), (3,)]),
            case(6, 1.0, scale=0.0),
            case(7, 3.0, scale=5.0, shapes=[(1,), (2,)]),
        ],
        forms=(clip_where_too_long,),
        forbidden=FORBIDDEN_CLIPPING,
    )
