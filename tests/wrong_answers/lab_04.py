"""Wrong answers to lab 04, optimizers, and other correct ones."""

import math

import torch

from wrong_answers import Task

GRADIENT_DESCENT, SGD_MOMENTUM, NESTEROV = Task(), Task(), Task()
ADAGRAD, RMSPROP, ADAM, ADAMW = Task(), Task(), Task(), Task()
WARMUP_COSINE, CLIP_GRAD_NORM = Task(), Task()
TASKS = {
    "gradient_descent": GRADIENT_DESCENT,
    "sgd_momentum": SGD_MOMENTUM,
    "nesterov": NESTEROV,
    "adagrad": ADAGRAD,
    "rmsprop": RMSPROP,
    "adam": ADAM,
    "adamw": ADAMW,
    "warmup_cosine": WARMUP_COSINE,
    "clip_grad_norm": CLIP_GRAD_NORM,
}


def zeros(params):
    return [torch.zeros_like(p) for p in params]


def add_slips(task, step, has_memory=True):
    """The slips that can happen around any step, made with a right one."""

    @task.fails_with("lr-twice")
    def multiplies_by_lr_in_two_places(params, grads, state, lr, **options):
        return step(params, grads, state, lr * lr, **options)

    @task.fails_with("lr-ignored")
    def forgets_lr(params, grads, state, lr, **options):
        return step(params, grads, state, 1, **options)

    @task.fails_with("update-without-parameters")
    def returns_the_change(params, grads, state, lr, **options):
        new, state = step(params, grads, state, lr, **options)
        return [n - p for n, p in zip(new, params, strict=True)], state

    @task.fails_with("only-first-tensor")
    def moves_the_first_only(params, grads, state, lr, **options):
        new, state = step(params, grads, state, lr, **options)
        return new[:1] + params[1:], state

    @task.fails_with("changed-input")
    def writes_into_the_parameters(params, grads, state, lr, **options):
        new, state = step(params, grads, state, lr, **options)
        for p, n in zip(params, new, strict=True):
            p.copy_(n)
        return params, state

    @task.fails_with("wrong-return")
    def forgets_to_return_the_state(params, grads, state, lr, **options):
        return step(params, grads, state, lr, **options)[0]

    @task.fails_with("returned-none")
    def forgets_to_return(params, grads, state, lr, **options):
        step(params, grads, state, lr, **options)

    @task.fails_with("wrong-signature")
    def leaves_out_an_argument(params, grads, lr):
        return step(params, grads, None, lr)

    if has_memory:

        @task.fails_with("state-forgotten")
        def begins_again_each_time(params, grads, state, lr, **options):
            return step(params, grads, None, lr, **options)

        memory = {}

        @task.fails_with("hidden-state")
        def keeps_its_memory_in_a_global(params, grads, state, lr, **options):
            state = None if state is None else memory["state"]
            new, memory["state"] = step(params, grads, state, lr, **options)
            return new, "see memory"


# --- gradient descent ---------------------------------------------------------------------------


@GRADIENT_DESCENT.passes
def descends_with_a_loop(params, grads, state, lr):
    new = []
    for i in range(len(params)):
        new.append(params[i] - lr * grads[i])
    return new, state


@GRADIENT_DESCENT.passes
def descends_with_sub(params, grads, state, lr):
    return [torch.sub(p, g, alpha=lr) for p, g in zip(params, grads, strict=True)], None


@GRADIENT_DESCENT.passes
def descends_in_place_on_copies(params, grads, state, lr):
    new = tuple(p.clone() for p in params)
    for p, g in zip(new, grads, strict=True):
        p -= lr * g
    return new, {}


@GRADIENT_DESCENT.fails_with("ascent")
def climbs(params, grads, state, lr):
    return [p + lr * g for p, g in zip(params, grads, strict=True)], None


@GRADIENT_DESCENT.fails_with("gradients-pile-up")
def forgets_zero_grad(params, grads, state, lr):
    total = zeros(params) if state is None else state
    total = [s + g for s, g in zip(total, grads, strict=True)]
    return [p - lr * s for p, s in zip(params, total, strict=True)], total


@GRADIENT_DESCENT.fails_with("sign-only")
def follows_the_sign(params, grads, state, lr):
    return [p - lr * torch.sign(g) for p, g in zip(params, grads, strict=True)], None


@GRADIENT_DESCENT.fails_with("normalised-gradient")
def normalises(params, grads, state, lr):
    return [p - lr * g / torch.sqrt((g**2).sum()) for p, g in zip(params, grads, strict=True)], None


@GRADIENT_DESCENT.fails_with("divided-by-lr")
def divides_by_lr(params, grads, state, lr):
    return [p - g / lr for p, g in zip(params, grads, strict=True)], None


@GRADIENT_DESCENT.fails_with("averaged-over-the-tensor")
def averages_the_gradient(params, grads, state, lr):
    return [p - lr * g.mean() for p, g in zip(params, grads, strict=True)], None


@GRADIENT_DESCENT.fails_with("averaged-over-the-tensor")
def sums_the_gradient(params, grads, state, lr):
    return [p - lr * torch.sum(g) for p, g in zip(params, grads, strict=True)], None


@GRADIENT_DESCENT.fails_with("hidden-state")
def counts_its_calls(params, grads, state, lr, calls=[0]):  # noqa: B006
    calls[0] += 1
    return [p - lr * g / calls[0] for p, g in zip(params, grads, strict=True)], None


# --- momentum -----------------------------------------------------------------------------------


@SGD_MOMENTUM.passes
def momentum_with_a_loop(params, grads, state, lr, momentum=0.9):
    if state is None:
        state = [torch.zeros_like(p) for p in params]
    new_params, new_state = [], []
    for p, g, v in zip(params, grads, state, strict=True):
        v = momentum * v + g
        new_params.append(p - lr * v)
        new_state.append(v)
    return new_params, new_state


@SGD_MOMENTUM.passes
def momentum_from_the_first_gradient(params, grads, state, lr, momentum=0.9):
    v = state["v"] if state else None
    v = [g if v is None else torch.add(g, v[i], alpha=momentum) for i, g in enumerate(grads)]
    return [p - lr * v for p, v in zip(params, v, strict=True)], {"v": v}


@SGD_MOMENTUM.passes
def momentum_from_all_gradients(params, grads, state, lr, momentum=0.9):
    past = [*(state or []), grads]
    new = []
    for i, p in enumerate(params):
        v = sum(momentum ** (len(past) - 1 - k) * past[k][i] for k in range(len(past)))
        new.append(p - lr * v)
    return new, past


@SGD_MOMENTUM.fails_with("ascent")
def climbs_along_the_velocity(params, grads, state, lr, momentum=0.9):
    v = zeros(params) if state is None else state
    v = [momentum * v + g for v, g in zip(v, grads, strict=True)]
    return [p + lr * v for p, v in zip(params, v, strict=True)], v


@SGD_MOMENTUM.fails_with("dampened-momentum")
def averages_the_velocity(params, grads, state, lr, momentum=0.9):
    v = zeros(params) if state is None else state
    v = [torch.lerp(g, v, momentum) for v, g in zip(v, grads, strict=True)]
    return [p - lr * v for p, v in zip(params, v, strict=True)], v


@SGD_MOMENTUM.fails_with("velocity-updated-after-use")
def moves_before_it_updates(params, grads, state, lr, momentum=0.9):
    v = zeros(params) if state is None else state
    new = [p - lr * v for p, v in zip(params, v, strict=True)]
    return new, [momentum * v + g for v, g in zip(v, grads, strict=True)]


@SGD_MOMENTUM.fails_with("nesterov-instead")
def takes_nesterov_for_momentum(params, grads, state, lr, momentum=0.9):
    v = zeros(params) if state is None else state
    v = [momentum * v + g for v, g in zip(v, grads, strict=True)]
    return [p - lr * (g + momentum * v) for p, g, v in zip(params, grads, v, strict=True)], v


@SGD_MOMENTUM.fails_with("lr-in-velocity")
def puts_lr_into_the_velocity(params, grads, state, lr, momentum=0.9):
    v = zeros(params) if state is None else state
    v = [momentum * v - lr * g for v, g in zip(v, grads, strict=True)]
    return [p + v for p, v in zip(params, v, strict=True)], v


@SGD_MOMENTUM.fails_with("momentum-subtracted")
def brakes(params, grads, state, lr, momentum=0.9):
    v = zeros(params) if state is None else state
    v = [g - momentum * v for v, g in zip(v, grads, strict=True)]
    return [p - lr * v for p, v in zip(params, v, strict=True)], v


@SGD_MOMENTUM.fails_with("momentum-complement")
def keeps_the_other_share(params, grads, state, lr, momentum=0.9):
    v = zeros(params) if state is None else state
    v = [(1 - momentum) * v + g for v, g in zip(v, grads, strict=True)]
    return [p - lr * v for p, v in zip(params, v, strict=True)], v


@SGD_MOMENTUM.fails_with("momentum-complement")
def swaps_the_shares_of_the_velocity(params, grads, state, lr, momentum=0.9):
    v = zeros(params) if state is None else state
    v = [(1 - momentum) * v + momentum * g for v, g in zip(v, grads, strict=True)]
    return [p - lr * v for p, v in zip(params, v, strict=True)], v


@SGD_MOMENTUM.fails_with("momentum-ignored")
def never_lets_go(params, grads, state, lr, momentum=0.9):
    v = zeros(params) if state is None else state
    v = [v + g for v, g in zip(v, grads, strict=True)]
    return [p - lr * v for p, v in zip(params, v, strict=True)], v


@SGD_MOMENTUM.fails_with("changed-input")
def updates_the_velocity_in_place(params, grads, state, lr, momentum=0.9):
    v = zeros(params) if state is None else state
    for i, g in enumerate(grads):
        v[i].mul_(momentum).add_(g)
    return [p - lr * v for p, v in zip(params, v, strict=True)], v


@SGD_MOMENTUM.fails_with("changed-input")
def appends_to_the_state(params, grads, state, lr, momentum=0.9):
    state = state if state is not None else []
    state.append(grads)
    n = len(state)
    new = [
        p - lr * sum(momentum ** (n - 1 - k) * state[k][i] for k in range(n))
        for i, p in enumerate(params)
    ]
    return new, state


# --- Nesterov -----------------------------------------------------------------------------------


@NESTEROV.passes
def nesterov_with_a_loop(params, grads, state, lr, momentum=0.9):
    new, velocities = [], []
    for i, (p, g) in enumerate(zip(params, grads, strict=True)):
        v = g if state is None else momentum * state[i] + g
        velocities.append(v)
        new.append(p - lr * (momentum * v + g))
    return new, velocities


@NESTEROV.passes
def nesterov_written_out(params, grads, state, lr, momentum=0.9):
    v = zeros(params) if state is None else state
    new = [
        p - lr * (1 + momentum) * g - lr * momentum**2 * v
        for p, g, v in zip(params, grads, v, strict=True)
    ]
    return new, [momentum * v + g for v, g in zip(v, grads, strict=True)]


def nesterov_that(direction, velocity=lambda v, g, μ: μ * v + g):
    def step(params, grads, state, lr, momentum=0.9):
        old = zeros(params) if state is None else state
        new = [velocity(v, g, momentum) for v, g in zip(old, grads, strict=True)]
        moved = []
        for p, g, v, before in zip(params, grads, new, old, strict=True):
            moved.append(p - lr * direction(g, v, before, momentum))
        return moved, new

    return step


@NESTEROV.fails_with("ascent")
def climbs_ahead(*args, **options):
    return nesterov_that(lambda g, v, before, μ: -(g + μ * v))(*args, **options)


@NESTEROV.fails_with("plain-momentum")
def forgets_to_look_ahead(*args, **options):
    return nesterov_that(lambda g, v, before, μ: v)(*args, **options)


@NESTEROV.fails_with("plain-momentum")
def looks_ahead_with_the_old_velocity(*args, **options):
    return nesterov_that(lambda g, v, before, μ: g + μ * before)(*args, **options)


@NESTEROV.fails_with("gradient-left-out")
def forgets_the_fresh_gradient(*args, **options):
    return nesterov_that(lambda g, v, before, μ: μ * v)(*args, **options)


@NESTEROV.fails_with("look-ahead-undamped")
def adds_the_whole_velocity(*args, **options):
    return nesterov_that(lambda g, v, before, μ: g + v)(*args, **options)


@NESTEROV.fails_with("look-ahead-remembered")
def remembers_the_look_ahead(params, grads, state, lr, momentum=0.9):
    v = zeros(params) if state is None else state
    v = [g + momentum * (momentum * v + g) for v, g in zip(v, grads, strict=True)]
    return [p - lr * v for p, v in zip(params, v, strict=True)], v


@NESTEROV.fails_with("roles-swapped")
def damps_the_gradient_instead(*args, **options):
    return nesterov_that(lambda g, v, before, μ: v + μ * g)(*args, **options)


@NESTEROV.fails_with("dampened-momentum")
def averages_the_velocity_ahead(*args, **options):
    return nesterov_that(lambda g, v, before, μ: g + μ * v, lambda v, g, μ: μ * v + (1 - μ) * g)(
        *args, **options
    )


# --- AdaGrad ------------------------------------------------------------------------------------


@ADAGRAD.passes
def adagrad_with_a_loop(params, grads, state, lr, eps=1e-10):
    sums = state["sums"] if state else [0.0 for _ in params]
    new, new_sums = [], []
    for p, g, s in zip(params, grads, sums, strict=True):
        s = s + g * g
        new.append(p - lr * g / (torch.sqrt(s) + eps))
        new_sums.append(s)
    return new, {"sums": new_sums}


@ADAGRAD.passes
def adagrad_scales_lr(params, grads, state, lr, eps=1e-10):
    G = zeros(params) if state is None else state
    G = [G + g.square() for G, g in zip(G, grads, strict=True)]
    rates = [lr / (eps + G**0.5) for G in G]
    return [p - rate * g for p, rate, g in zip(params, rates, grads, strict=True)], G


def adagrad_that(
    direction=lambda g, G, eps: g / (G.sqrt() + eps), total=lambda G, g: G + g**2, first_move=False
):
    def step(params, grads, state, lr, eps=1e-10):
        old = zeros(params) if state is None else state
        new = [total(G, g) for G, g in zip(old, grads, strict=True)]
        used = old if first_move else new
        moved = [p - lr * direction(g, G, eps) for p, g, G in zip(params, grads, used, strict=True)]
        return moved, new

    return step


@ADAGRAD.fails_with("ascent")
def climbs_with_adagrad(*args, **options):
    return adagrad_that(lambda g, G, eps: -g / (G.sqrt() + eps))(*args, **options)


@ADAGRAD.fails_with("no-root")
def forgets_adagrads_root(*args, **options):
    return adagrad_that(lambda g, G, eps: g / (G + eps))(*args, **options)


@ADAGRAD.fails_with("eps-inside-the-root")
def puts_eps_into_adagrads_root(*args, **options):
    return adagrad_that(lambda g, G, eps: g / torch.sqrt(G + eps))(*args, **options)


@ADAGRAD.fails_with("eps-inside-the-root")
def squares_eps_inside_adagrads_root(*args, **options):
    return adagrad_that(lambda g, G, eps: g / torch.sqrt(G + eps * eps))(*args, **options)


@ADAGRAD.fails_with("eps-outside-the-denominator")
def forgets_adagrads_brackets(*args, **options):
    return adagrad_that(lambda g, G, eps: g / G.sqrt() + eps)(*args, **options)


@ADAGRAD.fails_with("eps-outside-the-denominator")
def adds_eps_to_the_whole_adagrad_step(params, grads, state, lr, eps=1e-10):
    G = zeros(params) if state is None else state
    G = [G + g**2 for G, g in zip(G, grads, strict=True)]
    return [p - (lr * g / torch.sqrt(G) + eps) for p, g, G in zip(params, grads, G, strict=True)], G


@ADAGRAD.fails_with("eps-left-out")
def divides_adagrad_by_zero(*args, **options):
    return adagrad_that(lambda g, G, eps: g / G.sqrt())(*args, **options)


@ADAGRAD.fails_with("leaky-sum")
def forgets_like_rmsprop(*args, **options):
    return adagrad_that(total=lambda G, g: 0.9 * G + 0.1 * g**2)(*args, **options)


@ADAGRAD.fails_with("leaky-sum")
def forgets_slowly_like_rmsprop(*args, **options):
    return adagrad_that(total=lambda G, g: 0.99 * G + 0.01 * g**2)(*args, **options)


@ADAGRAD.fails_with("not-squared")
def sums_the_gradients(*args, **options):
    return adagrad_that(total=lambda G, g: G + g)(*args, **options)


@ADAGRAD.fails_with("not-squared")
def sums_the_sizes(*args, **options):
    return adagrad_that(total=lambda G, g: G + torch.abs(g))(*args, **options)


@ADAGRAD.fails_with("sum-updated-after-use")
def adds_the_square_too_late(*args, **options):
    return adagrad_that(first_move=True)(*args, **options)


@ADAGRAD.fails_with("mean-instead-of-sum")
def divides_by_the_steps(params, grads, state, lr, eps=1e-10):
    steps, G = (0, zeros(params)) if state is None else state
    steps, G = steps + 1, [G + g**2 for G, g in zip(G, grads, strict=True)]
    return [
        p - lr * g / (torch.sqrt(G / steps) + eps) for p, g, G in zip(params, grads, G, strict=True)
    ], (steps, G)


@ADAGRAD.fails_with("one-rate-per-tensor")
def shares_one_rate(*args, **options):
    return adagrad_that(total=lambda G, g: G + g.pow(2).sum())(*args, **options)


@ADAGRAD.fails_with("one-rate-per-tensor")
def shares_one_mean_rate(*args, **options):
    return adagrad_that(total=lambda G, g: G + g.pow(2).mean())(*args, **options)


# --- RMSprop ------------------------------------------------------------------------------------


@RMSPROP.passes
def rmsprop_with_a_loop(params, grads, state, lr, alpha=0.99, eps=1e-8):
    means = zeros(params) if state is None else state
    new, new_means = [], []
    for p, g, v in zip(params, grads, means, strict=True):
        v = alpha * v + (1 - alpha) * g * g
        new.append(p - lr * g / (v.sqrt() + eps))
        new_means.append(v)
    return new, new_means


@RMSPROP.passes
def rmsprop_by_the_difference(params, grads, state, lr, alpha=0.99, eps=1e-8):
    v = state or [0.0] * len(params)
    v = [v + (1 - alpha) * (g**2 - v) for v, g in zip(v, grads, strict=True)]
    return [
        torch.addcdiv(p, g, v.sqrt() + eps, value=-lr)
        for p, g, v in zip(params, grads, v, strict=True)
    ], v


def rmsprop_that(
    direction=lambda g, v, eps: g / (v.sqrt() + eps),
    mean=lambda v, g, alpha: alpha * v + (1 - alpha) * g**2,
    first_move=False,
):
    def step(params, grads, state, lr, alpha=0.99, eps=1e-8):
        old = zeros(params) if state is None else state
        new = [mean(v, g, alpha) for v, g in zip(old, grads, strict=True)]
        used = old if first_move else new
        moved = [p - lr * direction(g, v, eps) for p, g, v in zip(params, grads, used, strict=True)]
        return moved, new

    return step


@RMSPROP.fails_with("ascent")
def climbs_with_rmsprop(*args, **options):
    return rmsprop_that(lambda g, v, eps: -g / (v.sqrt() + eps))(*args, **options)


@RMSPROP.fails_with("no-decay")
def prints_adagrad_as_rmsprop(*args, **options):
    return rmsprop_that(mean=lambda v, g, alpha: v + g**2)(*args, **options)


@RMSPROP.fails_with("alpha-swapped")
def swaps_alpha(*args, **options):
    return rmsprop_that(mean=lambda v, g, alpha: (1 - alpha) * v + alpha * g**2)(*args, **options)


@RMSPROP.fails_with("new-square-undamped")
def adds_the_whole_square(*args, **options):
    return rmsprop_that(mean=lambda v, g, alpha: alpha * v + g**2)(*args, **options)


@RMSPROP.fails_with("no-root")
def forgets_the_r_of_rms(*args, **options):
    return rmsprop_that(lambda g, v, eps: g / (v + eps))(*args, **options)


@RMSPROP.fails_with("eps-inside-the-root")
def puts_eps_into_rmsprops_root(*args, **options):
    return rmsprop_that(lambda g, v, eps: g / (v + eps) ** 0.5)(*args, **options)


@RMSPROP.fails_with("eps-inside-the-root")
def squares_eps_inside_rmsprops_root(*args, **options):
    return rmsprop_that(lambda g, v, eps: g / (v + eps**2) ** 0.5)(*args, **options)


@RMSPROP.fails_with("eps-outside-the-denominator")
def forgets_rmsprops_brackets(*args, **options):
    return rmsprop_that(lambda g, v, eps: g / v.sqrt() + eps)(*args, **options)


@RMSPROP.fails_with("eps-outside-the-denominator")
def adds_eps_to_the_whole_rmsprop_step(params, grads, state, lr, alpha=0.99, eps=1e-8):
    v = zeros(params) if state is None else state
    v = [alpha * v + (1 - alpha) * g**2 for v, g in zip(v, grads, strict=True)]
    return [p - (lr * g / v.sqrt() + eps) for p, g, v in zip(params, grads, v, strict=True)], v


@RMSPROP.fails_with("eps-left-out")
def divides_rmsprop_by_zero(*args, **options):
    return rmsprop_that(lambda g, v, eps: g / v.sqrt())(*args, **options)


@RMSPROP.fails_with("not-squared")
def averages_the_gradients(*args, **options):
    return rmsprop_that(mean=lambda v, g, alpha: alpha * v + (1 - alpha) * g)(*args, **options)


@RMSPROP.fails_with("not-squared")
def averages_the_sizes(*args, **options):
    return rmsprop_that(mean=lambda v, g, alpha: alpha * v + (1 - alpha) * g.abs())(
        *args, **options
    )


@RMSPROP.fails_with("bias-corrected")
def corrects_like_adam(params, grads, state, lr, alpha=0.99, eps=1e-8):
    t, v = (0, zeros(params)) if state is None else state
    t, v = t + 1, [alpha * v + (1 - alpha) * g**2 for v, g in zip(v, grads, strict=True)]
    new = []
    for p, g, mean in zip(params, grads, v, strict=True):
        new.append(p - lr * g / ((mean / (1 - alpha**t)).sqrt() + eps))
    return new, (t, v)


@RMSPROP.fails_with("mean-updated-after-use")
def averages_the_square_too_late(*args, **options):
    return rmsprop_that(first_move=True)(*args, **options)


# --- Adam ---------------------------------------------------------------------------------------


@ADAM.passes
def adam_with_a_loop(params, grads, state, lr, betas=(0.9, 0.999), eps=1e-8):
    if state is None:
        state = {"t": 0, "m": zeros(params), "v": zeros(params)}
    t = state["t"] + 1
    new, ms, vs = [], [], []
    for p, g, m, v in zip(params, grads, state["m"], state["v"], strict=True):
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g**2
        m_hat = m / (1 - betas[0] ** t)
        v_hat = v / (1 - betas[1] ** t)
        new.append(p - lr * m_hat / (torch.sqrt(v_hat) + eps))
        ms.append(m)
        vs.append(v)
    return new, {"t": t, "m": ms, "v": vs}


@ADAM.passes
def adam_as_torch_writes_it(params, grads, state, lr, betas=(0.9, 0.999), eps=1e-8):
    t, m, v = state or (torch.tensor(0.0), [0.0] * len(params), [0.0] * len(params))
    t = t + 1
    beta1, beta2 = betas
    m = [m + (1 - beta1) * (g - m) for m, g in zip(m, grads, strict=True)]
    v = [beta2 * v + (1 - beta2) * g * g for v, g in zip(v, grads, strict=True)]
    n = t.item()
    size = lr / (1 - beta1**n)
    denominators = [v.sqrt() / math.sqrt(1 - beta2**n) + eps for v in v]
    return [p - size * m / d for p, m, d in zip(params, m, denominators, strict=True)], (t, m, v)


def adam_that(direction=None, moments=None, steps=lambda t: t + 1):
    """Adam with one line replaced; ``direction`` sees m, v, t, β₁, β₂, ε and g."""

    def right_direction(m, v, t, b1, b2, eps, g):
        return m / (1 - b1**t) / ((v / (1 - b2**t)).sqrt() + eps)

    def right_moments(m, v, g, b1, b2):
        return b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2

    def step(params, grads, state, lr, betas=(0.9, 0.999), eps=1e-8):
        t, ms, vs = (0, zeros(params), zeros(params)) if state is None else state
        used_t, new, new_ms, new_vs = steps(t), [], [], []
        for p, g, m, v in zip(params, grads, ms, vs, strict=True):
            m, v = (moments or right_moments)(m, v, g, *betas)
            new.append(p - lr * (direction or right_direction)(m, v, used_t, *betas, eps, g))
            new_ms.append(m)
            new_vs.append(v)
        return new, (t + 1, new_ms, new_vs)

    return step


def hat(x, beta, t):
    return x / (1 - beta**t)


@ADAM.fails_with("ascent")
def climbs_with_adam(params, grads, state, lr, **options):
    return adam_that(lambda m, v, t, b1, b2, eps, g: -hat(m, b1, t) / (hat(v, b2, t) ** 0.5 + eps))(
        params, grads, state, lr, **options
    )


@ADAM.fails_with("no-bias-correction")
def forgets_both_corrections(*args, **options):
    return adam_that(lambda m, v, t, b1, b2, eps, g: m / (v**0.5 + eps))(*args, **options)


@ADAM.fails_with("no-bias-correction")
def corrects_only_the_first_moment(*args, **options):
    return adam_that(lambda m, v, t, b1, b2, eps, g: hat(m, b1, t) / (v**0.5 + eps))(
        *args, **options
    )


@ADAM.fails_with("no-bias-correction")
def corrects_only_the_second_moment(*args, **options):
    return adam_that(lambda m, v, t, b1, b2, eps, g: m / (hat(v, b2, t) ** 0.5 + eps))(
        *args, **options
    )


@ADAM.fails_with("t-starts-at-zero")
def counts_from_zero(*args, **options):
    return adam_that(steps=lambda t: t)(*args, **options)


@ADAM.fails_with("t-starts-too-late")
def counts_from_two(*args, **options):
    return adam_that(steps=lambda t: t + 2)(*args, **options)


@ADAM.fails_with("t-never-grows")
def never_counts(*args, **options):
    return adam_that(steps=lambda t: 1)(*args, **options)


@ADAM.fails_with("t-counts-tensors")
def counts_inside_the_loop(params, grads, state, lr, betas=(0.9, 0.999), eps=1e-8):
    t, m, v = (0, zeros(params), zeros(params)) if state is None else state
    new, m, v = [], list(m), list(v)
    for i in range(len(params)):
        t += 1
        m[i] = betas[0] * m[i] + (1 - betas[0]) * grads[i]
        v[i] = betas[1] * v[i] + (1 - betas[1]) * grads[i] ** 2
        denominator = hat(v[i], betas[1], t) ** 0.5 + eps
        new.append(params[i] - lr * hat(m[i], betas[0], t) / denominator)
    return new, (t, m, v)


@ADAM.fails_with("betas-swapped")
def unpacks_the_betas_the_wrong_way(params, grads, state, lr, betas=(0.9, 0.999), eps=1e-8):
    beta2, beta1 = betas
    return adam_with_a_loop(params, grads, state, lr, (beta1, beta2), eps)


@ADAM.fails_with("beta-complement")
def swaps_the_shares(*args, **options):
    return adam_that(
        moments=lambda m, v, g, b1, b2: ((1 - b1) * m + b1 * g, (1 - b2) * v + b2 * g**2)
    )(*args, **options)


@ADAM.fails_with("second-moment-not-squared")
def forgets_the_square(*args, **options):
    return adam_that(
        moments=lambda m, v, g, b1, b2: (b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g)
    )(*args, **options)


@ADAM.fails_with("second-moment-not-squared")
def takes_the_size_for_the_square(*args, **options):
    return adam_that(
        moments=lambda m, v, g, b1, b2: (b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * abs(g))
    )(*args, **options)


@ADAM.fails_with("eps-as-step-size")
def steps_by_eps(params, grads, state, lr, betas=(0.9, 0.999), eps=1e-8):
    t, m, v = (0, zeros(params), zeros(params)) if state is None else state
    t = t + 1
    m = [betas[0] * m + (1 - betas[0]) * g for m, g in zip(m, grads, strict=True)]
    v = [betas[1] * v + (1 - betas[1]) * g**2 for v, g in zip(v, grads, strict=True)]
    return [
        p - eps * hat(m, betas[0], t) / (hat(v, betas[1], t).sqrt() + eps)
        for p, m, v in zip(params, m, v, strict=True)
    ], (t, m, v)


@ADAM.fails_with("moments-explode")
def doubles_the_second_moment(*args, **options):
    return adam_that(
        lambda m, v, t, b1, b2, eps, g: m / (v.sqrt() + eps),
        lambda m, v, g, b1, b2: (m + b1 * g - b2 * m, v + b2 * v + (1 - b1) * g**2),
    )(*args, **options)


@ADAM.fails_with("moments-undamped")
def sums_the_moments(*args, **options):
    return adam_that(moments=lambda m, v, g, b1, b2: (b1 * m + g, b2 * v + g**2))(*args, **options)


@ADAM.fails_with("t-never-grows")  # the same numbers as with t = 1 for ever
def sums_the_moments_uncorrected(*args, **options):
    return adam_that(
        lambda m, v, t, b1, b2, eps, g: m / (v.sqrt() + eps),
        lambda m, v, g, b1, b2: (b1 * m + g, b2 * v + g**2),
    )(*args, **options)


@ADAM.fails_with("eps-before-correction")
def corrects_the_rate_instead(*args, **options):
    return adam_that(
        lambda m, v, t, b1, b2, eps, g: (
            math.sqrt(1 - b2**t) / (1 - b1**t) * m / (torch.sqrt(v) + eps)
        )
    )(*args, **options)


@ADAM.fails_with("eps-inside-the-root")
def puts_eps_into_adams_root(*args, **options):
    return adam_that(
        lambda m, v, t, b1, b2, eps, g: hat(m, b1, t) / torch.sqrt(hat(v, b2, t) + eps)
    )(*args, **options)


@ADAM.fails_with("eps-inside-the-root")
def squares_eps_inside_adams_root(*args, **options):
    return adam_that(
        lambda m, v, t, b1, b2, eps, g: hat(m, b1, t) / torch.sqrt(hat(v, b2, t) + eps * eps)
    )(*args, **options)


@ADAM.fails_with("eps-outside-the-denominator")
def forgets_adams_brackets(*args, **options):
    return adam_that(
        lambda m, v, t, b1, b2, eps, g: hat(m, b1, t) / torch.sqrt(hat(v, b2, t)) + eps
    )(*args, **options)


@ADAM.fails_with("eps-left-out")
def divides_adam_by_zero(*args, **options):
    return adam_that(lambda m, v, t, b1, b2, eps, g: hat(m, b1, t) / hat(v, b2, t).sqrt())(
        *args, **options
    )


@ADAM.fails_with("no-root")
def forgets_adams_root(*args, **options):
    return adam_that(lambda m, v, t, b1, b2, eps, g: hat(m, b1, t) / (hat(v, b2, t) + eps))(
        *args, **options
    )


@ADAM.fails_with("first-moment-unused")
def moves_along_the_gradient(*args, **options):
    return adam_that(lambda m, v, t, b1, b2, eps, g: g / (hat(v, b2, t).sqrt() + eps))(
        *args, **options
    )


@ADAM.fails_with("correction-remembered")
def stores_the_corrected_moments(params, grads, state, lr, betas=(0.9, 0.999), eps=1e-8):
    t, m, v = (0, zeros(params), zeros(params)) if state is None else state
    t = t + 1
    m = [hat(betas[0] * m + (1 - betas[0]) * g, betas[0], t) for m, g in zip(m, grads, strict=True)]
    v = [
        hat(betas[1] * v + (1 - betas[1]) * g**2, betas[1], t)
        for v, g in zip(v, grads, strict=True)
    ]
    return [p - lr * m / (v.sqrt() + eps) for p, m, v in zip(params, m, v, strict=True)], (t, m, v)


# --- AdamW --------------------------------------------------------------------------------------


@ADAMW.passes
def adamw_by_adam(params, grads, state, lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01):
    params = [p - lr * weight_decay * p for p in params]
    return adam_with_a_loop(params, grads, state, lr, betas, eps)


@ADAMW.passes
def adamw_decays_by_the_old_weights_at_the_end(
    params, grads, state, lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01
):
    new, state = adam_as_torch_writes_it(params, grads, state, lr, betas, eps)
    return [n - lr * weight_decay * p for n, p in zip(new, params, strict=True)], state


@ADAMW.fails_with("ascent")
def climbs_with_adamw(params, grads, state, lr, weight_decay=0.01, **options):
    shrunk = [p * (1 - lr * weight_decay) for p in params]
    return adam_with_a_loop(shrunk, grads, state, -lr, **options)


@ADAMW.fails_with("coupled-decay")
def decays_through_the_gradient(params, grads, state, lr, weight_decay=0.01, **options):
    grads = [g + weight_decay * p for g, p in zip(grads, params, strict=True)]
    return adam_with_a_loop(params, grads, state, lr, **options)


@ADAMW.fails_with("decay-without-lr")
def decays_without_lr(params, grads, state, lr, weight_decay=0.01, **options):
    new, state = adam_with_a_loop(params, grads, state, lr, **options)
    return [n - weight_decay * p for n, p in zip(new, params, strict=True)], state


@ADAMW.fails_with("decay-after-step")
def decays_the_new_weights(params, grads, state, lr, weight_decay=0.01, **options):
    new, state = adam_with_a_loop(params, grads, state, lr, **options)
    return [n * (1 - lr * weight_decay) for n in new], state


@ADAMW.fails_with("decay-left-out")
def forgets_the_decay(params, grads, state, lr, weight_decay=0.01, **options):
    return adam_with_a_loop(params, grads, state, lr, **options)


@ADAMW.fails_with("decay-ignores-its-argument")
def always_decays_by_the_default(params, grads, state, lr, weight_decay=0.01, **options):
    return adamw_by_adam(params, grads, state, lr, weight_decay=0.01, **options)


@ADAMW.fails_with("weights-grow")
def makes_the_weights_grow(params, grads, state, lr, weight_decay=0.01, **options):
    return adam_with_a_loop(
        [p + lr * weight_decay * p for p in params], grads, state, lr, **options
    )


@ADAMW.fails_with("decay-twice")
def decays_in_both_places(params, grads, state, lr, weight_decay=0.01, **options):
    grads = [g + weight_decay * p for g, p in zip(grads, params, strict=True)]
    return adamw_by_adam(params, grads, state, lr, weight_decay=weight_decay, **options)


@ADAMW.fails_with("decay-squared-lr")
def decays_inside_the_step(params, grads, state, lr, weight_decay=0.01, **options):
    new, state = adam_with_a_loop(params, grads, state, lr, **options)
    return [n - lr * (lr * weight_decay * p) for n, p in zip(new, params, strict=True)], state


@ADAMW.fails_with("decay-halved")
def halves_the_decay(params, grads, state, lr, weight_decay=0.01, **options):
    shrunk = [p - lr * weight_decay / 2 * p for p in params]
    return adam_with_a_loop(shrunk, grads, state, lr, **options)


@ADAMW.fails_with("decay-by-sign")
def pulls_every_weight_equally(params, grads, state, lr, weight_decay=0.01, **options):
    pulled = [p - lr * weight_decay * torch.sign(p) for p in params]
    return adam_with_a_loop(pulled, grads, state, lr, **options)


@ADAMW.fails_with("no-bias-correction")
def decays_but_does_not_correct(params, grads, state, lr, weight_decay=0.01, **options):
    shrunk = [p * (1 - lr * weight_decay) for p in params]
    return forgets_both_corrections(shrunk, grads, state, lr, **options)


@ADAMW.fails_with("eps-inside-the-root")
def decays_with_eps_in_the_root(params, grads, state, lr, weight_decay=0.01, **options):
    shrunk = [p * (1 - lr * weight_decay) for p in params]
    return puts_eps_into_adams_root(shrunk, grads, state, lr, **options)


# --- warm-up and cosine -------------------------------------------------------------------------


@WARMUP_COSINE.passes
def schedule_written_out(step, total_steps, warmup_steps, peak_lr, final_lr=0.0):
    if step < warmup_steps:
        return peak_lr / warmup_steps * (step + 1)
    left = max(total_steps - warmup_steps, 1)
    share = min(1.0, (step - warmup_steps) / left) if step < total_steps else 1.0
    middle, swing = (peak_lr + final_lr) / 2, (peak_lr - final_lr) / 2
    return middle + swing * math.cos(math.pi * share)


@WARMUP_COSINE.passes
def schedule_by_torch(step, total_steps, warmup_steps, peak_lr, final_lr=0.0):
    if step >= total_steps:
        return float(final_lr)
    if step < warmup_steps:
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=peak_lr)
        ramp = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / warmup_steps, 1, warmup_steps - 1)
        taken = step
    else:
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=peak_lr)
        ramp = torch.optim.lr_scheduler.CosineAnnealingLR(
            optimizer, total_steps - warmup_steps, final_lr
        )
        taken = step - warmup_steps
    for _ in range(taken):
        optimizer.step()
        ramp.step()
    return ramp.get_last_lr()[0]


@WARMUP_COSINE.passes
def schedule_as_a_squared_cosine(step, total_steps, warmup_steps, peak_lr, final_lr=0.0):
    if step < warmup_steps:
        return peak_lr * (step + 1) / warmup_steps
    if step >= total_steps:
        return final_lr
    angle = math.pi / 2 * (step - warmup_steps) / (total_steps - warmup_steps)
    return peak_lr * math.cos(angle) ** 2 + final_lr * math.sin(angle) ** 2


def falls(step, start, end, high, low):
    return low + (high - low) * (1 + math.cos(math.pi * (step - start) / (end - start))) / 2


@WARMUP_COSINE.fails_with("warmup-from-zero")
def begins_at_zero(step, total_steps, warmup_steps, peak_lr, final_lr=0.0):
    if step < warmup_steps:
        return peak_lr * step / warmup_steps
    return schedule_written_out(step, total_steps, warmup_steps, peak_lr, final_lr)


@WARMUP_COSINE.fails_with("no-warmup")
def stays_at_the_peak_first(step, total_steps, warmup_steps, peak_lr, final_lr=0.0):
    if step < warmup_steps:
        return peak_lr
    return schedule_written_out(step, total_steps, warmup_steps, peak_lr, final_lr)


@WARMUP_COSINE.fails_with("no-warmup")
def knows_only_the_cosine(step, total_steps, warmup_steps, peak_lr, final_lr=0.0):
    return falls(step, 0, total_steps, peak_lr, final_lr) if step < total_steps else final_lr


@WARMUP_COSINE.fails_with("cosine-over-all-steps")
def counts_the_warmup_in_the_cosine(step, total_steps, warmup_steps, peak_lr, final_lr=0.0):
    if step < warmup_steps:
        return peak_lr * (step + 1) / warmup_steps
    return knows_only_the_cosine(step, total_steps, warmup_steps, peak_lr, final_lr)


@WARMUP_COSINE.fails_with("cosine-too-long")
def divides_by_all_steps(step, total_steps, warmup_steps, peak_lr, final_lr=0.0):
    if step < warmup_steps:
        return peak_lr * (step + 1) / warmup_steps
    if step >= total_steps:
        return final_lr
    return falls(step - warmup_steps, 0, total_steps, peak_lr, final_lr)


@WARMUP_COSINE.fails_with("ends-one-step-early")
def reaches_the_end_at_the_last_step(step, total_steps, warmup_steps, peak_lr, final_lr=0.0):
    if step < warmup_steps:
        return peak_lr * (step + 1) / warmup_steps
    if step >= total_steps:
        return final_lr
    return falls(step, warmup_steps, max(total_steps - 1, warmup_steps + 1), peak_lr, final_lr)


@WARMUP_COSINE.fails_with("ends-one-step-early")
def counts_the_cosine_from_one(step, total_steps, warmup_steps, peak_lr, final_lr=0.0):
    if step < warmup_steps:
        return peak_lr * (step + 1) / warmup_steps
    if step >= total_steps:
        return final_lr
    return falls(step + 1, warmup_steps, total_steps, peak_lr, final_lr)


@WARMUP_COSINE.fails_with("final-lr-ignored")
def falls_to_zero(step, total_steps, warmup_steps, peak_lr, final_lr=0.0):
    return schedule_written_out(step, total_steps, warmup_steps, peak_lr)


@WARMUP_COSINE.fails_with("final-lr-ignored")
def falls_to_zero_then_jumps(step, total_steps, warmup_steps, peak_lr, final_lr=0.0):
    if step >= total_steps:
        return final_lr
    return schedule_written_out(step, total_steps, warmup_steps, peak_lr)


@WARMUP_COSINE.fails_with("final-lr-on-top")
def adds_the_floor_to_the_peak(step, total_steps, warmup_steps, peak_lr, final_lr=0.0):
    if step < warmup_steps:
        return peak_lr * (step + 1) / warmup_steps
    if step >= total_steps:
        return final_lr
    return final_lr + falls(step, warmup_steps, total_steps, peak_lr, 0)


@WARMUP_COSINE.fails_with("linear-decay")
def falls_in_a_line(step, total_steps, warmup_steps, peak_lr, final_lr=0.0):
    if step < warmup_steps:
        return peak_lr * (step + 1) / warmup_steps
    if step >= total_steps:
        return final_lr
    share = (step - warmup_steps) / (total_steps - warmup_steps)
    return (1 - share) * peak_lr + share * final_lr


def schedule_that(fall):
    def schedule(step, total_steps, warmup_steps, peak_lr, final_lr=0.0):
        if step < warmup_steps:
            return peak_lr * (step + 1) / warmup_steps
        if step >= total_steps:
            return final_lr
        p = (step - warmup_steps) / (total_steps - warmup_steps)
        return final_lr + (peak_lr - final_lr) * fall(p)

    return schedule


@WARMUP_COSINE.fails_with("not-halved")
def forgets_the_half(*args):
    return schedule_that(lambda p: 1 + math.cos(math.pi * p))(*args)


@WARMUP_COSINE.fails_with("quarter-wave")
def uses_a_quarter_wave(*args):
    return schedule_that(lambda p: math.cos(math.pi * p / 2))(*args)


@WARMUP_COSINE.fails_with("full-wave")
def uses_a_full_wave(*args):
    return schedule_that(lambda p: 0.5 + 0.5 * math.cos(2 * math.pi * p))(*args)


@WARMUP_COSINE.fails_with("pi-missing")
def forgets_pi(*args):
    return schedule_that(lambda p: 0.5 * (1 + math.cos(p)))(*args)


@WARMUP_COSINE.fails_with("pi-missing")
def thinks_in_degrees(*args):
    return schedule_that(lambda p: 0.5 * (1 + math.cos(180 * p)))(*args)


@WARMUP_COSINE.fails_with("rises-after-the-end")
def goes_on_like_a_wave(step, total_steps, warmup_steps, peak_lr, final_lr=0.0):
    if step < warmup_steps:
        return peak_lr * (step + 1) / warmup_steps
    if total_steps == warmup_steps:
        return final_lr
    return falls(step, warmup_steps, total_steps, peak_lr, final_lr)


@WARMUP_COSINE.fails_with("constant-after-warmup")
def stays_at_the_peak(step, total_steps, warmup_steps, peak_lr, final_lr=0.0):
    return peak_lr * min(1.0, (step + 1) / max(warmup_steps, 1))


@WARMUP_COSINE.fails_with("constant-after-warmup")
def stays_at_the_peak_to_the_end(step, total_steps, warmup_steps, peak_lr, final_lr=0.0):
    if step >= total_steps:
        return final_lr
    return stays_at_the_peak(step, total_steps, warmup_steps, peak_lr)


@WARMUP_COSINE.fails_with("ramp-from-final-lr")
def climbs_from_the_final_rate(step, total_steps, warmup_steps, peak_lr, final_lr=0.0):
    if step < warmup_steps:
        return final_lr + (peak_lr - final_lr) * (step + 1) / warmup_steps
    return schedule_written_out(step, total_steps, warmup_steps, peak_lr, final_lr)


# --- clipping -----------------------------------------------------------------------------------


def whole_norm(grads):
    return math.sqrt(sum(float((g**2).sum()) for g in grads))


@CLIP_GRAD_NORM.passes
def clips_where_needed(grads, max_norm):
    norm = torch.cat([g.flatten() for g in grads]).norm()
    if norm <= max_norm:
        return list(grads), norm
    return [g * (max_norm / norm) for g in grads], norm


@CLIP_GRAD_NORM.passes
def clips_with_a_number(grads, max_norm):
    norm = whole_norm(grads)
    return tuple(g * min(1.0, max_norm / (norm + 1e-6)) for g in grads), norm


@CLIP_GRAD_NORM.passes
def clips_by_the_norm_of_norms(grads, max_norm):
    norm = torch.stack([torch.linalg.vector_norm(g) for g in grads]).norm()
    return [g / torch.clamp(norm / max_norm, min=1.0) for g in grads], norm


@CLIP_GRAD_NORM.fails_with("norm-per-tensor")
def clips_each_tensor(grads, max_norm):
    return [clips_with_a_number([g], max_norm)[0][0] for g in grads], whole_norm(grads)


@CLIP_GRAD_NORM.fails_with("norm-per-tensor")
def clips_and_measures_each_tensor(grads, max_norm):
    clipped = []
    for g in grads:
        norm = g.norm()
        clipped.append(g * max_norm / norm if norm > max_norm else g)
    return clipped, norm


@CLIP_GRAD_NORM.fails_with("clipped-by-value")
def clips_each_element(grads, max_norm):
    return [torch.clamp(g, -max_norm, max_norm) for g in grads], whole_norm(grads)


@CLIP_GRAD_NORM.fails_with("scaled-below-the-limit")
def always_scales(grads, max_norm):
    norm = whole_norm(grads)
    return [g * max_norm / norm if norm else g for g in grads], norm


@CLIP_GRAD_NORM.fails_with("scaled-below-the-limit")
def always_scales_with_nan_at_zero(grads, max_norm):
    norm = torch.cat([g.flatten() for g in grads]).norm()
    return [g * (max_norm / norm) for g in grads], norm


@CLIP_GRAD_NORM.fails_with("returned-the-clipped-norm")
def measures_afterwards(grads, max_norm):
    clipped, _ = clips_with_a_number(grads, max_norm)
    return clipped, whole_norm(clipped)


@CLIP_GRAD_NORM.fails_with("returned-the-clipped-norm")
def returns_the_smaller_norm(grads, max_norm):
    clipped, norm = clips_with_a_number(grads, max_norm)
    return clipped, min(norm, max_norm)


def clips_by(measure):
    def clip(grads, max_norm):
        norm = measure(grads)
        return [g * min(1.0, max_norm / norm) if norm else g for g in grads], norm

    return clip


@CLIP_GRAD_NORM.fails_with("sum-of-norms")
def adds_the_norms(grads, max_norm):
    return clips_by(lambda grads: float(sum(g.norm() for g in grads)))(grads, max_norm)


@CLIP_GRAD_NORM.fails_with("mean-of-norms")
def averages_the_norms(grads, max_norm):
    return clips_by(lambda grads: float(torch.stack([g.norm() for g in grads]).mean()))(
        grads, max_norm
    )


@CLIP_GRAD_NORM.fails_with("mean-of-norms")
def takes_the_root_mean_square(grads, max_norm):
    return clips_by(lambda gs: float(torch.cat([g.flatten() for g in gs]).pow(2).mean().sqrt()))(
        grads, max_norm
    )


@CLIP_GRAD_NORM.fails_with("no-root")
def forgets_the_root(grads, max_norm):
    return clips_by(lambda grads: float(sum((g**2).sum() for g in grads)))(grads, max_norm)


@CLIP_GRAD_NORM.fails_with("absolute-norm")
def sums_absolute_values(grads, max_norm):
    return clips_by(lambda grads: float(sum(g.abs().sum() for g in grads)))(grads, max_norm)


@CLIP_GRAD_NORM.fails_with("largest-element")
def takes_the_largest_element(grads, max_norm):
    return clips_by(lambda grads: float(max(g.abs().max() for g in grads)))(grads, max_norm)


@CLIP_GRAD_NORM.fails_with("only-first-tensor")
def measures_the_first_tensor(grads, max_norm):
    return clips_by(lambda grads: float(grads[0].norm()))(grads, max_norm)


@CLIP_GRAD_NORM.fails_with("only-first-tensor")
def measures_the_last_tensor(grads, max_norm):
    for g in grads:
        norm = float(torch.sqrt((g**2).sum()))
    return [g * min(1.0, max_norm / (norm + 1e-6)) for g in grads], norm


@CLIP_GRAD_NORM.fails_with("not-divided-by-norm")
def multiplies_by_the_limit(grads, max_norm):
    norm = whole_norm(grads)
    return [g * max_norm if norm > max_norm else g for g in grads], norm


@CLIP_GRAD_NORM.fails_with("not-divided-by-norm")
def multiplies_by_the_limit_up_to_one(grads, max_norm):
    return [g * min(1.0, max_norm) for g in grads], whole_norm(grads)


@CLIP_GRAD_NORM.fails_with("not-clipped")
def only_measures(grads, max_norm):
    return list(grads), whole_norm(grads)


@CLIP_GRAD_NORM.fails_with("factor-upside-down")
def turns_the_factor_round(grads, max_norm):
    norm = whole_norm(grads)
    return [g * (norm / max_norm) for g in grads], norm


@CLIP_GRAD_NORM.fails_with("factor-upside-down")
def turns_the_factor_round_above_the_limit(grads, max_norm):
    norm = whole_norm(grads)
    return [g * (norm / max_norm) if norm > max_norm else g for g in grads], norm


@CLIP_GRAD_NORM.fails_with("changed-input")
def scales_in_place(grads, max_norm):
    norm = whole_norm(grads)
    for g in grads:
        g *= min(1.0, max_norm / (norm + 1e-6))
    return grads, norm


@CLIP_GRAD_NORM.fails_with("wrong-type")
def returns_the_gradients_alone(grads, max_norm):
    return dict(enumerate(clips_with_a_number(grads, max_norm)[0]))


# --- slips that can happen with any step ---------------------------------------------------------

add_slips(GRADIENT_DESCENT, descends_with_a_loop, has_memory=False)
add_slips(SGD_MOMENTUM, momentum_with_a_loop)
add_slips(NESTEROV, nesterov_with_a_loop)
add_slips(ADAGRAD, adagrad_with_a_loop)
add_slips(RMSPROP, rmsprop_with_a_loop)
add_slips(ADAM, adam_with_a_loop)
add_slips(ADAMW, adamw_by_adam)
