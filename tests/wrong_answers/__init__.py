"""The bank of wrong answers: what proves that a check finds mistakes and accepts other ways.

For each subject there is one module with a dict ``TASKS``. Its keys are the tasks of
``shipyard.checks.<subject>``: the key "conv2d" stands for ``check_conv2d``. Write the answers as a
learner would write them, and not with the code of the check's own `Mistake`s:

    CONV2D = Task()
    TASKS = {"conv2d": CONV2D}

    @CONV2D.passes
    def shifts_and_adds(x, weight, ...):
        ...

    @CONV2D.fails_with("channels-not-summed")
    def overwrites_in_the_channel_loop(x, weight, ...):
        ...

    CONV2D.fails_with("bias-dropped", but(shifts_and_adds, "y + bias[:, None, None]", "y"))
    CONV2D.forbids(F.conv2d)

``tests/test_checks.py`` finds the module by itself, and then demands:

- that every check of the lab has a task here, with at least 2 wrong and 2 correct answers (a form
  that the check knows, ``forms=``, is one of these);
- that every wrong answer fails with its diagnosis, and every correct one passes;
- that the untouched stub fails with "not-implemented";
- that every `Mistake` in the code of a check is made by an answer here;
- that the last correct answer fails after each of the `CHEATS`, except those it is ``spared``.

A mistake of a catalogue (``mistakes/<subject>.md``) is made by its own edits in a test of its own.
Here stands a sample of them, written once more in another way: by hand, or in another form.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from shipyard.checks import tensors


def not_written(*args, **options):
    """What a generated lab holds before the learner has written anything."""
    raise NotImplementedError("Write this function, then run the check below.")


@dataclass
class Task:
    """The answers to one task: ``wrong`` maps a name to (function, diagnosis).

    ``spared`` are the `CHEATS` that cannot be seen here: they are no mistake, or have no meaning.
    """

    spared: str = ""
    wrong: dict[str, tuple[Callable, str]] = field(default_factory=dict)
    correct: dict[str, Callable] = field(default_factory=dict)
    stub: Callable = not_written

    def fails_with(self, diagnosis: str, function: Callable | None = None) -> Callable:
        """This function, or as a decorator the one below, is wrong: the check says how."""
        if function is None:
            return functools.partial(self.fails_with, diagnosis)
        self.wrong[f"{len(self.wrong)}-{function.__name__}"] = (function, diagnosis)
        return function

    def forbids(self, function: Callable) -> Callable:
        """This function is right, but calls what the task does without. Also a decorator."""
        return self.fails_with("forbidden-call", function)

    def passes(self, function: Callable) -> Callable:
        """This function is another correct form. Also a decorator."""
        self.correct[f"{len(self.correct)}-{function.__name__}"] = function
        return function


def but(form: Callable, old: str, new: str) -> Callable:
    """``form`` with a slip: ``new`` stands in the place of ``old`` in its source."""
    source = inspect.getsource(form)
    source = source[source.index("def ") :]
    assert source.count(old) == 1, f"{old} stands {source.count(old)} times in\n{source}"
    namespace = dict(form.__globals__)
    exec(source.replace(old, new), namespace)
    return namespace[form.__name__]


# --- cheats: each makes a wrong answer of a correct form ------------------------------------------


def copied(value: Any, with_graph: bool = False) -> Any:
    """A deep copy, which torch refuses to make of a tensor that has a graph."""
    computed = [t for t in tensors(value) if isinstance(t, Tensor) and t.grad_fn is not None]
    copies = {id(t): t.clone() if with_graph else t.detach().clone() for t in computed}
    return copy.deepcopy(value, copies)


def returns_nothing(form: Callable) -> Callable:
    return lambda *args, **options: [form(*args, **options), None][1]


def takes_one_argument_less(form: Callable) -> Callable:
    cheat = functools.partial(form)
    signature = inspect.signature(form)
    cheat.__signature__ = signature.replace(parameters=[*signature.parameters.values()][:-1])
    return cheat


def changes_its_input(form: Callable) -> Callable:
    def cheat(*args, **options):
        answer = copied(form(*args, **options), with_graph=True)
        for tensor in tensors([args, options]):
            # .data: autograd must not notice either
            values = tensor.data if isinstance(tensor, Tensor) else tensor
            if "bool" in str(values.dtype):
                values ^= True
            else:
                values += 1
        for value in args:
            if isinstance(value, list):
                value.reverse()
        return answer

    return cheat


def rounds_to_float32(form: Callable) -> Callable:
    def cheat(*args, **options):
        args, options = copied([list(args), options])
        for value in tensors([args, options]):
            if isinstance(value, np.ndarray) and value.dtype == np.float64:
                value[...] = value.astype(np.float32)
            elif isinstance(value, Tensor):
                value.data.copy_(value.data.float())
        return form(*args, **options)

    return cheat


def looks_at_sizes_alone(form: Callable) -> Callable:
    """A cache, which knows arguments again by numbers, texts and the shapes of tensors."""
    memory = {}

    def cheat(*args, **options):
        given = [*args, *sorted(options.items())]
        plain = [value for value in given if not callable(value) and not tensors(value)]
        key = repr([plain, [tuple(tensor.shape) for tensor in tensors(given)]])
        if key not in memory:
            memory[key] = copied(form(*args, **options))
        return copied(memory[key])

    return cheat


def always_gives_its_first_answer(form: Callable) -> Callable:
    answers = []

    def cheat(*args, **options):
        answers.append(copied(form(*args, **options)))
        return copied(answers[0])

    return cheat


CHEATS = {  # and what a check may call them
    returns_nothing: "returned-none not-a-pair",
    takes_one_argument_less: "wrong-signature",
    changes_its_input: "changed-input",
    rounds_to_float32: "",  # anything
    looks_at_sizes_alone: "",
    always_gives_its_first_answer: "",
}
