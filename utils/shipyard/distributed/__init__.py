"""Training on many workers: by hand with send and receive, with torch, and started by torchrun."""

from shipyard.distributed.launching import (
    Launch,
    LaunchError,
    WorkerFailed,
    WorkerTimeout,
    launch,
)

__all__ = ["Launch", "LaunchError", "WorkerFailed", "WorkerTimeout", "launch"]
