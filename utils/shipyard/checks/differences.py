"""What differs between an expected value and the one that came, said in words."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

Difference = tuple[str, str]  # (slug, text)
WIDE = 90  # characters of a value in a line of text
SMALL = 16  # a tensor with this many elements or fewer is shown in full


def difference(
    expected: Any,
    got: Any,
    label: str = "",
    outputs: Sequence[str] = (),
    tolerance: float = 0.0,
    brief: bool = False,
) -> Difference | None:
    """The first thing in ``got`` that is not as expected, as (slug, text); None if all is.

    Values are tensors, arrays, numbers, texts, and tuples, lists and dicts of them. Numbers are
    equal if |got − expected| <= tolerance · (1 + |expected|); shapes and types must match.
    ``label`` names the value in the text, ``outputs`` the elements of a tuple. ``brief``: without
    the text about wrong numbers, for those who only ask whether there is a difference.
    """
    if isinstance(expected, np.ndarray) and isinstance(got, np.ndarray):
        expected, got = torch.from_numpy(expected), torch.from_numpy(got)
    if isinstance(expected, Tensor) and isinstance(got, Tensor):
        return _tensor_difference(expected.detach(), got.detach(), label, tolerance, brief)
    if isinstance(expected, tuple | list) and isinstance(got, tuple | list):
        if len(expected) != len(got):
            names = f": ({', '.join(outputs)})" if outputs else ""
            text = f"{label} has {len(got)} elements; expected {len(expected)}{names}."
            return "wrong-length", text
        names = outputs or [f"{label}[{i}]" for i in range(len(expected))]
        items = list(zip(expected, got, names, strict=True))
        if holes := [name for e, g, name in items if g is None and e is not None]:
            return "holds-none", f"{holes[0]} is None: it was never filled."
        return _first_difference(items, tolerance, brief)
    if isinstance(expected, dict) and isinstance(got, dict):
        if expected.keys() != got.keys():
            return "wrong-keys", f"{label} has the keys {list(got)}; expected {list(expected)}."
        items = ((value, got[key], f"{label}[{key!r}]") for key, value in expected.items())
        return _first_difference(items, tolerance, brief)
    if type(expected) in (int, float) and _is_number(got, type(expected)):
        wide = torch.tensor([float(expected), float(got)], dtype=torch.float64)
        found = _tensor_difference(wide[0], wide[1], label, tolerance, brief)
        return found and (found[0], f"{label} is {got}; expected {expected}.")
    if got is None and expected is not None:
        return "returned-none", f"{label} is None. Does every path end with a return?"
    if type(expected) is not type(got):
        text = f"{label} is {describe(got)}; expected a value like {describe(expected)}"
        return "wrong-type", f"{text} ({', '.join(outputs)})." if outputs else f"{text}."
    if expected != got:
        return "wrong-values", f"{label} is {got!r}; expected {expected!r}."
    return None


def _first_difference(items, tolerance: float, brief: bool) -> Difference | None:
    for expected, got, label in items:
        if found := difference(expected, got, label, tolerance=tolerance, brief=brief):
            return found
    return None


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
    expected: Tensor, got: Tensor, label: str, tolerance: float, brief: bool
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
        text = f"{label} has dtype {got.dtype}; expected {expected.dtype}."
        if got.dtype == torch.float32:
            text += (
                " New tensors are float32 unless you say otherwise: "
                "torch.zeros(..., dtype=x.dtype), or x.new_zeros(...)."
            )
        return "wrong-dtype", text
    if not expected.dtype.is_floating_point:
        expected, got = expected.double(), got.double()
    gap = (got - expected).abs()
    close = expected.isfinite() & (gap <= tolerance * (1 + expected.abs()))
    wrong = ~(close | (got == expected) | (got.isnan() & expected.isnan()))
    if not wrong.any():
        return None
    if brief:
        return "wrong-values", ""

    index = wrong.nonzero()[0].tolist()
    a, b = expected[tuple(index)].item(), got[tuple(index)].item()
    digits = 6 if f"{a:.6g}" != f"{b:.6g}" else 15
    text = f"{label} differs first at {index}: expected {a:.{digits}g}, got {b:.{digits}g}."
    text += f" {wrong.sum()} of {wrong.numel()} values differ"
    gap = gap[wrong & gap.isfinite()]
    text += f", by {gap.max():.3g} at most." if gap.numel() else "."
    if expected.numel() <= SMALL:
        text += f"\n\n{_side_by_side(expected, got, digits)}\n"
    if (got.isnan() & ~expected.isnan()).any():
        text += "\nnan comes from 0/0, ∞ − ∞, or the root or logarithm of a negative number."
        return "not-a-number", text
    return "wrong-values", f"{text}{_pattern(expected, got, wrong)}"


def _pattern(expected: Tensor, got: Tensor, wrong: Tensor) -> str:
    """What all the wrong values have in common, as a sentence, where they have something."""

    def close(a: Tensor, b: Tensor, tolerance: float = 1e-6) -> bool:
        return torch.allclose(a, b, tolerance, tolerance * expected.abs().max().item())

    if expected.numel() < 3 or not (expected.isfinite().all() and got.isfinite().all()):
        return ""
    factor = (got * expected).sum().item() / max((expected**2).sum().item(), 1e-300)
    offset = (got - expected).mean().item()
    if not got.any():
        return "\nEvery value is 0. Is the result ever filled in?"
    if not wrong.all() and not got[wrong].any():
        return "\nEvery wrong value is 0. Does a loop end early, or a return stand inside a loop?"
    if close(got, expected, 1e-5):
        return "\nThe differences are tiny. Is a part of it computed in float32?"
    if close(got, factor * expected):
        return f"\nEvery value is {factor:.6g} times the expected one."
    if close(got, expected + offset):
        return f"\nEvery value is {abs(offset):.6g} too {'large' if offset > 0 else 'small'}."
    if close(got.flatten().sort().values, expected.flatten().sort().values):
        return "\nThe numbers are the right ones, but they stand in other places."
    return ""


def describe(value: Any) -> str:
    """A value in a few words: a tensor by its type and shape, and its values if it is small."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype} NumPy array of shape {value.shape}"
    if isinstance(value, Tensor):
        dtype = str(value.dtype).removeprefix("torch.")
        text = f"{dtype} tensor of shape {tuple(value.shape)}"
        full = f"{text}: {show_values(value)}" if 0 < value.numel() <= SMALL else text
        return full if len(full) <= WIDE else text
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    text = repr(value)
    return f"the {type(value).__name__} {text if len(text) < 60 else text[:57] + '...'}"


def show_values(tensor: Tensor) -> str:
    """The values of a tensor as nested lists."""

    def show(value: Any) -> str:
        if isinstance(value, list):
            return f"[{', '.join(map(show, value))}]"
        return f"{value:.6g}"

    return show(tensor.tolist())


def _side_by_side(expected: Tensor, got: Tensor, digits: int) -> str:
    """Both tensors as columns of text; the last axis goes to the right."""
    columns = []
    for title, tensor in (("expected", expected), ("got", got)):
        rows = tensor.reshape(-1, tensor.shape[-1] if tensor.dim() else 1).tolist()
        cells = [[f"{value:.{digits}g}" for value in row] for row in rows]
        width = max(len(cell) for row in cells for cell in row)
        columns.append([title, *("  ".join(cell.rjust(width) for cell in row) for row in cells)])
    left = max(map(len, columns[0]))
    return "\n".join(f"    {a:<{left}}    {b}" for a, b in zip(*columns, strict=True))
