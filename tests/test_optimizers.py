"""Every optimizer gives what torch.optim gives, step after step, and changes nothing in place."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._pytree import tree_flatten

from shipyard import optimizers
from shipyard.optimizers import (
    adagrad,
    adam,
    adamw,
    clip_grad_norm,
    gradient_descent,
    nesterov,
    rmsprop,
    sgd_momentum,
)

STEPS = 50
SHAPES = ((3, 5), (7,), (), (0, 4), (2, 1, 3))  # a matrix, a vector, a scalar, nothing, a block

# name: (our step, torch's class, the other arguments of ours, the same for torch's)
SAME = {
    "gradient_descent": (gradient_descent, torch.optim.SGD, {}, {}),
    "sgd_momentum": (
        sgd_momentum,
        torch.optim.SGD,
        {"momentum": 0.8},
        {"momentum": 0.8, "dampening": 0},
    ),
    "nesterov": (
        nesterov,
        torch.optim.SGD,
        {"momentum": 0.95},
        {"momentum": 0.95, "nesterov": True},
    ),
    "adagrad": (adagrad, torch.optim.Adagrad, {}, {}),
    "rmsprop": (rmsprop, torch.optim.RMSprop, {"alpha": 0.97}, {"alpha": 0.97}),
    "adam": (adam, torch.optim.Adam, {"betas": (0.85, 0.99)}, {"betas": (0.85, 0.99)}),
    "adamw": (adamw, torch.optim.AdamW, {"weight_decay": 0.1}, {"weight_decay": 0.1}),
}
STEP_FUNCTIONS = [ours for ours, *_ in SAME.values()]
every_optimizer = pytest.mark.parametrize("name", SAME)
quick = settings(max_examples=5, deadline=None)


def random_tensors(seed, shapes=SHAPES, dtype=torch.float64, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]


def model_gradients(params, inputs):
    """Gradients of a small network's loss: they depend on the parameters, as in real training."""
    params = [p.detach().requires_grad_() for p in params]
    weight, bias, scale, nothing, block = params
    hidden = torch.tanh(inputs @ weight.T @ torch.ones(3, 7, dtype=inputs.dtype) + bias)
    loss = (scale * hidden).square().mean() + block.sin().sum() + nothing.sum()
    return list(torch.autograd.grad(loss, params))


def torch_path(cls, params, gradients_at, lr, steps=STEPS, **options):
    """The parameters after each step of torch's optimizer."""
    params = [p.clone() for p in params]
    optimizer, path = cls(params, lr=lr, **options), []
    for t in range(steps):
        for p, g in zip(params, gradients_at(params, t), strict=True):
            p.grad = g
        optimizer.step()
        path.append([p.clone() for p in params])
    return path


def our_path(step, params, gradients_at, lr, steps=STEPS, **options):
    state, path = None, []
    for t in range(steps):
        params, state = step(params, gradients_at(params, t), state, lr, **options)
        path.append(params)
    return path


def assert_same_path(ours, theirs, rtol=1e-10, atol=1e-12):
    for t, (our_params, their_params) in enumerate(zip(ours, theirs, strict=True)):
        for i, (a, b) in enumerate(zip(our_params, their_params, strict=True)):
            torch.testing.assert_close(
                a, b, rtol=rtol, atol=atol, msg=lambda m, t=t, i=i: f"step {t}, tensor {i}: {m}"
            )


@every_optimizer
@quick
@given(
    seed=st.integers(0, 10**6),
    lr=st.floats(1e-4, 0.5),
    weight_decay=st.sampled_from([0.0, 0.01, 0.3]),
)
def test_fifty_steps_on_a_network_match_torch(name, seed, lr, weight_decay):
    step, cls, ours, theirs = SAME[name]
    params = random_tensors(seed)
    inputs = random_tensors(seed + 1, [(4, 5)])[0]

    def gradients_at(params, t):
        return model_gradients(params, inputs * math.cos(t))

    if name == "adamw":
        ours, theirs = {"weight_decay": weight_decay}, {"weight_decay": weight_decay}
        our_gradients = gradients_at
    else:  # the others get their decay through the gradients
        theirs = {**theirs, "weight_decay": weight_decay}

        def our_gradients(params, t):
            grads = gradients_at(params, t)
            return [g + weight_decay * θ for θ, g in zip(params, grads, strict=True)]

    assert_same_path(
        our_path(step, params, our_gradients, lr, **ours),
        torch_path(cls, params, gradients_at, lr, **theirs),
    )


@every_optimizer
@quick
@given(
    seed=st.integers(0, 10**6),
    shapes=st.lists(st.lists(st.integers(0, 4), max_size=3), min_size=1, max_size=4),
    scale=st.sampled_from([1e-12, 1e-4, 1.0, 1e6]),
)
def test_any_shapes_and_any_size_of_gradient_match_torch(name, seed, shapes, scale):
    step, cls, ours, theirs = SAME[name]
    params = random_tensors(seed, shapes)

    def gradients_at(params, t):
        return random_tensors(seed + t, shapes, scale=scale)

    assert_same_path(
        our_path(step, params, gradients_at, 0.01, **ours),
        torch_path(cls, params, gradients_at, 0.01, **theirs),
        atol=1e-12 * max(1.0, scale),
    )


@pytest.mark.parametrize("name", ["adagrad", "rmsprop", "adam", "adamw"])
@quick
@given(eps=st.sampled_from([1e-12, 1e-8, 1e-3, 1.0]), lr=st.floats(1e-6, 2.0))
def test_eps_matches_torch(name, eps, lr):
    step, cls, ours, theirs = SAME[name]

    def gradients_at(params, t):
        return random_tensors(t, scale=1e-3)

    assert_same_path(
        our_path(step, random_tensors(1), gradients_at, lr, eps=eps, **ours),
        torch_path(cls, random_tensors(1), gradients_at, lr, eps=eps, **theirs),
    )


@every_optimizer
def test_float32_matches_torch_and_stays_float32(name):
    step, cls, ours, theirs = SAME[name]
    params = random_tensors(3, dtype=torch.float32)

    def gradients_at(params, t):
        return random_tensors(t, dtype=torch.float32)

    path = our_path(step, params, gradients_at, 0.01, **ours)
    theirs_path = torch_path(cls, params, gradients_at, 0.01, **theirs)
    assert_same_path(path, theirs_path, rtol=1e-4, atol=1e-5)
    assert {p.dtype for p in path[-1]} == {torch.float32}


@every_optimizer
def test_non_contiguous_tensors_match_torch(name):
    step, cls, ours, theirs = SAME[name]
    params = [p.T for p in random_tensors(5, [(4, 6), (3, 2)])]

    def gradients_at(params, t):
        return [g.T[:, ::2] for g in random_tensors(t, [(8, 6), (6, 2)])]

    assert_same_path(
        our_path(step, params, gradients_at, 0.1, **ours),
        torch_path(cls, params, gradients_at, 0.1, **theirs),
    )


@every_optimizer
def test_a_step_changes_neither_parameters_nor_gradients_nor_state(name):
    step, _, ours, _ = SAME[name]
    params, state = random_tensors(0), None
    for t in range(3):
        grads = random_tensors(t)
        before = copy.deepcopy((params, grads, state))
        new = step(params, grads, state, 0.1, **ours)
        for kept, now in zip(tree_flatten(before)[0], tree_flatten((params, grads, state))[0]):  # noqa: B905
            assert kept is now or torch.equal(torch.as_tensor(kept), torch.as_tensor(now))
        params, state = new


@every_optimizer
def test_two_interleaved_runs_do_not_disturb_each_other(name):
    step, _, ours, _ = SAME[name]

    def gradients_at(params, t):
        return random_tensors(100 + t)

    alone = [our_path(step, random_tensors(s), gradients_at, 0.1, steps=5, **ours) for s in (1, 2)]
    params, states = [random_tensors(1), random_tensors(2)], [None, None]
    for t in range(5):
        for run in (0, 1):
            params[run], states[run] = step(
                params[run], gradients_at(None, t), states[run], 0.1, **ours
            )
            for a, b in zip(params[run], alone[run][t], strict=True):
                assert torch.equal(a, b)


@every_optimizer
def test_a_step_builds_no_graph(name):
    step, _, ours, _ = SAME[name]
    params = [p.requires_grad_() for p in random_tensors(0)]
    new, state = step(params, random_tensors(1), None, 0.1, **ours)
    tensors = [leaf for leaf in tree_flatten((new, state))[0] if isinstance(leaf, torch.Tensor)]
    assert not any(tensor.requires_grad for tensor in tensors)


@every_optimizer
def test_parameters_and_gradients_that_do_not_fit_are_named(name):
    step, _, ours, _ = SAME[name]
    a, b = torch.zeros(2, 3), torch.zeros(3, 2)
    with pytest.raises(ValueError, match=r"params\[1\] has shape \(2, 3\).*\(3, 2\)"):
        step([a, a], [a, b], None, 0.1, **ours)
    with pytest.raises(ValueError, match="2 params but 1 grads"):
        step([a, a], [a], None, 0.1, **ours)
    with pytest.raises(ValueError, match=r"grads\[0\] is None"):
        step([a], [None], None, 0.1, **ours)


def test_no_parameters_are_no_work():
    for step in STEP_FUNCTIONS:
        assert step([], [], None, 0.1)[0] == []


@quick
@given(
    seed=st.integers(0, 10**6),
    max_norm=st.floats(0.0, 100.0),
    scale=st.sampled_from([0.0, 1e-8, 1.0, 1e8]),
)
def test_clipping_matches_torch(seed, max_norm, scale):
    grads = random_tensors(seed, scale=scale)
    leaves = [torch.zeros_like(g) for g in grads]
    for leaf, g in zip(leaves, grads, strict=True):
        leaf.grad = g.clone()
    expected_norm = torch.nn.utils.clip_grad_norm_(leaves, max_norm)
    kept = copy.deepcopy(grads)
    clipped, norm = clip_grad_norm(grads, max_norm)
    torch.testing.assert_close(norm, expected_norm)
    for c, leaf, g, k in zip(clipped, leaves, grads, kept, strict=True):
        torch.testing.assert_close(c, leaf.grad, rtol=1e-12, atol=0)
        assert torch.equal(g, k)


def test_clipping_nothing_and_clipping_to_less_than_nothing():
    assert clip_grad_norm([], 1.0)[0] == []
    with pytest.raises(ValueError, match="max_norm is -1"):
        clip_grad_norm(random_tensors(0), -1)


def test_every_step_function_is_compared_with_torch():
    public = {
        name
        for name, value in vars(optimizers).items()
        if callable(value) and getattr(value, "__module__", "") == optimizers.__name__
    }
    others = {"clip_grad_norm", "zeros", "_check"}
    assert public == set(SAME) | others
