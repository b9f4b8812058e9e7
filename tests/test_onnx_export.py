"""onnx_export: one checked file with its metadata, and a comparison that can fail."""

import io
import json
import logging
import warnings

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import nn

from shipyard import onnx_export, serving

CLASSES = ("cat", "dog", "ship", "truck")
MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.1)


class Network(nn.Module):
    """Batch norm, dropout and a reshape by batch size: what an export can get wrong."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(4)
        )
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(8 * 4 * 4, len(CLASSES))

    def forward(self, x):
        x = self.dropout(self.features(x))
        return self.head(x.reshape(x.shape[0], -1))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    network = Network()
    network.train()
    network(torch.randn(32, 3, 16, 16))  # moves the running statistics away from 0 and 1
    return network


@pytest.fixture(scope="module")
def path(model, tmp_path_factory):
    target = tmp_path_factory.mktemp("export") / "network.onnx"
    return onnx_export.export(
        model, target, torch.randn(1, 3, 16, 16), classes=CLASSES, mean=MEAN, std=STD
    )


def metadata(path):
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


def test_the_export_is_one_file_with_the_weights_inside(path):
    assert [file.name for file in path.parent.iterdir()] == ["network.onnx"]
    tensors = onnx.load(path, load_external_data=False).graph.initializer
    assert tensors
    assert all(tensor.data_location == onnx.TensorProto.DEFAULT for tensor in tensors)


@pytest.mark.parametrize("batch", [1, 2, 3, 17])
def test_every_batch_size_runs_though_the_example_had_one_image(model, path, batch):
    x = torch.randn(batch, 3, 16, 16)
    with torch.no_grad():
        expected = model.eval()(x)
    model.train()
    (got,) = onnxruntime.InferenceSession(path).run(None, {"images": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(got), expected, rtol=1e-4, atol=1e-5)


def test_the_metadata_say_how_to_use_the_model(path):
    found = metadata(path)
    assert json.loads(found["classes"]) == list(CLASSES)
    how = json.loads(found["preprocessing"])
    assert how["size"] == [16, 16]
    assert (how["layout"], how["color"]) == ("NCHW", "RGB")
    np.testing.assert_allclose(how["mean"], MEAN)
    np.testing.assert_allclose(how["std"], STD)
    assert how["scale"] == 1 / 255
    assert found["name"] == "network"
    assert found["shipyard_version"]


def test_the_file_holds_no_path_of_this_machine(path):
    assert b"site-packages" not in path.read_bytes()
    assert b".py" not in path.read_bytes()


def test_each_module_keeps_the_mode_it_was_in(tmp_path):
    network = Network()
    network.train()
    network.features[1].eval()
    before = [module.training for module in network.modules()]
    x = torch.randn(2, 3, 16, 16)
    file = onnx_export.export(
        network, tmp_path / "m.onnx", x, classes=CLASSES, mean=MEAN, std=STD, dynamic_batch=False
    )
    assert [module.training for module in network.modules()] == before
    report = onnx_export.parity_report(network, file, torch.randn(5, 3, 16, 16))
    assert [module.training for module in network.modules()] == before
    assert [(row.batch_size, row.images) for row in report.rows] == [(2, 4)]
    with pytest.raises(onnx_export.ExportError, match="batches of 2"):
        onnx_export.parity_report(network, file, x[:1])


def test_the_export_is_quiet_and_leaves_filters_and_loggers_alone(tmp_path, capfd):
    network, x = Network(), torch.randn(2, 3, 16, 16)
    filters = list(warnings.filters)
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        onnx_export.export(network, tmp_path / "m.onnx", x, classes=CLASSES, mean=MEAN, std=STD)
    assert [str(warning.message) for warning in caught] == []
    assert capfd.readouterr() == ("", "")
    assert warnings.filters == filters
    assert logger.level == level


def test_parity_is_close_for_the_same_model_and_prints_a_table(model, path):
    report = onnx_export.parity_report(model, path, torch.randn(15, 3, 16, 16))
    assert report.max_abs_difference < 1e-4
    assert report.max_rel_difference < 1e-4
    assert report.agreeing_labels == 1
    assert [row.batch_size for row in report.rows] == [1, 2, 7]
    assert {row.images for row in report.rows} == {15}
    assert len(str(report).splitlines()) == 5
    assert "equal labels" in str(report)


def test_parity_notices_another_model(path):
    torch.manual_seed(1)
    report = onnx_export.parity_report(Network(), path, torch.randn(40, 3, 16, 16))
    assert report.max_abs_difference > 0.01
    assert report.agreeing_labels < 1


class BranchesOnValues(nn.Module):
    def forward(self, x):
        return x.mean((2, 3)) if x.sum() > 0 else -x.mean((2, 3))


class FixesTheBatch(nn.Module):
    def forward(self, x):
        return x.mean((2, 3)).view(2, 3)


@pytest.mark.parametrize(
    ("network", "reason"),
    [(BranchesOnValues(), "a tensor's value"), (FixesTheBatch(), "batch size 2 only")],
)
def test_a_model_that_cannot_be_exported_gives_the_reason_and_keeps_the_old_file(
    network, reason, tmp_path
):
    old = tmp_path / "model.onnx"
    old.write_bytes(b"the old model")
    with pytest.raises(onnx_export.ExportError, match=reason) as caught:
        onnx_export.export(network, old, torch.randn(2, 3, 8, 8), classes="abc", mean=MEAN, std=STD)
    assert type(network).__name__ in str(caught.value)
    assert old.read_bytes() == b"the old model"
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"example": torch.zeros(3, 16, 16)}, "batch, 3, height, width"),
        ({"example": torch.zeros(1, 3, 16, 16, dtype=torch.uint8)}, "floating point"),
        ({"classes": CLASSES[:3]}, "one logit for each of 3 classes"),
        ({"classes": ()}, "class names"),
        ({"mean": (0.5,)}, "three numbers"),
        ({"std": (0.5, 0.0, 0.5)}, "std above 0"),
    ],
)
def test_arguments_that_do_not_fit_are_named(model, tmp_path, change, message):
    arguments = {
        "example": torch.zeros(1, 3, 16, 16),
        "classes": CLASSES,
        "mean": MEAN,
        "std": STD,
        **change,
    }
    with pytest.raises(onnx_export.ExportError, match=message):
        onnx_export.export(model, tmp_path / "m.onnx", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_parity_names_a_file_that_is_no_model_and_inputs_that_do_not_fit(model, path, tmp_path):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a model")
    with pytest.raises(onnx_export.ExportError, match="cannot load"):
        onnx_export.parity_report(model, broken, torch.zeros(1, 3, 16, 16))
    with pytest.raises(onnx_export.ExportError, match="do not fit"):
        onnx_export.parity_report(model, path, torch.zeros(1, 3, 20, 20))
    with pytest.raises(onnx_export.ExportError, match="Nothing to compare"):
        onnx_export.parity_report(model, path, torch.zeros(0, 3, 16, 16))


def test_the_server_reads_the_file_and_gives_the_probabilities_of_torch(model, path):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, "PNG")
    x = (torch.from_numpy(pixels) / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    with torch.no_grad():
        expected = model.eval()(x.permute(2, 0, 1)[None]).softmax(1)
    model.train()
    classifier = serving.load_model(path)
    got = classifier.predict(classifier.preprocess(png.getvalue())[np.newaxis])
    np.testing.assert_allclose(got, expected.numpy(), atol=1e-5)
    assert classifier.classes == CLASSES


@pytest.mark.parametrize("name", ["load", "load_model"])
def test_torch_writes_onnx_files_but_has_no_function_to_read_them(name):
    """A source article calls ``torch.onnx.load`` and ``torch.onnx.load_model``; neither exists."""
    assert not hasattr(torch.onnx, name)
    assert hasattr(onnx, name)


class Branches(nn.Module):
    """An If with a weight in one of its branches."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        return torch.cond(x.sum() > 0, lambda x: self.linear(x).relu(), lambda x: -x, (x,))


@pytest.fixture(scope="module")
def branches():
    shapes = ({0: torch.export.Dim("batch")},)
    with onnx_export.quiet_exporter():
        program = torch.onnx.export(
            Branches().eval(), (torch.ones(2, 4),), dynamic_shapes=shapes, verbose=False
        )
    return program.model_proto


def test_counts_go_into_branches_and_count_weights_alone(branches, path):
    found = onnx_export.count_operators(branches)
    assert (found["If"], found["Relu"], found["Neg"]) == (1, 1, 1)
    assert onnx_export.count_parameters(branches) >= 4 * 4 + 4  # and the numbers of the condition
    network = onnx.load(path)
    # the convolution has got the batch normalisation: its 8 · 3 · 3 · 3 weights and a bias
    assert onnx_export.count_parameters(network) == 8 * 27 + 8 + 128 * 4 + 4
    assert onnx_export.count_operators(network)["Conv"] == 1


def test_write_drops_notes_in_branches_too_and_leaves_the_model_alone(branches, tmp_path):
    before = branches.SerializeToString()
    assert b".py" in before
    path = onnx_export.write(branches, tmp_path / "new" / "m.onnx", {"made": "by a test"})
    assert b".py" not in path.read_bytes()
    assert branches.SerializeToString() == before
    assert metadata(path)["made"] == "by a test"
    assert metadata(path)["shipyard_version"]
    x = -np.ones((3, 4), np.float32)
    np.testing.assert_array_equal(onnxruntime.InferenceSession(path).run(None, {"x": x})[0], -x)


def test_write_refuses_a_graph_that_is_not_valid_and_keeps_the_old_file(branches, tmp_path):
    broken, old = onnx.ModelProto(), tmp_path / "m.onnx"
    broken.CopyFrom(branches)
    broken.graph.node[0].op_type = "NoSuchOperator"
    old.write_bytes(b"the old model")
    with pytest.raises(onnx_export.ExportError, match="not valid ONNX"):
        onnx_export.write(broken, old)
    assert old.read_bytes() == b"the old model"


def test_the_preprocessing_in_the_graph_is_that_of_the_server(model, path, tmp_path):
    """Bytes in a file with preprocessing inside, and the same bytes through `serving`."""
    wrapped = onnx_export.FromPixels(model, torch.tensor(MEAN), torch.tensor(STD)).eval()
    pixels = np.random.default_rng(1).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    shapes = ({0: torch.export.Dim("batch")},)
    with onnx_export.quiet_exporter():
        program = torch.onnx.export(
            wrapped, (torch.from_numpy(pixels[:2]),), input_names=["pixels"],
            dynamic_shapes=shapes, verbose=False,
        )  # fmt: skip
    file = onnx_export.write(program.model_proto, tmp_path / "m.onnx")
    (got,) = onnxruntime.InferenceSession(file).run(None, {"pixels": pixels})
    classifier = serving.load_model(path)
    images = np.stack([classifier.input.normalise(picture) for picture in pixels])
    np.testing.assert_allclose(got, classifier.predict(images), atol=1e-5)
    assert sum(1 for _ in wrapped.parameters()) == sum(1 for _ in model.parameters())
    model.train()
