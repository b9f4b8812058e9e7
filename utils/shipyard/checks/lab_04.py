"""Checks of lab 04, optimizers. ``torch.optim`` is the reference.

An optimizer is judged by the parameters after each of `STEPS` steps, on several tensors, and
while a second run takes turns with it: an answer that keeps its memory anywhere but in
``state`` is found out.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from shipyard.checks import Case, CheckFailed, Mistake, Passed, compare, draws

STEPS = 12
AFTER_EACH_STEP = [f"(params after step {t})" for t in range(1, STEPS + 1)]


# --- one tensor, several tensors, many steps ----------------------------------------------------


class _Tensors(list):
    """A list of tensors that a failure message shows by its shapes."""

    def __repr__(self) -> str:
        return f"[tensors of shapes {', '.join(str(tuple(t.shape)) for t in self)}]"


class _EachStep(list):
    """One value for each step."""

    def __repr__(self) -> str:
        if isinstance(self[0], list):
            return f"(other gradients in each of {len(self)} steps)"
        return f"({', '.join(f'{value:g}' for value in self[:3])}, ... changing in each step)"


def _case(seed: int, shapes=((3, 2), (4,), ()), scale: float = 1.0, **options) -> Case:
    """Parameters and `STEPS` gradients of these shapes; the first gradient holds a zero."""
    draw = draws(seed)
    params = _Tensors(draw(*shape) for shape in shapes)
    grads = _EachStep(_Tensors(scale * draw(*shape) for shape in shapes) for _ in range(STEPS))
    for step_grads in grads:
        step_grads[0].view(-1)[0] = 0
    return Case(params, grads, **options)


class _TorchStep:
    """A torch optimizer in the place of a step function."""

    def __init__(self, optimizer_class: type, **fixed):
        self.optimizer_class, self.fixed = optimizer_class, fixed

    def path(self, params: list, grads: list, rates: list[float], **options) -> list[list[Tensor]]:
        """The parameters after each step."""
        params = [θ.clone() for θ in params]
        optimizer = self.optimizer_class(params, lr=rates[0], **{**self.fixed, **options})
        path = []
        for step_grads, rate in zip(grads, rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate
            for θ, g in zip(params, step_grads, strict=True):
                θ.grad = g.clone()
            optimizer.step()
            path.append([θ.clone() for θ in params])
        return path


def _follow(step: Callable | _TorchStep, params: list, grads: list, lr: Any, **options) -> list:
    """The parameters after each step; ``lr`` is one number, or one for each step."""
    rates = lr if isinstance(lr, list) else [lr] * len(grads)
    if isinstance(step, _TorchStep):
        return step.path(params, grads, rates, **options)
    state, path = None, []
    for step_grads, rate in zip(grads, rates, strict=True):
        params, state = step(list(params), list(step_grads), state, rate, **options)
        path.append(params)
    return path


def _judge(candidate: Callable, signature: str, reference, cases: list, mistakes: list) -> Passed:
    if callable(candidate):
        _check_manners(candidate, signature, cases[1])
    return compare(
        candidate,
        signature=signature.replace("state, ", ""),  # it begins as None in every case
        reference=reference,
        cases=cases,
        mistakes=mistakes,
        outputs=AFTER_EACH_STEP,
        use=_follow,
    )


# --- a step function must be pure ---------------------------------------------------------------


def _check_manners(step: Callable, signature: str, case: Case) -> None:
    """It takes and returns what the task says, changes no input, and hides no memory."""
    name = signature.partition("(")[0]
    (params, grads), options = case.args, dict(case.options)
    lr = options.pop("lr")
    try:
        inspect.signature(step).bind(params, grads[0], None, lr, **options)
    except ValueError:  # a builtin does not tell
        pass
    except TypeError as error:
        raise CheckFailed(
            f"Your function cannot be called like this: {error}.\nThe task asks for {signature}.",
            "wrong-signature",
        ) from error
    try:
        alone = _Walk(name, step, params, lr, options)
        wanted = [alone.take(g) for g in grads[:4]]
        first = _Walk(name, step, params, lr, options)
        second = _Walk(name, step, [θ + 1 for θ in params], lr, options)
        got = [(first.take(g), second.take([2 - part for part in g]))[0] for g in grads[:4]]
    except CheckFailed:
        raise
    except Exception:
        return  # the comparison that follows reports it, with its line
    if not _same(got, wanted):
        raise CheckFailed(
            f"Two runs of {name} that take turns disturb each other: the same params, grads and "
            "state gave another answer once a second run was under way.\n"
            "All memory must travel in state: read it from the argument, and return it. Keep "
            "nothing in a global variable, in a default argument or on the function.",
            "hidden-state",
        )


class _Walk:
    """One run of a step function: its parameters and its state so far."""

    def __init__(self, name: str, step: Callable, params: list, lr: float, options: dict):
        self.name, self.step, self.params, self.state = name, step, list(params), None
        self.lr, self.options = lr, options

    def take(self, grads: list[Tensor]) -> list[Tensor]:
        given = {"params": self.params, "grads": list(grads), "state": self.state}
        before = copy.deepcopy(given)
        answer = self.step(*given.values(), self.lr, **self.options)
        if answer is None:
            raise CheckFailed(
                f"{self.name} returned None. Does every path end with a return?", "returned-none"
            )
        if not isinstance(answer, tuple | list) or len(answer) != 2:
            raise CheckFailed(
                f"{self.name} returned a {type(answer).__name__}; expected a pair: "
                "return new_params, new_state.",
                "wrong-return",
            )
        if not isinstance(answer[0], list | tuple):
            raise CheckFailed(
                f"{self.name} returned new params of type {type(answer[0]).__name__}; expected a "
                "list with one tensor for each parameter.",
                "wrong-return",
            )
        for argument, value in before.items():
            if not _same(value, given[argument]):
                raise CheckFailed(
                    f"{self.name} changed its argument {argument}. A step makes new tensors and "
                    "leaves the old ones as they were: write v = a * v + g, not v *= a, and use "
                    "no method whose name ends in _, such as add_.",
                    "changed-input",
                )
        self.params, self.state = list(answer[0]), answer[1]
        return self.params


def _same(a: Any, b: Any) -> bool:
    """Equal in every number; NaN equals NaN."""
    ours, theirs = list(_leaves(a)), list(_leaves(b))
    return len(ours) == len(theirs) and all(map(_same_leaf, ours, theirs))


def _same_leaf(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())
    return type(a) is type(b) and (not isinstance(a, int | float | str) or a == b or a != a)


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item)
    else:
        yield value


# --- known mistakes, as formulas ----------------------------------------------------------------


def _rule(remember: Callable, move: Callable, **defaults) -> Callable:
    """A step from two formulas for one tensor θ with gradient g, at step t = 1, 2, ….

    ``remember(m, g, o)`` is the new memory, which starts as 0 (or as the pair 0, 0 where
    ``defaults`` has betas), and ``move(θ, g, m, t, o)`` is the new θ. ``o`` has the options.
    """

    def step(params, grads, state, lr, **options):
        o = SimpleNamespace(lr=lr, **{**defaults, **options})
        start = (0.0, 0.0) if "betas" in defaults else 0.0
        t, old = state or (0, [start] * len(params))
        new = [remember(m, g, o) for m, g in zip(old, grads, strict=True)]
        moved = [move(θ, g, m, t + 1, o) for θ, g, m in zip(params, grads, new, strict=True)]
        return moved, (t + 1, new)

    return step


def _common(right: Callable, ascent: Callable | None = None) -> list[Mistake]:
    """The mistakes that are made with the step as a whole, not with its formula."""

    def with_rate(rate):
        def step(params, grads, state, lr, **options):
            return right(params, grads, state, rate(lr), **options)

        return step

    def update_alone(params, grads, state, lr, **options):
        new, state = right(params, grads, state, lr, **options)
        return [a - b for a, b in zip(new, params, strict=True)], state

    def first_only(params, grads, state, lr, **options):
        new, state = right(params, grads, state, lr, **options)
        return [new[0], *params[1:]], state

    return [
        Mistake(
            "ascent",
            """Your step climbs. The gradient points to where the loss grows fastest, so the
            parameters move against it: θ minus the learning rate times the direction.""",
            ascent or with_rate(lambda lr: -lr),
        ),
        Mistake(
            "lr-twice",
            """The learning rate is in your step twice. It scales the whole step once, at the end;
            lr · lr makes a small rate tiny: 0.1 · 0.1 = 0.01.""",
            with_rate(lambda lr: lr * lr),
        ),
        Mistake(
            "lr-ignored",
            """Your step does not depend on lr. Multiply the direction by lr before you subtract
            it.""",
            with_rate(lambda lr: 1.0),
        ),
        Mistake(
            "update-without-parameters",
            """You returned the change alone. The new parameters are the old ones plus that
            change: θ − lr · (...), not − lr · (...).""",
            update_alone,
        ),
        Mistake(
            "only-first-tensor",
            """Only the first tensor moved. A model has many parameter tensors, and the step goes
            through all of them: [... for θ, g in zip(params, grads)].""",
            first_only,
        ),
    ]


def _forgetful(right: Callable, what: str) -> Mistake:
    return Mistake(
        "state-forgotten",
        f"""Each of your steps begins again from zero. {what} must be read from state, which is
        None at the first step alone; afterwards it holds what your last step returned.""",
        lambda params, grads, state, lr, **options: right(params, grads, None, lr, **options),
    )


# --- the optimizers -----------------------------------------------------------------------------


def check_gradient_descent(candidate: Callable) -> Passed:
    """Check ``gradient_descent(params, grads, state, lr)``."""

    def rule(move=lambda θ, g, m, t, o: θ - o.lr * g, remember=lambda m, g, o: m):
        return _rule(remember, move)

    return _judge(
        candidate,
        signature="gradient_descent(params, grads, state, lr)",
        reference=_TorchStep(torch.optim.SGD),
        cases=[
            _case(1, [(2,)], lr=0.1),
            _case(2, lr=0.5),
            _case(3, [(1,), (2, 3), (4,), ()], lr=0.01),
            _case(4, lr=_EachStep(0.2 * 0.7**t for t in range(STEPS))),
        ],
        mistakes=[
            *_common(rule()),
            Mistake(
                "gradients-pile-up",
                """You summed the gradients of all steps so far. Plain gradient descent has no
                memory: each step uses the gradient of this step alone. (In a torch training loop
                the same thing happens when zero_grad() is left out.)""",
                rule(lambda θ, g, m, t, o: θ - o.lr * m, lambda m, g, o: m + g),
            ),
            Mistake(
                "sign-only",
                """You used the sign of the gradient. Its size matters too: the step is
                proportional to the gradient, and so becomes small near a minimum.""",
                rule(lambda θ, g, m, t, o: θ - o.lr * g.sign()),
            ),
            Mistake(
                "normalised-gradient",
                """You divided the gradient by its length. The step is lr · g as it is, so that
                it becomes small where the loss is flat.""",
                rule(lambda θ, g, m, t, o: θ - o.lr * g / g.norm()),
            ),
            Mistake(
                "divided-by-lr",
                """You divided by the learning rate. A small lr stands for a small step, so the
                gradient is multiplied by it.""",
                rule(lambda θ, g, m, t, o: θ - g / o.lr),
            ),
            Mistake(
                "averaged-over-the-tensor",
                """You moved a whole tensor by one number, the mean (or the sum) of its gradient.
                Each element of θ has its own partial derivative: g has the shape of θ, and they
                meet element by element.""",
                rule(lambda θ, g, m, t, o: θ - o.lr * g.mean()),
                rule(lambda θ, g, m, t, o: θ - o.lr * g.sum()),
            ),
        ],
    )


def check_sgd_momentum(candidate: Callable) -> Passed:
    """Check ``sgd_momentum(params, grads, state, lr, momentum=0.9)``."""

    def rule(remember, move=lambda θ, g, v, t, o: θ - o.lr * v):
        return _rule(remember, move, momentum=0.9)

    def velocity(v, g, o):
        return o.momentum * v + g

    def old_velocity(pair, g, o):  # (the one before, the new one)
        return (pair[1], velocity(pair[1], g, o)) if isinstance(pair, tuple) else (0.0 * g, g)

    return _judge(
        candidate,
        signature="sgd_momentum(params, grads, state, lr, momentum=0.9)",
        reference=_TorchStep(torch.optim.SGD, momentum=0.9, dampening=0),
        cases=[
            _case(1, [(2,)], lr=0.1),
            _case(2, lr=0.05, momentum=0.5),
            _case(3, [(1,), (2, 3), (4,), ()], lr=0.01, momentum=0.99),
            _case(4, lr=0.1, momentum=0.0),
            _case(5, lr=_EachStep(0.2 * 0.7**t for t in range(STEPS)), momentum=0.8),
        ],
        mistakes=[
            *_common(rule(velocity)),
            _forgetful(rule(velocity), "The velocity"),
            Mistake(
                "dampened-momentum",
                """You multiplied the new gradient by 1 − momentum, which makes the velocity an
                average. Here it is a sum: v = momentum · v + g. With momentum 0.9 your steps are
                ten times too short. (Adam's first moment does have this factor.)""",
                rule(lambda v, g, o: o.momentum * v + (1 - o.momentum) * g),
            ),
            Mistake(
                "velocity-updated-after-use",
                """You moved with the velocity of the step before and updated it afterwards. First
                put the new gradient into the velocity, then move: else the first step goes
                nowhere.""",
                rule(old_velocity, lambda θ, g, v, t, o: θ - o.lr * v[0]),
            ),
            Mistake(
                "nesterov-instead",
                """This is Nesterov's step, g + momentum · v. Plain momentum moves along the
                velocity itself.""",
                rule(velocity, lambda θ, g, v, t, o: θ - o.lr * (g + o.momentum * v)),
            ),
            Mistake(
                "lr-in-velocity",
                """You put lr into the velocity: v = momentum · v + lr · g, then θ − v. With one
                fixed lr that is the same, but when lr changes the old gradients keep the old rate.
                Here, as in torch, lr scales the whole velocity: θ − lr · v.""",
                rule(lambda v, g, o: o.momentum * v + o.lr * g, lambda θ, g, v, t, o: θ - v),
            ),
            Mistake(
                "momentum-subtracted",
                """You subtracted the old velocity. It is added, so that gradients which agree
                build up and gradients which disagree cancel: v = momentum · v + g.""",
                rule(lambda v, g, o: g - o.momentum * v),
            ),
            Mistake(
                "momentum-complement",
                """You kept the share 1 − momentum of the old velocity. The factor of the old
                velocity is momentum itself: 0.9 means that 90% of it stays.""",
                rule(lambda v, g, o: (1 - o.momentum) * v + g),
                rule(lambda v, g, o: (1 - o.momentum) * v + o.momentum * g),
            ),
            Mistake(
                "momentum-ignored",
                """You added up all gradients without letting go of any. The old velocity is
                multiplied by momentum at each step, so that old gradients fade.""",
                rule(lambda v, g, o: v + g),
            ),
        ],
    )


def check_nesterov(candidate: Callable) -> Passed:
    """Check ``nesterov(params, grads, state, lr, momentum=0.9)``."""

    def velocity(v, g, o):
        return o.momentum * v + g

    def rule(move, remember=velocity):
        return _rule(remember, move, momentum=0.9)

    def right(θ, g, v, t, o):
        return θ - o.lr * (g + o.momentum * v)

    return _judge(
        candidate,
        signature="nesterov(params, grads, state, lr, momentum=0.9)",
        reference=_TorchStep(torch.optim.SGD, momentum=0.9, nesterov=True),
        cases=[
            _case(1, [(2,)], lr=0.1),
            _case(2, lr=0.05, momentum=0.5),
            _case(3, [(1,), (2, 3), (4,), ()], lr=0.01, momentum=0.99),
            _case(5, lr=_EachStep(0.2 * 0.7**t for t in range(STEPS)), momentum=0.8),
        ],
        mistakes=[
            *_common(rule(right)),
            _forgetful(rule(right), "The velocity"),
            Mistake(
                "plain-momentum",
                """This is plain momentum: you moved along v. Nesterov looks one velocity further:
                the direction is g + momentum · v, with v already updated. (With the v of the step
                before, g + momentum · v is the new v, and nothing is gained.)""",
                rule(lambda θ, g, v, t, o: θ - o.lr * v),
            ),
            Mistake(
                "gradient-left-out",
                """You moved along momentum · v alone. The direction is g + momentum · v: the
                fresh gradient counts once more.""",
                rule(lambda θ, g, v, t, o: θ - o.lr * o.momentum * v),
            ),
            Mistake(
                "look-ahead-undamped",
                """You added the whole velocity to the gradient: g + v. The look ahead is what the
                velocity will be after it has faded once, so it is g + momentum · v.""",
                rule(lambda θ, g, v, t, o: θ - o.lr * (g + v)),
            ),
            Mistake(
                "look-ahead-remembered",
                """You stored g + momentum · v as the new velocity. That sum is used for this step
                and then thrown away; what goes into state is v = momentum · v + g.""",
                rule(
                    lambda θ, g, v, t, o: θ - o.lr * v,
                    lambda v, g, o: g + o.momentum * (o.momentum * v + g),
                ),
            ),
            Mistake(
                "roles-swapped",
                """You swapped the two: v + momentum · g. The velocity is the one that fades:
                g + momentum · v.""",
                rule(lambda θ, g, v, t, o: θ - o.lr * (v + o.momentum * g)),
            ),
            Mistake(
                "dampened-momentum",
                """You multiplied the gradient by 1 − momentum in the velocity. It is a sum, not
                an average: v = momentum · v + g.""",
                rule(right, lambda v, g, o: o.momentum * v + (1 - o.momentum) * g),
            ),
        ],
    )


def check_adagrad(candidate: Callable) -> Passed:
    """Check ``adagrad(params, grads, state, lr, eps=1e-10)``."""

    def rule(
        move=lambda θ, g, G, t, o: θ - o.lr * g / (G.sqrt() + o.eps),
        remember=lambda G, g, o: G + g**2,
    ):
        return _rule(remember, move, eps=1e-10)

    def before(pair, g, o):  # (the sum before, the new sum)
        old = pair[1] if isinstance(pair, tuple) else 0.0 * g
        return old, old + g**2

    return _judge(
        candidate,
        signature="adagrad(params, grads, state, lr, eps=1e-10)",
        reference=_TorchStep(torch.optim.Adagrad),
        cases=[
            _case(1, [(2,)], lr=0.1),
            _case(2, lr=0.5),
            _case(3, [(1,), (2, 3), (4,), ()], lr=0.02, eps=0.1),
            _case(4, lr=0.1, scale=1e-9),
            _case(5, lr=_EachStep(0.2 * 0.7**t for t in range(STEPS))),
        ],
        mistakes=[
            *_common(rule()),
            _forgetful(rule(), "The sum of squares G"),
            Mistake(
                "no-root",
                """You divided by the sum of squares itself. Take its root: √G has the unit of a
                gradient, so g / √G has none, and lr alone sets the size of the step.""",
                rule(lambda θ, g, G, t, o: θ - o.lr * g / (G + o.eps)),
            ),
            Mistake(
                "eps-inside-the-root",
                """You wrote √(G + ε). Here, as in torch, ε is added after the root: √G + ε. Inside
                of it a small ε weighs far more: √(1e-10) = 1e-5.""",
                rule(lambda θ, g, G, t, o: θ - o.lr * g / (G + o.eps).sqrt()),
                rule(lambda θ, g, G, t, o: θ - o.lr * g / (G + o.eps**2).sqrt()),
            ),
            Mistake(
                "eps-outside-the-denominator",
                """Your ε is added to the fraction, not to its denominator, so it does not guard
                against a division by zero, and it pushes every parameter. Write
                g / (√G + ε), with the brackets.""",
                rule(lambda θ, g, G, t, o: θ - o.lr * (g / G.sqrt() + o.eps)),
                rule(lambda θ, g, G, t, o: θ - (o.lr * g / G.sqrt() + o.eps)),
            ),
            Mistake(
                "eps-left-out",
                """You left out ε. An element whose gradients were all zero so far has G = 0, and
                0 / 0 is not a number.""",
                rule(lambda θ, g, G, t, o: θ - o.lr * g / G.sqrt()),
            ),
            Mistake(
                "leaky-sum",
                """Your G forgets: that is RMSprop. AdaGrad keeps the sum of all squares,
                G = G + g².""",
                rule(remember=lambda G, g, o: 0.99 * G + 0.01 * g**2),
                rule(remember=lambda G, g, o: 0.9 * G + 0.1 * g**2),
            ),
            Mistake(
                "not-squared",
                """You summed the gradients (or their absolute values), not their squares. Under
                the root belongs a sum of squares: signs must not cancel, and the root must undo
                the square.""",
                rule(remember=lambda G, g, o: G + g),
                rule(remember=lambda G, g, o: G + g.abs()),
            ),
            Mistake(
                "sum-updated-after-use",
                """You divided by the sum of the steps before, and added g² afterwards. The new
                gradient counts at once: first G = G + g², then the step.""",
                rule(lambda θ, g, G, t, o: θ - o.lr * g / (G[0].sqrt() + o.eps), before),
            ),
            Mistake(
                "mean-instead-of-sum",
                """You divided G by the number of steps. AdaGrad divides by the root of the sum,
                which grows: that is why its steps become shorter and shorter.""",
                rule(lambda θ, g, G, t, o: θ - o.lr * g / ((G / t).sqrt() + o.eps)),
            ),
            Mistake(
                "one-rate-per-tensor",
                """You summed the squares over the whole tensor, so that all of its elements share
                one rate. Each element has its own sum: G has the shape of θ.""",
                rule(remember=lambda G, g, o: G + (g**2).sum()),
                rule(remember=lambda G, g, o: G + (g**2).mean()),
            ),
        ],
    )


def check_rmsprop(candidate: Callable) -> Passed:
    """Check ``rmsprop(params, grads, state, lr, alpha=0.99, eps=1e-8)``."""

    def rule(
        move=lambda θ, g, v, t, o: θ - o.lr * g / (v.sqrt() + o.eps),
        remember=lambda v, g, o: o.alpha * v + (1 - o.alpha) * g**2,
    ):
        return _rule(remember, move, alpha=0.99, eps=1e-8)

    def before(pair, g, o):  # (the mean before, the new mean)
        old = pair[1] if isinstance(pair, tuple) else 0.0 * g
        return old, o.alpha * old + (1 - o.alpha) * g**2

    return _judge(
        candidate,
        signature="rmsprop(params, grads, state, lr, alpha=0.99, eps=1e-8)",
        reference=_TorchStep(torch.optim.RMSprop),
        cases=[
            _case(1, [(2,)], lr=0.01),
            _case(2, lr=0.05, alpha=0.9),
            _case(3, [(1,), (2, 3), (4,), ()], lr=0.02, alpha=0.7, eps=0.1),
            _case(4, lr=0.1, scale=1e-7),
            _case(5, lr=_EachStep(0.2 * 0.7**t for t in range(STEPS)), alpha=0.95),
        ],
        mistakes=[
            *_common(rule()),
            _forgetful(rule(), "The mean of squares v"),
            Mistake(
                "no-decay",
                """Your v is a sum that never forgets: that is AdaGrad, and its steps die out.
                RMSprop keeps a running mean, v = α · v + (1 − α) · g².""",
                rule(remember=lambda v, g, o: v + g**2),
            ),
            Mistake(
                "alpha-swapped",
                """You swapped α and 1 − α. α is the share of the old mean that stays, so with
                α = 0.99 the new square counts for one hundredth.""",
                rule(remember=lambda v, g, o: (1 - o.alpha) * v + o.alpha * g**2),
            ),
            Mistake(
                "new-square-undamped",
                """You added the whole new square. In a running mean the two weights add up to 1:
                α for the old mean and 1 − α for the new square.""",
                rule(remember=lambda v, g, o: o.alpha * v + g**2),
            ),
            Mistake(
                "no-root",
                """You divided by the mean of squares itself. The RMS in the name is root mean
                square: divide by √v + ε.""",
                rule(lambda θ, g, v, t, o: θ - o.lr * g / (v + o.eps)),
            ),
            Mistake(
                "eps-inside-the-root",
                """You wrote √(v + ε). Here, as in torch, ε is added after the root: √v + ε. Inside
                of it a small ε weighs far more: √(1e-8) = 1e-4.""",
                rule(lambda θ, g, v, t, o: θ - o.lr * g / (v + o.eps).sqrt()),
                rule(lambda θ, g, v, t, o: θ - o.lr * g / (v + o.eps**2).sqrt()),
            ),
            Mistake(
                "eps-outside-the-denominator",
                """Your ε is added to the fraction, not to its denominator, so it does not guard
                against a division by zero, and it pushes every parameter. Write
                g / (√v + ε), with the brackets.""",
                rule(lambda θ, g, v, t, o: θ - o.lr * (g / v.sqrt() + o.eps)),
                rule(lambda θ, g, v, t, o: θ - (o.lr * g / v.sqrt() + o.eps)),
            ),
            Mistake(
                "eps-left-out",
                """You left out ε. An element whose gradients were all zero so far has v = 0, and
                0 / 0 is not a number.""",
                rule(lambda θ, g, v, t, o: θ - o.lr * g / v.sqrt()),
            ),
            Mistake(
                "not-squared",
                """You averaged the gradients (or their absolute values), not their squares. Signs
                must not cancel, and the root must undo the square.""",
                rule(remember=lambda v, g, o: o.alpha * v + (1 - o.alpha) * g),
                rule(remember=lambda v, g, o: o.alpha * v + (1 - o.alpha) * g.abs()),
            ),
            Mistake(
                "bias-corrected",
                """You divided v by 1 − αᵗ. That is Adam's correction; RMSprop has none, so its
                first steps are longer.""",
                rule(lambda θ, g, v, t, o: θ - o.lr * g / ((v / (1 - o.alpha**t)).sqrt() + o.eps)),
            ),
            Mistake(
                "mean-updated-after-use",
                """You divided by the mean of the steps before. The new gradient counts at once:
                first v, then the step.""",
                rule(lambda θ, g, v, t, o: θ - o.lr * g / (v[0].sqrt() + o.eps), before),
            ),
        ],
    )


def _moments(m, g, o):
    β1, β2 = o.betas
    return β1 * m[0] + (1 - β1) * g, β2 * m[1] + (1 - β2) * g**2


def _corrected(m, t, o):
    β1, β2 = o.betas
    return m[0] / (1 - β1**t), m[1] / (1 - β2**t)


def _adam_move(θ, g, m, t, o):
    m_hat, v_hat = _corrected(m, t, o)
    return θ - o.lr * m_hat / (v_hat.sqrt() + o.eps)


def check_adam(candidate: Callable) -> Passed:
    """Check ``adam(params, grads, state, lr, betas=(0.9, 0.999), eps=1e-8)``."""

    def rule(move=_adam_move, remember=_moments):
        return _rule(remember, move, betas=(0.9, 0.999), eps=1e-8)

    def t_counts_tensors(params, grads, state, lr, betas=(0.9, 0.999), eps=1e-8):
        o = SimpleNamespace(lr=lr, betas=betas, eps=eps)
        t, old = state or (0, [(0.0, 0.0)] * len(params))
        new = [_moments(m, g, o) for m, g in zip(old, grads, strict=True)]
        moved = [
            _adam_move(θ, g, m, t + i, o)
            for i, (θ, g, m) in enumerate(zip(params, grads, new, strict=True), start=1)
        ]
        return moved, (t + len(params), new)

    def correction_remembered(params, grads, state, lr, betas=(0.9, 0.999), eps=1e-8):
        o = SimpleNamespace(lr=lr, betas=betas, eps=eps)
        t, old = state or (0, [(0.0, 0.0)] * len(params))
        new = [_corrected(_moments(m, g, o), t + 1, o) for m, g in zip(old, grads, strict=True)]
        moved = [θ - lr * m / (v.sqrt() + eps) for θ, (m, v) in zip(params, new, strict=True)]
        return moved, (t + 1, new)

    def swapped(step):
        def answer(params, grads, state, lr, betas=(0.9, 0.999), eps=1e-8):
            return step(params, grads, state, lr, betas=betas[::-1], eps=eps)

        return answer

    def one_correction(which):
        def move(θ, g, m, t, o):
            hats = _corrected(m, t, o)
            m_hat, v_hat = (hats[i] if i == which else m[i] for i in (0, 1))
            return θ - o.lr * m_hat / (v_hat.sqrt() + o.eps)

        return move

    def eps_before_correction(θ, g, m, t, o):
        β1, β2 = o.betas
        rate = o.lr * math.sqrt(1 - β2**t) / (1 - β1**t)
        return θ - rate * m[0] / (m[1].sqrt() + o.eps)

    def eps_inside(power):
        def move(θ, g, m, t, o):
            m_hat, v_hat = _corrected(m, t, o)
            return θ - o.lr * m_hat / (v_hat + o.eps**power).sqrt()

        return move

    def eps_outside(θ, g, m, t, o):
        m_hat, v_hat = _corrected(m, t, o)
        return θ - o.lr * (m_hat / v_hat.sqrt() + o.eps)

    def eps_as_step(θ, g, m, t, o):
        m_hat, v_hat = _corrected(m, t, o)
        return θ - o.eps * m_hat / (v_hat.sqrt() + o.eps)

    def eps_left_out(θ, g, m, t, o):
        m_hat, v_hat = _corrected(m, t, o)
        return θ - o.lr * m_hat / v_hat.sqrt()

    def no_root(θ, g, m, t, o):
        m_hat, v_hat = _corrected(m, t, o)
        return θ - o.lr * m_hat / (v_hat + o.eps)

    def gradient_over_root(θ, g, m, t, o):
        return θ - o.lr * g / (_corrected(m, t, o)[1].sqrt() + o.eps)

    def uncorrected(θ, g, m, t, o):
        return θ - o.lr * m[0] / (m[1].sqrt() + o.eps)

    def second_moment(of):
        def remember(m, g, o):
            return _moments(m, g, o)[0], o.betas[1] * m[1] + (1 - o.betas[1]) * of(g)

        return remember

    def exploding(m, g, o):
        β1, β2 = o.betas
        return m[0] + β1 * g - β2 * m[0], m[1] + β2 * m[1] + (1 - β1) * g**2

    def undamped(m, g, o):
        return o.betas[0] * m[0] + g, o.betas[1] * m[1] + g**2

    return _judge(
        candidate,
        signature="adam(params, grads, state, lr, betas=(0.9, 0.999), eps=1e-8)",
        reference=_TorchStep(torch.optim.Adam),
        cases=[
            _case(1, [(2,)], lr=0.1),
            _case(2, lr=0.05, betas=(0.8, 0.95)),
            _case(3, [(1,), (2, 3), (4,), ()], lr=0.02, eps=0.1),
            _case(4, lr=0.1, scale=1e-7),
            _case(5, lr=_EachStep(0.2 * 0.7**t for t in range(STEPS)), betas=(0.5, 0.9)),
        ],
        mistakes=[
            *_common(rule()),
            _forgetful(rule(), "t, m and v"),
            Mistake(
                "no-bias-correction",
                """You used m and v as they are. Both start from 0, so at first they are too
                small: divide m by 1 − β₁ᵗ and v by 1 − β₂ᵗ. At t = 1 that gives back g and g².""",
                rule(uncorrected),
                rule(one_correction(0)),
                rule(one_correction(1)),
            ),
            Mistake(
                "t-starts-at-zero",
                """Your t was 0 in the first step, and 1 − β⁰ = 0, so the correction divides by
                zero. Count the step before you correct: t = 1 in the first step.""",
                rule(lambda θ, g, m, t, o: _adam_move(θ, g, m, t - 1, o)),
            ),
            Mistake(
                "t-starts-too-late",
                """Your t is one too large: it was 2 in the first step. Count each step once.""",
                rule(lambda θ, g, m, t, o: _adam_move(θ, g, m, t + 1, o)),
            ),
            Mistake(
                "t-never-grows",
                """Your correction never fades: t is 1 in every step. Keep t in state, and return
                t + 1. (Adding the whole g and g² to m and v, without 1 − β and without any
                correction, comes to the same.)""",
                rule(lambda θ, g, m, t, o: _adam_move(θ, g, m, 1, o)),
            ),
            Mistake(
                "t-counts-tensors",
                """You raised t once for every tensor. It counts steps: raise it once, before the
                loop over the parameters.""",
                t_counts_tensors,
            ),
            Mistake(
                "betas-swapped",
                """You swapped β₁ and β₂. betas = (β₁, β₂): β₁ (0.9) belongs to the mean of the
                gradients m, β₂ (0.999) to the mean of their squares v.""",
                swapped(rule()),
            ),
            Mistake(
                "beta-complement",
                """You swapped β and 1 − β. β is the share of the old mean that stays; the new
                gradient counts 1 − β.""",
                rule(
                    remember=lambda m, g, o: (
                        (1 - o.betas[0]) * m[0] + o.betas[0] * g,
                        (1 - o.betas[1]) * m[1] + o.betas[1] * g**2,
                    )
                ),
            ),
            Mistake(
                "second-moment-not-squared",
                """Your v is a mean of gradients (or of their absolute values). It must be the mean
                of their squares, g ** 2; the root in the step undoes the square.""",
                rule(remember=second_moment(lambda g: g)),
                rule(remember=second_moment(lambda g: g.abs())),
            ),
            Mistake(
                "eps-as-step-size",
                """You multiplied the step by ε. ε only keeps the denominator from being zero; the
                size of the step is lr. With ε = 1e-8 nothing ever moves.""",
                rule(eps_as_step),
            ),
            Mistake(
                "moments-explode",
                """Your moments are not running means: in v = v + β₂ v + ... the old v is nearly
                doubled in each step, so the steps die out at once. The weights of a mean add up to
                1: v = β₂ · v + (1 − β₂) · g², and m = β₁ · m + (1 − β₁) · g.""",
                rule(lambda θ, g, m, t, o: θ - o.lr * m[0] / (m[1].sqrt() + o.eps), exploding),
            ),
            Mistake(
                "moments-undamped",
                """You added the whole new gradient and its whole square. The weights of a running
                mean add up to 1: β for the old mean and 1 − β for the new value.""",
                rule(remember=undamped),
            ),
            Mistake(
                "eps-before-correction",
                """You added ε to √v before v was corrected, which makes ε weigh more in the first
                steps. Here, as in torch, correct v first, then take the root, then add ε.""",
                rule(eps_before_correction),
            ),
            Mistake(
                "eps-inside-the-root",
                """You wrote √(v̂ + ε). Here, as in torch, ε is added after the root: √v̂ + ε.
                Inside of it a small ε weighs far more: √(1e-8) = 1e-4.""",
                rule(eps_inside(1)),
                rule(eps_inside(2)),
            ),
            Mistake(
                "eps-outside-the-denominator",
                """Your ε is added to the fraction, not to its denominator, so it does not guard
                against a division by zero. Write m̂ / (√v̂ + ε), with the brackets.""",
                rule(eps_outside),
            ),
            Mistake(
                "eps-left-out",
                """You left out ε. An element whose gradients were all zero so far has v = 0, and
                0 / 0 is not a number.""",
                rule(eps_left_out),
            ),
            Mistake(
                "no-root",
                """You divided by v̂ itself. Its root has the unit of a gradient: divide by √v̂ + ε.
                """,
                rule(no_root),
            ),
            Mistake(
                "first-moment-unused",
                """You moved along the gradient, not along its mean m̂. Without m this is RMSprop
                with a correction.""",
                rule(gradient_over_root),
            ),
            Mistake(
                "correction-remembered",
                """You stored the corrected m̂ and v̂ in state, so they are corrected again in each
                step. State holds m and v as they are; m̂ and v̂ are used once and thrown away.""",
                correction_remembered,
            ),
        ],
    )


def check_adamw(candidate: Callable) -> Passed:
    """Check ``adamw``: as ``adam``, and ``weight_decay=0.01`` at the end."""

    def rule(move, remember=_moments):
        return _rule(remember, move, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)

    def shrunk(shrink):
        """Adam's step from θ · (1 − shrink(o))."""
        return rule(lambda θ, g, m, t, o: _adam_move(θ * (1 - shrink(o)), g, m, t, o))

    def decayed_after(θ, g, m, t, o):
        return _adam_move(θ, g, m, t, o) * (1 - o.lr * o.weight_decay)

    def climbing(θ, g, m, t, o):
        θ = θ * (1 - o.lr * o.weight_decay)
        return 2 * θ - _adam_move(θ, g, m, t, o)

    def uncorrected(θ, g, m, t, o):
        return θ * (1 - o.lr * o.weight_decay) - o.lr * m[0] / (m[1].sqrt() + o.eps)

    def absolute(θ, g, m, t, o):
        return _adam_move(θ - o.lr * o.weight_decay * θ.sign(), g, m, t, o)

    def eps_inside(θ, g, m, t, o):
        m_hat, v_hat = _corrected(m, t, o)
        return θ * (1 - o.lr * o.weight_decay) - o.lr * m_hat / (v_hat + o.eps).sqrt()

    right = shrunk(lambda o: o.lr * o.weight_decay)

    def coupled(step):
        """``step`` with λθ added to each gradient."""

        def answer(params, grads, state, lr, weight_decay=0.01, **options):
            grads = [g + weight_decay * θ for θ, g in zip(params, grads, strict=True)]
            return step(params, grads, state, lr, weight_decay=weight_decay, **options)

        return answer

    def fixed_decay(params, grads, state, lr, weight_decay=0.01, **options):
        return right(params, grads, state, lr, **options)

    return _judge(
        candidate,
        signature="adamw(params, grads, state, lr, betas=(0.9, 0.999), eps=1e-8, "
        "weight_decay=0.01)",
        reference=_TorchStep(torch.optim.AdamW),
        cases=[
            _case(1, [(2,)], lr=0.1),
            _case(2, lr=0.05, weight_decay=0.5, betas=(0.8, 0.95)),
            _case(3, [(1,), (2, 3), (4,), ()], lr=0.02, weight_decay=0.1, eps=0.1),
            _case(4, lr=0.1, weight_decay=0.0),
            _case(5, lr=_EachStep(0.2 * 0.7**t for t in range(STEPS)), weight_decay=0.3),
        ],
        mistakes=[
            *_common(right, ascent=rule(climbing)),
            _forgetful(right, "t, m and v"),
            Mistake(
                "coupled-decay",
                """You added λ · θ to the gradient. That is L2 regularisation: the decay then goes
                through m and v, and Adam's division undoes most of it. AdamW keeps it out of the
                gradient: θ = (1 − lr · λ) · θ, then Adam's step with g as it came.""",
                coupled(shrunk(lambda o: 0.0)),
            ),
            Mistake(
                "decay-without-lr",
                """Your decay is not multiplied by lr: θ shrinks by λ in each step. In AdamW it
                shrinks by lr · λ, so that a schedule slows the decay too.""",
                shrunk(lambda o: o.weight_decay),
            ),
            Mistake(
                "decay-after-step",
                """You shrank the parameters after Adam's step, so that the new step shrinks too.
                Shrink the old θ first: (1 − lr · λ) · θ, then subtract Adam's step.""",
                rule(decayed_after),
            ),
            Mistake(
                "decay-left-out",
                """You left out the decay: this is Adam. First θ = (1 − lr · λ) · θ.""",
                shrunk(lambda o: 0.0),
            ),
            Mistake(
                "decay-ignores-its-argument",
                """Your decay is always 0.01. That is only its default; use weight_decay.""",
                fixed_decay,
            ),
            Mistake(
                "weights-grow",
                """Your decay has the wrong sign: (1 + lr · λ) · θ makes the parameters grow. Decay
                pulls them to zero: (1 − lr · λ) · θ.""",
                shrunk(lambda o: -o.lr * o.weight_decay),
            ),
            Mistake(
                "decay-twice",
                """You applied the decay twice, to the parameters and to the gradient. In AdamW the
                gradient stays as it came.""",
                coupled(right),
            ),
            Mistake(
                "decay-squared-lr",
                """You multiplied the decay by lr twice. It is (1 − lr · λ) · θ.""",
                shrunk(lambda o: o.lr**2 * o.weight_decay),
            ),
            Mistake(
                "decay-halved",
                """You halved the decay. (1 − lr · λ) · θ has no factor 1/2: the 1/2 of λ/2 · θ²
                goes away when it is differentiated.""",
                shrunk(lambda o: o.lr * o.weight_decay / 2),
            ),
            Mistake(
                "decay-by-sign",
                """You subtracted lr · λ · sign(θ), which pulls every weight equally hard. Decay is
                proportional to the weight: lr · λ · θ.""",
                rule(absolute),
            ),
            Mistake(
                "no-bias-correction",
                """You used m and v without the corrections 1 − β₁ᵗ and 1 − β₂ᵗ. Apart from the
                decay the step is Adam's.""",
                rule(uncorrected),
            ),
            Mistake(
                "eps-inside-the-root",
                """You wrote √(v̂ + ε). Here, as in torch, ε is added after the root: √v̂ + ε.""",
                rule(eps_inside),
            ),
        ],
    )


# --- the schedule and clipping ------------------------------------------------------------------


def check_warmup_cosine(candidate: Callable) -> Passed:
    """Check ``warmup_cosine(step, total_steps, warmup_steps, peak_lr, final_lr=0.0)``."""

    def schedule(
        ramp=lambda s, w: (s + 1) / w,
        progress=lambda s, n, w: (s - w) / (n - w),
        fall=lambda p: (1 + math.cos(math.pi * p)) / 2,
        mix=lambda high, low, share: low + (high - low) * share,
        clamp=True,
        ramps=True,
    ):
        """The schedule with one part replaced."""

        def answer(step, total_steps, warmup_steps, peak_lr, final_lr=0.0):
            if ramps and step < warmup_steps:
                return float(peak_lr * ramp(step, warmup_steps))
            if clamp and step >= total_steps:
                return float(final_lr)
            return float(mix(peak_lr, final_lr, fall(progress(step, total_steps, warmup_steps))))

        return answer

    def ramp_from_final(step, total_steps, warmup_steps, peak_lr, final_lr=0.0):
        if step < warmup_steps:
            return final_lr + (peak_lr - final_lr) * (step + 1) / warmup_steps
        return schedule()(step, total_steps, warmup_steps, peak_lr, final_lr)

    options = [
        (12, 4, 1.0),
        (12, 4, 0.1, 0.01),
        (11, 3, 0.5, 0.2),
        (9, 0, 1.0, 0.1),
        (5, 1, 2.0),
        (4, 4, 1.0),
    ]
    return compare(
        candidate,
        signature="warmup_cosine(step, total_steps, warmup_steps, peak_lr, final_lr=0.0)",
        reference=schedule(),
        cases=[Case(step, *rest) for rest in options for step in range(rest[0] + 3)],
        tolerance=1e-9,
        mistakes=[
            Mistake(
                "warmup-from-zero",
                """Your ramp begins at 0: step / warmup_steps. A step with learning rate 0 does a
                batch of work and learns nothing. Use (step + 1) / warmup_steps: it is
                1 / warmup_steps at first, and 1 at the last step of the ramp.""",
                schedule(ramp=lambda s, w: s / w),
            ),
            Mistake(
                "no-warmup",
                """You left out the ramp: the first step already has the full rate (or nearly).
                For step < warmup_steps the rate is peak_lr · (step + 1) / warmup_steps.""",
                schedule(ramps=False, progress=lambda s, n, w: max(0, s - w) / max(n - w, 1)),
                schedule(ramps=False, progress=lambda s, n, w: s / n),
            ),
            Mistake(
                "cosine-over-all-steps",
                """Your cosine counts the warm-up too: it uses step / total_steps. It begins where
                the ramp ends: (step − warmup_steps) / (total_steps − warmup_steps), else the rate
                falls with a jump at the end of the ramp.""",
                schedule(progress=lambda s, n, w: s / n),
            ),
            Mistake(
                "cosine-too-long",
                """You subtracted warmup_steps from the step, but not from the length: the cosine
                has total_steps − warmup_steps steps, so yours ends too high.""",
                schedule(progress=lambda s, n, w: (s - w) / n),
            ),
            Mistake(
                "ends-one-step-early",
                """Your cosine reaches final_lr one step too early: its progress is 1 at
                total_steps − 1. Divide by total_steps − warmup_steps, so that the last step that
                is taken still has a rate above final_lr.""",
                schedule(progress=lambda s, n, w: (s - w) / max(n - 1 - w, 1)),
                schedule(progress=lambda s, n, w: (s + 1 - w) / (n - w)),
            ),
            Mistake(
                "final-lr-ignored",
                """Your cosine falls to 0. It falls to final_lr:
                final_lr + (peak_lr − final_lr) · (1 + cos πp) / 2.""",
                schedule(mix=lambda high, low, share: high * share),
                schedule(mix=lambda high, low, share: high * share, clamp=False),
                lambda *args: schedule()(*args[:4]),
            ),
            Mistake(
                "final-lr-on-top",
                """You added final_lr to a cosine that falls from peak_lr to 0, so the rate starts
                above the peak. What falls is the difference, peak_lr − final_lr.""",
                schedule(mix=lambda high, low, share: low + high * share),
            ),
            Mistake(
                "linear-decay",
                """Your rate falls in a straight line. The cosine stays high at first, then falls,
                then flattens: (1 + cos πp) / 2 in place of 1 − p.""",
                schedule(fall=lambda p: 1 - p),
            ),
            Mistake(
                "not-halved",
                """(1 + cos πp) runs from 2 to 0. Divide it by 2, or the rate begins at twice the
                peak.""",
                schedule(fall=lambda p: 1 + math.cos(math.pi * p)),
            ),
            Mistake(
                "quarter-wave",
                """You used a quarter of a wave, cos(πp / 2), which falls fastest at the end. The
                schedule is half a wave, lifted above zero: (1 + cos πp) / 2.""",
                schedule(fall=lambda p: math.cos(math.pi * p / 2)),
            ),
            Mistake(
                "full-wave",
                """You used a full wave, cos(2πp): the rate rises again in the second half. Half a
                wave is enough: cos(πp).""",
                schedule(fall=lambda p: (1 + math.cos(2 * math.pi * p)) / 2),
            ),
            Mistake(
                "pi-missing",
                """You left out π. The cosine takes an angle in radians: πp runs from 0 to π.""",
                schedule(fall=lambda p: (1 + math.cos(p)) / 2),
                schedule(fall=lambda p: (1 + math.cos(180 * p)) / 2),
            ),
            Mistake(
                "rises-after-the-end",
                """After total_steps your rate rises again, as a cosine does. From there on it
                stays at final_lr.""",
                schedule(clamp=False),
            ),
            Mistake(
                "constant-after-warmup",
                """Your rate stays at the peak after the ramp. It must fall along half a cosine.""",
                schedule(fall=lambda p: 1.0),
                schedule(fall=lambda p: 1.0, clamp=False),
            ),
            Mistake(
                "ramp-from-final-lr",
                """Your ramp starts from final_lr. It is peak_lr · (step + 1) / warmup_steps:
                final_lr belongs to the end alone.""",
                ramp_from_final,
            ),
        ],
    )


def check_clip_grad_norm(candidate: Callable) -> Passed:
    """Check ``clip_grad_norm(grads, max_norm)``, which returns (clipped grads, norm before)."""

    def reference(grads, max_norm):
        leaves = [torch.zeros_like(g) for g in grads]
        for leaf, g in zip(leaves, grads, strict=True):
            leaf.grad = g.clone()
        norm = torch.nn.utils.clip_grad_norm_(leaves, max_norm)
        return [leaf.grad for leaf in leaves], float(norm)

    def norm_of(grads, power=2.0):
        return float(torch.cat([g.flatten() for g in grads]).norm(power))

    def scaled(grads, norm, max_norm):
        return [g * min(1.0, max_norm / (norm + 1e-6)) for g in grads]

    def with_norm(measure):
        """Clipping by another measure of size than the norm over all tensors."""

        def answer(grads, max_norm):
            return scaled(grads, measure(grads), max_norm), measure(grads)

        return answer

    def with_clipped(clip):
        """Another way to clip, with the right norm."""
        return lambda grads, max_norm: (clip(grads, max_norm), norm_of(grads))

    def clipped_norm(grads, max_norm):
        clipped = scaled(grads, norm_of(grads), max_norm)
        return clipped, norm_of(clipped)

    def case(seed, max_norm, scale=1.0, shapes=((3, 2), (4,), ())):
        draw = draws(seed)
        return Case(_Tensors(scale * draw(*shape) for shape in shapes), max_norm)

    return compare(
        candidate,
        signature="clip_grad_norm(grads, max_norm)",
        reference=reference,
        outputs=("clipped", "norm"),
        tolerance=1e-5,  # the 1e-6 in torch's denominator is a matter of taste
        cases=[
            case(1, 1.0, shapes=[(2,)]),
            case(2, 1.0),
            case(3, 50.0),
            case(4, 0.5, scale=10.0, shapes=[(1,), (2, 3), (4, 2), ()]),
            case(5, 2.5, shapes=[(3,), (3,)]),
            case(6, 1.0, scale=0.0),
        ],
        mistakes=[
            Mistake(
                "norm-per-tensor",
                """You clipped each tensor by its own norm, which turns the direction of the whole
                gradient. There is one norm, over the elements of all tensors together, and one
                factor for all.""",
                with_clipped(lambda gs, c: [s for g in gs for s in scaled([g], norm_of([g]), c)]),
                lambda gs, c: (
                    [s for g in gs for s in scaled([g], norm_of([g]), c)],
                    norm_of([gs[-1]]),
                ),
            ),
            Mistake(
                "clipped-by-value",
                """You cut each element to ±max_norm. That turns the gradient's direction. Clipping
                by norm shortens the whole gradient by one factor and keeps its direction.""",
                with_clipped(lambda gs, c: [g.clamp(-c, c) for g in gs]),
            ),
            Mistake(
                "scaled-below-the-limit",
                """You scaled a gradient that was short enough already, which makes it longer. The
                factor is at most 1: min(1, max_norm / norm).""",
                with_clipped(lambda gs, c: [g * c / (norm_of(gs) + 1e-6) for g in gs]),
                with_clipped(lambda gs, c: [g * c / norm_of(gs) for g in gs]),
            ),
            Mistake(
                "returned-the-clipped-norm",
                """You returned the norm after clipping. Return the norm before it: a training loop
                plots it, to see how often and how hard it clips.""",
                clipped_norm,
            ),
            Mistake(
                "sum-of-norms",
                """You added the norms of the tensors. Norms add like the sides of a right-angled
                triangle: the root of the sum of their squares.""",
                with_norm(lambda gs: sum(norm_of([g]) for g in gs)),
            ),
            Mistake(
                "mean-of-norms",
                """You averaged the norms of the tensors (or used the root mean square). The norm
                is the root of the sum of all squares.""",
                with_norm(lambda gs: sum(norm_of([g]) for g in gs) / len(gs)),
                with_norm(lambda gs: norm_of(gs) / math.sqrt(sum(g.numel() for g in gs))),
            ),
            Mistake(
                "no-root",
                """You left out the root: the norm is the root of the sum of squares.""",
                with_norm(lambda gs: norm_of(gs) ** 2),
            ),
            Mistake(
                "absolute-norm",
                """You summed absolute values. The norm that is meant is the Euclidean one: the
                root of the sum of squares.""",
                with_norm(lambda gs: norm_of(gs, 1.0)),
            ),
            Mistake(
                "largest-element",
                """You used the largest element. The norm is the root of the sum of squares.""",
                with_norm(lambda gs: norm_of(gs, math.inf)),
            ),
            Mistake(
                "only-first-tensor",
                """You used the norm of one tensor for all. The norm goes over all tensors.""",
                with_norm(lambda gs: norm_of(gs[:1])),
                with_norm(lambda gs: norm_of(gs[-1:])),
            ),
            Mistake(
                "not-divided-by-norm",
                """You multiplied by max_norm, but did not divide by the norm. The factor is
                max_norm / norm, so that the result is max_norm long.""",
                with_clipped(lambda gs, c: [g * c if norm_of(gs) > c else g for g in gs]),
                with_clipped(lambda gs, c: [g * min(1.0, c) for g in gs]),
            ),
            Mistake(
                "not-clipped",
                """You returned the gradients as they came. Where norm > max_norm they must be
                scaled by max_norm / norm.""",
                with_clipped(lambda gs, c: gs),
            ),
            Mistake(
                "factor-upside-down",
                """Your factor is norm / max_norm, which makes a long gradient longer.""",
                with_clipped(lambda gs, c: [g * max(1.0, norm_of(gs) / c) for g in gs]),
                with_clipped(lambda gs, c: [g * norm_of(gs) / c for g in gs]),
            ),
        ],
    )
