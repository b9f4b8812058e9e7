"""What a check says, and what it looks at to say it: verdicts, calls, errors, tensors."""

from __future__ import annotations

import html
import inspect
import itertools
import textwrap
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shipyard.checks.differences import describe, difference

MOST_LINES = 25
TORCH = str(Path(torch.__file__).parent)
LIBRARIES = (str(Path(__file__).parent), TORCH)


class CheckFailed(AssertionError):  # noqa: N818  (it says what happened, as in pytest.Failed)
    """The answer is not right yet. ``diagnosis`` is a short slug that names the mistake."""

    def __init__(self, message: str, diagnosis: str = "failed"):
        super().__init__(message)
        self.diagnosis = diagnosis

    def _render_traceback_(self) -> list[str]:
        """What IPython shows: the message alone, since the frames are those of this engine."""
        first, *rest = str(self).splitlines()
        return [f"\x1b[31m{first}\x1b[0m", *rest]


@dataclass(frozen=True)
class Passed:
    """The result of a check that found nothing wrong."""

    task: str
    cases: int

    def __repr__(self) -> str:
        cases = f"all {self.cases} cases" if self.cases != 1 else "its one case"
        return f"✓ {self.task}: correct in {cases}."

    def _repr_html_(self) -> str:
        return f"<span style='color:#009E73'>✓</span> {html.escape(repr(self)[2:])}"

    def _ipython_display_(self) -> None:
        """Shown, but not as the cell's value: nbgrader would read that as a number of points."""
        from IPython.display import display

        display({"text/plain": repr(self), "text/html": self._repr_html_()}, raw=True)


def refusal(slug: str, advice: str, facts: str = "", title: str = "") -> CheckFailed:
    """A fault that a check itself has found, told in the form of all others."""
    parts = [title, f"What went wrong ({slug}):\n{paragraph(advice)}", facts]
    return CheckFailed("\n\n".join(filter(None, parts)), slug)


def misfit(candidate: Callable, signature: str, args: Sequence, options: dict, subject: str) -> str:
    """In words, that the candidate does not take these arguments; "" where it does."""
    try:
        inspect.signature(candidate).bind(*args, **options)
    except ValueError:  # a builtin, such as torch's own functions, does not tell
        return ""
    except TypeError as error:
        return f"{subject} cannot be called like this: {error}.\nThe task asks for {signature}."
    return ""


def require_signature(
    function: Callable,
    signature: str,
    args: Sequence | None = None,
    options: dict | None = None,
    subject: str = "Your function",
) -> None:
    """Refuse ``function`` if it takes no such arguments; by default those that ``signature`` names.

    `compare` does this by itself; a check that calls the function before calls this first.

    Raises:
        CheckFailed: with the diagnosis wrong-signature.
    """
    if args is None:
        args = signature.partition("(")[2].rstrip(")").split(", ")
    if text := misfit(function, signature, args, options or {}, subject):
        raise CheckFailed(text, "wrong-signature")


def explain_error(error: Exception, task: str) -> tuple[str, str]:
    """(slug, text) for an exception that the candidate raised."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f for f in frames if f.line and not f.filename.startswith(LIBRARIES)]
    # torch raises NotImplementedError too, for an operation that a type or a device lacks
    if isinstance(error, NotImplementedError) and (not lines or lines[-1].line[:5] == "raise"):
        # a finished function may call one of an earlier task that is still a stub
        unwritten = f"{task} calls {lines[-1].name}, which" if len(lines) > 1 else task
        return "not-implemented", (
            f"{unwritten} is not written yet: it raises NotImplementedError.\n"
            "Replace that line by your code, run the cell, then run this check again."
        )
    text = f"It raised {type(error).__name__}: {error}"
    if lines:
        text += f"\nThe error came from line {lines[-1].lineno} of your code:\n    {lines[-1].line}"
    return "raised-error", "\n".join([text, *getattr(error, "__notes__", [])[:1]])


def changed(before: Any, after: Any) -> bool:
    """Whether a tensor, number or text in ``after`` is no longer as it was."""
    if isinstance(before, dict):
        before, after = list(before.items()), list(after.items())
    if isinstance(before, tuple | list):
        return len(before) != len(after) or any(map(changed, before, after))
    pair = isinstance(before, Tensor) and isinstance(after, Tensor)
    if pair and before.dtype == after.dtype and torch.equal(before, after):
        return False
    comparable = isinstance(before, Tensor | np.ndarray | int | float | str)
    return comparable and difference(before, after) is not None


def tensors(value: Any) -> list[Tensor | np.ndarray]:
    """Each tensor in ``value``."""
    if isinstance(value, Tensor | np.ndarray):
        return [value]
    items = value.values() if isinstance(value, dict) else value
    parts = map(tensors, items) if isinstance(value, tuple | list | dict) else ()
    return list(itertools.chain.from_iterable(parts))


def describe_shapes(value: Any) -> str:
    """A tensor, or a container of some, by its shapes; equal ones that follow are counted."""
    if isinstance(value, Tensor | np.ndarray):
        return describe(value)

    def shapes(items: Any) -> str:
        texts = [
            str(tuple(item.shape)) if isinstance(item, Tensor | np.ndarray) else f"[{shapes(item)}]"
            for item in (items.values() if isinstance(items, dict) else items)
            if tensors(item)
        ]
        runs = [(text, len(list(same))) for text, same in itertools.groupby(texts)]
        return ", ".join(f"{count} × {text}" if count > 2 else text for text, count in runs)

    return textwrap.shorten(f"{type(value).__name__} of tensors of shapes {shapes(value)}", 90)


def limited(*parts: str) -> str:
    """At most ``MOST_LINES`` lines: the longest blocks of lines lose their ends."""
    blocks = [block.split("\n") for block in "\n\n".join(parts).split("\n\n")]
    kept = [len(block) for block in blocks]
    while sum(kept) + len(blocks) - 1 > MOST_LINES:
        kept[kept.index(max(kept))] -= 1
    for block, size in zip(blocks, kept, strict=True):
        if size < len(block):
            block[size - 1 :] = [f"    … and {len(block) - size + 1} lines more"]
    return "\n\n".join("\n".join(block) for block in blocks)


def paragraph(text: str) -> str:
    indent = {"initial_indent": "  ", "subsequent_indent": "  "}
    return textwrap.fill(" ".join(text.split()), width=92, **indent)
