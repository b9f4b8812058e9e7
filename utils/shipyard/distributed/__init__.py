"""Training on many workers: by hand with send and receive, with torch, and started by torchrun.

``launching`` starts the workers, ``workers`` holds what they run; the methods themselves are in
``collectives``, ``data_parallel``, ``model_parallel``, ``sharding`` and ``asynchronous``, and
``cost`` is the model of what they cost.
"""

from shipyard.distributed.launching import (
    Launch,
    WorkerFailed,
    WorkerTimeout,
    launch,
)
from shipyard.errors import LaunchError

__all__ = ["Launch", "LaunchError", "WorkerFailed", "WorkerTimeout", "launch"]
