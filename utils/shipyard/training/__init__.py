"""The training loop, with checkpoints from which an interrupted run goes on bit for bit.

The loop knows a model, a loader and an optimizer, and nothing about what they are. `fit` is the
call; `session` holds the loop behind it, `settings` what a training refuses, `checkpoints` the
files, and `history` what happened.
"""

from shipyard.errors import CheckpointError, TrainingError
from shipyard.training.checkpoints import (
    load_checkpoint,
    previous_of,
    require_keys,
    save_checkpoint,
)
from shipyard.training.history import History, write_tensorboard
from shipyard.training.session import Session, fit

__all__ = [
    "CheckpointError",
    "History",
    "Session",
    "TrainingError",
    "fit",
    "load_checkpoint",
    "previous_of",
    "require_keys",
    "save_checkpoint",
    "write_tensorboard",
]
