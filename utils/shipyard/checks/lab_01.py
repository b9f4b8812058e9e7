"""Checks of lab 01, convolution and pooling. ``torch.nn.functional`` is the reference."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F

from shipyard.checks import Case, Mistake, Passed, compare


def check_output_size(candidate: Callable) -> Passed:
    """Check ``output_size(size, kernel_size, stride=1, padding=0, dilation=1)``, one axis."""

    def reference(size, kernel_size, stride=1, padding=0, dilation=1):
        y = F.conv1d(
            torch.ones(1, 1, size), torch.ones(1, 1, kernel_size), None, stride, padding, dilation
        )
        return y.shape[-1]

    def by_formula(span=lambda k, d: d * (k - 1) + 1, sides=2, rounded=math.floor, plus=(0, 1)):
        """The formula with one part replaced."""

        def answer(size, kernel_size, stride=1, padding=0, dilation=1):
            free = size + sides * padding - span(kernel_size, dilation)
            return rounded((free + plus[0]) / stride) + plus[1]

        return answer

    return compare(
        candidate,
        signature="output_size(size, kernel_size, stride=1, padding=0, dilation=1)",
        reference=reference,
        cases=[
            Case(5, 3),
            Case(7, 1),
            Case(6, 6),
            Case(7, 3, stride=2),
            Case(8, 3, stride=2),
            Case(9, 2, stride=4),
            Case(5, 3, padding=1),
            Case(4, 5, padding=2),
            Case(8, 3, dilation=2),
            Case(11, 4, dilation=3),
            Case(32, 3, stride=2, padding=1),
            Case(31, 5, stride=3, padding=2, dilation=2),
            Case(227, 11, stride=4),
        ],
        mistakes=[
            Mistake(
                "ceil-instead-of-floor",
                """You rounded up. Where the last step would carry the kernel over the edge, that
                window does not exist, so the formula rounds down (floor, in Python //). The
                elements left over at the far edge are simply not used.""",
                by_formula(rounded=math.ceil),
            ),
            Mistake(
                "rounded-to-nearest",
                """You rounded to the nearest number. A window that fits only in part does not
                exist, however large that part is, so the formula always rounds down
                (floor, in Python //).""",
                by_formula(rounded=round),
                by_formula(rounded=lambda steps: round(steps + 1) - 1),
            ),
            Mistake(
                "plus-one-missing",
                """You counted steps, not windows. The kernel has a first place before it takes any
                step, so the count is the number of steps + 1, like fence posts and gaps.""",
                by_formula(plus=(0, 0)),
            ),
            Mistake(
                "plus-one-before-division",
                """The + 1 stands outside of the division. It counts the kernel's first place, for
                which no step is needed, so the stride must not divide it: floor(... / stride) + 1.
                """,
                by_formula(plus=(1, 0)),
            ),
            Mistake(
                "padding-on-one-side",
                """You counted the padding once. It is added at both ends of the axis, so the input
                grows by 2 · padding.""",
                by_formula(sides=1),
            ),
            Mistake(
                "padding-ignored",
                """You left out the padding. It is added at both ends of the axis before the kernel
                slides, so the input grows by 2 · padding.""",
                by_formula(sides=0),
            ),
            Mistake(
                "dilation-ignored",
                """You left out the dilation. With dilation d the taps of the kernel stand d
                elements apart, so the kernel reaches over d · (kernel_size − 1) + 1 elements, not
                over kernel_size.""",
                by_formula(span=lambda k, d: k),
            ),
            Mistake(
                "dilated-span-off-by-one",
                """You took a wrong reach for the dilated kernel. Dilation puts holes between the
                taps, and k taps have only k − 1 holes between them, so the kernel reaches over
                dilation · (k − 1) + 1 elements. Draw three taps with dilation 2 on paper:
                x . x . x is 5 long.""",
                by_formula(span=lambda k, d: d * k),
                by_formula(span=lambda k, d: d * (k - 1)),
                by_formula(span=lambda k, d: k + d - 1),
            ),
            Mistake(
                "stride-ignored",
                """You left out the stride. The kernel moves stride elements at each step, so the
                room that it can move in, size + 2 · padding − reach, is divided by stride.""",
                lambda size, kernel_size, stride=1, **rest: reference(size, kernel_size, **rest),
            ),
            Mistake(
                "float-instead-of-int",
                """The answer counts windows, so it must be an int: / makes a float, // divides
                and rounds down. A float cannot be used as a shape.""",
                by_formula(rounded=float),
                lambda *args, **options: float(reference(*args, **options)),
            ),
        ],
    )
