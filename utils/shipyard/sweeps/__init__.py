"""Sweeps: one notebook over a grid of parameters, many trials side by side, through Dask.

`planning` makes trials of a grid, `trial` is what a worker runs, `running` starts the workers and
keeps what comes back, `report` makes tables and a figure of it. What is on disk when a sweep stops
is not run again.
"""

from shipyard.errors import SweepError
from shipyard.sweeps.planning import SETTINGS, Sweep, Trial, plan, split_values
from shipyard.sweeps.report import Setting, choose_metric, draw, failed, settings_of, write_report
from shipyard.sweeps.running import ATTEMPTS, Outcome, default_jobs, require_engine, run_sweep

__all__ = [
    "ATTEMPTS",
    "SETTINGS",
    "Outcome",
    "Setting",
    "Sweep",
    "SweepError",
    "Trial",
    "choose_metric",
    "default_jobs",
    "draw",
    "failed",
    "plan",
    "require_engine",
    "run_sweep",
    "settings_of",
    "split_values",
    "write_report",
]
