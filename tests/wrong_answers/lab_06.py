"""Wrong answers to lab 06, training faster, and other correct ones."""

import copy
import math
import statistics

import numpy as np
import torch
import torch.nn.functional as F

from wrong_answers import Task

ONE_CYCLE, WHITENING, STRIDES, CHANNELS_LAST = Task(), Task(), Task(), Task()
ROOFLINE, FLIP_AVERAGE, TIME_TO_ACCURACY = Task(), Task(), Task()
TASKS = {
    "one_cycle": ONE_CYCLE,
    "whitening": WHITENING,
    "strides": STRIDES,
    "channels_last": CHANNELS_LAST,
    "roofline": ROOFLINE,
    "flip_average": FLIP_AVERAGE,
    "time_to_accuracy": TIME_TO_ACCURACY,
}


# --- the one-cycle schedule ---------------------------------------------------------------------


def way(start, end, p, anneal_strategy):
    """From start (p = 0) to end (p = 1)."""
    if anneal_strategy == "cos":
        p = (1 - math.cos(math.pi * p)) / 2
    return start + (end - start) * p


@ONE_CYCLE.passes
def two_returns(
    step, total_steps, max_lr, pct_start=0.3, div_factor=25.0, final_div_factor=1e4,
    anneal_strategy="cos",
):  # fmt: skip
    peak, last = pct_start * total_steps - 1, total_steps - 1
    first_lr = max_lr / div_factor
    if step <= peak:
        return way(first_lr, max_lr, step / peak, anneal_strategy)
    final_lr = first_lr / final_div_factor
    return way(max_lr, final_lr, (step - peak) / (last - peak), anneal_strategy)


@ONE_CYCLE.passes
def asks_torch(
    step, total_steps, max_lr, pct_start=0.3, div_factor=25.0, final_div_factor=1e4,
    anneal_strategy="cos",
):  # fmt: skip
    optimizer = torch.optim.Adam([torch.zeros(1)])
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=max_lr, total_steps=total_steps, pct_start=pct_start,
        div_factor=div_factor, final_div_factor=final_div_factor, anneal_strategy=anneal_strategy,
    )  # fmt: skip
    for _ in range(step):
        optimizer.step()
        scheduler.step()
    return scheduler.get_last_lr()[0]


@ONE_CYCLE.passes
def interpolates_with_numpy(
    step, total_steps, max_lr, pct_start=0.3, div_factor=25.0, final_div_factor=1e4,
    anneal_strategy="cos",
):  # fmt: skip
    low, final = max_lr / div_factor, max_lr / (div_factor * final_div_factor)
    peak, last = pct_start * total_steps - 1, total_steps - 1
    if anneal_strategy == "linear":
        return np.interp(step, [0, peak, last], [low, max_lr, final])
    phase = np.interp(step, [0, peak, last], [-math.pi, 0, math.pi])
    floor = low if step <= peak else final
    return floor + (max_lr - floor) * (1 + np.cos(phase)) / 2


@ONE_CYCLE.passes
def share_of_the_high_rate(
    step, total_steps, max_lr, pct_start=0.3, div_factor=25.0, final_div_factor=1e4,
    anneal_strategy="cos",
):  # fmt: skip
    peak = pct_start * total_steps - 1
    rising = step < peak
    share = step / peak if rising else (total_steps - 1 - step) / (total_steps - 1 - peak)
    if anneal_strategy == "cos":
        share = math.sin(math.pi / 2 * share) ** 2
    low = max_lr / div_factor / (1 if rising else final_div_factor)
    return torch.lerp(*torch.tensor([low, max_lr], dtype=torch.float64), share)


def a_cycle(**parts):
    """A learner's schedule with parts of it written in another way, for the answers below."""
    peak_of = parts.get("peak", lambda T, share: share * T - 1)
    last_of = parts.get("last", lambda T: T - 1)
    first_of = parts.get("first", lambda high, div, final_div: high / div)
    final_of = parts.get("final", lambda high, div, final_div: high / div / final_div)
    walk = parts.get("walk", lambda start, end, p, strategy, rising: way(start, end, p, strategy))
    shift = parts.get("shift", 0)

    def one_cycle(
        step, total_steps, max_lr, pct_start=0.3, div_factor=25.0, final_div_factor=1e4,
        anneal_strategy="cos",
    ):  # fmt: skip
        step = step + shift
        peak, last = peak_of(total_steps, pct_start), last_of(total_steps)
        first = first_of(max_lr, div_factor, final_div_factor)
        if step < peak:
            return walk(first, max_lr, step / peak, anneal_strategy, True)
        final = final_of(max_lr, div_factor, final_div_factor)
        p = parts.get("p", lambda s, a, b: (s - a) / (b - a))(step, peak, last)
        return walk(max_lr, final, p, anneal_strategy, False)

    return one_cycle


def named(task, diagnosis, name, function):
    """Put an answer that was made by a function into the bank, under a name."""
    function.__name__ = name
    task.fails_with(diagnosis)(function)


for slug, name, parts in [
    ("final-from-the-peak", "divides_the_peak_by_both",
     {"final": lambda high, div, final_div: high / final_div}),
    ("peak-one-step-late", "peaks_after_the_share", {"peak": lambda T, share: share * T}),
    ("end-one-step-late", "ends_at_total_steps", {"last": lambda T: T}),
    ("both-ends-one-step-late", "counts_both_from_one",
     {"peak": lambda T, share: share * T, "last": lambda T: T}),
    ("counted-from-one", "is_one_step_ahead", {"shift": 1}),
    ("share-of-the-last-step", "takes_the_share_of_the_last_step",
     {"peak": lambda T, share: share * (T - 1)}),
    ("share-of-the-fall", "takes_the_share_for_the_fall",
     {"peak": lambda T, share: T - share * T - 1}),
    ("peak-rounded", "peaks_at_a_whole_step", {"peak": lambda T, share: int(T * share) - 1}),
    ("peak-rounded", "rounds_the_peak", {"peak": lambda T, share: round(share * T - 1)}),
    ("no-warm-up", "begins_at_the_peak", {"peak": lambda T, share: 0}),
    ("no-warm-up", "waits_at_the_peak", {"first": lambda high, div, final_div: high}),
    ("warm-up-from-zero", "begins_at_zero", {"first": lambda high, div, final_div: 0}),
    ("warm-up-from-the-final-rate", "begins_at_the_final_rate",
     {"first": lambda high, div, final_div: high / (div * final_div)}),
    ("ends-at-zero", "falls_to_zero", {"final": lambda high, div, final_div: 0.0}),
    ("ends-at-the-initial-rate", "falls_to_the_first_rate",
     {"final": lambda high, div, final_div: high / div}),
    ("fall-over-all-steps", "counts_the_rise_in_the_fall", {"p": lambda s, a, b: s / b}),
    ("fall-too-slow", "divides_by_the_whole_length", {"p": lambda s, a, b: (s - a) / b}),
    ("fall-too-slow", "divides_by_total_steps", {"p": lambda s, a, b: (s - a) / (b + 1)}),
    ("constant-after-the-peak", "stays_up", {"final": lambda high, div, final_div: high}),
    ("options-ignored", "writes_the_defaults_down",
     {"first": lambda high, div, final_div: high / 25,
      "final": lambda high, div, final_div: high / 25e4}),
]:  # fmt: skip
    named(ONE_CYCLE, slug, name, a_cycle(**parts))


def bent(shape, fall=None):
    """``shape(p)`` in the place of the cosine's share."""

    def walk(start, end, p, strategy, rising):
        if strategy == "linear":
            return way(start, end, p, "linear")
        return start + (end - start) * (shape if rising or fall is None else fall)(p)

    return a_cycle(walk=walk)


def cosine_way(p):
    return 0.5 - 0.5 * math.cos(math.pi * p)


for slug, name, function in [
    ("cosine-upside-down", "turns_the_cosine", bent(lambda p: 0.5 + 0.5 * math.cos(math.pi * p))),
    ("cosine-upside-down", "uses_one_cosine_for_both",
     bent(lambda p: 0.5 + 0.5 * math.cos(math.pi * p), cosine_way)),
    ("linear-rise", "rises_in_a_line", bent(lambda p: p, cosine_way)),
    ("always-linear", "knows_no_cosine", bent(lambda p: p)),
    ("always-cosine", "knows_no_line",
     a_cycle(walk=lambda a, b, p, strategy, rising: way(a, b, p, "cos"))),
    ("not-halved", "does_not_halve", bent(lambda p: 1 - math.cos(math.pi * p))),
    ("quarter-wave", "takes_a_quarter_wave", bent(lambda p: 1 - math.cos(math.pi / 2 * p))),
    ("quarter-wave", "takes_a_sine", bent(lambda p: math.sin(p * math.pi / 2))),
    ("pi-missing", "forgets_pi", bent(lambda p: 0.5 - 0.5 * math.cos(p))),
    ("pi-missing", "counts_in_degrees", bent(lambda p: 0.5 - 0.5 * math.cos(p * 180))),
    ("exponential", "goes_by_equal_factors",
     a_cycle(walk=lambda a, b, p, strategy, rising: a ** (1 - p) * b**p)),
]:  # fmt: skip
    named(ONE_CYCLE, slug, name, function)


@ONE_CYCLE.fails_with("no-warm-up")
def only_falls(
    step, total_steps, max_lr, pct_start=0.3, div_factor=25.0, final_div_factor=1e4,
    anneal_strategy="cos",
):  # fmt: skip
    final = max_lr / div_factor / final_div_factor
    return way(max_lr, final, step / (total_steps - 1), anneal_strategy)


@ONE_CYCLE.fails_with("three-phases")
def rises_falls_and_falls_again(
    step, total_steps, max_lr, pct_start=0.3, div_factor=25.0, final_div_factor=1e4,
    anneal_strategy="cos",
):  # fmt: skip
    low, peak = max_lr / div_factor, pct_start * total_steps - 1
    if step <= peak:
        return way(low, max_lr, step / peak, anneal_strategy)
    if step <= 2 * peak:
        return way(max_lr, low, (step - peak) / peak, anneal_strategy)
    p = (step - 2 * peak) / (total_steps - 1 - 2 * peak)
    return way(low, low / final_div_factor, p, anneal_strategy)


@ONE_CYCLE.fails_with("returned-none")
def prints_the_rate(
    step, total_steps, max_lr, pct_start=0.3, div_factor=25.0, final_div_factor=1e4,
    anneal_strategy="cos",
):  # fmt: skip
    two_returns(step, total_steps, max_lr, pct_start, div_factor, final_div_factor, anneal_strategy)


@ONE_CYCLE.fails_with("wrong-signature")
def knows_only_the_peak(step, total_steps, max_lr):
    return two_returns(step, total_steps, max_lr)


@ONE_CYCLE.fails_with("wrong-type")
def returns_the_whole_schedule(
    step, total_steps, max_lr, pct_start=0.3, div_factor=25.0, final_div_factor=1e4,
    anneal_strategy="cos",
):  # fmt: skip
    rest = (total_steps, max_lr, pct_start, div_factor, final_div_factor, anneal_strategy)
    return [two_returns(s, *rest) for s in range(total_steps)]


@ONE_CYCLE.fails_with("wrong-values")
def computes_in_float32(
    step, total_steps, max_lr, pct_start=0.3, div_factor=25.0, final_div_factor=1e4,
    anneal_strategy="cos",
):  # fmt: skip
    rate = two_returns(
        step, total_steps, max_lr, pct_start, div_factor, final_div_factor, anneal_strategy
    )
    return torch.tensor(rate).item()


# --- whitening ----------------------------------------------------------------------------------


def patches_of(images, k):
    """(patches, c·k·k), in the order of F.unfold."""
    return F.unfold(images, k).permute(0, 2, 1).flatten(0, 1)


def covariance_of(images, k):
    patches = patches_of(images, k)
    return torch.atleast_2d(torch.cov(patches.T, correction=0))


@WHITENING.passes
def by_eigh(images, kernel_size, eps):
    λ, V = torch.linalg.eigh(covariance_of(images, kernel_size))
    return (V / torch.sqrt(λ + eps)).T.reshape(-1, images.shape[1], kernel_size, kernel_size)


@WHITENING.passes
def by_singular_values(images, kernel_size, eps):
    """Largest variance first, from the patches themselves."""
    patches = patches_of(images, kernel_size)
    _, σ, Vh = torch.linalg.svd(patches - patches.mean(dim=0), full_matrices=False)
    filters = Vh / torch.sqrt(σ[:, None] ** 2 / len(patches) + eps)
    return filters.view(len(filters), images.shape[1], kernel_size, kernel_size)


@WHITENING.passes
def by_windows_in_loops(images, kernel_size, eps):
    _, c, h, w = images.shape
    patches = []
    for image in images:
        for row in range(h - kernel_size + 1):
            for column in range(w - kernel_size + 1):
                window = image[:, row : row + kernel_size, column : column + kernel_size]
                patches.append(window.reshape(-1))
    patches = torch.stack(patches)
    mean = sum(patches) / len(patches)
    Σ = sum(torch.outer(p - mean, p - mean) for p in patches) / len(patches)
    λ, V = torch.linalg.eigh(Σ)
    filters = [-V[:, i] / math.sqrt(λ[i] + eps) for i in range(len(λ))]
    return torch.stack(filters).reshape(-1, c, kernel_size, kernel_size)


@WHITENING.passes
def with_numpy_eigenvectors(images, kernel_size, eps):
    """eps added to the diagonal, which adds it to every eigenvalue; another order and sign."""
    Σ = covariance_of(images, kernel_size).numpy()
    λ, V = np.linalg.eigh(Σ + eps * np.eye(len(Σ)))
    filters = torch.from_numpy(V @ np.diag(λ**-0.5)).T.flip(0)
    return filters.reshape(-1, images.shape[1], kernel_size, kernel_size)


@WHITENING.fails_with("root-forgotten")
def divides_by_the_variance(images, kernel_size, eps):
    λ, V = torch.linalg.eigh(covariance_of(images, kernel_size))
    return (V / (λ + eps)).T.reshape(-1, images.shape[1], kernel_size, kernel_size)


@WHITENING.fails_with("multiplied")
def multiplies_by_the_root(images, kernel_size, eps):
    λ, V = torch.linalg.eigh(covariance_of(images, kernel_size))
    return (V * torch.sqrt(λ + eps)).T.reshape(-1, images.shape[1], kernel_size, kernel_size)


@WHITENING.fails_with("multiplied")
def multiplies_by_the_variance(images, kernel_size, eps):
    λ, V = torch.linalg.eigh(covariance_of(images, kernel_size))
    return (V * (eps + λ)).T.reshape(-1, images.shape[1], kernel_size, kernel_size)


@WHITENING.fails_with("not-scaled")
def only_decorrelates(images, kernel_size, eps):
    _, V = torch.linalg.eigh(covariance_of(images, kernel_size))
    return V.T.reshape(-1, images.shape[1], kernel_size, kernel_size)


@WHITENING.fails_with("eps-missing")
def forgets_eps(images, kernel_size, eps):
    λ, V = torch.linalg.eigh(covariance_of(images, kernel_size))
    return (V * λ**-0.5).T.reshape(-1, images.shape[1], kernel_size, kernel_size)


@WHITENING.fails_with("eps-outside-the-root")
def adds_eps_to_the_root(images, kernel_size, eps):
    λ, V = torch.linalg.eigh(covariance_of(images, kernel_size))
    scale = λ.clamp(min=0).sqrt() + eps
    return (V / scale).T.reshape(-1, images.shape[1], kernel_size, kernel_size)


@WHITENING.fails_with("eps-squared")
def adds_eps_squared(images, kernel_size, eps):
    Σ = covariance_of(images, kernel_size)
    λ, V = torch.linalg.eigh(Σ + eps**2 * torch.eye(len(Σ), dtype=Σ.dtype))
    return (V / λ.sqrt()).T.reshape(-1, images.shape[1], kernel_size, kernel_size)


@WHITENING.fails_with("eigenvectors-as-rows")
def takes_rows(images, kernel_size, eps):
    λ, V = torch.linalg.eigh(covariance_of(images, kernel_size))
    filters = torch.stack([V[i] / torch.sqrt(λ[i] + eps) for i in range(len(λ))])
    return filters.reshape(-1, images.shape[1], kernel_size, kernel_size)


@WHITENING.fails_with("eigenvectors-as-rows")
def scales_columns_and_does_not_transpose(images, kernel_size, eps):
    λ, V = torch.linalg.eigh(covariance_of(images, kernel_size))
    return (V / torch.sqrt(λ + eps)).reshape(-1, images.shape[1], kernel_size, kernel_size)


@WHITENING.fails_with("scaled-along-the-wrong-axis")
def scales_after_the_transpose(images, kernel_size, eps):
    λ, V = torch.linalg.eigh(covariance_of(images, kernel_size))
    return (V.T / torch.sqrt(λ + eps)).reshape(-1, images.shape[1], kernel_size, kernel_size)


@WHITENING.fails_with("zca")
def turns_it_back(images, kernel_size, eps):
    λ, V = torch.linalg.eigh(covariance_of(images, kernel_size))
    W = V @ torch.diag((λ + eps) ** -0.5) @ V.mT
    return W.reshape(-1, images.shape[1], kernel_size, kernel_size)


def filters_from(patches, c, k, eps, divide_by=None):
    """From here on only the patches are wrong."""
    centred = patches - patches.mean(0)
    λ, V = torch.linalg.eigh(centred.T @ centred / (divide_by or len(patches)))
    return (V / torch.sqrt(λ + eps)).T.reshape(-1, c, k, k)


@WHITENING.fails_with("patches-in-another-order")
def flattens_the_channel_last(images, kernel_size, eps):
    k = kernel_size
    windows = images.permute(0, 2, 3, 1).unfold(1, k, 1).unfold(2, k, 1)
    patches = windows.permute(0, 1, 2, 4, 5, 3).reshape(-1, k * k * images.shape[1])
    return filters_from(patches, images.shape[1], k, eps)


@WHITENING.fails_with("patches-in-another-order")
def exchanges_rows_and_columns(images, kernel_size, eps):
    patches = patches_of(images.transpose(2, 3), kernel_size)
    return filters_from(patches, images.shape[1], kernel_size, eps)


@WHITENING.fails_with("patches-scrambled")
def reshapes_the_windows(images, kernel_size, eps):
    k = kernel_size
    windows = images.unfold(2, k, 1).unfold(3, k, 1)
    return filters_from(windows.reshape(-1, images.shape[1] * k * k), images.shape[1], k, eps)


@WHITENING.fails_with("patches-scrambled")
def reshapes_the_columns(images, kernel_size, eps):
    columns = F.unfold(images, kernel_size)
    patches = columns.reshape(-1, columns.shape[1])
    return filters_from(patches, images.shape[1], kernel_size, eps)


@WHITENING.fails_with("not-centred")
def forgets_the_mean(images, kernel_size, eps):
    patches = patches_of(images, kernel_size)
    λ, V = torch.linalg.eigh(patches.T @ patches / len(patches))
    return (V / torch.sqrt(λ + eps)).T.reshape(-1, images.shape[1], kernel_size, kernel_size)


@WHITENING.fails_with("centred-per-patch")
def takes_the_brightness_away(images, kernel_size, eps):
    patches = patches_of(images, kernel_size)
    patches = patches - patches.mean(dim=1, keepdim=True)
    λ, V = torch.linalg.eigh(patches.T @ patches / len(patches))
    return (V / torch.sqrt(λ + eps)).T.reshape(-1, images.shape[1], kernel_size, kernel_size)


@WHITENING.fails_with("centred-by-one-number")
def subtracts_one_number(images, kernel_size, eps):
    patches = patches_of(images, kernel_size)
    patches = patches - patches.mean()
    λ, V = torch.linalg.eigh(patches.T @ patches / len(patches))
    return (V / torch.sqrt(λ + eps)).T.reshape(-1, images.shape[1], kernel_size, kernel_size)


@WHITENING.fails_with("divided-by-n-minus-1")
def takes_the_default_of_cov(images, kernel_size, eps):
    λ, V = torch.linalg.eigh(torch.cov(patches_of(images, kernel_size).T))
    return (V / torch.sqrt(λ + eps)).T.reshape(-1, images.shape[1], kernel_size, kernel_size)


@WHITENING.fails_with("not-divided")
def sums_over_the_patches(images, kernel_size, eps):
    patches = patches_of(images, kernel_size)
    return filters_from(patches, images.shape[1], kernel_size, eps, divide_by=1)


@WHITENING.fails_with("divided-by-the-images")
def divides_by_the_images(images, kernel_size, eps):
    patches = patches_of(images, kernel_size)
    return filters_from(patches, images.shape[1], kernel_size, eps, divide_by=images.shape[0])


@WHITENING.fails_with("divided-by-the-places")
def divides_by_the_length_of_a_patch(images, kernel_size, eps):
    patches = patches_of(images, kernel_size)
    return filters_from(patches, images.shape[1], kernel_size, eps, divide_by=patches.shape[1])


@WHITENING.fails_with("correlation")
def takes_the_correlation(images, kernel_size, eps):
    λ, V = torch.linalg.eigh(torch.corrcoef(patches_of(images, kernel_size).T))
    return (V / torch.sqrt(λ + eps)).T.reshape(-1, images.shape[1], kernel_size, kernel_size)


@WHITENING.fails_with("each-place-alone")
def divides_each_place_by_its_deviation(images, kernel_size, eps):
    variance = patches_of(images, kernel_size).var(dim=0, correction=0)
    W = torch.diag(1 / torch.sqrt(variance + eps))
    return W.reshape(-1, images.shape[1], kernel_size, kernel_size)


@WHITENING.fails_with("per-channel")
def whitens_each_channel(images, kernel_size, eps):
    c, k = images.shape[1], kernel_size
    W = torch.block_diag(*[by_eigh(images[:, [i]], k, eps).reshape(k * k, k * k) for i in range(c)])
    return W.reshape(-1, c, k, k)


@WHITENING.fails_with("per-pixel")
def whitens_the_colours(images, kernel_size, eps):
    c, k = images.shape[1], kernel_size
    W = torch.zeros(c * k * k, c, k, k, dtype=images.dtype)
    W[:c, :, k // 2, k // 2] = by_eigh(images, 1, eps).reshape(c, c)
    return W


@WHITENING.fails_with("patches-do-not-overlap")
def tiles_the_images(images, kernel_size, eps):
    columns = F.unfold(images, kernel_size, stride=kernel_size)
    patches = columns.transpose(1, 2).flatten(0, 1)
    return filters_from(patches, images.shape[1], kernel_size, eps)


@WHITENING.fails_with("padded")
def pads_the_images(images, kernel_size, eps):
    padded = F.pad(images, [kernel_size // 2] * 4)
    return filters_from(patches_of(padded, kernel_size), images.shape[1], kernel_size, eps)


@WHITENING.fails_with("first-image-only")
def returns_inside_the_loop(images, kernel_size, eps):
    for image in images:
        patches = patches_of(image[None], kernel_size)
        return filters_from(patches, images.shape[1], kernel_size, eps)


@WHITENING.fails_with("wrong-shape")
def adds_the_negatives(images, kernel_size, eps):
    filters = by_eigh(images, kernel_size, eps)
    return torch.cat([filters, -filters])


@WHITENING.fails_with("wrong-shape")
def leaves_the_filters_flat(images, kernel_size, eps):
    return by_eigh(images, kernel_size, eps).flatten(1)


@WHITENING.fails_with("wrong-dtype")
def computes_in_single_precision(images, kernel_size, eps):
    return by_eigh(images.float(), kernel_size, eps)


@WHITENING.fails_with("wrong-type")
def returns_an_array(images, kernel_size, eps):
    return by_eigh(images, kernel_size, eps).numpy()


@WHITENING.fails_with("patches-for-variables")
def takes_patches_for_variables(images, kernel_size, eps):
    λ, V = torch.linalg.eigh(torch.cov(patches_of(images, kernel_size), correction=0))
    k = kernel_size
    return (V / torch.sqrt(λ + eps)).T.reshape(images.shape[1] * k * k, images.shape[1], k, k)


@WHITENING.fails_with("changed-input")
def centres_the_images_in_place(images, kernel_size, eps):
    images -= images.mean(dim=(0, 2, 3), keepdim=True)
    return by_eigh(images, kernel_size, eps)


# --- strides ------------------------------------------------------------------------------------


@STRIDES.passes
def strides_by_formula(shape, channels_last=False):
    _, c, h, w = shape
    return (h * w * c, 1, w * c, c) if channels_last else (c * h * w, h * w, w, 1)


@STRIDES.passes
def asks_a_tensor(shape, channels_last=False):
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.zeros(shape).to(memory_format=layout).stride()


@STRIDES.passes
def walks_from_the_fastest_axis(shape, channels_last=False):
    strides, step = [0] * 4, 1
    for axis in (1, 3, 2, 0) if channels_last else (3, 2, 1, 0):
        strides[axis] = step
        step *= shape[axis]
    return strides


@STRIDES.fails_with("channels-last-ignored")
def knows_one_layout(shape, channels_last=False):
    return tuple(math.prod(shape[i + 1 :]) for i in range(4))


@STRIDES.fails_with("always-channels-last")
def knows_the_other_layout(shape, channels_last=False):
    _, c, h, w = shape
    return h * w * c, 1, w * c, c


@STRIDES.fails_with("layouts-swapped")
def confuses_the_layouts(shape, channels_last=False):
    return strides_by_formula(shape, not channels_last)


@STRIDES.fails_with("order-of-memory")
def gives_them_in_memory_order(shape, channels_last=False):
    if channels_last:
        n, c, h, w = shape
        shape = n, h, w, c
    return strides_by_formula(shape)


@STRIDES.fails_with("columns-before-rows")
def puts_columns_outside(shape, channels_last=False):
    _, c, h, w = shape
    return (c * h * w, 1, c, c * h) if channels_last else strides_by_formula(shape)


@STRIDES.fails_with("channels-first-of-all")
def puts_channels_outside(shape, channels_last=False):
    n, _, h, w = shape
    return (h * w, n * h * w, w, 1) if channels_last else strides_by_formula(shape)


@STRIDES.fails_with("batch-last")
def runs_over_the_batch_first(shape, channels_last=False):
    n, c, _, w = shape
    return (1, n, c * n * w, c * n) if channels_last else strides_by_formula(shape)


@STRIDES.fails_with("batch-last")
def interleaves_the_batch(shape, channels_last=False):
    n, _, h, w = shape
    return (1, n * h * w, n * w, n) if channels_last else strides_by_formula(shape)


@STRIDES.fails_with("first-axis-fastest")
def thinks_in_fortran(shape, channels_last=False):
    if channels_last:
        return strides_by_formula(shape, True)
    return tuple(math.prod(shape[:i]) for i in range(4))


@STRIDES.fails_with("first-axis-fastest")
def thinks_in_fortran_for_both(shape, channels_last=False):
    return tuple(int(s) for s in np.cumprod([1, *shape])[:4])


@STRIDES.fails_with("own-axis-included")
def multiplies_its_own_size(shape, channels_last=False):
    n, c, h, w = shape
    if channels_last:
        return n * h * w * c, c, h * w * c, w * c
    return n * c * h * w, c * h * w, h * w, w


@STRIDES.fails_with("next-size-alone")
def takes_the_next_size(shape, channels_last=False):
    _, c, h, w = shape
    return (h, 1, w, c) if channels_last else (c, h, w, 1)


@STRIDES.fails_with("counted-in-bytes")
def counts_bytes(shape, channels_last=False):
    x = torch.zeros(shape).numpy()
    if channels_last:
        x = torch.zeros(shape).to(memory_format=torch.channels_last).numpy()
    return x.strides


@STRIDES.fails_with("height-for-width")
def confuses_height_and_width(shape, channels_last=False):
    _, c, h, w = shape
    return (c * h * w, 1, h * c, c) if channels_last else (c * h * w, h * w, h, 1)


@STRIDES.fails_with("height-for-width")
def confuses_them_in_one_layout(shape, channels_last=False):
    _, c, h, w = shape
    return (h * w * c, 1, c * h, c) if channels_last else (c * w * h, h * w, w, 1)


@STRIDES.fails_with("shape-returned")
def moves_the_sizes(shape, channels_last=False):
    n, c, h, w = shape
    return (n, h, w, c) if channels_last else strides_by_formula(shape)


@STRIDES.fails_with("shape-returned")
def returns_the_shape(shape, channels_last=False):
    return torch.zeros(shape).shape


@STRIDES.fails_with("wrong-length")
def forgets_the_batch(shape, channels_last=False):
    return strides_by_formula(shape, channels_last)[1:]


@STRIDES.fails_with("wrong-signature")
def takes_four_numbers(n, c, h, w, channels_last=False):
    return strides_by_formula((n, c, h, w), channels_last)


# --- channels_last ------------------------------------------------------------------------------


@CHANNELS_LAST.passes
def converts_both(model, images):
    model = model.to(memory_format=torch.channels_last)
    return model, images.to(memory_format=torch.channels_last)


@CHANNELS_LAST.passes
def converts_with_contiguous(model, images):
    for parameter in model.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return [model, images.contiguous(memory_format=torch.channels_last)]


@CHANNELS_LAST.passes
def copies_the_model(model, images):
    copied = copy.deepcopy(model).to(memory_format=torch.channels_last)
    new = torch.empty_like(images, memory_format=torch.channels_last)
    return copied, new.copy_(images)


@CHANNELS_LAST.passes
def permutes_there_and_back(model, images):
    model.to(memory_format=torch.channels_last)
    return model, images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


@CHANNELS_LAST.passes
def sets_the_strides(model, images):
    model.to(memory_format=torch.channels_last)
    new = images.new_empty(images.numel()).as_strided(
        images.shape, strides_by_formula(images.shape, True)
    )
    new[:] = images
    return model, new


@CHANNELS_LAST.fails_with("axes-permuted")
def permutes_the_axes(model, images):
    return model.to(memory_format=torch.channels_last), images.permute(0, 2, 3, 1)


@CHANNELS_LAST.fails_with("axes-permuted")
def permutes_the_axes_alone(model, images):
    return model, images.permute(0, 2, 3, 1).contiguous()


@CHANNELS_LAST.fails_with("axes-permuted")
def moves_the_channel_axis(model, images):
    model.to(memory_format=torch.channels_last)
    return model, images.movedim(1, -1).contiguous()


@CHANNELS_LAST.fails_with("images-scrambled")
def views_and_permutes(model, images):
    n, c, h, w = images.shape
    model.to(memory_format=torch.channels_last)
    return model, images.contiguous().view(n, h, w, c).permute(0, 3, 1, 2)


@CHANNELS_LAST.fails_with("images-scrambled")
def reshapes_the_images(model, images):
    n, c, h, w = images.shape
    model.to(memory_format=torch.channels_last)
    return model, images.reshape(n, h, w, c)


@CHANNELS_LAST.fails_with("undone-by-contiguous")
def makes_them_contiguous_again(model, images):
    model = model.to(memory_format=torch.channels_last)
    images = images.to(memory_format=torch.channels_last)
    return model, images.contiguous()


@CHANNELS_LAST.fails_with("width-before-height")
def puts_the_columns_outside(model, images):
    model = model.to(memory_format=torch.channels_last)
    turned = images.transpose(2, 3).to(memory_format=torch.channels_last)
    return model, turned.transpose(2, 3)


@CHANNELS_LAST.fails_with("nothing-converted")
def preserves_the_format(model, images):
    model = model.to(memory_format=torch.preserve_format)
    return model, images.to(memory_format=torch.preserve_format)


@CHANNELS_LAST.fails_with("nothing-converted")
def permutes_back_without_copying(model, images):
    return model, images.permute(0, 2, 3, 1).permute(0, 3, 1, 2)


@CHANNELS_LAST.fails_with("images-not-converted")
def throws_the_images_away(model, images):
    model.to(memory_format=torch.channels_last)
    images.to(memory_format=torch.channels_last)
    return model, images


@CHANNELS_LAST.fails_with("images-not-converted")
def converts_only_the_model(model, images):
    return model.to(memory_format=torch.channels_last), images


@CHANNELS_LAST.fails_with("model-not-converted")
def converts_only_the_images(model, images):
    return model, images.to(memory_format=torch.channels_last)


@CHANNELS_LAST.fails_with("model-not-converted")
def undoes_the_weights(model, images):
    model.to(memory_format=torch.channels_last)
    for parameter in model.parameters():
        parameter.data = parameter.data.contiguous()
    return model, images.to(memory_format=torch.channels_last)


@CHANNELS_LAST.fails_with("model-not-converted")
def converts_names_not_weights(model, images):
    for parameter in model.parameters():
        if parameter.dim() == 4:
            parameter = parameter.to(memory_format=torch.channels_last)
    return model, images.to(memory_format=torch.channels_last)


@CHANNELS_LAST.fails_with("first-layer-only")
def converts_the_first_layer(model, images):
    model[0].to(memory_format=torch.channels_last)
    return model, images.to(memory_format=torch.channels_last)


@CHANNELS_LAST.fails_with("nested-layers-missed")
def looks_at_the_top_only(model, images):
    for layer in model.children():
        if isinstance(layer, torch.nn.Conv2d):
            layer.to(memory_format=torch.channels_last)
    return model, images.to(memory_format=torch.channels_last)


@CHANNELS_LAST.fails_with("weights-permuted")
def permutes_the_weights(model, images):
    for parameter in model.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.permute(0, 2, 3, 1).contiguous()
    return model, images.to(memory_format=torch.channels_last)


@CHANNELS_LAST.fails_with("weights-scrambled")
def views_the_weights(model, images):
    for parameter in model.parameters():
        if parameter.dim() == 4:
            o, i, k, l = parameter.shape  # noqa: E741
            parameter.data = parameter.data.view(o, k, l, i).permute(0, 3, 1, 2)
    return model, images.to(memory_format=torch.channels_last)


@CHANNELS_LAST.fails_with("dtype-changed")
def casts_to_bf16(model, images):
    model = model.to(torch.bfloat16, memory_format=torch.channels_last)
    return model, images.to(torch.bfloat16, memory_format=torch.channels_last)


@CHANNELS_LAST.fails_with("dtype-changed")
def halves_the_images(model, images):
    model.to(memory_format=torch.channels_last)
    return model, images.half().to(memory_format=torch.channels_last)


@CHANNELS_LAST.fails_with("switched-to-evaluation")
def switches_to_evaluation(model, images):
    model = model.eval().to(memory_format=torch.channels_last)
    return model, images.to(memory_format=torch.channels_last)


@CHANNELS_LAST.fails_with("wrong-values")
def initialises_again(model, images):
    for layer in model.modules():
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
    return converts_both(model, images)


@CHANNELS_LAST.fails_with("raised-error")
def asks_for_three_dimensions(model, images):
    return model, images.to(memory_format=torch.channels_last_3d)


@CHANNELS_LAST.fails_with("wrong-return")
def returns_the_images_alone(model, images):
    model.to(memory_format=torch.channels_last)
    return images.to(memory_format=torch.channels_last)


@CHANNELS_LAST.fails_with("wrong-return")
def returns_them_the_wrong_way_round(model, images):
    return images.to(memory_format=torch.channels_last), model


@CHANNELS_LAST.fails_with("returned-none")
def converts_and_returns_nothing(model, images):
    model.to(memory_format=torch.channels_last)
    images.to(memory_format=torch.channels_last)


@CHANNELS_LAST.fails_with("wrong-signature")
def takes_the_images_alone(images):
    return images.to(memory_format=torch.channels_last)


# --- the roofline -------------------------------------------------------------------------------


def counts(images_shape, weight_shape):
    """(values of the images, of the weights, of the output)."""
    n, ci, h, w = images_shape
    co, _, k, _ = weight_shape
    return n * ci * h * w, co * ci * k * k, n * co * (h - k + 1) * (w - k + 1)


@ROOFLINE.passes
def roofline_by_formula(images_shape, weight_shape, bytes_per_value, peak, bandwidth):
    x, w, y = counts(images_shape, weight_shape)
    flops = 2 * y * weight_shape[1] * weight_shape[2] * weight_shape[3]
    moved = bytes_per_value * (x + w + y)
    return flops, moved, min(peak, bandwidth * flops / moved)


@ROOFLINE.passes
def roofline_by_times(images_shape, weight_shape, bytes_per_value, peak, bandwidth):
    """The longer of the two times decides."""
    flops, moved, _ = roofline_by_formula(images_shape, weight_shape, bytes_per_value, 1, 1)
    return flops, moved, flops / max(flops / peak, moved / bandwidth)


@ROOFLINE.passes
def roofline_from_tensors(images_shape, weight_shape, bytes_per_value, peak, bandwidth):
    images, weight = torch.zeros(images_shape), torch.zeros(weight_shape)
    output = F.conv2d(images, weight)
    moved = sum(t.numel() for t in (images, weight, output)) * bytes_per_value
    flops = 2 * output.numel() * weight[0].numel()
    attainable = bandwidth * (flops / moved)
    return [flops, moved, attainable if attainable < peak else peak]


@ROOFLINE.fails_with("multiply-add-counted-once")
def counts_products_alone(images_shape, weight_shape, bytes_per_value, peak, bandwidth):
    x, w, y = counts(images_shape, weight_shape)
    flops = y * math.prod(weight_shape[1:])
    moved = bytes_per_value * (x + w + y)
    return flops, moved, min(peak, bandwidth * flops / moved)


@ROOFLINE.fails_with("kernel-not-squared")
def counts_one_row_of_the_kernel(images_shape, weight_shape, bytes_per_value, peak, bandwidth):
    x, w, y = counts(images_shape, weight_shape)
    flops = 2 * y * weight_shape[1] * weight_shape[2]
    moved = bytes_per_value * (x + w + y)
    return flops, moved, min(peak, bandwidth * flops / moved)


@ROOFLINE.fails_with("input-channels-forgotten")
def forgets_the_input_channels(images_shape, weight_shape, bytes_per_value, peak, bandwidth):
    x, w, y = counts(images_shape, weight_shape)
    flops = 2 * y * weight_shape[2] ** 2
    moved = bytes_per_value * (x + w + y)
    return flops, moved, min(peak, bandwidth * flops / moved)


@ROOFLINE.fails_with("output-size-of-the-input")
def keeps_the_size(images_shape, weight_shape, bytes_per_value, peak, bandwidth):
    n, _, h, w = images_shape
    y = n * weight_shape[0] * h * w
    flops = 2 * y * math.prod(weight_shape[1:])
    moved = bytes_per_value * (math.prod(images_shape) + math.prod(weight_shape) + y)
    return flops, moved, min(peak, bandwidth * flops / moved)


@ROOFLINE.fails_with("output-size-off-by-one")
def loses_one_row(images_shape, weight_shape, bytes_per_value, peak, bandwidth):
    (n, ci, h, w), (co, _, k, _) = images_shape, weight_shape
    y = n * co * (h - k) * (w - k)
    flops = 2 * y * ci * k * k
    moved = bytes_per_value * (n * ci * h * w + co * ci * k * k + y)
    return flops, moved, min(peak, bandwidth * flops / moved)


@ROOFLINE.fails_with("one-image")
def counts_the_work_of_one_image(images_shape, weight_shape, bytes_per_value, peak, bandwidth):
    x, w, y = counts(images_shape, weight_shape)
    flops = 2 * (y // images_shape[0]) * math.prod(weight_shape[1:])
    moved = bytes_per_value * (x + w + y)
    return flops, moved, min(peak, bandwidth * flops / moved)


def with_bytes(slug, name, bytes_of):
    """``bytes_of(x, w, y, b)`` for the bytes moved."""

    def roofline(images_shape, weight_shape, bytes_per_value, peak, bandwidth):
        x, w, y = counts(images_shape, weight_shape)
        flops = 2 * y * math.prod(weight_shape[1:])
        moved = bytes_of(x, w, y, bytes_per_value)
        return flops, moved, min(peak, bandwidth * flops / moved)

    named(ROOFLINE, slug, name, roofline)


with_bytes("weights-not-moved", "forgets_the_weights", lambda x, w, y, b: b * (x + y))
with_bytes("output-not-moved", "forgets_the_output", lambda x, w, y, b: b * (x + w))
with_bytes("images-alone-moved", "moves_the_images_alone", lambda x, w, y, b: b * x)
with_bytes("values-not-bytes", "counts_values", lambda x, w, y, b: x + w + y)
with_bytes("bits-not-bytes", "counts_bits", lambda x, w, y, b: 8 * b * (x + w + y))
with_bytes("float32-assumed", "takes_four_bytes", lambda x, w, y, b: 4 * (x + w + y))


def with_speed(slug, name, speed):
    """``speed(flops, moved, peak, bandwidth)`` for what is attainable."""

    def roofline(images_shape, weight_shape, bytes_per_value, peak, bandwidth):
        flops, moved, _ = roofline_by_formula(images_shape, weight_shape, bytes_per_value, 1, 1)
        return flops, moved, speed(flops, moved, peak, bandwidth)

    named(ROOFLINE, slug, name, roofline)


with_speed("larger-of-the-two", "takes_the_maximum", lambda f, m, p, b: max(p, b * f / m))
with_speed("intensity-upside-down", "divides_bytes_by_work", lambda f, m, p, b: min(p, b * (m / f)))
with_speed("peak-alone", "believes_the_data_sheet", lambda f, m, p, b: p)
with_speed("slope-alone", "forgets_the_flat_roof", lambda f, m, p, b: b * (f / m))
with_speed("times-added", "waits_before_it_computes", lambda f, m, p, b: 1 / (1 / p + m / f / b))
with_speed("seconds-returned", "returns_the_time", lambda f, m, p, b: f / min(p, b * f / m))
with_speed("share-of-the-peak", "returns_the_share", lambda f, m, p, b: min(p, b * f / m) / p)


@ROOFLINE.fails_with("wrong-type")
def returns_the_speed_alone(images_shape, weight_shape, bytes_per_value, peak, bandwidth):
    return roofline_by_formula(images_shape, weight_shape, bytes_per_value, peak, bandwidth)[2]


@ROOFLINE.fails_with("wrong-length")
def forgets_to_return_the_speed(images_shape, weight_shape, bytes_per_value, peak, bandwidth):
    return roofline_by_formula(images_shape, weight_shape, bytes_per_value, peak, bandwidth)[:2]


# --- test-time flip -----------------------------------------------------------------------------


@FLIP_AVERAGE.passes
def averages_two_calls(model, images):
    with torch.no_grad():
        return 0.5 * model(images) + 0.5 * model(torch.flip(images, [-1]))


@FLIP_AVERAGE.passes
def calls_once(model, images):
    straight, mirrored = model(torch.cat([images, images.flip(-1)])).chunk(2)
    return torch.stack([straight, mirrored]).mean(dim=0)


@FLIP_AVERAGE.passes
def mirrors_with_indices(model, images):
    width = images.shape[3]
    mirrored = torch.empty_like(images)
    for column in range(width):
        mirrored[..., column] = images[..., width - 1 - column]
    return torch.lerp(model(images), model(mirrored), 0.5)


@FLIP_AVERAGE.fails_with("upside-down")
def flips_the_rows(model, images):
    return (model(images) + model(images.flip(dims=[2]))) / 2


@FLIP_AVERAGE.fails_with("turned-round")
def turns_the_images(model, images):
    return (model(images) + model(torch.rot90(images, 2, dims=(2, 3)))) / 2


@FLIP_AVERAGE.fails_with("channels-flipped")
def uses_fliplr(model, images):
    return (model(images) + model(torch.fliplr(images))) / 2


@FLIP_AVERAGE.fails_with("batch-flipped")
def flips_the_batch(model, images):
    return (model(images) + model(torch.flipud(images))) / 2


@FLIP_AVERAGE.fails_with("rows-for-columns")
def takes_the_transpose_for_a_mirror(model, images):
    return (model(images) + model(images.mT)) / 2


@FLIP_AVERAGE.fails_with("not-halved")
def sums_the_two(model, images):
    return model(images) + model(images.flip(3))


@FLIP_AVERAGE.fails_with("mirrored-only")
def overwrites_the_first(model, images):
    logits = model(images)
    logits = model(images.flip(3))
    return logits


@FLIP_AVERAGE.fails_with("not-flipped")
def throws_the_mirror_image_away(model, images):
    straight = model(images)
    images.flip(3)
    return (straight + model(images)) / 2


@FLIP_AVERAGE.fails_with("output-flipped")
def flips_the_logits(model, images):
    logits = model(images)
    return (logits + logits.flip(-1)) / 2


@FLIP_AVERAGE.fails_with("images-averaged")
def lays_the_images_over_each_other(model, images):
    return model(0.5 * (images + images.flip(3)))


@FLIP_AVERAGE.fails_with("averaged-probabilities")
def averages_probabilities(model, images):
    both = [F.softmax(model(x), dim=1) for x in (images, images.flip(3))]
    return sum(both) / 2


@FLIP_AVERAGE.fails_with("averaged-probabilities")
def returns_probabilities(model, images):
    return averages_two_calls(model, images).softmax(dim=1)


@FLIP_AVERAGE.fails_with("larger-of-the-two")
def keeps_the_larger(model, images):
    return torch.stack([model(images), model(images.flip(3))]).amax(0)


@FLIP_AVERAGE.fails_with("wrong-pairs")
def pairs_neighbours(model, images):
    logits = model(torch.cat([images, images.flip(3)]))
    return logits.view(len(images), 2, -1).mean(dim=1)


@FLIP_AVERAGE.fails_with("averaged-over-the-batch")
def averages_over_the_batch(model, images):
    return torch.cat([model(images), model(images.flip(3))]).mean(0)


@FLIP_AVERAGE.fails_with("wrong-shape")
def leaves_both(model, images):
    return torch.cat([model(images), model(images.flip(3))])


@FLIP_AVERAGE.fails_with("wrong-shape")
def returns_the_classes(model, images):
    return averages_two_calls(model, images).argmax(1)


@FLIP_AVERAGE.fails_with("wrong-type")
def returns_a_list_of_two(model, images):
    return [model(images), model(images.flip(3))]


@FLIP_AVERAGE.fails_with("changed-input")
def mirrors_in_place(model, images):
    logits = model(images).clone()
    images.copy_(images.flip(3))
    return (logits + model(images)) / 2


# --- time to accuracy ---------------------------------------------------------------------------


@TIME_TO_ACCURACY.passes
def with_loops(runs, target, preparation=0.0):
    times = []
    for run in runs:
        clock, reached = preparation, math.inf
        for train_seconds, _, accuracy in run:
            clock += train_seconds
            if accuracy >= target and reached == math.inf:
                reached = clock
        times.append(reached)
    times.sort()
    middle = len(times) // 2
    return times[middle] if len(times) % 2 else (times[middle - 1] + times[middle]) / 2


@TIME_TO_ACCURACY.passes
def with_numpy(runs, target, preparation=0.0):
    times = []
    for run in runs:
        train, _, accuracy = np.array(run).T
        reached = accuracy >= target
        times.append(np.cumsum(train)[reached.argmax()] if reached.any() else np.inf)
    return preparation + np.median(times)


@TIME_TO_ACCURACY.passes
def with_statistics(runs, target, preparation=0.0):
    def time_of(run):
        clock = preparation
        for train, _, accuracy in run:
            clock += train
            if accuracy >= target:
                return clock
        return float("inf")

    return statistics.median(map(time_of, runs))


def clock_of(run, preparation):
    """[(seconds of training so far, accuracy)], which is right."""
    seconds = np.cumsum([train for train, _, _ in run]) + preparation
    return list(zip(seconds.tolist(), [a for _, _, a in run], strict=True))


def reached_at(run, target, preparation=0.0):
    return min((t for t, a in clock_of(run, preparation) if a >= target), default=math.inf)


@TIME_TO_ACCURACY.fails_with("evaluation-on-the-clock")
def looks_at_the_wall(runs, target, preparation=0.0):
    times = []
    for run in runs:
        clock, reached = preparation, math.inf
        for train, evaluate, accuracy in run:
            clock += train + evaluate
            if accuracy >= target:
                reached = clock
                break
        times.append(reached)
    return statistics.median(times)


@TIME_TO_ACCURACY.fails_with("evaluation-on-the-clock")
def lets_the_clock_run_between(runs, target, preparation=0.0):
    times = []
    for run in runs:
        clock, reached = preparation, math.inf
        for train, evaluate, accuracy in run:
            clock += train
            if accuracy >= target:
                reached = clock
                break
            clock += evaluate
        times.append(reached)
    return statistics.median(times)


@TIME_TO_ACCURACY.fails_with("not-summed-up")
def takes_the_seconds_of_one_stretch(runs, target, preparation=0.0):
    times = [min([t for t, _, a in run if a >= target][:1], default=math.inf) for run in runs]
    return preparation + statistics.median(times)


@TIME_TO_ACCURACY.fails_with("one-evaluation-early")
def looks_before_it_adds(runs, target, preparation=0.0):
    times = []
    for run in runs:
        clock, reached = preparation, math.inf
        for train, _, accuracy in run:
            if accuracy >= target:
                reached = clock
                break
            clock += train
        times.append(reached)
    return statistics.median(times)


@TIME_TO_ACCURACY.fails_with("target-must-be-exceeded")
def wants_more_than_the_target(runs, target, preparation=0.0):
    return statistics.median(
        next((t for t, a in clock_of(run, preparation) if a > target), math.inf) for run in runs
    )


@TIME_TO_ACCURACY.fails_with("time-of-the-best")
def waits_for_the_best(runs, target, preparation=0.0):
    def best(run):
        points = clock_of(run, preparation)
        return points[int(np.argmax([a for _, a in points]))][0]

    return statistics.median(best(run) for run in runs)


@TIME_TO_ACCURACY.fails_with("time-of-the-best")
def waits_for_the_best_if_it_is_good_enough(runs, target, preparation=0.0):
    times = []
    for run in runs:
        time, accuracy = max(clock_of(run, preparation), key=lambda point: point[1])
        times.append(time if accuracy >= target else math.inf)
    return statistics.median(times)


@TIME_TO_ACCURACY.fails_with("last-time-reached")
def forgets_to_break(runs, target, preparation=0.0):
    times = []
    for run in runs:
        clock, reached = preparation, math.inf
        for train, _, accuracy in run:
            clock += train
            if accuracy >= target:
                reached = clock
        times.append(reached)
    return statistics.median(times)


@TIME_TO_ACCURACY.fails_with("reached-for-good")
def waits_until_it_stays(runs, target, preparation=0.0):
    times = []
    for run in runs:
        points = clock_of(run, preparation)
        stays = [t for i, (t, _) in enumerate(points) if min(a for _, a in points[i:]) >= target]
        times.append(min(stays, default=math.inf))
    return statistics.median(times)


@TIME_TO_ACCURACY.fails_with("interpolated")
def draws_lines(runs, target, preparation=0.0):
    times = []
    for run in runs:
        before, low, reached = preparation, 0.0, math.inf
        for time, accuracy in clock_of(run, preparation):
            if accuracy >= target:
                reached = before + (time - before) * (target - low) / (accuracy - low)
                break
            before, low = time, accuracy
        times.append(reached)
    return statistics.median(times)


@TIME_TO_ACCURACY.fails_with("evaluations-counted")
def counts_epochs(runs, target, preparation=0.0):
    return statistics.median(
        next((float(e) for e, (_, _, a) in enumerate(run, 1) if a >= target), math.inf)
        for run in runs
    )


@TIME_TO_ACCURACY.fails_with("evaluations-counted")
def returns_the_index(runs, target, preparation=0.0):
    return statistics.median(
        next((float(e) for e, (_, _, a) in enumerate(run) if a >= target), math.inf) for run in runs
    )


@TIME_TO_ACCURACY.fails_with("mean-of-the-runs")
def takes_the_mean(runs, target, preparation=0.0):
    return sum(reached_at(run, target, preparation) for run in runs) / len(runs)


@TIME_TO_ACCURACY.fails_with("mean-of-the-runs")
def takes_the_mean_of_the_lucky_ones(runs, target, preparation=0.0):
    times = [reached_at(run, target, preparation) for run in runs]
    times = [time for time in times if math.isfinite(time)]
    return sum(times) / len(times) if times else math.inf


@TIME_TO_ACCURACY.fails_with("failed-runs-dropped")
def drops_the_failures(runs, target, preparation=0.0):
    times = [reached_at(run, target, preparation) for run in runs]
    times = [time for time in times if math.isfinite(time)]
    return statistics.median(times) if times else math.inf


@TIME_TO_ACCURACY.fails_with("failed-run-counts-its-length")
def stops_at_the_end(runs, target, preparation=0.0):
    times = []
    for run in runs:
        clock = preparation
        for train, _, accuracy in run:
            clock += train
            if accuracy >= target:
                break
        times.append(clock)
    return statistics.median(times)


@TIME_TO_ACCURACY.fails_with("one-failure-fails-all")
def gives_up_at_one_failure(runs, target, preparation=0.0):
    times = [reached_at(run, target, preparation) for run in runs]
    return math.inf if math.inf in times else statistics.median(times)


@TIME_TO_ACCURACY.fails_with("none-if-never")
def returns_none_if_never(runs, target, preparation=0.0):
    time = with_loops(runs, target, preparation)
    return None if math.isinf(time) else time


@TIME_TO_ACCURACY.fails_with("zero-if-never")
def counts_zero_if_never(runs, target, preparation=0.0):
    times = []
    for run in runs:
        reached = 0.0
        for time, accuracy in clock_of(run, preparation):
            if accuracy >= target:
                reached = time
                break
        times.append(reached)
    return statistics.median(times)


@TIME_TO_ACCURACY.fails_with("best-run")
def takes_the_luckiest(runs, target, preparation=0.0):
    return min(reached_at(run, target, preparation) for run in runs)


@TIME_TO_ACCURACY.fails_with("worst-run")
def takes_the_slowest(runs, target, preparation=0.0):
    return max(reached_at(run, target, preparation) for run in runs)


@TIME_TO_ACCURACY.fails_with("first-run-only")
def returns_in_the_loop(runs, target, preparation=0.0):
    for run in runs:
        return reached_at(run, target, preparation)


@TIME_TO_ACCURACY.fails_with("no-mean-of-the-middle-two")
def takes_torch_median(runs, target, preparation=0.0):
    times = [reached_at(run, target, preparation) for run in runs]
    return torch.tensor(times, dtype=torch.float64).median().item()


@TIME_TO_ACCURACY.fails_with("no-mean-of-the-middle-two")
def takes_the_upper_middle(runs, target, preparation=0.0):
    return sorted(reached_at(run, target, preparation) for run in runs)[len(runs) // 2]


@TIME_TO_ACCURACY.fails_with("not-sorted")
def forgets_to_sort(runs, target, preparation=0.0):
    times = [reached_at(run, target, preparation) for run in runs]
    return times[len(times) // 2]


@TIME_TO_ACCURACY.fails_with("runs-merged-first")
def merges_the_curves(runs, target, preparation=0.0):
    clock = preparation
    for points in zip(*runs, strict=False):
        train, _, accuracy = np.median(points, axis=0)
        clock += train
        if accuracy >= target:
            return float(clock)
    return math.inf


@TIME_TO_ACCURACY.fails_with("runs-merged-first")
def averages_the_curves(runs, target, preparation=0.0):
    clock = preparation
    for points in zip(*runs, strict=False):
        train, _, accuracy = np.mean(points, axis=0)
        clock += train
        if accuracy >= target:
            return float(clock)
    return math.inf


@TIME_TO_ACCURACY.fails_with("preparation-left-out")
def forgets_the_preparation(runs, target, preparation=0.0):
    return statistics.median(reached_at(run, target) for run in runs)


@TIME_TO_ACCURACY.fails_with("preparation-each-time")
def prepares_each_time(runs, target, preparation=0.0):
    again = [[(train + preparation, e, a) for train, e, a in run] for run in runs]
    return statistics.median(reached_at(run, target) for run in again)


@TIME_TO_ACCURACY.fails_with("preparation-subtracted")
def subtracts_the_preparation(runs, target, preparation=0.0):
    return statistics.median(reached_at(run, target) for run in runs) - preparation


@TIME_TO_ACCURACY.fails_with("wrong-type")
def returns_all_times(runs, target, preparation=0.0):
    return [reached_at(run, target, preparation) for run in runs]


@TIME_TO_ACCURACY.fails_with("wrong-signature")
def knows_no_preparation(runs, target):
    return with_loops(runs, target)
