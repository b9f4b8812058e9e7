"""What `measure` says of networks whose cost is known."""

import time

import numpy as np
import pytest
import torch
from torch import nn

from shipyard.compression import measure
from shipyard.errors import CompressionError


def small():
    return nn.Sequential(
        nn.Conv2d(3, 5, kernel_size=3, padding=1),
        nn.BatchNorm2d(5),
        nn.Flatten(),
        nn.Linear(180, 2),
    )


def test_macs_and_bytes_are_those_of_the_formulas():
    model, images = small(), torch.randn(4, 3, 6, 6)
    assert measure.count_macs(model, images[:1]) == 36 * 5 * 27 + 180 * 2
    assert measure.count_macs(model, images) == 4 * (36 * 5 * 27 + 180 * 2)
    numbers = 5 * 27 + 5 + 4 * 5 + 180 * 2 + 2
    assert 4 * numbers < measure.file_size(model) < 4 * numbers + 6_000  # the frame of the file


def test_a_module_and_a_function_are_timed_alike_and_the_module_keeps_its_mode():
    model, images = small().train(), torch.randn(8, 3, 6, 6)
    statistics = model[1].running_mean.clone()
    slow = {"module": model, "sleeps": lambda x: time.sleep(0.004 * len(x))}
    costs = measure.measure_all(
        slow, images, batch_sizes=(1, 4), sizes={"sleeps": 7}, macs={"sleeps": 9}, seconds=0.02
    )
    assert model.training
    assert torch.equal(model[1].running_mean, statistics)
    assert (costs["sleeps"].size, costs["sleeps"].macs) == (7, 9)
    assert costs["module"].size == measure.file_size(model)
    latency = costs["sleeps"].latency
    assert latency[1].low <= latency[1].median <= latency[1].high
    assert latency[1].median >= 4
    assert latency[4].median >= 16
    assert costs["sleeps"].record()["latency"]["4"]["median"] == latency[4].median


def test_arrays_and_unknown_costs_are_welcome_and_a_short_batch_is_not():
    cost = measure.measure(np.sum, np.zeros((2, 3)), batch_sizes=(1, 2), seconds=0.0)
    assert (cost.size, cost.macs) == (None, None)
    assert set(cost.latency) == {1, 2}
    with pytest.raises(CompressionError, match="holds 2 examples"):
        measure.measure(np.sum, np.zeros((2, 3)))
