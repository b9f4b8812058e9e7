"""What a training refuses: arguments that cannot work, and to go on with other settings."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from torch import nn

from shipyard.errors import CheckpointError, TrainingError

NO_BATCHES = (
    "The loader has no batches: there is nothing to train on. Check that its image set is not "
    "empty, that drop_last does not drop the only batch, and that it is no generator that was "
    "used up before."
)
# Constants of torch's schedulers; what changes from step to step is no part of the settings.
SCHEDULE_CONSTANTS = (
    "total_steps", "T_max", "T_0", "T_mult", "eta_min", "step_size", "gamma", "milestones",
    "total_iters", "start_factor", "end_factor", "power",
)  # fmt: skip


def check_counts(**counts: int | None) -> None:
    """Each is a whole number from 1, or left out."""
    for name, value in counts.items():
        if value is not None and (not isinstance(value, int) or value < 1):
            raise TrainingError(f"{name} is {value!r}; it must be a whole number from 1.")


def check_loader(loader: Any) -> None:
    """It can say how many batches it has, and has some."""
    if not hasattr(loader, "__len__"):
        raise TrainingError(
            f"The loader is a {type(loader).__name__} without len(); give a list of batches or a "
            "loader that can be iterated once for each epoch."
        )
    if len(loader) == 0:
        raise TrainingError(NO_BATCHES)


def check_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """It steps the parameters of this model and of no other."""
    own = {id(p) for p in model.parameters()}
    if not all(id(p) in own for group in optimizer.param_groups for p in group["params"]):
        raise TrainingError(
            "The optimizer holds parameters that are not the model's, so its steps would not "
            "train this model. Make it with the parameters of the model that you give to fit."
        )


def check_scheduler(scheduler: Any, steps: int) -> None:
    """It can be stepped after each batch, for as many ``steps`` as there will be."""
    if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
        raise TrainingError(
            "ReduceLROnPlateau needs a measurement at each step; fit steps the scheduler after "
            "each batch. Use a schedule over steps, such as OneCycleLR."
        )
    planned = getattr(scheduler, "total_steps", None)
    if planned is not None and planned < steps:
        raise TrainingError(
            f"The scheduler was made for {planned} steps, but the training has {steps}: epochs "
            f"times batches, or max_steps. Make it with total_steps={steps}."
        )


def model_settings(model: nn.Module) -> dict[str, str]:
    """Name → readable value of all that must be the same when a training is resumed."""
    settings = {"model": type(model).__name__}
    for name, module in model.named_modules():
        if not any(module.children()):
            settings[f"model.{name}"] = repr(module)
    for name, value in model.state_dict().items():
        settings[f"shape of {name}"] = str(tuple(value.shape))
    return settings


def optimizer_settings(optimizer: torch.optim.Optimizer, scheduler: Any) -> dict[str, str]:
    """As `model_settings`, for the optimizer with its scheduler."""
    settings = {"optimizer": type(optimizer).__name__}
    for name, value in optimizer.defaults.items():
        settings[f"optimizer.{name}"] = repr(value)
    settings["optimizer groups"] = str([len(group["params"]) for group in optimizer.param_groups])
    settings["scheduler"] = type(scheduler).__name__ if scheduler else "none"
    for name in SCHEDULE_CONSTANTS:
        if hasattr(scheduler, name):
            settings[f"scheduler.{name}"] = repr(getattr(scheduler, name))
    return settings


def loader_settings(loader: Any) -> dict[str, str]:
    """As `model_settings`, for the loader, as far as it tells."""
    settings = {"batches in an epoch": str(len(loader))}
    for name in ("image_set", "dataset"):
        if hasattr(loader, name):
            settings["images in an epoch"] = str(len(getattr(loader, name)))
    for name in ("batch_size", "shuffle", "seed", "drop_last"):
        if isinstance(getattr(loader, name, None), int):
            settings[f"loader.{name}"] = str(getattr(loader, name))
    return settings


def name_of(function: Any) -> str:
    """A function's name, with the keywords that a partial binds."""
    if isinstance(function, functools.partial):
        return f"{name_of(function.func)}({function.keywords or ''})"
    return getattr(function, "__qualname__", None) or repr(function)


def require_same(saved: dict[str, str], now: dict[str, str], path: str | Path) -> None:
    """Refuse to go on with another model, optimizer, scheduler, loader or setting."""
    names = [name for name in {**saved, **now} if saved.get(name) != now.get(name)]
    if names:
        lines = [
            f"  {name}: saved {saved.get(name, 'nothing')}, now {now.get(name, 'nothing')}"
            for name in names[:5]
        ]
        more = [f"  … and {len(names) - 5} more"] if len(names) > 5 else []
        raise CheckpointError(
            f"The checkpoint {path} belongs to another training:\n"
            + "\n".join(lines + more)
            + "\nCall fit with the saved settings to go on, or give another checkpoint file to "
            "begin again. The file is left as it is."
        )


def require_finite(model: nn.Module, step: int) -> None:
    """Refuse to replace a good checkpoint by one with broken weights."""
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not value.isfinite().all():
            raise TrainingError(
                f"{name} is not finite after step {step}: the last update broke the "
                "weights. No checkpoint was written over the one before. Try a smaller learning "
                "rate or clip_norm=1.0."
            )
