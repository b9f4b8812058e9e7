"""What differs between an expected value and the one that came, said in words."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

Difference = tuple[str, str]  # (slug, text)
SMALL = 16  # a tensor with this many elements or fewer is shown in full


def difference(
    expected: Any,
    got: Any,
    label: str = "",
    outputs: Sequence[str] = (),
    tolerance: float = 0.0,
) -> Difference | None:
    """The first thing in ``got`` that is not as expected, as (slug, text); None if all is.

    Values are tensors, arrays, numbers, texts, and tuples, lists and dicts of them. Numbers are
    equal if |got − expected| <= tolerance · (1 + |expected|); shapes and types must match.
    ``label`` names the value in the text, ``outputs`` the elements of a tuple.
    """
    if isinstance(expected, np.ndarray) and isinstance(got, np.ndarray):
        expected, got = torch.from_numpy(expected), torch.from_numpy(got)
    if isinstance(expected, Tensor) and isinstance(got, Tensor):
        return _tensor_difference(expected.detach(), got.detach(), label, tolerance)
    if isinstance(expected, tuple | list) and isinstance(got, tuple | list):
        if len(expected) != len(got):
            names = f": ({', '.join(outputs)})" if outputs else ""
            text = f"{label} has {len(got)} elements; expected {len(expected)}{names}."
            return "wrong-length", text
        names = outputs or [f"{label}[{i}]" for i in range(len(expected))]
        return _first_difference(zip(expected, got, names, strict=True), tolerance)
    if isinstance(expected, dict) and isinstance(got, dict):
        if expected.keys() != got.keys():
            return "wrong-keys", f"{label} has the keys {list(got)}; expected {list(expected)}."
        items = ((value, got[key], f"{label}[{key!r}]") for key, value in expected.items())
        return _first_difference(items, tolerance)
    if type(expected) in (int, float) and _is_number(got, type(expected)):
        wide = torch.tensor([float(expected), float(got)], dtype=torch.float64)
        found = _tensor_difference(wide[0], wide[1], label, tolerance)
        return found and (found[0], f"{label} is {got}; expected {expected}.")
    if got is None and expected is not None:
        return "returned-none", f"{label} is None. Does every path end with a return?"
    if type(expected) is not type(got):
        text = f"{label} is {describe(got)}; expected a value like {describe(expected)}"
        return "wrong-type", f"{text} ({', '.join(outputs)})." if outputs else f"{text}."
    if expected != got:
        return "wrong-values", f"{label} is {got!r}; expected {expected!r}."
    return None


def _first_difference(items, tolerance: float) -> Difference | None:
    found = (difference(*item, tolerance=tolerance) for item in items)
    return next(filter(None, found), None)


def _is_number(value: Any, kind: type) -> bool:
    """NumPy's numbers and tensors of one element are numbers too; True and "3" are not."""
    if isinstance(value, bool | str):
        return False
    try:
        operator.index(value) if kind is int else float(value)
    except (TypeError, ValueError, RuntimeError):
        return False
    return True


def _tensor_difference(
    expected: Tensor, got: Tensor, label: str, tolerance: float
) -> Difference | None:
    shape, wanted = tuple(got.shape), tuple(expected.shape)
    if shape != wanted:
        text = f"{label} has shape {shape}; expected {wanted}."
        if sorted(shape) == sorted(wanted):
            return "axes-in-another-order", f"{text} The axes are in another order."
        if [n for n in shape if n != 1] == [n for n in wanted if n != 1]:
            return "axis-of-one", f"{text} An axis of length 1 is lost, or one too many."
        return "wrong-shape", text
    if got.dtype != expected.dtype:
        return "wrong-dtype", (
            f"{label} has dtype {got.dtype}; expected {expected.dtype}. New tensors are float32 "
            "unless you say otherwise: torch.zeros(..., dtype=x.dtype), or x.new_zeros(...)."
        )
    if not expected.dtype.is_floating_point:
        expected, got = expected.double(), got.double()
    gap = (got - expected).abs()
    close = expected.isfinite() & (gap <= tolerance * (1 + expected.abs()))
    wrong = ~(close | (got == expected) | (got.isnan() & expected.isnan()))
    if not wrong.any():
        return None

    index = wrong.nonzero()[0].tolist()
    a, b = expected[tuple(index)].item(), got[tuple(index)].item()
    digits = 6 if f"{a:.6g}" != f"{b:.6g}" else 15
    text = f"{label} differs first at {index}: expected {a:.{digits}g}, got {b:.{digits}g}."
    text += f" {wrong.sum()} of {wrong.numel()} values differ"
    gap = gap[wrong & gap.isfinite()]
    text += f", by {gap.max():.3g} at most." if gap.numel() else "."
    if expected.numel() <= SMALL:
        text += f"\n  expected  {show_values(expected, digits)}"
        text += f"\n  got       {show_values(got, digits)}"
    if (got.isnan() & ~expected.isnan()).any():
        text += "\nnan comes from 0/0, ∞ − ∞, or the root or logarithm of a negative number."
        return "not-a-number", text
    return "wrong-values", text


def describe(value: Any) -> str:
    """A value in a few words: a tensor by its type and shape, and its values if it is small."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype} NumPy array of shape {value.shape}"
    if isinstance(value, Tensor):
        dtype = str(value.dtype).removeprefix("torch.")
        text = f"{dtype} tensor of shape {tuple(value.shape)}"
        return f"{text}: {show_values(value)}" if 0 < value.numel() <= SMALL else text
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    text = repr(value)
    return f"the {type(value).__name__} {text if len(text) < 60 else text[:57] + '...'}"


def show_values(tensor: Tensor, digits: int = 6) -> str:
    """The values of a tensor as nested lists."""

    def show(value: Any) -> str:
        if isinstance(value, list):
            return f"[{', '.join(map(show, value))}]"
        return f"{value:.{digits}g}"

    return show(tensor.tolist())
