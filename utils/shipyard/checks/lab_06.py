"""Checks of lab 06, training faster. torch's schedule, strides and FLOP counter are the reference.

Whitening filters are free in order and sign, so they are brought into one order before they are
compared. A layout is judged by what torch says of the tensors that go through the model.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from shipyard.checks import Case, CheckFailed, Mistake, Passed, compare, draws


def _then(function: Callable, finish: Callable) -> Callable:
    """``finish(function(*args), *args)``, with the name and the signature of ``function``.

    What is not callable comes back as it is; `compare` says so.
    """
    if not callable(function):
        return function

    @functools.wraps(function)
    def wrapped(*args, **options):
        return finish(function(*args, **options), *args, **options)

    return wrapped


# --- the one-cycle schedule ---------------------------------------------------------------------


@functools.cache
def _torch_schedule(
    total_steps, max_lr, pct_start, div_factor, final_div_factor, anneal_strategy, **more
) -> tuple[float, ...]:
    """The learning rate of each step, as torch's scheduler gives it."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr,
        total_steps,
        pct_start=pct_start,
        div_factor=div_factor,
        final_div_factor=final_div_factor,
        anneal_strategy=anneal_strategy,
        cycle_momentum=False,
        **more,
    )
    rates = []
    for _ in range(total_steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return tuple(rates)


def check_one_cycle(candidate: Callable) -> Passed:
    """Check ``one_cycle(step, total_steps, max_lr, pct_start, div_factor, final_div_factor,
    anneal_strategy)``, which returns the learning rate of one step."""

    def torch_rate(three_phase=False):
        def rate(
            step,
            total_steps,
            max_lr,
            pct_start=0.3,
            div_factor=25.0,
            final_div_factor=1e4,
            anneal_strategy="cos",
        ):
            settings = (pct_start, div_factor, final_div_factor, anneal_strategy)
            rates = _torch_schedule(total_steps, max_lr, *settings, three_phase=three_phase)
            return rates[step]

        return rate

    def cosine(p):
        return (1 - math.cos(math.pi * p)) / 2

    def cycle(
        count=lambda step: step,
        peak=lambda T, share: share * T - 1,
        end=lambda T: T - 1,
        fall_progress=lambda s, peak, end: (s - peak) / (end - peak),
        low=lambda high, div, final_div: high / div,
        final=lambda high, div, final_div: high / div / final_div,
        shapes=None,
        mix=lambda start, stop, share: start + (stop - start) * share,
    ):
        """The schedule with one part replaced, twice: the step at the peak may belong to the rise
        or to the fall. ``shapes(strategy)`` is (rise, fall), each a function from the progress
        0 … 1 to the share of the way, 0 … 1."""

        def rate(
            peak_rises,
            step,
            total_steps,
            max_lr,
            pct_start=0.3,
            div_factor=25.0,
            final_div_factor=1e4,
            anneal_strategy="cos",
        ):
            s = count(step)
            top, last = peak(total_steps, pct_start), end(total_steps)
            factors = (max_lr, div_factor, final_div_factor)
            right = [cosine if anneal_strategy == "cos" else (lambda p: p)] * 2
            rise, fall = shapes(anneal_strategy) if shapes else right
            if s < top or (peak_rises and s == top):
                return mix(low(*factors), max_lr, rise(s / top if top else 1.0))
            return mix(max_lr, final(*factors), fall(fall_progress(s, top, last)))

        return [functools.partial(rate, peak_rises) for peak_rises in (True, False)]

    def straight(p):
        return p

    def bent(shape, both=True):
        """``shape`` in the place of the cosine: in both parts, or in the rise alone."""

        def shapes(strategy):
            if strategy == "linear":
                return straight, straight
            return shape, (shape if both else cosine)

        return shapes

    settings = [
        (10, 1.0, 0.3, 10.0, 10.0, "linear"),
        (10, 1.0, 0.3, 10.0, 10.0, "cos"),
        (12, 0.4, 0.25),
        (11, 0.05, 0.3, 25.0, 1e4, "linear"),
        (7, 3.0, 0.5, 4.0, 100.0),
        (20, 0.2, 0.8, 2.0, 50.0, "linear"),
        (9, 1.0, 0.7, 1.0, 1000.0, "cos"),
    ]
    return compare(
        candidate,
        signature="one_cycle(step, total_steps, max_lr, pct_start=0.3, div_factor=25.0, "
        "final_div_factor=10000.0, anneal_strategy='cos')",
        reference=torch_rate(),
        cases=[Case(step, *rest) for rest in settings for step in range(rest[0])],
        tolerance=1e-12,
        mistakes=[
            Mistake(
                "final-from-the-peak",
                """Your last rate is max_lr / final_div_factor. torch divides the *initial* rate
                by it: max_lr / div_factor / final_div_factor.""",
                *cycle(final=lambda high, div, final_div: high / final_div),
            ),
            Mistake(
                "peak-one-step-late",
                """Your peak is one step late. Steps are counted from 0, so a rise of
                pct_start · total_steps steps has its last step, the peak, at
                pct_start · total_steps − 1.""",
                *cycle(peak=lambda T, share: share * T),
            ),
            Mistake(
                "end-one-step-late",
                """Your fall ends at step total_steps, which is never taken. The last step is
                total_steps − 1, and it must have the final rate.""",
                *cycle(end=lambda T: T),
            ),
            Mistake(
                "both-ends-one-step-late",
                """Your peak stands at pct_start · total_steps and your end at total_steps. Steps
                are counted from 0: both come one step earlier.""",
                *cycle(peak=lambda T, share: share * T, end=lambda T: T),
            ),
            Mistake(
                "counted-from-one",
                """Your rate is that of the next step: you used step + 1. Steps are counted from
                0, and step 0 has the initial rate, max_lr / div_factor.""",
                *cycle(count=lambda step: step + 1),
            ),
            Mistake(
                "share-of-the-last-step",
                """Your peak stands at pct_start · (total_steps − 1). The share is taken of the
                number of steps, and then 1 is subtracted: pct_start · total_steps − 1.""",
                *cycle(peak=lambda T, share: share * (T - 1)),
            ),
            Mistake(
                "share-of-the-fall",
                """Your fall takes the share pct_start, and your rise the rest. pct_start is the
                share of the rise.""",
                *cycle(peak=lambda T, share: (1 - share) * T - 1),
            ),
            Mistake(
                "peak-rounded",
                """You rounded the peak to a whole step. torch does not: with
                pct_start · total_steps − 1 = 2.3 the peak lies between step 2 and step 3, and no
                step has exactly the rate max_lr.""",
                *cycle(peak=lambda T, share: int(share * T) - 1),
                *cycle(peak=lambda T, share: round(share * T) - 1),
                *cycle(peak=lambda T, share: math.ceil(share * T) - 1),
            ),
            Mistake(
                "no-warm-up",
                """You left out the rise: your rate starts at the peak. Up to step
                pct_start · total_steps − 1 it goes from max_lr / div_factor up to max_lr.""",
                *cycle(peak=lambda T, share: 0),
                *cycle(low=lambda high, div, final_div: high),
                *cycle(peak=lambda T, share: -1, fall_progress=lambda s, top, last: s / last),
            ),
            Mistake(
                "warm-up-from-zero",
                """Your rise starts at 0. A step with learning rate 0 learns nothing; the rise
                starts at max_lr / div_factor.""",
                *cycle(low=lambda high, div, final_div: 0.0),
            ),
            Mistake(
                "warm-up-from-the-final-rate",
                """Your rise starts at the final rate. It starts higher, at max_lr / div_factor;
                only the fall goes down to max_lr / div_factor / final_div_factor.""",
                *cycle(low=lambda high, div, final_div: high / div / final_div),
            ),
            Mistake(
                "ends-at-zero",
                """Your fall ends at 0. It ends at max_lr / div_factor / final_div_factor, which
                is small, but not 0.""",
                *cycle(final=lambda high, div, final_div: 0.0),
            ),
            Mistake(
                "ends-at-the-initial-rate",
                """Your fall ends where the rise began. It goes lower: to the initial rate divided
                by final_div_factor.""",
                *cycle(final=lambda high, div, final_div: high / div),
            ),
            Mistake(
                "fall-over-all-steps",
                """The progress of your fall counts the rise too: step / (total_steps − 1). It is
                0 at the peak: (step − peak) / (last − peak).""",
                *cycle(fall_progress=lambda s, peak, end: s / end),
            ),
            Mistake(
                "fall-too-slow",
                """You subtracted the peak from the step, but divided by the whole length. The
                fall has last − peak steps.""",
                *cycle(fall_progress=lambda s, peak, end: (s - peak) / end),
                *cycle(fall_progress=lambda s, peak, end: (s - peak) / (end + 1)),
            ),
            Mistake(
                "cosine-upside-down",
                """Your cosine runs the wrong way round: it is at the end of the way at first.
                cos(0) = 1 and cos(π) = −1, so the share of the way is (1 − cos πp) / 2.""",
                *cycle(shapes=bent(lambda p: (1 + math.cos(math.pi * p)) / 2)),
                *cycle(shapes=bent(lambda p: (1 + math.cos(math.pi * p)) / 2, both=False)),
            ),
            Mistake(
                "linear-rise",
                """Your fall is a cosine, but your rise is a straight line. With "cos", torch uses
                half a wave for both.""",
                *cycle(shapes=bent(straight, both=False)),
            ),
            Mistake(
                "always-linear",
                """You used straight lines for both values of anneal_strategy. With "cos" each
                part is half a cosine wave.""",
                *cycle(shapes=lambda strategy: (straight, straight)),
            ),
            Mistake(
                "always-cosine",
                """You used cosines for both values of anneal_strategy. With "linear" each part is
                a straight line.""",
                *cycle(shapes=lambda strategy: (cosine, cosine)),
            ),
            Mistake(
                "not-halved",
                """1 − cos πp runs from 0 to 2. Divide it by 2.""",
                *cycle(shapes=bent(lambda p: 1 - math.cos(math.pi * p))),
            ),
            Mistake(
                "quarter-wave",
                """You used a quarter of a wave, which has a corner at one end. Half a wave is
                flat at both ends: (1 − cos πp) / 2.""",
                *cycle(shapes=bent(lambda p: 1 - math.cos(math.pi * p / 2))),
                *cycle(shapes=bent(lambda p: math.sin(math.pi * p / 2))),
            ),
            Mistake(
                "pi-missing",
                """You left out π, or used degrees. The cosine takes an angle in radians: πp runs
                from 0 to π.""",
                *cycle(shapes=bent(lambda p: (1 - math.cos(p)) / 2)),
                *cycle(shapes=bent(lambda p: (1 - math.cos(180 * p)) / 2)),
            ),
            Mistake(
                "exponential",
                """You went from rate to rate by equal factors, start · (end / start)ᵖ. torch's
                one-cycle adds equal amounts (or follows a cosine).""",
                *cycle(
                    shapes=lambda strategy: (straight, straight),
                    mix=lambda start, stop, share: start * (stop / start) ** share,
                ),
                *cycle(mix=lambda start, stop, share: start * (stop / start) ** share),
            ),
            Mistake(
                "constant-after-the-peak",
                """Your rate stays at the peak. After the peak it must fall, down to the final
                rate at the last step.""",
                *cycle(final=lambda high, div, final_div: high),
            ),
            Mistake(
                "three-phases",
                """Your schedule has three phases: up, down by the same way, and then a last
                fall. That is the form of the paper (three_phase=True). Here one fall leads from
                the peak to the final rate.""",
                torch_rate(three_phase=True),
            ),
            Mistake(
                "options-ignored",
                """You used the defaults, 25 and 10,000, in the place of div_factor and
                final_div_factor.""",
                *cycle(
                    low=lambda high, div, final_div: high / 25,
                    final=lambda high, div, final_div: high / 25 / 1e4,
                ),
            ),
        ],
    )


# --- whitening ----------------------------------------------------------------------------------


def _patches(images: Tensor, k: int, **options) -> Tensor:
    """Every k×k patch, flattened like a kernel → (patches, c·k·k)."""
    c = images.shape[1]
    return F.unfold(images, k, **options).transpose(1, 2).reshape(-1, c * k * k)


def _whitening(
    patches=_patches,
    centre=lambda P: P - P.mean(0),
    divide=lambda S, P, images: S / len(P),
    covariance=lambda S: S,
    scale=lambda λ, eps: 1 / (λ + eps).sqrt(),
    filters=lambda V, s: V.T * s[:, None],
    shape=lambda W, c, k: W.reshape(-1, c, k, k),
) -> Callable:
    """Whitening filters, with one part replaced. V has the eigenvectors as columns."""

    def answer(images, kernel_size, eps):
        P = centre(patches(images, kernel_size))
        λ, V = torch.linalg.eigh(covariance(divide(P.T @ P, P, images)))
        return shape(filters(V, scale(λ, eps)), images.shape[1], kernel_size)

    return answer


def _aligned(filters: Tensor, images: Tensor, kernel_size: int, eps: float) -> tuple:
    """The same filters in the order, and with the signs, of the reference's: (filters,)."""
    like = _whitening()(images, kernel_size, eps)
    comparable = isinstance(filters, Tensor) and filters.is_floating_point()
    if not comparable or filters.shape != like.shape:
        return (filters,)
    like, flat = like.flatten(1), filters.detach().flatten(1).double().nan_to_num(0.0)
    cosines = F.normalize(like, dim=1) @ F.normalize(flat, dim=1).T  # (reference's, candidate's)
    order, free = [], cosines.abs()
    for row in range(len(like)):
        order.append(free[row].argmax().item())
        free[:, order[-1]] = -1
    signs = torch.where(cosines[range(len(like)), order] < 0, -1, 1).to(filters)
    return (filters[order] * signs[:, None, None, None],)


def check_whitening(candidate: Callable) -> Passed:
    """Check ``whitening(images, kernel_size, eps)``, the filters (c·k·k, c, k, k) of a whitening
    convolution, in any order and with any signs."""

    def case(seed, shape, kernel_size, eps):
        """Images whose neighbours are alike, in space and across channels, and not centred."""
        noise = draws(seed)(*shape)
        images = 0.6 * noise + 0.5 * noise.roll(1, 3) + 0.4 * noise.roll(1, 2)
        images = images + 0.5 * noise.mean(1, keepdim=True)
        brightness = torch.arange(1, shape[1] + 1, dtype=noise.dtype)[:, None, None]
        slope = torch.linspace(0, 1, shape[3], dtype=noise.dtype)
        return Case(images + 0.7 * brightness + slope, kernel_size, eps)

    def kernel_last(images, k):
        """Patches flattened as (k, k, c)."""
        windows = images.unfold(2, k, 1).unfold(3, k, 1)  # (n, c, rows, columns, k, k)
        return windows.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(0, 2)

    def columns_first(images, k):
        """Patches whose two spatial axes are exchanged."""
        windows = images.unfold(2, k, 1).unfold(3, k, 1)
        return windows.permute(0, 2, 3, 1, 5, 4).flatten(3).flatten(0, 2)

    def scrambled(images, k):
        windows = images.unfold(2, k, 1).unfold(3, k, 1)
        return windows.reshape(-1, images.shape[1] * k * k)

    def scrambled_columns(images, k):
        return F.unfold(images, k).reshape(-1, images.shape[1] * k * k)

    def per_channel(images, kernel_size, eps):
        c, k = images.shape[1], kernel_size
        filters = images.new_zeros(c * k * k, c, k, k)
        for i in range(c):
            own = _whitening()(images[:, i : i + 1], k, eps)
            filters[i * k * k : (i + 1) * k * k, i] = own[:, 0]
        return filters

    def pixels_only(images, kernel_size, eps):
        """1×1 whitening in the middle of each kernel, the rest of the filters 0."""
        k = kernel_size
        filters = images.new_zeros(images.shape[1] * k * k, images.shape[1], k, k)
        own = _whitening()(images, 1, eps)
        filters[: len(own), :, k // 2, k // 2] = own[:, :, 0, 0]
        return filters

    def of_variables(correction, rows):
        """The N×N covariance of the patches among each other."""

        def answer(images, kernel_size, eps):
            λ, V = torch.linalg.eigh(
                torch.cov(_patches(images, kernel_size), correction=correction)
            )
            c, k = images.shape[1], kernel_size
            return (V.T / (λ + eps).sqrt()[:, None]).reshape(rows or c * k * k, c, k, k)

        return answer

    def mistake(slug, advice, *answers):
        return Mistake(slug, advice, *(_then(answer, _aligned) for answer in answers))

    return compare(
        _then(candidate, _aligned),
        signature="whitening(images, kernel_size, eps)",
        reference=_then(_whitening(), _aligned),
        outputs=("the result (order and signs of the filters are free)",),
        cases=[
            case(1, (3, 1, 4, 5), 2, 0.1),
            case(2, (4, 3, 6, 5), 2, 0.01),
            case(3, (1, 2, 7, 9), 3, 1e-3),
            case(4, (2, 3, 5, 4), 1, 0.05),
            case(5, (2, 1, 2, 3), 2, 0.01),  # 4 patches of 4 values: one eigenvalue is 0
        ],
        mistakes=[
            mistake(
                "root-forgotten",
                """You divided by λ + ε and not by its root. λ is a variance; a length of 1 needs
                the standard deviation: 1/√(λ + ε). Else a direction with much variance comes out
                with too little.""",
                _whitening(scale=lambda λ, eps: 1 / (λ + eps)),
            ),
            mistake(
                "multiplied",
                """You multiplied by √(λ + ε). That makes strong directions even stronger.
                Whitening makes all directions equally strong, so it divides.""",
                _whitening(scale=lambda λ, eps: (λ + eps).sqrt()),
                _whitening(scale=lambda λ, eps: λ + eps),
            ),
            mistake(
                "not-scaled",
                """Your filters are the eigenvectors, of length 1. They remove the correlation, but
                the variances λ stay. Divide each eigenvector by √(λ + ε).""",
                _whitening(scale=lambda λ, eps: torch.ones_like(λ)),
            ),
            mistake(
                "eps-missing",
                """You left out ε. A direction in which the patches hardly vary has λ near 0, and
                1/√λ makes its noise as loud as everything else (or infinite).""",
                _whitening(scale=lambda λ, eps: 1 / λ.sqrt()),
            ),
            mistake(
                "eps-outside-the-root",
                """You added ε after the root. Here it stands inside: √(λ + ε).""",
                _whitening(scale=lambda λ, eps: 1 / (λ.sqrt() + eps)),
                _whitening(scale=lambda λ, eps: 1 / (λ.clamp(min=0).sqrt() + eps)),
            ),
            mistake(
                "eps-squared",
                """You added ε². The spec adds ε to λ: √(λ + ε).""",
                _whitening(scale=lambda λ, eps: 1 / (λ + eps**2).sqrt()),
            ),
            mistake(
                "eigenvectors-as-rows",
                """You took the rows of the matrix of eigenvectors. torch.linalg.eigh gives one
                eigenvector in each *column*: V[:, i] belongs to λ[i]. Transpose V first.""",
                _whitening(filters=lambda V, s: V * s[:, None]),
                _whitening(filters=lambda V, s: V * s),
            ),
            mistake(
                "scaled-along-the-wrong-axis",
                """You scaled the elements inside each filter. Each filter has one factor:
                filter i is v_i / √(λ_i + ε). With the filters in rows, the factors are a column,
                [:, None].""",
                _whitening(filters=lambda V, s: V.T * s),
            ),
            mistake(
                "zca",
                """You turned the result back: V · diag(1/√(λ + ε)) · Vᵀ. That is the ZCA form of
                whitening. Here the filters are the scaled eigenvectors themselves.""",
                _whitening(filters=lambda V, s: (V * s) @ V.T),
            ),
            mistake(
                "patches-in-another-order",
                """Your patches are flattened in another order than a kernel. A filter has the
                axes (channel, row, column), so a patch must be flattened with the channel first,
                then the row, then the column (that is the order of F.unfold).""",
                _whitening(patches=kernel_last),
                _whitening(patches=columns_first),
            ),
            mistake(
                "patches-scrambled",
                """Your patches mix numbers from several places. reshape only cuts the row of
                numbers anew; the axes must be put in order first: patches in front, the c·k·k
                values of a patch last (transpose or permute, then reshape).""",
                _whitening(patches=scrambled),
                _whitening(patches=scrambled_columns),
            ),
            mistake(
                "not-centred",
                """You did not subtract the mean patch. A covariance measures how values vary
                around their mean; without that, the first direction is the mean itself.""",
                _whitening(centre=lambda P: P),
            ),
            mistake(
                "centred-per-patch",
                """You subtracted from each patch its own mean, which takes its brightness away.
                What is subtracted is the mean *patch*: one mean for each of the c·k·k places, over
                all patches.""",
                _whitening(centre=lambda P: P - P.mean(1, keepdim=True)),
            ),
            mistake(
                "centred-by-one-number",
                """You subtracted one number, the mean over everything. Each of the c·k·k places
                has its own mean, over all patches: patches.mean(0).""",
                _whitening(centre=lambda P: P - P.mean()),
            ),
            mistake(
                "divided-by-n-minus-1",
                """You divided by the number of patches minus 1 (torch.cov does so by default).
                Here the covariance is the mean over the patches: divide by their number
                (torch.cov(..., correction=0)).""",
                _whitening(divide=lambda S, P, images: S / (len(P) - 1)),
            ),
            mistake(
                "not-divided",
                """You summed over the patches and did not divide by their number. A covariance is
                a mean; your λ grows with the number of images.""",
                _whitening(divide=lambda S, P, images: S),
            ),
            mistake(
                "divided-by-the-images",
                """You divided by the number of images. The mean goes over the patches, and each
                image has many.""",
                _whitening(divide=lambda S, P, images: S / len(images)),
            ),
            mistake(
                "divided-by-the-places",
                """You divided by c·k·k, the length of one patch. The mean goes over the patches:
                divide by how many there are.""",
                _whitening(divide=lambda S, P, images: S / P.shape[1]),
            ),
            mistake(
                "correlation",
                """You used the correlation: each place was divided by its own standard deviation
                first. Here the eigenvectors are those of the covariance.""",
                _whitening(covariance=lambda S: S / (S.diag()[:, None] * S.diag()).sqrt()),
                _whitening(centre=lambda P: (P - P.mean(0)) / P.std(0, correction=0)),
                _whitening(centre=lambda P: (P - P.mean(0)) / P.std(0)),
            ),
            mistake(
                "each-place-alone",
                """You used only the variances, so each filter looks at one pixel, and neighbours
                stay correlated. The eigenvectors must come from the whole covariance matrix.""",
                _whitening(covariance=lambda S: S.diag().diag()),
            ),
            mistake(
                "per-channel",
                """You whitened each channel by itself. Red, green and blue of one pixel are
                nearly the same, and that correlation must go too: a patch holds all channels.""",
                per_channel,
            ),
            mistake(
                "per-pixel",
                """You whitened the channels of single pixels. Neighbouring pixels are correlated
                too: a patch holds k×k pixels with all their channels.""",
                pixels_only,
            ),
            mistake(
                "patches-do-not-overlap",
                """Your patches lie side by side. A convolution of stride 1 sees every window, so
                the patches overlap: (h − k + 1) · (w − k + 1) in each image.""",
                _whitening(patches=lambda images, k: _patches(images, k, stride=k)),
            ),
            mistake(
                "padded",
                """You padded the images, and the zeros of the border came into the covariance.
                Take only patches that lie inside the image.""",
                _whitening(patches=lambda images, k: _patches(images, k, padding=k // 2)),
                _whitening(patches=lambda images, k: _patches(images, k, padding=1)),
            ),
            mistake(
                "patches-for-variables",
                """Your covariance is that of the patches among each other, with one row for each
                patch. torch.cov wants the variables in rows, so give it patches.T: the matrix has
                c·k·k rows.""",
                *(of_variables(correction, rows) for correction in (0, 1) for rows in (None, -1)),
            ),
            mistake(
                "first-image-only",
                """You used the patches of the first image alone. Collect the patches of all
                images before you average.""",
                _whitening(patches=lambda images, k: _patches(images[:1], k)),
            ),
        ],
    )


# --- layouts in memory --------------------------------------------------------------------------


def check_strides(candidate: Callable) -> Passed:
    """Check ``strides(shape, channels_last=False)``: how far apart neighbours lie on each axis."""

    def reference(shape, channels_last=False):
        layout = torch.channels_last if channels_last else torch.contiguous_format
        return torch.empty(shape, memory_format=layout, device="meta").stride()

    def formulas(plain=None, last=None):
        """The strides with one of the two formulas replaced."""

        def answer(shape, channels_last=False):
            formula = last if channels_last else plain
            return formula(*shape) if formula else reference(shape, channels_last)

        return answer

    def both(formula):
        return formulas(formula, formula)

    shapes = [(2, 3, 4, 5), (1, 3, 32, 32), (7, 1, 3, 2), (5, 4, 1, 1), (3, 8, 1, 6), (6, 2, 9, 4)]
    return compare(
        candidate,
        signature="strides(shape, channels_last=False)",
        reference=reference,
        cases=[Case(shape, last) for last in (False, True) for shape in shapes]
        + [Case((4, 6, 2, 3))],
        mistakes=[
            Mistake(
                "channels-last-ignored",
                """You gave the same strides for both layouts. With channels_last the shape stays
                (n, c, h, w), but the numbers lie in memory in the order n, h, w, c.""",
                formulas(last=lambda n, c, h, w: (c * h * w, h * w, w, 1)),
            ),
            Mistake(
                "always-channels-last",
                """You gave the strides of channels_last for both layouts. The default is
                channels_last=False: there the order in memory is n, c, h, w.""",
                formulas(plain=lambda n, c, h, w: (h * w * c, 1, w * c, c)),
            ),
            Mistake(
                "layouts-swapped",
                """You exchanged the two layouts. channels_last=True means that the channel runs
                fastest: its stride is 1.""",
                formulas(
                    lambda n, c, h, w: (h * w * c, 1, w * c, c),
                    lambda n, c, h, w: (c * h * w, h * w, w, 1),
                ),
            ),
            Mistake(
                "order-of-memory",
                """Your four numbers are right, but they stand in the order n, h, w, c. The shape
                stays (n, c, h, w), and the strides have the order of the shape: the stride of the
                channel comes second.""",
                formulas(last=lambda n, c, h, w: (h * w * c, w * c, c, 1)),
            ),
            Mistake(
                "columns-before-rows",
                """With your strides the rows run faster than the columns: the order n, w, h, c.
                channels_last is n, h, w, c: after the channels, the next pixel of the same row.""",
                formulas(last=lambda n, c, h, w: (h * w * c, 1, c, h * c)),
            ),
            Mistake(
                "channels-first-of-all",
                """Your channel has the largest stride or your image the wrong one: the order
                c, n, h, w. In channels_last each pixel keeps its channels side by side, so the
                stride of the channel is 1.""",
                formulas(last=lambda n, c, h, w: (h * w, n * h * w, w, 1)),
            ),
            Mistake(
                "batch-last",
                """Your batch axis runs fastest. Images stay one after the other in memory: the
                stride of n is the largest, c·h·w.""",
                formulas(last=lambda n, c, h, w: (1, n, w * c * n, c * n)),
                formulas(last=lambda n, c, h, w: (1, h * w * n, w * n, n)),
            ),
            Mistake(
                "first-axis-fastest",
                """Your first axis runs fastest, as in Fortran. In torch the last axis
                does: the stride of w is 1, and each stride is the product of the sizes to its
                *right*.""",
                formulas(plain=lambda n, c, h, w: (1, n, n * c, n * c * h)),
                both(lambda n, c, h, w: (1, n, n * c, n * c * h)),
                formulas(
                    lambda n, c, h, w: (1, n, n * c, n * c * h),
                    lambda n, c, h, w: (1, n * h * w, n, n * h),
                ),
            ),
            Mistake(
                "own-axis-included",
                """Your product begins at the axis itself. A step along an axis jumps over what
                lies *inside* one of its entries: the product of the sizes after it, without its
                own. So the last stride is 1.""",
                formulas(plain=lambda n, c, h, w: (n * c * h * w, c * h * w, h * w, w)),
                formulas(
                    lambda n, c, h, w: (n * c * h * w, c * h * w, h * w, w),
                    lambda n, c, h, w: (n * c * h * w, c, h * w * c, w * c),
                ),
            ),
            Mistake(
                "next-size-alone",
                """Your stride is the size of the next axis. It is the product of the sizes of
                *all* the axes that run faster.""",
                formulas(plain=lambda n, c, h, w: (c, h, w, 1)),
                formulas(lambda n, c, h, w: (c, h, w, 1), lambda n, c, h, w: (h, 1, w, c)),
            ),
            Mistake(
                "counted-in-bytes",
                """You counted bytes. torch counts strides in elements (NumPy counts bytes), so
                the type of the numbers does not matter.""",
                lambda *args, **options: tuple(4 * s for s in reference(*args, **options)),
                lambda *args, **options: tuple(8 * s for s in reference(*args, **options)),
            ),
            Mistake(
                "height-for-width",
                """You used h where w is needed: one row has w entries, so the next row is w
                (or, with channels_last, w·c) further on.""",
                formulas(plain=lambda n, c, h, w: (c * h * w, h * w, h, 1)),
                formulas(last=lambda n, c, h, w: (c * h * w, 1, h * c, c)),
                formulas(
                    lambda n, c, h, w: (c * h * w, h * w, h, 1),
                    lambda n, c, h, w: (c * h * w, 1, h * c, c),
                ),
            ),
            Mistake(
                "shape-returned",
                """You returned sizes. A stride is a distance in memory: how many numbers further
                on the neighbour along this axis lies.""",
                formulas(last=lambda n, c, h, w: (n, h, w, c)),
                formulas(lambda n, c, h, w: (n, c, h, w), lambda n, c, h, w: (n, h, w, c)),
                both(lambda n, c, h, w: (n, c, h, w)),
            ),
        ],
    )


class _Network(nn.Sequential):
    """A small network that a failure message shows in one short word."""

    def __init__(self, seed: int, *layers: nn.Module):
        super().__init__(*layers)
        draw = draws(seed)
        self.double()
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(draw(*parameter.shape))

    def __repr__(self) -> str:
        return f"<network of {len(self)} layers>"


def _layout(tensor: Tensor) -> str:
    """How a tensor of four axes lies in memory."""
    if tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        return "channels_last"
    if tensor.is_contiguous():
        return "contiguous"
    return f"strides {tuple(tensor.stride())}"


_FACTS = (
    "images",
    "layout of images",
    "weight",
    "layout of weight",
    "model.training",
    "model(images)",
    "layout of the output of layer",
)


def _facts(answer, model: nn.Module, images: Tensor) -> list:
    """What can be seen of (model, images) from outside, in the order of `_FACTS`."""
    model, images = answer
    weights = {name: weight.detach() for name, weight in model.named_parameters()}
    layouts = {name: _layout(w) for name, w in weights.items() if w.dim() == 4}
    activations, hooks = {}, []
    for name, layer in model.named_modules():
        if not list(layer.children()):
            hooks.append(
                layer.register_forward_hook(
                    lambda _, given, output, name=name: activations.update({name: output})
                )
            )
    training = model.training
    try:
        with torch.no_grad():
            output = model(images)
    except Exception as error:  # the facts before this one tell why
        output = f"{type(error).__name__}: {error}"
    for hook in hooks:
        hook.remove()
    flowing = {name: _layout(a) for name, a in activations.items() if a.dim() == 4}
    return [images, _layout(images), weights, layouts, training, output, flowing]


def check_channels_last(candidate: Callable) -> Passed:
    """Check ``channels_last(model, images)``, which returns both in the layout channels_last."""
    layout = torch.channels_last

    def reference(model, images):
        return model.to(memory_format=layout), images.to(memory_format=layout)

    def with_images(convert):
        return lambda model, images: (model.to(memory_format=layout), convert(images))

    def with_weights(convert, choose=lambda model: model.parameters()):
        def answer(model, images):
            for weight in choose(model):
                if weight.dim() == 4:
                    weight.data = convert(weight.data)
            return model, images.to(memory_format=layout)

        return answer

    def convert_weight(weight):
        return weight.contiguous(memory_format=layout)

    def own_weights(model):
        return [layer.weight for layer in model if isinstance(layer, nn.Conv2d)]

    def turned(images):
        """Rows and columns in the wrong order in memory: n, w, h, c."""
        return images.permute(0, 3, 2, 1).contiguous().permute(0, 3, 2, 1)

    def scrambled(images):
        n, c, h, w = images.shape
        return images.reshape(n, h, w, c).permute(0, 3, 1, 2)

    def cast(dtype):
        def answer(model, images):
            return model.to(dtype, memory_format=layout), images.to(dtype, memory_format=layout)

        return answer

    def evaluating(model, images):
        return reference(model.eval(), images)

    def mistake(slug, advice, *answers):
        return Mistake(slug, advice, *(_then(answer, _facts) for answer in answers))

    def block(*layers):
        return nn.Sequential(*layers)

    draw = draws(5)
    cases = [
        Case(_Network(1, nn.Conv2d(3, 4, 3), nn.ReLU()), draw(2, 3, 5, 6)),
        Case(
            _Network(
                2,
                nn.Conv2d(3, 8, 3, padding=1, bias=False),
                nn.BatchNorm2d(8),
                nn.ReLU(),
                nn.MaxPool2d(2),
                block(nn.Conv2d(8, 4, 2), nn.ReLU()),
                nn.Flatten(),
                nn.Linear(8, 10),
            ),
            draw(2, 3, 7, 5),
        ),
        Case(
            _Network(
                3,
                nn.Conv2d(2, 6, 1),
                nn.Conv2d(6, 6, 3, groups=6),
                nn.Conv2d(6, 4, 2),
                block(nn.Conv2d(4, 2, 2)),
            ),
            draw(1, 2, 6, 9),
        ),
        Case(_Network(4, nn.Conv2d(2, 3, 3), nn.ReLU()), draw(3, 2, 4, 6).transpose(2, 3)),
    ]
    _check_pair(candidate, cases[0])
    return compare(
        _then(candidate, _facts),
        signature="channels_last(model, images)",
        reference=_then(reference, _facts),
        cases=cases,
        outputs=_FACTS,
        mistakes=[
            mistake(
                "axes-permuted",
                """You moved the axes: permute(0, 2, 3, 1) makes the shape (n, h, w, c), and a
                convolution takes h for the channels. channels_last changes the strides and keeps
                the shape (n, c, h, w): images.to(memory_format=torch.channels_last).""",
                with_images(lambda x: x.permute(0, 2, 3, 1)),
                with_images(lambda x: x.permute(0, 2, 3, 1).contiguous()),
                lambda model, images: (model, images.permute(0, 2, 3, 1)),
                lambda model, images: (model, images.permute(0, 2, 3, 1).contiguous()),
                with_images(lambda x: x.permute(0, 2, 3, 1).to(memory_format=layout)),
            ),
            mistake(
                "images-scrambled",
                """You cut the numbers anew with view or reshape. These keep the order in memory
                and change what each place means; here the meaning stays and the order changes.""",
                with_images(scrambled),
                with_images(lambda x: x.reshape(len(x), *x.shape[2:], x.shape[1])),
                lambda model, images: (model, scrambled(images)),
            ),
            mistake(
                "undone-by-contiguous",
                """Your images came back in the plain layout, in another piece of memory:
                contiguous() without an argument puts them into the order n, c, h, w again. Write
                contiguous(memory_format=torch.channels_last), or leave it out.""",
                with_images(lambda x: x.to(memory_format=layout).contiguous()),
            ),
            mistake(
                "width-before-height",
                """The numbers lie in the order n, w, h, c. channels_last is n, h, w, c: after the
                channels of one pixel comes the next pixel of the same row.""",
                with_images(turned),
                lambda model, images: (model, turned(images)),
            ),
            mistake(
                "nothing-converted",
                """Model and images came back as they were. torch.preserve_format and
                torch.contiguous_format change nothing here; the layout is torch.channels_last.""",
                lambda model, images: (model, images),
            ),
            mistake(
                "images-not-converted",
                """The model is converted, the images are not. On a tensor, to(...) returns a new
                one and leaves the old one: images = images.to(memory_format=...). (On a model it
                works in place, which hides the difference.)""",
                with_images(lambda x: x),
            ),
            mistake(
                "model-not-converted",
                """The images are converted, the weights are not. Then torch rearranges weights or
                images again in each call. Convert the model too:
                model.to(memory_format=torch.channels_last).""",
                with_weights(lambda weight: weight),
            ),
            mistake(
                "first-layer-only",
                """You converted the first convolution alone. The others keep the plain layout.
                model.to(memory_format=...) reaches every layer.""",
                with_weights(convert_weight, lambda model: [model[0].weight]),
            ),
            mistake(
                "nested-layers-missed",
                """You converted the layers that stand directly in the model, but not those inside
                its blocks. model.modules() and model.parameters() go all the way down, and
                model.to(...) does it for you.""",
                with_weights(convert_weight, own_weights),
            ),
            mistake(
                "weights-permuted",
                """You moved the axes of the weights. Their shape stays
                (c_out, c_in, k, k); only their strides change.""",
                with_weights(lambda weight: weight.permute(0, 2, 3, 1)),
                with_weights(lambda weight: weight.permute(0, 2, 3, 1).contiguous()),
            ),
            mistake(
                "weights-scrambled",
                """You cut the weights anew with view or reshape, so each number stands in another
                place. The values stay; the strides change.""",
                with_weights(scrambled),
            ),
            mistake(
                "dtype-changed",
                """You changed the type of the numbers. bf16 is another step of the journey; here
                only the order in memory changes.""",
                cast(torch.bfloat16),
                cast(torch.float16),
                cast(torch.float32),
                with_images(lambda x: x.to(torch.bfloat16, memory_format=layout)),
                with_images(lambda x: x.to(torch.float16, memory_format=layout)),
                with_images(lambda x: x.to(torch.float32, memory_format=layout)),
            ),
            mistake(
                "switched-to-evaluation",
                """You called model.eval(). The layout has nothing to do with the mode: leave the
                model as it was.""",
                evaluating,
            ),
        ],
    )


def _check_pair(candidate: Callable, case: Case) -> None:
    """The answer is a model and a tensor, in this order; errors are left to the comparison."""
    (model, images), _ = case.copies()
    try:
        answer = candidate(model, images)
    except Exception:
        return
    if answer is None:
        raise CheckFailed(
            "channels_last returned None. Does it end with a return?", "returned-none"
        )
    kinds = [nn.Module, Tensor]
    pair = isinstance(answer, tuple | list) and len(answer) == 2
    if not pair or not all(map(isinstance, answer, kinds)):
        got = [type(part).__name__ for part in answer] if pair else type(answer).__name__
        raise CheckFailed(
            f"channels_last returned {got}; expected a pair, the model and then the images: "
            "return model, images.",
            "wrong-return",
        )


# --- the roofline -------------------------------------------------------------------------------


def check_roofline(candidate: Callable) -> Passed:
    """Check ``roofline(images_shape, weight_shape, bytes_per_value, peak, bandwidth)``, which
    returns (flops, bytes moved, attainable FLOP/s) of a convolution."""

    def reference(images_shape, weight_shape, bytes_per_value, peak, bandwidth):
        images = torch.empty(images_shape, device="meta")
        weight = torch.empty(weight_shape, device="meta")
        with FlopCounterMode(display=False) as counter:
            output = F.conv2d(images, weight)
        flops = counter.get_total_flops()
        moved = bytes_per_value * (images.numel() + weight.numel() + output.numel())
        return flops, moved, float(min(peak, bandwidth * flops / moved))

    def line(
        size=lambda h, k: h - k + 1,
        per_output=lambda ci, k: 2 * ci * k * k,
        values=lambda x, w, y: x + w + y,
        scale=lambda b: b,
        attainable=lambda flops, moved, peak, bandwidth: min(peak, bandwidth * flops / moved),
        count=lambda n: n,
    ):
        """The roofline with one part replaced."""

        def answer(images_shape, weight_shape, bytes_per_value, peak, bandwidth):
            (n, ci, h, w), (co, _, k, _) = images_shape, weight_shape
            y = n * co * size(h, k) * size(w, k)
            flops = count(n) * y // n * per_output(ci, k)
            moved = scale(bytes_per_value) * values(n * ci * h * w, co * ci * k * k, y)
            return flops, moved, float(attainable(flops, moved, peak, bandwidth))

        return answer

    return compare(
        candidate,
        signature="roofline(images_shape, weight_shape, bytes_per_value, peak, bandwidth)",
        reference=reference,
        outputs=("flops", "bytes_moved", "attainable"),
        cases=[
            Case((2, 3, 5, 5), (4, 3, 3, 3), 4, 1e9, 1e8),  # under the slope
            Case((8, 16, 12, 10), (32, 16, 3, 3), 4, 1e9, 1e9),  # under the flat roof
            Case((1, 64, 7, 9), (64, 64, 1, 1), 2, 4e12, 5e10),
            Case((16, 32, 9, 9), (8, 32, 5, 5), 2, 2e11, 1e9),
            Case((3, 1, 6, 8), (2, 1, 2, 2), 8, 1e12, 2e10),
        ],
        mistakes=[
            Mistake(
                "multiply-add-counted-once",
                """You counted a multiplication and its addition as one. As FLOPs they count two:
                2 · c_in · k² for each output value.""",
                line(per_output=lambda ci, k: ci * k * k),
            ),
            Mistake(
                "kernel-not-squared",
                """You counted k products for each output value and channel. The kernel has
                k rows of k values: k².""",
                line(per_output=lambda ci, k: 2 * ci * k),
            ),
            Mistake(
                "input-channels-forgotten",
                """You left out c_in. Each output value sums over all input channels:
                2 · c_in · k².""",
                line(per_output=lambda ci, k: 2 * k * k),
            ),
            Mistake(
                "output-size-of-the-input",
                """You counted an output as large as the input. Without padding it has
                h − k + 1 rows and w − k + 1 columns.""",
                line(size=lambda h, k: h),
            ),
            Mistake(
                "output-size-off-by-one",
                """Your output has h − k rows. A kernel of size k fits in h − k + 1 places.""",
                line(size=lambda h, k: h - k),
            ),
            Mistake(
                "one-image",
                """You counted the work of one image. The whole batch is convolved: multiply by
                n.""",
                line(count=lambda n: 1),
            ),
            Mistake(
                "weights-not-moved",
                """You left out the weights. They are read from memory too.""",
                line(values=lambda x, w, y: x + y),
            ),
            Mistake(
                "output-not-moved",
                """You left out the output. It is written to memory, and that takes time too.""",
                line(values=lambda x, w, y: x + w),
            ),
            Mistake(
                "images-alone-moved",
                """You counted the images alone. The weights are read and the output is written
                as well.""",
                line(values=lambda x, w, y: x),
            ),
            Mistake(
                "values-not-bytes",
                """You counted values. A bandwidth is in bytes per second: multiply by
                bytes_per_value.""",
                line(scale=lambda b: 1),
            ),
            Mistake(
                "bits-not-bytes",
                """You counted bits, 8 for each byte. bytes_per_value is in bytes already.""",
                line(scale=lambda b: 8 * b),
            ),
            Mistake(
                "float32-assumed",
                """You took 4 bytes for each value. bf16 has 2 and float64 has 8: use
                bytes_per_value.""",
                line(scale=lambda b: 4),
            ),
            Mistake(
                "larger-of-the-two",
                """You took the larger of the two limits. Both hold at once, so the smaller one
                decides.""",
                line(attainable=lambda f, m, peak, band: max(peak, band * f / m)),
            ),
            Mistake(
                "intensity-upside-down",
                """Your intensity is bytes per FLOP. It is FLOPs per byte: work divided by what is
                moved. Then bandwidth · intensity is in FLOP/s.""",
                line(attainable=lambda f, m, peak, band: min(peak, band * m / f)),
            ),
            Mistake(
                "peak-alone",
                """You returned the peak. A layer that moves many bytes for little work waits for
                the memory: min(peak, bandwidth · intensity).""",
                line(attainable=lambda f, m, peak, band: peak),
            ),
            Mistake(
                "slope-alone",
                """You forgot the flat roof: nothing is faster than the peak.""",
                line(attainable=lambda f, m, peak, band: band * f / m),
            ),
            Mistake(
                "times-added",
                """You added the time to compute and the time to move. The roofline lets both
                happen at once, so the longer of the two counts.""",
                line(attainable=lambda f, m, peak, band: f / (f / peak + m / band)),
            ),
            Mistake(
                "seconds-returned",
                """You returned seconds. Attainable is a speed in FLOP/s:
                min(peak, bandwidth · intensity).""",
                line(attainable=lambda f, m, peak, band: max(f / peak, m / band)),
            ),
            Mistake(
                "share-of-the-peak",
                """You returned a share of the peak. Attainable is a speed in FLOP/s.""",
                line(attainable=lambda f, m, peak, band: min(1.0, band * f / m / peak)),
            ),
        ],
    )


# --- test-time flip -----------------------------------------------------------------------------


def check_flip_average(candidate: Callable) -> Passed:
    """Check ``flip_average(model, images)``: the mean of two predictions, (n, classes)."""

    def mean(model, images):
        return (model(images) + model(images.flip(3))) / 2

    def with_axes(*axes):
        return lambda model, images: (model(images) + model(images.flip(axes))) / 2

    def joined(pick):
        return lambda model, images: pick(model(torch.cat([images, images.flip(3)])), len(images))

    def probabilities(model, images):
        return (model(images).softmax(1) + model(images.flip(3)).softmax(1)) / 2

    def network(seed, channels, height, width, classes):
        hidden = 4 * (height - 1) * (width - 1)
        layers = [nn.Conv2d(channels, 4, 2), nn.Tanh(), nn.Flatten(), nn.Linear(hidden, classes)]
        return _Network(seed, *layers)

    draw = draws(7)
    return compare(
        candidate,
        signature="flip_average(model, images)",
        reference=mean,
        cases=[
            Case(network(1, 1, 3, 3, 3), draw(2, 1, 3, 3)),
            Case(network(2, 3, 4, 6, 10), draw(5, 3, 4, 6)),
            Case(network(3, 2, 5, 4, 4), draw(1, 2, 5, 4)),
            Case(network(4, 3, 5, 5, 7), draw(6, 3, 5, 5)),
        ],
        mistakes=[
            Mistake(
                "upside-down",
                """You flipped the rows, so the images stand on their heads. Left and right change
                places when the last axis, w, is flipped.""",
                with_axes(2),
            ),
            Mistake(
                "turned-round",
                """You flipped both axes, which turns the image by 180°. Flip only the last
                axis.""",
                with_axes(2, 3),
            ),
            Mistake(
                "channels-flipped",
                """You flipped axis 1, the channels: red and blue change places. The axes are
                (n, c, h, w), and w is axis 3.""",
                with_axes(1),
            ),
            Mistake(
                "batch-flipped",
                """You flipped axis 0, the batch: each image was averaged with another image. The
                axes are (n, c, h, w), and w is axis 3.""",
                with_axes(0),
            ),
            Mistake(
                "rows-for-columns",
                """You exchanged rows and columns (transpose). A mirror image keeps its rows and
                turns each one round: flip.""",
                lambda model, images: (model(images) + model(images.transpose(2, 3))) / 2,
            ),
            Mistake(
                "not-halved",
                """You summed the two predictions. The mean divides by 2.""",
                lambda model, images: 2 * mean(model, images),
            ),
            Mistake(
                "mirrored-only",
                """You returned the prediction for the mirrored images alone. Average it with the
                one for the images as they are.""",
                lambda model, images: model(images.flip(3)),
            ),
            Mistake(
                "not-flipped",
                """Both of your predictions are for the images as they came. (flip returns a new
                tensor; it changes nothing in place.)""",
                lambda model, images: model(images),
            ),
            Mistake(
                "output-flipped",
                """You flipped the output, so class 0 was averaged with the last class. Flip the
                images, before the model sees them.""",
                lambda model, images: (model(images) + model(images).flip(1)) / 2,
            ),
            Mistake(
                "images-averaged",
                """You averaged the images and predicted once. A picture laid over its mirror
                image is no picture of anything; average the two predictions.""",
                lambda model, images: model((images + images.flip(3)) / 2),
            ),
            Mistake(
                "averaged-probabilities",
                """You averaged probabilities. The task asks for the mean of the logits: leave the
                softmax out.""",
                probabilities,
                lambda model, images: probabilities(model, images).log(),
                lambda model, images: mean(model, images).softmax(1),
                lambda model, images: mean(model, images).log_softmax(1),
            ),
            Mistake(
                "larger-of-the-two",
                """You kept the larger of each pair of logits. The task asks for their mean.""",
                lambda model, images: torch.maximum(model(images), model(images.flip(3))),
            ),
            Mistake(
                "wrong-pairs",
                """You joined both halves into one batch, which is fine, but averaged the wrong
                pairs. The first n rows belong to the images, the last n to their mirror images:
                reshape(2, n, classes).mean(0), or chunk(2).""",
                joined(lambda out, n: out.reshape(n, 2, -1).mean(1)),
                joined(lambda out, n: (out[::2] + out[1::2]) / 2),
                joined(lambda out, n: (out[:n] + out[n:].flip(0)) / 2),
            ),
            Mistake(
                "averaged-over-the-batch",
                """You averaged over the images of the batch. Each image has its own prediction:
                the result is (n, classes).""",
                lambda model, images: mean(model, images).mean(0),
                lambda model, images: mean(model, images).mean(0, keepdim=True),
                joined(lambda out, n: out.mean(0)),
            ),
        ],
    )


# --- time to accuracy ---------------------------------------------------------------------------


def check_time_to_accuracy(candidate: Callable) -> Passed:
    """Check ``time_to_accuracy(runs, target, preparation=0.0)``: the median over the runs of the
    training seconds at the first evaluation that reaches the target."""

    def first(run, target, preparation, counted=lambda train, evaluate: train):
        clock = preparation
        for train, evaluate, accuracy in run:
            clock += counted(train, evaluate)
            if accuracy >= target:
                return clock
        return math.inf

    def over_runs(of_run=first, summary=statistics.median):
        """``summary`` over the runs of the time that ``of_run`` gives."""

        def answer(runs, target, preparation=0.0):
            return summary([of_run(run, target, preparation) for run in runs])

        return answer

    def clocks(run, preparation):
        """(seconds, accuracy) at each evaluation."""
        points, clock = [], preparation
        for train, _, accuracy in run:
            clock += train
            points.append((clock, accuracy))
        return points

    def with_evaluation(run, target, preparation):
        return first(run, target, preparation, lambda train, evaluate: train + evaluate)

    def with_earlier_evaluations(run, target, preparation):
        clock = preparation
        for train, evaluate, accuracy in run:
            clock += train
            if accuracy >= target:
                return clock
            clock += evaluate
        return math.inf

    def this_stretch(run, target, preparation):
        return next((preparation + t for t, _, a in run if a >= target), math.inf)

    def exceeded(run, target, preparation):
        return next((t for t, a in clocks(run, preparation) if a > target), math.inf)

    def early(run, target, preparation):
        clock = preparation
        for train, _, accuracy in run:
            if accuracy >= target:
                return clock
            clock += train
        return math.inf

    def of_the_best(run, target, preparation):
        return max(clocks(run, preparation), key=lambda point: point[1])[0]

    def of_the_best_if_reached(run, target, preparation):
        reached = max(a for _, _, a in run) >= target
        return of_the_best(run, target, preparation) if reached else math.inf

    def last_time(run, target, preparation):
        return max((t for t, a in clocks(run, preparation) if a >= target), default=math.inf)

    def for_good(run, target, preparation):
        time = math.inf
        for t, a in reversed(clocks(run, preparation)):
            if a < target:
                break
            time = t
        return time

    def interpolated(run, target, preparation):
        points = [(preparation, 0.0), *clocks(run, preparation)]
        for (t0, a0), (t1, a1) in pairwise(points):
            if a1 >= target:
                return t0 + (t1 - t0) * (target - a0) / (a1 - a0)
        return math.inf

    def interpolated_after_first(run, target, preparation):
        points = clocks(run, preparation)
        if points[0][1] >= target:
            return points[0][0]
        for (t0, a0), (t1, a1) in pairwise(points):
            if a1 >= target:
                return t0 + (t1 - t0) * (target - a0) / (a1 - a0)
        return math.inf

    def length_if_never(run, target, preparation):
        return min(first(run, target, preparation), clocks(run, preparation)[-1][0])

    def number(offset):
        def of_run(run, target, preparation):
            found = (i for i, (_, _, a) in enumerate(run) if a >= target)
            return next((float(i + offset) for i in found), math.inf)

        return of_run

    def finite(summary):
        def of(times):
            reached = [t for t in times if t < math.inf]
            return summary(reached) if reached else math.inf

        return of

    def all_or_nothing(times):
        return statistics.median(times) if max(times) < math.inf else math.inf

    def unsorted_middle(times):
        half = len(times) // 2
        return times[half] if len(times) % 2 else (times[half - 1] + times[half]) / 2

    def curves(summary):
        """The accuracies are summarised over the runs first."""

        def answer(runs, target, preparation=0.0):
            clock = preparation
            for points in zip(*runs, strict=False):
                clock += summary([train for train, _, _ in points])
                if summary([accuracy for _, _, accuracy in points]) >= target:
                    return clock
            return math.inf

        return answer

    def none_if_never(runs, target, preparation=0.0):
        time = over_runs()(runs, target, preparation)
        return time if time < math.inf else None

    def preparation_as(seconds):
        def answer(runs, target, preparation=0.0):
            return over_runs()(runs, target, seconds(preparation))

        return answer

    def prepared_each_time(run, target, preparation):
        return first(run, target, 0.0, lambda train, evaluate: train + preparation)

    reaching = [(10.0, 3.0, 0.3), (12.0, 3.0, 0.5), (11.0, 3.0, 0.7)]
    quick = [(9.0, 2.0, 0.45), (8.0, 2.0, 0.66), (9.5, 2.5, 0.6), (8.5, 2.0, 0.72), (8.0, 2.0, 0.7)]
    slow = [(20.0, 4.0, 0.2), (22.0, 4.0, 0.41), (21.0, 4.0, 0.58), (19.0, 4.0, 0.64)]
    failing = [(10.0, 3.0, 0.1), (10.5, 3.0, 0.12), (10.0, 3.0, 0.1)]
    weak = [(6.0, 1.0, 0.35), (7.0, 1.0, 0.55)]
    return compare(
        candidate,
        signature="time_to_accuracy(runs, target, preparation=0.0)",
        reference=over_runs(),
        cases=[
            Case([reaching], 0.6),
            Case([reaching], 0.5),
            Case([reaching], 0.9),
            Case([slow, quick, reaching], 0.55),
            Case([quick, slow, weak, reaching], 0.5),
            Case([reaching, failing, quick], 0.6),
            Case([failing, weak, reaching], 0.6),
            Case([reaching, failing], 0.5),
            Case([quick, reaching, slow], 0.4, 5.0),
            Case([quick], 0.65, preparation=2.5),
            Case([failing, slow, quick, reaching, weak], 0.41, preparation=1.5),
        ],
        mistakes=[
            Mistake(
                "evaluation-on-the-clock",
                """Your clock runs while the accuracy is measured. Evaluation is our curiosity, not
                a part of training: add the training seconds alone.""",
                over_runs(with_evaluation),
                over_runs(with_earlier_evaluations),
            ),
            Mistake(
                "not-summed-up",
                """You returned the seconds since the last evaluation. The clock goes on: add up
                the training seconds of all entries so far.""",
                over_runs(this_stretch),
            ),
            Mistake(
                "one-evaluation-early",
                """You looked at the accuracy before you added the seconds that led to it. First
                add the training seconds, then compare.""",
                over_runs(early),
            ),
            Mistake(
                "target-must-be-exceeded",
                """You asked for more than the target. It is reached with accuracy >= target.""",
                over_runs(exceeded),
            ),
            Mistake(
                "time-of-the-best",
                """You took the time of the best accuracy. Time to accuracy stops the clock at the
                *first* evaluation that reaches the target, whatever comes later.""",
                over_runs(of_the_best),
                over_runs(of_the_best_if_reached),
            ),
            Mistake(
                "last-time-reached",
                """You took the last evaluation that is at the target. Stop at the first one.""",
                over_runs(last_time),
            ),
            Mistake(
                "reached-for-good",
                """You looked into the future: you waited until the accuracy never falls below the
                target again. Somebody who watches the run stops at the first evaluation that
                reaches it.""",
                over_runs(for_good),
            ),
            Mistake(
                "interpolated",
                """You drew a line between two evaluations. Between them nobody measured, so the
                time is that of the evaluation itself.""",
                over_runs(interpolated),
                over_runs(interpolated_after_first),
            ),
            Mistake(
                "evaluations-counted",
                """You counted evaluations (epochs). An epoch of one recipe can take ten times as
                long as that of another: count seconds.""",
                over_runs(number(1)),
                over_runs(number(0)),
            ),
            Mistake(
                "mean-of-the-runs",
                """You took the mean. One run that never gets there makes it infinite, and one slow
                run spoils it. Take the median.""",
                over_runs(summary=statistics.mean),
                over_runs(summary=finite(statistics.mean)),
            ),
            Mistake(
                "failed-runs-dropped",
                """You left out the runs that never reach the target. Then a recipe that fails most
                of the time looks as good as one that always works. Such a run counts as
                math.inf.""",
                over_runs(summary=finite(statistics.median)),
            ),
            Mistake(
                "failed-run-counts-its-length",
                """A run that never reaches the target counts with its whole length in your median.
                Then the shorter you train in vain, the better. Its time is math.inf.""",
                over_runs(length_if_never),
            ),
            Mistake(
                "one-failure-fails-all",
                """You returned infinity as soon as one run fails. Sort the times with the infinite
                ones at the end; the median is what stands in the middle.""",
                over_runs(summary=all_or_nothing),
            ),
            Mistake(
                "none-if-never",
                """You returned None where the median run never reaches the target. Return
                math.inf: it can be compared and sorted like any other time.""",
                none_if_never,
            ),
            Mistake(
                "zero-if-never",
                """A run that never reaches the target counts 0 seconds, the best time of all.
                Its time is math.inf.""",
                over_runs(lambda *args: t if (t := first(*args)) < math.inf else 0.0),
                lambda *args, **options: (
                    t if (t := over_runs()(*args, **options)) < math.inf else 0.0
                ),
            ),
            Mistake(
                "best-run",
                """You took the fastest run. With enough seeds one is always lucky; the median says
                what to expect.""",
                over_runs(summary=min),
            ),
            Mistake(
                "worst-run",
                """You took the slowest run. The median is asked for.""",
                over_runs(summary=max),
            ),
            Mistake(
                "first-run-only",
                """You used the first run alone. Take the time of each run, then the median.""",
                over_runs(summary=lambda times: times[0]),
            ),
            Mistake(
                "no-mean-of-the-middle-two",
                """With an even number of runs there are two middle times, and the median is their
                mean. (torch.median takes the smaller one.)""",
                over_runs(summary=statistics.median_low),
                over_runs(summary=statistics.median_high),
            ),
            Mistake(
                "not-sorted",
                """You took the middle of the list as it came. The median is the middle of the
                *sorted* times.""",
                over_runs(summary=unsorted_middle),
                over_runs(summary=lambda times: times[len(times) // 2]),
            ),
            Mistake(
                "runs-merged-first",
                """You summarised the accuracies of the runs first, and looked for the target in
                that curve. Find the time of each run by itself, then take the median of the
                times.""",
                curves(statistics.median),
                curves(statistics.mean),
            ),
            Mistake(
                "preparation-left-out",
                """You left out the preparation. Loading and arranging the data is work that the
                recipe needs, so its clock starts before it.""",
                preparation_as(lambda seconds: 0.0),
            ),
            Mistake(
                "preparation-each-time",
                """You added the preparation at each evaluation. It happens once: the clock starts
                with it.""",
                over_runs(prepared_each_time),
            ),
            Mistake(
                "preparation-subtracted",
                """You subtracted the preparation. It costs time: the clock starts at
                preparation, and not at −preparation.""",
                preparation_as(lambda seconds: -seconds),
            ),
        ],
    )
