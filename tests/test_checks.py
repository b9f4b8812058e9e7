"""Every check is proven: the stub and each wrong answer fail by name, each correct form passes."""

from __future__ import annotations

import importlib
import inspect
import os
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from shipyard import checks
from shipyard.checks import Case, CheckFailed, Mistake, catalogue, changes, compare
from wrong_answers import (
    CHEATS,
    changes_its_input,
    looks_at_sizes_alone,
    rounds_to_float32,
    takes_one_argument_less,
)

BANKS = {
    path.stem: importlib.import_module(f"wrong_answers.{path.stem}")
    for path in sorted(Path(__file__).parent.glob("wrong_answers/[!_]*.py"))
}
LABS = {name: importlib.import_module(f"shipyard.checks.{name}") for name in BANKS}
TASKS = [(lab, name) for lab, bank in BANKS.items() for name in bank.TASKS]
WRONG = [(lab, name, wrong) for lab, name in TASKS for wrong in BANKS[lab].TASKS[name].wrong]
CATALOGUES = {lab: catalogue.read(lab) for lab in LABS}
EDITED = [
    pytest.param(lab, name, entry, form, id=f"{lab}-{name}-{entry.slug}-{number}")
    for lab, tasks in CATALOGUES.items()
    for name in tasks
    for entries in [catalogue.entries(getattr(LABS[lab], name))]
    for place, entry in enumerate(entries)
    for number, form in enumerate(entry.forms)
    if not any(form in earlier.forms for earlier in entries[:place])
]
CORRECT = [(lab, name, form) for lab, name in TASKS for form in BANKS[lab].TASKS[name].correct]


def check_of(lab, name):
    return getattr(LABS[lab], f"check_{name}")


@pytest.mark.slow
@pytest.mark.parametrize(("lab", "name", "wrong"), WRONG)
def test_a_wrong_answer_fails_with_its_diagnosis(lab, name, wrong):
    function, diagnosis = BANKS[lab].TASKS[name].wrong[wrong]
    with pytest.raises(CheckFailed) as caught:
        check_of(lab, name)(function)
    assert caught.value.diagnosis == diagnosis, f"\n{caught.value}"
    assert name in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize(("lab", "name", "entry", "form"), EDITED)
def test_every_edit_of_a_catalogue_is_told_its_own_name(lab, name, entry, form):
    """So each edit matches, changes an answer, and is no other mistake under a second name."""
    wrong = catalogue.edited(getattr(LABS[lab], name), form)
    with pytest.raises(CheckFailed) as caught:
        check_of(lab, name)(wrong)
    assert caught.value.diagnosis == entry.slug, f"{form}\n{caught.value}"
    assert "This explains" not in str(caught.value)


def test_two_mistakes_at_once_are_both_named():
    def lstm_cell(x, state, w_ih, w_hh, b_ih, b_hh):
        h, c = state
        i, f, g, o = (x @ w_ih.T + h @ w_hh.T + b_hh).chunk(4, 1)  # one bias dropped
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c, c  # the tanh is missing

    failure = failure_of(lstm_cell, LABS["recurrent"].check_lstm_cell)
    assert failure.diagnosis == "bias-dropped+tanh-missing-on-output"
    assert "A bias is missing" in str(failure)
    assert "The tanh on the cell state is missing" in str(failure)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("# double\n\n## squared\n\nYou squared x.", "needs at least one edit"),
        ("# double\n\n## squared\n- `2 * x` → `x * x`", "an advice"),
        ("# double\n\n## squared\n- 2 * x becomes x * x\n\nYou squared x.", "cannot read"),
    ],
)
def test_a_catalogue_that_cannot_be_read_is_refused(text, words):
    with pytest.raises(catalogue.CatalogueError, match=words):
        catalogue.parse(text)


def test_an_edit_that_does_not_match_as_often_as_it_says_is_refused():
    with pytest.raises(catalogue.CatalogueError, match="stands 2 times in the reference"):
        catalogue.Edit("x", "y").apply("x + x")


@pytest.mark.parametrize("lab", CATALOGUES)
def test_every_edit_of_a_catalogue_fits_and_every_task_of_a_heading_is_meant(lab):
    tasks_of = {}
    for name, entries in CATALOGUES[lab].items():
        for entry in entries:
            tasks_of.setdefault(entry, []).append(getattr(LABS[lab], name))
    for entry, tasks in tasks_of.items():
        fitting = [{form for form in entry.forms if catalogue.fits(t, form)} for t in tasks]
        assert all(fitting), entry.slug
        assert set().union(*fitting) == set(entry.forms), entry.slug


def test_one_point_may_hold_several_forms():
    def forms(point):
        (entry,) = catalogue.parse(f"# f\n\n## slip\n- {point}\n\nNo.")["f"]
        return [[(edit.old, edit.new) for edit in form] for form in entry.forms]

    assert forms("`a` → `b` or nothing") == [[("a", "b")], [("a", "")]]
    assert forms("`a` → `b` and `c` → `d`") == [[("a", "b"), ("c", "d")]]
    both = [[("a", "b")], [("c", "d")], [("a", "b"), ("c", "d")]]
    assert forms("`a` → `b` and/or `c` → `d`") == both
    assert forms("`x, y` → any order and `u, v` → any order") == [
        [("x, y", "y, x"), ("u, v", "v, u")]
    ]


@pytest.mark.parametrize("lab", CATALOGUES)
def test_a_catalogue_speaks_of_tasks_that_exist(lab):
    assert set(CATALOGUES[lab]) <= set(BANKS[lab].TASKS)


@pytest.mark.slow
@pytest.mark.parametrize(("lab", "name", "form"), CORRECT)
def test_another_correct_form_passes(lab, name, form):
    result = check_of(lab, name)(BANKS[lab].TASKS[name].correct[form])
    assert result.task == name
    assert result.cases > 1


@pytest.mark.parametrize(("lab", "name"), TASKS)
def test_the_untouched_stub_is_said_to_be_not_written_yet(lab, name):
    with pytest.raises(CheckFailed, match="not written yet") as caught:
        check_of(lab, name)(BANKS[lab].TASKS[name].stub)
    assert caught.value.diagnosis == "not-implemented"


@pytest.mark.parametrize(("lab", "name"), TASKS)
def test_a_bank_holds_enough_answers(lab, name, monkeypatch):
    task = BANKS[lab].TASKS[name]
    assert len(task.wrong) >= 2  # of a catalogue's mistakes, written once more by hand
    forms = settings_of(lab, name, monkeypatch).get(
        "forms", ()
    )  # a test of their own compares them
    assert len(task.correct) + len(forms) >= 2


@pytest.mark.parametrize("lab", BANKS)
def test_every_check_of_a_lab_has_answers_in_the_bank(lab):
    named = {name for name in vars(LABS[lab]) if name.startswith("check_")}
    assert named == {f"check_{name}" for name in BANKS[lab].TASKS}


@pytest.mark.parametrize(("lab", "name"), TASKS)
def test_every_mistake_that_a_check_names_is_made_by_an_answer_in_the_bank(lab, name, monkeypatch):
    named = set()

    def remember(candidate, *, mistakes=None, **rest):
        # those of a catalogue are made by its own edits: the test above
        named.update(mistake.slug for mistake in mistakes or ())
        return compare(candidate, mistakes=mistakes, **rest)

    monkeypatch.setattr(LABS[lab], "compare", remember, raising=False)
    monkeypatch.setattr(checks, "compare", remember)
    task = BANKS[lab].TASKS[name]
    check_of(lab, name)(next(iter(task.correct.values())))
    assert named <= {diagnosis for _, diagnosis in task.wrong.values()}


def settings_of(lab, name, monkeypatch, other_numbers=0):
    """The arguments with which a check calls `compare`, its cases from another seed."""
    asked = []

    def remember(candidate, **settings):
        asked.append(settings | {"cases": list(settings["cases"])})
        return checks.Passed(name, 1)

    with monkeypatch.context() as patch:
        draws = checks.draws
        for module in (checks, LABS[lab]):
            patch.setattr(module, "compare", remember, raising=False)
            patch.setattr(module, "draws", lambda n: draws(n + other_numbers), raising=False)
        check_of(lab, name)(next(iter(BANKS[lab].TASKS[name].correct.values())))
    return asked[0] if asked else {}


def has_meaning(cheat, form, settings):
    """Whether a cheat can be seen: a right answer to numbers alone may be remembered."""
    held = [[*checks.tensors([case.args, case.options])] for case in settings.get("cases", ())]
    if cheat is takes_one_argument_less:
        ours, theirs = (inspect.signature(f).parameters for f in (form, settings["reference"]))
        return len(ours) == len(theirs)
    if cheat is changes_its_input:
        lists = [v for c in settings.get("cases", ()) for v in c.args if isinstance(v, list)]
        return any(held) or any(value != value[::-1] for value in lists)
    if cheat is rounds_to_float32:
        wide = any("float64" in str(t.dtype) for tensors in held for t in tensors)
        return wide and settings.get("tolerance", 1e-7) < 1e-8
    return cheat is not looks_at_sizes_alone or any(held[:1])


@pytest.mark.slow
@pytest.mark.parametrize(("lab", "name"), TASKS)
@pytest.mark.parametrize("cheat", CHEATS)
def test_a_correct_form_that_cheats_fails(lab, name, cheat, monkeypatch):
    *_, form = BANKS[lab].TASKS[name].correct.values()
    settings = settings_of(lab, name, monkeypatch)
    spared = BANKS[lab].TASKS[name].spared.split()
    if cheat.__name__ in spared or not has_meaning(cheat, form, settings):
        pytest.skip("this cheat cannot be seen here")
    monkeypatch.setattr(checks, "PAIR_SECONDS", 0)  # that it fails is enough: no long search
    monkeypatch.setattr(checks, "CHANGE_SECONDS", 0)
    with pytest.raises(CheckFailed) as caught:
        check_of(lab, name)(cheat(form))
    allowed = CHEATS[cheat].split()
    assert not allowed or caught.value.diagnosis in allowed, f"\n{caught.value}"


def agreement(function, settings):
    """For each case, whether ``function`` answers as the reference does; an error is no answer."""
    reference, tolerance = settings["reference"], settings.get("tolerance", 1e-7)
    task = checks._Task("", reference, (), tolerance, settings.get("use"))
    for case in settings["cases"]:
        expected = task.answer(reference, *case.copies())
        try:
            yield task.same(expected, task.answer(function, *case.copies()))
        except Exception:
            yield False


@pytest.mark.parametrize(("lab", "name"), TASKS)
def test_the_reference_and_its_other_forms_pass(lab, name, monkeypatch):
    settings = settings_of(lab, name, monkeypatch)
    for form in (settings.get("reference"), *settings.get("forms", ())):
        if form is not None and "<" not in form.__qualname__:
            task = checks._Task(
                name, form, (), settings.get("tolerance", 1e-7), settings.get("use")
            )
            for case in settings["cases"]:
                expected = task.answer(settings["reference"], *case.copies())
                assert task.same(expected, task.answer(form, *case.copies())), form


@pytest.mark.slow
@pytest.mark.parametrize(("lab", "name"), TASKS)
def test_a_small_change_that_passes_is_right_with_other_numbers_too(lab, name, monkeypatch):
    """No change slips through because the numbers of a check happen to agree.

    A sample of them; ALL_CHANGES=1 and pytest's -s try all, and list those that change nothing.
    """
    first, second = (settings_of(lab, name, monkeypatch, n) for n in (0, 1000))
    reference = first.get("reference")
    if reference is None or not first.get("small_changes", True):
        pytest.skip("of this check a change may wait for ever, or takes long")
    every = changes.changes(reference)
    sample = len(every) if os.environ.get("ALL_CHANGES") == "1" else min(len(every), 60)
    tried, survivors = 0, []
    for change in random.Random(0).sample(every, sample):
        changed = changes._built(reference, change.source)
        tried += changed is not None
        if changed and all(agreement(changed, first)):
            survivors.append(change)
            assert all(agreement(changed, second)), change
    print(f"{lab}.{name}: {tried} small changes, {len(survivors)} give the same answers")
    for change in survivors:
        print(f"    {change.old} -> {change.new} in: {change.line}")


# The engine, on a task that needs no mathematics.


def check_double(candidate, **settings):
    """double(x, plus=0) is 2·x + plus."""
    return compare(
        candidate,
        signature="double(x, plus=0)",
        reference=lambda x, plus=0: 2 * x + plus,
        cases=[
            Case(torch.arange(6.0, dtype=torch.float64).reshape(2, 3)),
            Case(checks.draws(0)(5, 7)),
            Case(checks.draws(1)(1, 7), plus=3),
        ],
        mistakes=[
            Mistake("squared", "You squared x. Doubling adds x to itself.", lambda x, plus=0: x**2),
            Mistake("plus-lost", "You left out plus.", lambda x, plus=0: 2 * x),
            Mistake("broken", "This one always raises.", lambda x: x.nonsense),
        ],
        **settings,
    )


def failure_of(candidate, check=check_double):
    with pytest.raises(CheckFailed) as caught:
        check(candidate)
    return caught.value


def test_a_pass_is_one_friendly_line():
    result = check_double(lambda x, plus=0: x + x + plus)
    assert repr(result) == "✓ double: correct in all 3 cases."
    assert "double: correct in all 3 cases." in result._repr_html_()
    assert "\n" not in repr(result)


def test_a_stub_that_the_answer_calls_is_named():
    def add(x, y):
        raise NotImplementedError("Write this function, then run the check below.")

    failure = failure_of(lambda x, plus=0: add(x, x) + plus)
    assert failure.diagnosis == "not-implemented"
    assert "double calls add, which is not written yet" in str(failure)


def test_the_message_shows_the_call_the_shapes_and_both_values():
    message = str(failure_of(lambda x, plus=0: 2 * x + 1 + plus))
    assert message.startswith("double is not right yet: 3 of 3 cases fail.")
    assert "The first that fails is case 1:" in message
    assert "double(x)\n    x  float64 tensor of shape (2, 3): [[0, 1, 2], [3, 4, 5]]" in message
    assert "differs first at [0, 0]: expected 0, got 1." in message
    assert "6 of 6 values differ, by 1 at most." in message
    assert (
        "    expected      got\n     0   2   4     1   3   5\n     6   8  10     7   9  11"
        in message
    )
    assert "Every value is 1 too large." in message


def test_a_known_mistake_is_named_and_explained():
    failure = failure_of(lambda x, plus=0: x * x)
    assert failure.diagnosis == "squared"
    assert "What went wrong (squared):\n  You squared x. Doubling adds" in str(failure)


def test_a_mistake_that_explains_only_some_failures_says_so():
    failure = failure_of(lambda x, plus=0: x * x + plus)
    assert failure.diagnosis == "squared"
    assert "This explains 2 of the 3 cases that fail." in str(failure)


def test_a_mistake_that_explains_few_of_the_failures_is_offered_as_a_question():
    failure = failure_of(lambda x, plus=0: 2 * x if plus else x + 9, plus_first)
    assert failure.diagnosis == "plus-lost"
    assert "Is it this (plus-lost)? It would explain 1 of the 3 cases that fail." in str(failure)
    assert "What went wrong" not in str(failure)


def plus_first(candidate):
    x = checks.draws(1)(3, 2)
    return compare(
        candidate,
        signature="double(x, plus=0)",
        reference=lambda x, plus=0: 2 * x + plus,
        cases=[Case(x, plus=3), Case(x), Case(2 * x)],
        mistakes=[Mistake("plus-lost", "You left out plus.", lambda x, plus=0: 2 * x * (plus > 0))],
    )


def test_the_verdict_stands_first_and_a_long_message_is_cut():
    columns = [torch.full((16, 1), float(n)) for n in range(12)]
    with pytest.raises(CheckFailed) as caught:
        compare(
            lambda columns: sum(columns) ** 2,
            signature="add(columns)",
            reference=sum,
            cases=[Case(columns)],
            mistakes=[Mistake("squared", "You squared.", lambda columns: sum(columns) ** 2)],
        )
    lines = str(caught.value).split("\n")
    assert lines[2] == "What went wrong (squared):"
    assert len(lines) <= 25
    assert any("lines more" in line for line in lines)
    assert "differs first at [0, 0]: expected 66, got 4356." in str(caught.value)


def check_ramp(candidate, **settings):
    cases = [Case(5), Case(7), Case(11)]
    return compare(candidate, reference=ramp, cases=cases, **settings)


def ramp(count):
    """Where the module is not one of the checks, small changes are tried all the same."""
    height = torch.arange(count, dtype=torch.float64)
    steep = height - height.mean()
    return 3 * steep / steep.std()


@pytest.mark.parametrize(
    ("candidate", "words"),
    [
        (lambda n: 3 * (x := torch.arange(n).double()) / x.std(), "height.mean()"),
        (lambda n: (x := torch.arange(n).double() - (n - 1) / 2) / x.std(), "3 * steep"),
        (lambda n: ramp(n).tolist(), "ramp(...)"),
    ],
)
def test_a_mistake_without_a_name_is_shown_as_a_small_change_of_the_formula(candidate, words):
    failure = failure_of(candidate, check_ramp)
    assert "Your result is" in str(failure)
    assert words in str(failure)
    assert "Your result is" not in str(failure_of(lambda n: candidate(n)[:2], check_ramp))


def test_an_error_is_never_explained_by_a_small_change():
    failure = failure_of(lambda n: ramp(n) + torch.zeros(n + 1), check_ramp)
    assert failure.diagnosis == "raised-error"
    assert "Your result" not in str(failure)


@pytest.mark.parametrize(
    ("name", "candidate"),
    [
        ("std", lambda n: ramp(n)),
        ("arange", lambda n: ramp(n)),
        ("softmax", lambda n: ramp(n) + 0 * torch.nn.functional.softmax(torch.ones(2), 0).sum()),
        (
            "softmax(dtype)",
            lambda n: ramp(n) + 0 * F.softmax(torch.ones(2), 0, dtype=torch.float64).sum(),
        ),
        ("SGD.__init__", lambda n: (torch.optim.SGD([torch.ones(1)]), ramp(n))[1]),
    ],
)
def test_a_right_answer_from_a_forbidden_function_is_refused(name, candidate):
    with pytest.raises(CheckFailed, match="Write it yourself") as caught:
        check_ramp(candidate, forbidden={"cumsum": "Not called.", name: "Write it yourself."})
    assert caught.value.diagnosis == "forbidden-call"
    assert f"it calls torch's {name}" in str(caught.value)


def test_a_mistake_that_shows_only_in_one_case_is_named_there():
    failure = failure_of(lambda x, plus=0: 2 * x)
    assert failure.diagnosis == "plus-lost"
    assert "1 of 3 cases fail." in str(failure)
    assert "The first that fails is case 3:" in str(failure)
    assert "double(x, plus=3)" in str(failure)


def test_a_mistake_is_not_named_where_the_answer_is_right_and_the_mistake_would_not_be():
    failure = failure_of(lambda x, plus=0: x**2 if x.shape == (2, 3) else 2 * x + plus)
    assert failure.diagnosis == "wrong-values"


def test_an_answer_that_forgets_to_return_is_told_so():
    failure = failure_of(lambda x, plus=0: None)
    assert failure.diagnosis == "returned-none"
    assert "return" in str(failure)


@pytest.mark.parametrize(
    ("candidate", "diagnosis", "words"),
    [
        (lambda x, plus=0: (2 * x + plus).tolist(), "wrong-type", "a list of 2"),
        (lambda x, plus=0: (2 * x + plus).numpy(), "wrong-type", "NumPy array"),
        (
            lambda x, plus=0: (2 * x + plus).float(),
            "wrong-dtype",
            "float32; expected torch.float64",
        ),
        (lambda x, plus=0: (2 * x + plus)[:, :2], "wrong-shape", "(2, 2); expected (2, 3)"),
        (lambda x, plus=0: (2 * x + plus).T, "axes-in-another-order", "another order"),
        (lambda x, plus=0: (2 * x + plus)[None], "axis-of-one", "(1, 2, 3); expected (2, 3)"),
        (lambda x, plus=0: (2 * x + plus) * float("nan"), "not-a-number", "0/0"),
        (lambda x, plus=0: (2 * x + plus) * float("inf"), "not-a-number", "0/0"),
        (lambda x: 2 * x, "wrong-signature", "unexpected keyword argument 'plus'"),
        (lambda: 2, "wrong-signature", "too many positional arguments"),
        (torch.tensor(1.0), "not-a-function", "check_double(double)"),
    ],
)
def test_common_slips_have_their_own_diagnosis(candidate, diagnosis, words):
    failure = failure_of(candidate)
    assert failure.diagnosis == diagnosis
    assert words in str(failure)


def test_a_tiny_difference_is_shown_with_all_its_digits():
    message = str(failure_of(lambda x, plus=0: 2 * x * (1 + 2e-7) + plus))
    assert "2.0000004  4.0000008" in message
    assert "Is a part of it computed in float32?" in message
    assert "at [0, 1]: expected 2, got 2.0000004." in message


@pytest.mark.parametrize(
    ("candidate", "words"),
    [
        (lambda x, plus=0: 6 * x + 3 * plus, "Every value is 3 times the expected one."),
        (lambda x, plus=0: -2 * x - plus, "Every value is -1 times the expected one."),
        (lambda x, plus=0: 2 * x + plus - 0.5, "Every value is 0.5 too small."),
        (lambda x, plus=0: torch.zeros_like(x), "Every value is 0."),
        (lambda x, plus=0: 2 * x.flip(0) + plus, "stand in other places"),
        (lambda x, plus=0: 2 * x * (x < 4) + plus, "a return stand inside a loop?"),
        (lambda x, plus=0: 2 * x + plus + torch.rand(1), "Called again"),
    ],
)
def test_what_all_wrong_values_have_in_common_is_said(candidate, words):
    failure = failure_of(candidate)
    assert failure.diagnosis == "wrong-values"
    assert words in str(failure)


def test_a_mistake_that_raises_explains_a_candidate_that_raises_the_same():
    def check(candidate):
        return compare(
            candidate,
            signature="f(x, scales=(1, 2), plus=0)",
            reference=lambda x, **options: x.sum(),
            cases=[Case(torch.ones(2, 3), plus=7)],
            mistakes=[
                Mistake("wrong-view", "Two and three is not four.", lambda x, **_: x.view(4))
            ],
        )

    failure = failure_of(lambda x, scales=(1, 2), plus=0: x.view(4), check)
    assert failure.diagnosis == "wrong-view"
    assert "f(x, plus=7)" in str(failure)
    assert failure_of(lambda x, scales=(1, 2), plus=0: x.view(5), check).diagnosis == "raised-error"


def test_tensors_inside_lists_are_shown_by_their_shapes():
    def check(candidate):
        return compare(
            candidate,
            signature="total(parts, scale=1)",
            reference=lambda parts: sum(part.sum() for part in parts),
            cases=[Case([torch.ones(30), torch.ones(4, 5)])],
        )

    message = str(failure_of(lambda parts: parts[0].sum(), check))
    assert "total(parts)\n    parts  list of tensors of shapes (30,), (4, 5)" in message


def test_rounding_errors_pass():
    check_double(lambda x, plus=0: x / 3 * 6 + plus)


def test_an_exception_is_quoted_with_its_line_and_chained():
    def double(x, plus=0):
        return x.reshape(7) + plus

    failure = failure_of(double)
    assert failure.diagnosis == "raised-error"
    assert "return x.reshape(7) + plus" in str(failure)
    assert type(failure.__cause__).__name__ in str(failure)
    assert str(failure.__cause__) in str(failure)


def test_a_not_implemented_error_of_torch_is_not_taken_for_the_stub():
    failure = failure_of(lambda x, plus=0: torch.fft.fft(x.to(torch.float8_e4m3fn)))
    assert failure.diagnosis == "raised-error"


def test_changing_the_input_is_found_even_if_the_answer_is_right():
    def double(x, plus=0):
        x *= 2
        return x + plus

    failure = failure_of(double)
    assert failure.diagnosis == "changed-input"
    assert "x += 1" in str(failure)


def test_one_candidate_that_changes_its_input_does_not_spoil_the_next_case():
    shared = torch.ones(3, dtype=torch.float64)

    def check(candidate):
        return compare(
            candidate,
            signature="double(x)",
            reference=lambda x: 2 * x,
            cases=[Case(shared), Case(shared)],
        )

    assert "2 of 2 cases fail" in str(failure_of(lambda x: x.mul_(2), check))
    assert shared.sum() == 3


def test_a_tuple_is_compared_by_the_names_of_its_elements():
    def check(candidate):
        return compare(
            candidate,
            signature="both(x)",
            reference=lambda x: (x, -x),
            cases=[Case(torch.ones(2))],
            outputs=("first", "second"),
        )

    check(lambda x: [x, -x])
    assert "second differs first at [0]: expected -1, got 1" in str(
        failure_of(lambda x: (x, x), check)
    )
    assert "2: (first, second)" in str(failure_of(lambda x: (x,), check))
    assert "(first, second)" in str(failure_of(lambda x: x, check))


@pytest.mark.parametrize(
    ("expected", "same", "other", "diagnosis"),
    [
        (3, np.int64(3), 4, "wrong-values"),
        (3, torch.tensor(3), 3.0, "wrong-type"),
        (3, 3, True, "wrong-type"),
        (0.5, torch.tensor(0.5), 0.6, "wrong-values"),
        (0.5, np.float64(0.5), "0.5", "wrong-type"),
        (2.0, 2, float("nan"), "not-a-number"),
        ("cat", "cat", "dog", "wrong-values"),
        ({"a": 1}, {"a": 1}, {"a": 2}, "wrong-values"),
        ({"a": 1}, {"a": 1}, {"b": 1}, "wrong-keys"),
        (np.ones(2), np.ones(2), np.zeros(2), "wrong-values"),
        (torch.tensor([True]), torch.tensor([True]), torch.tensor([False]), "wrong-values"),
        (torch.tensor([2]), torch.tensor([2]), torch.tensor([3]), "wrong-values"),
        (float("inf"), float("inf"), 1.0, "wrong-values"),
        (None, None, 1, "wrong-type"),
    ],
)
def test_values_of_every_kind_are_compared(expected, same, other, diagnosis):
    def check(candidate):
        return compare(
            candidate, signature="f()", reference=lambda: expected, cases=[Case(), Case()]
        )

    check(lambda: same)
    assert failure_of(lambda: other, check).diagnosis == diagnosis


def test_a_class_can_be_checked_by_saying_how_it_is_used():
    class Counter:
        def __init__(self, start):
            self.count = start

        def step(self):
            self.count += 1

    class Stuck(Counter):
        def step(self):
            pass

    def check(candidate):
        return compare(
            candidate,
            signature="Counter(start)",
            reference=Counter,
            cases=[Case(0), Case(5)],
            mistakes=[Mistake("stuck", "step() must add one.", Stuck)],
            use=lambda counter, start: [(c := counter(start)).step(), c.count],
        )

    check(Counter)
    assert failure_of(Stuck, check).diagnosis == "stuck"


def test_a_failure_survives_pickling_so_that_parallel_tests_can_report_it():
    failure = pickle.loads(pickle.dumps(CheckFailed("no", "flipped-kernel")))
    assert (str(failure), failure.diagnosis) == ("no", "flipped-kernel")


def test_a_notebook_shows_the_message_and_no_frames_of_the_engine():
    shown = "\n".join(failure_of(lambda x, plus=0: x)._render_traceback_())
    assert "double is not right yet" in shown
    assert "Traceback" not in shown
    assert "checks/__init__.py" not in shown
