"""Every tensor on the device that was asked for: on a second device, or on a real GPU.

Tests marked ``gpu`` need an accelerator in their own process. On a machine without one, the last
test here starts them again in a process that knows the second device.
"""

import copy
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from shipyard import authoring, models, runtime

HERE = Path(__file__).parent
NETWORKS = [
    lambda: nn.Sequential(models.ResidualNet(), nn.LogSoftmax(1)),
    lambda: nn.Sequential(nn.Flatten(2), nn.LSTM(1024, 7, num_layers=2, bidirectional=True)),
    lambda: nn.Sequential(nn.Flatten(2), nn.GRU(1024, 7, batch_first=True)),
    lambda: nn.Sequential(nn.Flatten(2), nn.TransformerEncoderLayer(1024, 4, 8, dropout=0.0)),
    lambda: nn.Sequential(nn.ConvTranspose2d(3, 6, 3, groups=3), nn.GroupNorm(2, 6), nn.GELU()),
]


def step(model, images):
    """(output, parameters after one step of AdamW) on the device of ``images``."""
    model = copy.deepcopy(model).to(images.device)
    output = model(images)
    output = output[0] if isinstance(output, tuple) else output
    output.square().mean().backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    torch.optim.AdamW(model.parameters(), lr=0.01, eps=1e-3).step()
    return output, list(model.parameters())


@pytest.mark.gpu
@pytest.mark.parametrize("network", NETWORKS)
def test_a_training_step_gives_what_the_cpu_gives(network, accelerator):
    torch.manual_seed(0)
    model, images = network(), torch.randn(4, 3, 32, 32)
    expected = step(model, images)
    output, parameters = step(model, images.to(accelerator))
    assert output.device.type == accelerator.type
    torch.testing.assert_close(output.cpu(), expected[0], rtol=1e-3, atol=1e-3)
    for found, wanted in zip(parameters, expected[1], strict=True):
        torch.testing.assert_close(found.cpu(), wanted, rtol=1e-3, atol=1e-3)


def other_generator(here, there):
    return torch.randn(3, device=there.device, generator=torch.Generator())


MIXED = {
    "sum": lambda here, there: here + there,
    "the order does not matter": lambda here, there: there + here,
    "product": lambda here, there: here @ there.T,
    "a number there, a matrix here": lambda here, there: here + there.sum(),
    "list": lambda here, there: torch.cat([here, there]),
    "in place": lambda here, there: here.add_(there),
    "layer": lambda here, there: nn.Linear(4, 2).to(there.device)(here),
    "convolution": lambda here, there: nn.Conv2d(1, 1, 2).to(there.device)(here[None, None]),
    "LSTM": lambda here, there: nn.LSTM(4, 2).to(there.device)(here),
    "labels": lambda here, there: F.cross_entropy(there, torch.tensor([0, 1, 2])),
    "mask": lambda here, there: torch.where(there > 0, here, there),
    "index": lambda here, there: here[there[:, 0].long()],
    "embedding": lambda here, there: F.embedding(torch.tensor(1), there),
    "generator": lambda here, there: torch.randn(
        3, device=there.device, generator=torch.Generator()
    ),
    "to NumPy": lambda here, there: there.numpy(),
}


@pytest.mark.gpu
@pytest.mark.parametrize("mix", MIXED.values(), ids=MIXED)
def test_operands_on_two_devices_are_an_error_that_says_so(mix, accelerator):
    with pytest.raises((RuntimeError, TypeError), match=r"device"):
        mix(torch.ones(3, 4), torch.ones(3, 4, device=accelerator))


@pytest.mark.gpu
def test_what_a_gpu_takes_from_the_cpu_is_taken(accelerator):
    there = torch.arange(12.0, device=accelerator).view(3, 4)
    assert torch.equal((there * torch.tensor(2.0)).cpu(), torch.arange(12.0).view(3, 4) * 2)
    assert there[torch.tensor([0, 2])].tolist() == [[0, 1, 2, 3], [8, 9, 10, 11]]
    there[torch.tensor([1])] = 0.0
    there[there > 8] = torch.tensor(-1.0)
    assert there.tolist() == [[0, 1, 2, 3], [0, 0, 0, 0], [8, -1, -1, -1]]


@pytest.mark.gpu
@pytest.mark.parametrize("place", ["as saved", "cpu", "accelerator"])
def test_weights_are_saved_and_loaded(place, accelerator):
    model, file = nn.Linear(3, 2).to(accelerator), io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    where = {"as saved": None, "cpu": "cpu", "accelerator": accelerator}[place]
    weight = torch.load(file, map_location=where, weights_only=True)["weight"]
    assert weight.device.type == ("cpu" if place == "cpu" else accelerator.type)
    assert torch.equal(weight.cpu(), model.weight.cpu())


@pytest.mark.gpu
def test_the_device_has_its_own_stream_of_random_numbers(accelerator):
    def draw(generator=None):
        return torch.rand(5, device=accelerator, generator=generator).cpu()

    runtime.seed_everything(3)
    here, there = torch.rand(5), draw()
    runtime.seed_everything(3)
    assert torch.equal(draw(), there)
    assert torch.equal(torch.rand(5), here), "drawing there moved the stream here"
    generator = torch.Generator(device=accelerator).manual_seed(1)
    state = generator.get_state()
    first = draw(generator)
    generator.set_state(state)
    assert torch.equal(draw(generator), first)


@pytest.mark.gpu
def test_autocast_computes_products_in_bfloat16_and_losses_in_float32(accelerator):
    layer, x = nn.Linear(4, 2).to(accelerator), torch.ones(3, 4, device=accelerator)
    with torch.autocast(accelerator.type, torch.bfloat16):
        logits = layer(x)
        loss = F.cross_entropy(logits, torch.zeros(3, dtype=torch.long, device=accelerator))
    loss.backward()
    assert (logits.dtype, loss.dtype) == (torch.bfloat16, torch.float32)
    assert layer.weight.grad.dtype == torch.float32


@pytest.mark.gpu
def test_the_profiler_names_the_operators(accelerator):
    layer = nn.Conv2d(3, 4, 3).to(accelerator)
    x = torch.ones(1, 3, 8, 8, device=accelerator)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        layer(x)
    torch.accelerator.synchronize()
    assert "aten::conv2d" in {event.key for event in profile.key_averages()}


WRONG = {
    "weights there, data here": "torch.nn.Linear(3, 2).to(DEVICE)(torch.zeros(1, 3))",
    "a tensor made inside": "torch.zeros(1, 3, device=DEVICE) + torch.ones(3)",
    "plotted without .cpu()": "torch.zeros(3, device=DEVICE).numpy()",
}


@pytest.mark.slow
@pytest.mark.parametrize("mistake", WRONG.values(), ids=WRONG)
def test_a_notebook_with_a_tensor_on_the_wrong_device_fails(
    mistake, course, tmp_path, other_device
):
    path = course.lesson("01_wrong", "import torch", mistake)
    authoring.run_notebook(path, tmp_path / "on_cpu.ipynb", {"DEVICE": "cpu"})
    with pytest.raises(authoring.CellError, match="device") as error:
        authoring.run_notebook(path, tmp_path / "there.ipynb", {"DEVICE": other_device})
    assert mistake in str(error.value)


@pytest.mark.slow
@pytest.mark.skipif(torch.accelerator.is_available(), reason="they ran in this process")
def test_what_is_marked_gpu_passes_on_the_second_device(other_device):
    files = [path for path in HERE.glob("test_*.py") if "@pytest.mark.gpu" in path.read_text()]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "--numprocesses=0", *files],
        env={**os.environ, "DEVICE": other_device},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout, done.stdout
