"""training: the loop does what a plain loop does, and no interruption changes its result."""

import copy
import errno
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from tensorboard.backend.event_processing import event_accumulator
from torch import nn
from torch.nn import functional as F

import resume_worker
from shipyard import metrics, training
from shipyard.training import checkpoints


def small_loader(batches=6, batch_size=4, features=5, classes=3, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(batch_size, features, generator=generator, dtype=dtype),
            torch.randint(classes, (batch_size,), generator=generator),
        )
        for _ in range(batches)
    ]


def small_model(seed=0, dropout=0.5, dtype=torch.float32):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 3)
    ).to(dtype)


def sgd(model, lr=0.1):
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)


def fit(model, loader, optimizer=None, *, epochs=2, **options):
    optimizer = optimizer or sgd(model)
    return training.fit(model, loader, optimizer, epochs=epochs, progress=False, **options)


def assert_same_weights(model, other):
    states = [m if isinstance(m, dict) else m.state_dict() for m in (model, other)]
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


# --- The loop ---------------------------------------------------------------------------------


@pytest.mark.parametrize("clip_norm", [None, 0.05])
def test_fit_does_what_the_plain_loop_does(clip_norm):
    loader = small_loader(dtype=torch.float64)
    model = small_model(dropout=0.0, dtype=torch.float64)
    plain = copy.deepcopy(model)
    history = fit(model, loader, clip_norm=clip_norm)

    optimizer, losses = sgd(plain), []
    for _ in range(2):
        for x, y in loader:
            gradients = torch.autograd.grad(
                loss := F.cross_entropy(plain(x), y), list(plain.parameters())
            )
            norm = torch.stack([g.norm() for g in gradients]).norm()
            scale = 1.0 if clip_norm is None else min(1.0, clip_norm / norm)
            for parameter, gradient in zip(plain.parameters(), gradients, strict=True):
                parameter.grad = scale * gradient
            optimizer.step()
            losses.append(loss.item())
    for parameter, expected in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(parameter, expected, rtol=1e-4, atol=1e-6)
    assert history.losses == pytest.approx(losses, rel=1e-4)


def test_gradients_left_over_from_before_are_not_added():
    clean, soiled = small_model(dropout=0.0), small_model(dropout=0.0)
    for parameter in soiled.parameters():
        parameter.grad = torch.full_like(parameter, 1e3)
    fit(clean, small_loader())
    fit(soiled, small_loader())
    assert_same_weights(clean, soiled)


def test_gradients_of_one_batch_are_not_added_to_the_next():
    model = nn.Linear(1, 1, bias=False)
    seen = []

    class Recorder(torch.optim.SGD):
        def step(self, closure=None):
            seen.append(model.weight.grad.item())
            return super().step(closure)

    loader = [(torch.ones(1, 1), torch.zeros(1))] * 3
    fit(model, loader, Recorder(model.parameters(), lr=0.0), epochs=1,
        loss_fn=lambda y, _: y.sum())  # fmt: skip
    assert seen == [1.0, 1.0, 1.0]


def test_the_scheduler_steps_once_after_each_optimizer_step():
    model = small_model()
    optimizer = sgd(model, lr=1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns when the order is wrong
        history = fit(model, small_loader(batches=4), optimizer, epochs=1, scheduler=scheduler)
    assert history.learning_rates == [1.0, 0.5, 0.25, 0.125]
    assert scheduler.last_epoch == 4


def test_the_model_is_in_train_mode_for_each_step_even_if_evaluate_changes_it():
    modes = []

    class Spy(nn.Linear):
        def forward(self, x):
            modes.append(self.training)
            return super().forward(x)

    model = Spy(5, 3).eval()
    fit(model, small_loader(batches=2), evaluate=lambda m: m.eval() and {})
    assert modes == [True] * 4
    assert model.training


def test_the_row_of_an_epoch_holds_the_exact_mean_loss_and_the_evaluation():
    loader = [*small_loader(batches=2, batch_size=4), *small_loader(batches=1, batch_size=1)]
    model = nn.Linear(5, 3)
    history = fit(
        model, loader, epochs=2, evaluate=lambda m: metrics.evaluate(m, loader)
    )  # fmt: skip
    sizes = [4, 4, 1]
    for epoch, row in enumerate(history.rows):
        losses = history.losses[3 * epoch : 3 * epoch + 3]
        expected = sum(n * loss for n, loss in zip(sizes, losses, strict=True)) / 9
        assert row["train_loss"] == pytest.approx(expected)
        assert (row["epoch"], row["step"]) == (epoch + 1, 3 * epoch + 3)
    final = metrics.evaluate(model, loader)
    assert history.rows[-1]["val_accuracy"] == final.accuracy
    assert history.rows[-1]["val_loss"] == pytest.approx(final.loss)


def test_evaluate_may_return_any_dict_of_numbers():
    history = fit(small_model(), small_loader(), evaluate=lambda m: {"error": torch.tensor(0.25)})
    assert [row["error"] for row in history.rows] == [0.25, 0.25]
    with pytest.raises(training.TrainingError, match="evaluate returned str"):
        fit(small_model(), small_loader(), evaluate=lambda m: "good")


@pytest.mark.parametrize(("max_steps", "rows"), [(4, 0), (6, 1), (9, 1)])
def test_max_steps_stops_inside_an_epoch_and_makes_no_row_of_a_part(max_steps, rows):
    history = fit(small_model(), small_loader(batches=6), epochs=3, max_steps=max_steps)
    assert len(history.losses) == max_steps
    assert len(history.rows) == rows


def test_progress_shows_loss_and_speed_and_can_be_silent(capsys):
    model = small_model()
    training.fit(model, small_loader(), sgd(model), epochs=2)
    shown = capsys.readouterr()
    assert "epoch 2/2 · train_loss" in shown.out
    assert "images/s" in shown.out
    assert "loss" in shown.err
    fit(small_model(), small_loader())
    silent = capsys.readouterr()
    assert silent.out == silent.err == ""


def test_set_epoch_is_called_on_the_loader_or_on_its_sampler():
    class Counting(list):
        def __init__(self, *args):
            super().__init__(*args)
            self.epochs = []

        def set_epoch(self, n):
            self.epochs.append(n)

    loader = Counting(small_loader())
    fit(small_model(), loader, epochs=3)
    assert loader.epochs == [0, 1, 2]
    loader, sampler = Counting(small_loader()), Counting()
    loader.sampler = sampler
    fit(small_model(), loader, epochs=2)
    assert sampler.epochs == [0, 1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_computes_in_the_given_type_and_keeps_float32_weights(dtype):
    seen = []

    def loss_fn(logits, labels):
        seen.append(logits.dtype)
        return F.cross_entropy(logits.float(), labels)

    model = nn.Linear(5, 3)
    before = model.weight.detach().clone()
    history = fit(model, small_loader(), loss_fn=loss_fn, autocast=dtype)
    assert set(seen) == {dtype}
    assert model.weight.dtype == torch.float32
    assert not torch.equal(model.weight, before)
    assert history.losses[-1] < 10


# --- What is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs is 0"),
        ({"max_steps": -1}, "max_steps is -1"),
        ({"checkpoint_every": 2.5}, "checkpoint_every is 2.5"),
    ],
)
def test_a_wrong_count_is_refused_before_the_first_step(options, message):
    with pytest.raises(training.TrainingError, match=message):
        fit(small_model(), small_loader(), **options)


def test_a_loader_without_batches_is_refused_with_a_reason():
    with pytest.raises(training.TrainingError, match="no batches"):
        fit(small_model(), [])


def test_a_loader_that_is_used_up_after_one_epoch_is_refused_with_a_reason():
    class OneShot:
        def __init__(self, batches):
            self.batches_left = iter(batches)

        def __len__(self):
            return 6

        def __iter__(self):
            return self.batches_left

    with pytest.raises(training.TrainingError, match="no batches"):
        fit(small_model(), OneShot(small_loader()))
    with pytest.raises(training.TrainingError, match="without len"):
        fit(small_model(), iter(small_loader()))


def test_an_optimizer_of_another_model_is_refused():
    with pytest.raises(training.TrainingError, match="not the model's"):
        fit(small_model(), small_loader(), sgd(small_model()))


def test_a_schedule_that_is_too_short_is_refused_before_the_first_step():
    model = small_model()
    optimizer = sgd(model)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=11)
    with pytest.raises(training.TrainingError, match="total_steps=12"):
        fit(model, small_loader(), optimizer, scheduler=scheduler)


def test_a_loss_that_is_not_finite_stops_before_the_step(tmp_path):
    loader = small_loader()
    loader[4] = (torch.full((4, 5), float("nan")), loader[4][1])
    model = nn.Linear(5, 3)
    checkpoint = tmp_path / "run.pt"
    with pytest.raises(training.TrainingError, match=r"The loss is nan at step 5 \(epoch 1\)"):
        fit(model, loader, checkpoint=checkpoint, checkpoint_every=2)
    assert all(value.isfinite().all() for value in model.state_dict().values())
    assert training.load_checkpoint(checkpoint)["position"]["step"] == 4


def test_weights_that_are_not_finite_never_replace_a_good_checkpoint(tmp_path):
    class Breaking(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            self.count = getattr(self, "count", 0) + 1
            if self.count == 4:
                self.param_groups[0]["params"][0].data.fill_(float("inf"))

    model, checkpoint = nn.Linear(5, 3), tmp_path / "run.pt"
    with pytest.raises(training.TrainingError, match="weight is not finite after step 4"):
        fit(model, small_loader(), Breaking(model.parameters(), lr=0.1), checkpoint=checkpoint,
            checkpoint_every=2)  # fmt: skip
    assert training.load_checkpoint(checkpoint)["position"]["step"] == 2


# --- Checkpoints ------------------------------------------------------------------------------


def test_a_checkpoint_holds_what_a_resume_needs_and_loads_without_running_code(tmp_path):
    model = small_model()
    optimizer = sgd(model)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 5])
    checkpoint = tmp_path / "new folder" / "run.pt"
    fit(model, small_loader(), optimizer, scheduler=scheduler, checkpoint=checkpoint, max_steps=8)
    state = torch.load(checkpoint, weights_only=True)
    assert state["position"]["epoch"] == 1
    assert state["position"]["batch"] == 2
    assert state["position"]["step"] == 8
    assert state["model"].keys() == model.state_dict().keys()
    assert {"optimizer", "scheduler", "history", "random", "settings"} <= state.keys()


class Crash(BaseException):
    """The power goes off."""


def crash(*args, **kwargs):
    raise Crash


def half_a_save(state, file):
    file.write(b"PK\x03\x04 half a checkpoint")
    raise Crash


@pytest.mark.parametrize(
    ("target", "name", "action"),
    [
        (torch, "save", half_a_save),
        (os, "fsync", crash),
        (checkpoints, "_keep_previous", crash),
        (os, "replace", crash),
    ],
    ids=["half written", "before fsync", "before the old one is kept", "before the rename"],
)
def test_a_crash_while_a_checkpoint_is_written_leaves_the_old_one(
    tmp_path, monkeypatch, target, name, action
):
    path = tmp_path / "run.pt"
    training.save_checkpoint(path, {"value": 1})
    with monkeypatch.context() as patch:
        patch.setattr(target, name, action)
        with pytest.raises(Crash):
            training.save_checkpoint(path, {"value": 2})
    assert training.load_checkpoint(path)["value"] == 1
    training.save_checkpoint(path, {"value": 3})  # and the next save is not in its way
    assert training.load_checkpoint(path)["value"] == 3
    assert training.load_checkpoint(training.previous_of(path))["value"] == 1


def test_the_replaced_checkpoint_is_kept_as_previous(tmp_path):
    path = tmp_path / "run.pt"
    for value in (1, 2, 3):
        training.save_checkpoint(path, {"value": value})
    assert training.load_checkpoint(path)["value"] == 3
    assert training.load_checkpoint(training.previous_of(path))["value"] == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run.pt", "run.pt.previous"]


def test_previous_is_kept_on_a_file_system_without_hard_links(tmp_path, monkeypatch):
    def refuse(*args):
        raise OSError("no hard links here")

    monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "run.pt"
    for value in (1, 2):
        training.save_checkpoint(path, {"value": value})
    assert training.load_checkpoint(training.previous_of(path))["value"] == 1


def test_a_full_disk_is_reported_and_leaves_the_old_checkpoint_alone(tmp_path, monkeypatch):
    def half_a_save(state, file):
        file.write(b"PK\x03\x04 half a checkpoint")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "run.pt"
    training.save_checkpoint(path, {"value": 1})
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", half_a_save)
        with pytest.raises(training.CheckpointError, match=r"No space left.* there is kept"):
            training.save_checkpoint(path, {"value": 2})
    assert training.load_checkpoint(path)["value"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["run.pt"]


def test_a_place_that_cannot_be_written_is_refused_before_the_first_step(tmp_path):
    (tmp_path / "file").touch()
    model = small_model()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(training.CheckpointError, match=r"could not be written.*Give a file"):
        fit(model, small_loader(), checkpoint=tmp_path / "file" / "run.pt")
    assert_same_weights(model, before)


def test_a_symbolic_link_to_a_checkpoint_stays_one(tmp_path):
    (tmp_path / "disk").mkdir()
    link = tmp_path / "run.pt"
    link.symlink_to(tmp_path / "disk" / "run.pt")
    for value in (1, 2):
        training.save_checkpoint(link, {"value": value})
    assert link.is_symlink()
    assert training.load_checkpoint(link)["value"] == 2
    assert training.load_checkpoint(training.previous_of(link))["value"] == 1
    assert sorted(p.name for p in (tmp_path / "disk").iterdir()) == ["run.pt", "run.pt.previous"]


def without(name):
    return lambda state: state.pop(name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("optimizer"), "of its parts it lacks optimizer"),
        (lambda state: state.update(more=1), "of its parts it has more too many"),
        (lambda state: state["model"].pop("0.bias"), "tensors of the model it lacks 0.bias"),
        (lambda state: state["model"].update(x=1), "tensors of the model it has x too many"),
        (lambda state: state.update(random={}), "cannot be used: KeyError"),
        (lambda state: state["random"].update(cpu=torch.zeros(0).byte()), "cannot be used"),
        (lambda state: state["position"].update(x=1), "cannot be used: TypeError"),
    ],
)
def test_a_checkpoint_that_lacks_what_a_resume_needs_is_refused(tmp_path, change, message):
    path = tmp_path / "run.pt"
    fit(small_model(), small_loader(), checkpoint=path, max_steps=5)
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)
    content = path.read_bytes()
    with pytest.raises(training.CheckpointError, match=message):
        fit(small_model(), small_loader(), checkpoint=path)
    assert path.read_bytes() == content


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_one_bit(path):
    content = bytearray(path.read_bytes())
    content[content.index(b"\x77" * 64) + 7] ^= 4  # inside the tensor of the test
    path.write_bytes(content)


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [truncate, flip_one_bit, empty])
def test_a_damaged_checkpoint_is_named_left_alone_and_the_previous_one_offered(tmp_path, damage):
    path = tmp_path / "run.pt"
    state = {"tensor": torch.full((4096,), 0x77, dtype=torch.uint8)}
    training.save_checkpoint(path, state)
    training.save_checkpoint(path, state)
    damage(path)
    content = path.read_bytes()
    with pytest.raises(training.CheckpointError) as error:
        training.load_checkpoint(path)
    assert str(path) in str(error.value)
    assert "run.pt.previous" in str(error.value)
    assert path.read_bytes() == content


def test_fit_never_falls_back_to_the_previous_checkpoint_by_itself(tmp_path):
    path = tmp_path / "run.pt"
    fit(small_model(), small_loader(), checkpoint=path, checkpoint_every=2, max_steps=5)
    truncate(path)
    with pytest.raises(training.CheckpointError, match="cannot be read"):
        fit(small_model(), small_loader(), checkpoint=path, checkpoint_every=2)
    path.write_bytes(training.previous_of(path).read_bytes())  # what the message advises
    history = fit(small_model(), small_loader(), checkpoint=path, checkpoint_every=2)
    assert len(history.losses) == 12


def test_a_file_that_is_no_checkpoint_of_ours_is_refused(tmp_path):
    path = tmp_path / "run.pt"
    torch.save({"model": {}}, path)
    with pytest.raises(training.CheckpointError, match="not a checkpoint"):
        training.load_checkpoint(path)
    with pytest.raises(training.CheckpointError, match="no checkpoint at"):
        training.load_checkpoint(tmp_path / "missing.pt")


def test_a_value_that_could_not_be_read_back_is_refused_when_it_is_saved(tmp_path):
    with pytest.raises(training.CheckpointError, match=r"state\['a'\]\[1\] is a Path|PosixPath"):
        training.save_checkpoint(tmp_path / "run.pt", {"a": [1, Path("x")]})
    assert not (tmp_path / "run.pt").exists()


def test_a_second_training_on_the_same_checkpoint_is_refused(tmp_path):
    path = tmp_path / "run.pt"
    with (
        FileLock(f"{path}.lock"),
        pytest.raises(training.CheckpointError, match="Another training is using"),
    ):
        fit(small_model(), small_loader(), checkpoint=path)


# --- TensorBoard ------------------------------------------------------------------------------


def scalars_of(folder):
    """Scalar name → [(step, value), …], read back by TensorBoard itself, nothing left out."""
    events = event_accumulator.EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    names = events.Tags()["scalars"]
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in names}


def evaluated_history(epochs):
    model = small_model()
    return fit(
        model, small_loader(), epochs=epochs,
        evaluate=lambda model: {"val_loss": 0.25, "val_accuracy": 0.5},
    )  # fmt: skip


def test_tensorboard_reads_every_number_back_from_the_event_file(tmp_path):
    history = evaluated_history(epochs=2)
    file = training.write_tensorboard(history, tmp_path / "new" / "run")
    assert file.is_file()
    assert file.parent == tmp_path / "new" / "run"
    found = scalars_of(file.parent)
    steps = range(1, 13)
    assert found["step/loss"] == list(zip(steps, map(pytest.approx, history.losses), strict=True))
    assert [value for _, value in found["step/learning_rate"]] == pytest.approx([0.1] * 12)
    assert found["epoch/val_loss"] == [(6, 0.25), (12, 0.25)]
    assert found["epoch/val_accuracy"] == [(6, 0.5), (12, 0.5)]
    assert [value for _, value in found["epoch/train_loss"]] == pytest.approx(
        [row["train_loss"] for row in history.rows]
    )
    assert set(found) == {"step/loss", "step/learning_rate"} | {
        f"epoch/{name}"
        for name in ("train_loss", "val_loss", "val_accuracy", "seconds", "images_per_second")
    }


def test_a_second_training_in_the_same_folder_replaces_the_first_and_nothing_else(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    training.write_tensorboard(evaluated_history(epochs=3), tmp_path)
    training.write_tensorboard(evaluated_history(epochs=1), tmp_path)
    assert len(scalars_of(tmp_path)["step/loss"]) == 6
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_history_without_a_step_is_refused_before_a_folder_is_made(tmp_path):
    with pytest.raises(training.TrainingError, match="at least one step"):
        training.write_tensorboard(training.History(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


# --- Resume -----------------------------------------------------------------------------------


class FromTorch:
    """torch's own loader, whose order comes from torch's global random state."""

    def __init__(self):
        x = torch.cat([x for x, _ in small_loader()])
        y = torch.cat([y for _, y in small_loader()])
        self.loader = torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(x, y), batch_size=4, shuffle=True
        )

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        for x, y in self.loader:
            yield x + 0.1 * torch.randn(x.shape), y  # augmentation with the global state too


OPTIMIZERS = {
    "sgd": sgd,
    "adamw": lambda model: torch.optim.AdamW(model.parameters(), lr=1e-2),
    "adagrad": lambda model: torch.optim.Adagrad(model.parameters(), lr=1e-2),
}


@pytest.mark.parametrize("make_optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("stop", [1, 5, 6, 7, 17])
def test_a_stop_at_any_step_and_a_resume_end_at_the_same_weights(tmp_path, make_optimizer, stop):
    def train(**options):
        model = small_model()
        optimizer = make_optimizer(model)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=18)
        history = fit(model, FromTorch(), optimizer, epochs=3, scheduler=scheduler, **options)
        return model, history

    whole, whole_history = train()
    train(checkpoint=tmp_path / "run.pt", max_steps=stop)
    torch.manual_seed(1234)  # a new process starts with another random state
    resumed, history = train(checkpoint=tmp_path / "run.pt")
    assert_same_weights(whole, resumed)
    assert history.losses == whole_history.losses
    assert history.learning_rates == whole_history.learning_rates
    assert [row["train_loss"] for row in history.rows] == [
        row["train_loss"] for row in whole_history.rows
    ]


def test_a_resume_with_the_objects_of_the_stopped_training_works_too(tmp_path):
    whole = small_model()
    fit(whole, small_loader())
    model = small_model()
    optimizer = sgd(model)
    fit(model, small_loader(), optimizer, checkpoint=tmp_path / "run.pt", max_steps=7)
    fit(model, small_loader(), optimizer, checkpoint=tmp_path / "run.pt")
    assert_same_weights(whole, model)


def test_a_finished_training_is_not_trained_again_and_can_be_prolonged(tmp_path):
    path = tmp_path / "run.pt"
    fit(small_model(), small_loader(), epochs=1, checkpoint=path)
    again = small_model(seed=5)
    history = fit(again, small_loader(), epochs=1, checkpoint=path)
    assert len(history.losses) == 6
    assert_same_weights(training.load_checkpoint(path)["model"], again)
    longer = small_model()
    assert len(fit(longer, small_loader(), epochs=3, checkpoint=path).losses) == 18
    whole = small_model()
    fit(whole, small_loader(), epochs=3)
    assert_same_weights(whole, longer)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: (small_model(dropout=0.1), small_loader(), sgd), "p=0.5, inplace=False"),
        (lambda: (nn.Linear(5, 3), small_loader(), sgd), "model: saved Sequential, now Linear"),
        (lambda: (small_model(), small_loader(batches=7), sgd), "batches in an epoch: saved 6"),
        (
            lambda: (small_model(), small_loader(), lambda m: sgd(m, lr=0.2)),
            r"optimizer.lr: saved 0.1, now 0.2",
        ),
        (
            lambda: (small_model(), small_loader(), OPTIMIZERS["adamw"]),
            "optimizer: saved SGD, now AdamW",
        ),
    ],
    ids=["dropout", "network", "loader", "learning rate", "optimizer"],
)
def test_a_resume_with_other_settings_is_refused_and_says_which(tmp_path, change, message):
    path = tmp_path / "run.pt"
    fit(small_model(), small_loader(), checkpoint=path, max_steps=4)
    content = path.read_bytes()
    model, loader, make_optimizer = change()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(training.CheckpointError, match="belongs to another training") as error:
        fit(model, loader, make_optimizer(model), checkpoint=path)
    assert error.match(message)
    assert path.read_bytes() == content
    assert_same_weights(before, model)


class Interrupting(list):
    """Batches, with a Ctrl-C before batch number ``at``, counted over all epochs."""

    def __init__(self, batches, at):
        super().__init__(batches)
        self.at, self.count = at, 0

    def __iter__(self):
        for batch in super().__iter__():
            if self.count == self.at:
                signal.raise_signal(signal.SIGINT)
            self.count += 1
            yield batch


@pytest.mark.parametrize("at", [0, 3, 5, 11], ids="before the {}th batch".format)
def test_ctrl_c_finishes_the_step_saves_and_says_how_to_go_on(tmp_path, at):
    path = tmp_path / "run.pt"
    handler = signal.getsignal(signal.SIGINT)
    step = at + 1
    with pytest.raises(KeyboardInterrupt, match=rf"after step {step} of 12.*call fit again"):
        fit(small_model(), Interrupting(small_loader(), at), checkpoint=path)
    assert signal.getsignal(signal.SIGINT) is handler
    assert training.load_checkpoint(path)["position"]["step"] == step
    resumed = small_model()
    history = fit(resumed, small_loader(), checkpoint=path)
    whole = small_model()
    fit(whole, small_loader())
    assert_same_weights(whole, resumed)
    assert [row["step"] for row in history.rows] == [6, 12]


def test_a_second_ctrl_c_stops_at_once_without_saving(tmp_path):
    def impatient(logits, labels):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("not reached")

    path = tmp_path / "run.pt"
    with pytest.raises(KeyboardInterrupt, match="Stopped at once"):
        fit(small_model(), small_loader(), checkpoint=path, loss_fn=impatient)
    assert not path.exists()


def start_worker(checkpoint, result):
    return subprocess.Popen(
        [sys.executable, resume_worker.__file__, str(checkpoint), str(result)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def kill_when_saved(worker, checkpoint, step, seconds=120):
    """SIGKILL ``worker`` as soon as its checkpoint holds ``step``; returns where it stood."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert worker.poll() is None, "the worker ended before it could be killed"
        if checkpoint.exists():
            position = training.load_checkpoint(checkpoint)["position"]
            if position["step"] >= step:
                worker.kill()
                worker.wait()
                return training.load_checkpoint(checkpoint)["position"]
        time.sleep(0.002)
    worker.kill()
    raise AssertionError(f"no checkpoint at step {step} within {seconds} s")


@pytest.mark.slow
def test_a_training_killed_inside_an_epoch_ends_at_the_same_weights(tmp_path):
    checkpoint, result = tmp_path / "run.pt", tmp_path / "result.pt"
    position = kill_when_saved(start_worker(checkpoint, result), checkpoint, step=65)
    assert position["batch"] > 0, "killed between two epochs: this test would prove nothing"
    assert position["step"] < 118
    assert not result.exists()
    assert start_worker(checkpoint, result).wait(120) == 0
    threads = torch.get_num_threads()
    try:
        whole = resume_worker.train(checkpoint=None)
    finally:
        torch.set_num_threads(threads)
    resumed = torch.load(result, weights_only=True)
    assert_same_weights(whole["weights"], resumed["weights"])
    assert resumed["losses"] == whole["losses"]
    assert len(whole["losses"]) == 118


@pytest.mark.gpu
def test_a_resume_on_a_gpu_ends_at_the_same_weights(tmp_path, accelerator):
    whole = small_model()
    fit(whole, FromTorch(), device=accelerator)
    fit(small_model(), FromTorch(), device=accelerator, checkpoint=tmp_path / "run.pt", max_steps=7)
    resumed = small_model()
    fit(resumed, FromTorch(), device=accelerator, checkpoint=tmp_path / "run.pt")
    assert_same_weights(whole, resumed)
    assert {p.device.type for p in resumed.parameters()} == {accelerator.type}
