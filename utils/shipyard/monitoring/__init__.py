"""After a model went live: what it sees, how it does, and how it is replaced. No torch.

`drift` compares samples, `shifts` changes pictures as the world does, `metrics` counts for
Prometheus, `rollout` judges a new model, `slot` exchanges it under load, and `registry` keeps
every version in MLflow (the extra ``monitor``).
"""

from shipyard.errors import MonitoringError, RefusedModelError
from shipyard.monitoring.rollout import Canary, Gate, Shadow, canary_decision
from shipyard.monitoring.slot import ModelSlot

__all__ = [
    "Canary",
    "Gate",
    "ModelSlot",
    "MonitoringError",
    "RefusedModelError",
    "Shadow",
    "canary_decision",
]
