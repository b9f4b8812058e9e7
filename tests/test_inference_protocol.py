"""The Open Inference Protocol: our bytes against the specification, and against its client."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from own_environment import python_with
from served_models import write_model
from shipyard import serving
from shipyard.serving import protocol

HEADER = "Inference-Header-Content-Length"
INFER = "/v2/models/colours/infer"


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model") / "colours.onnx")


@pytest.fixture(scope="module")
def classifier(path):
    return serving.load_model(path)


@pytest.fixture(scope="module")
def client(path):
    with (
        serving.serve_in_background(path) as running,
        httpx.Client(base_url=running.url, trust_env=False, timeout=30) as client,
    ):
        yield client


def question(rows, binary=False, **changes):
    """(body, headers) of a request, with ``changes`` to its one input."""
    tensor = {"name": "images", "shape": list(rows.shape), "datatype": "FP32"}
    raw = rows.astype("<f4").tobytes() if binary else b""
    extra = {"parameters": {"binary_data_size": len(raw)}} if binary else {"data": rows.tolist()}
    text = json.dumps({"inputs": [{**tensor, **extra, **changes}]}).encode()
    return text + raw, {HEADER: str(len(text))} if binary else {}


def answer_of(reply):
    """(metadata, rows) of an answer in either form."""
    assert reply.status_code == 200, reply.text
    if HEADER.lower() not in reply.headers:
        said = reply.json()
        (output,) = said["outputs"]
        return said, np.array(output["data"], np.float32).reshape(output["shape"])
    length = int(reply.headers[HEADER])
    said = json.loads(reply.content[:length])
    (output,) = said["outputs"]
    raw = reply.content[length:]
    assert output["parameters"]["binary_data_size"] == len(raw)
    return said, np.frombuffer(raw, "<f4").reshape(output["shape"])


FLOATS = st.floats(-(2.0**100), 2.0**100, width=32)


@settings(max_examples=60)
@given(arrays.arrays(np.float32, st.tuples(*map(st.just, (2, 3, 8, 8))), elements=FLOATS))
def test_the_numbers_arrive_as_they_were_sent_in_every_form(classifier, images):
    model = protocol.metadata(classifier)
    forms = [question(images), question(images, data=images.ravel().tolist()),
             question(images, binary=True)]  # fmt: skip
    for body, headers in forms:
        asked = protocol.read_request(body, headers.get(HEADER), model, 32)
        np.testing.assert_array_equal(asked.rows, images)
        assert asked.rows.dtype == np.float32


@pytest.mark.parametrize("binary_answer", [False, True])
@pytest.mark.parametrize("binary_question", [False, True])
def test_logits_equal_those_of_the_model_alone(client, classifier, binary_question, binary_answer):
    images = np.random.default_rng(0).normal(size=(5, 3, 8, 8)).astype(np.float32)
    body, headers = question(images, binary_question)
    if binary_answer:
        length = int(headers.get(HEADER, len(body)))
        wanted = {"id": "a-7", "outputs": [{"name": "logits", "parameters": {"binary_data": True}}]}
        text = json.dumps({**json.loads(body[:length]), **wanted}).encode()
        body, headers = text + body[length:], {HEADER: str(len(text))}
    said, rows = answer_of(client.post(INFER, content=body, headers=headers))
    assert (said["model_name"], said["model_version"]) == ("colours", "7")
    assert said.get("id") == ("a-7" if binary_answer else None)
    np.testing.assert_allclose(rows, classifier.logits(images), rtol=1e-5, atol=1e-6)


def test_server_and_model_describe_themselves(client):
    assert client.get("/v2").json()["extensions"] == ["binary_tensor_data"]
    for where in ("/v2/models/colours", "/v2/models/colours/versions/7"):
        model = client.get(where).json()
        assert (model["name"], model["versions"]) == ("colours", ["7"])
        assert model["inputs"] == [{"name": "images", "datatype": "FP32", "shape": [-1, 3, 8, 8]}]
        assert model["outputs"] == [{"name": "logits", "datatype": "FP32", "shape": [-1, 3]}]
        assert client.get(where + "/ready").json() == {"name": "colours", "ready": True}
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    for where in ("/v2/models/other", "/v2/models/colours/versions/8"):
        assert "the model here is 'colours'" in client.get(where).json()["error"]
        assert client.get(where + "/ready").status_code == 404
        assert client.post(where + "/infer", content=question(ONE)[0]).status_code == 404


ONE = np.zeros((1, 3, 8, 8), np.float32)
NOT_A_NUMBER = ONE.copy()
NOT_A_NUMBER[0, 2, 1, 0] = np.nan
FOUR = 4 * ONE.size
WRONG = {
    "no JSON": (b"Dear server", {}, "not JSON"),
    "an empty body": (b"", {}, "not JSON"),
    "no object": (b"[1, 2]", {}, "must be a JSON object"),
    "very deep": (b"[" * 100_000, {}, "not JSON"),
    "no inputs": (b"{}", {}, "a list of one tensor"),
    "two inputs": (b'{"inputs": [{}, {}]}', {}, "a list of one tensor"),
    "another name": (*question(ONE, name="image"), "name is 'image'"),
    "FP64": (*question(ONE, datatype="FP64"), "datatype is 'FP64'"),
    "a wrong rank": (*question(ONE[0]), r"shape is [3, 8, 8]; the model takes [rows, 3, 8, 8]"),
    "channels last": (*question(ONE.reshape(1, 8, 8, 3)), "shape is [1, 8, 8, 3]"),
    "a negative side": (*question(ONE, shape=[-1, 3, 8, 8]), "-1 rows"),
    "a side that is true": (*question(ONE, shape=[True, 3, 8, 8]), "shape is [True"),
    "no rows": (*question(ONE, shape=[0, 3, 8, 8], data=[]), "0 rows"),
    "a huge batch": (*question(ONE, shape=[10**9, 3, 8, 8]), "1000000000 rows; send 1 to 32"),
    "33 rows": (*question(np.zeros((33, 3, 8, 8))), "33 rows"),
    "too few numbers": (*question(ONE, data=[1.0, 2.0]), "data has 2 numbers"),
    "ragged lists": (*question(ONE, data=[[1.0], [2.0, 3.0]]), "no tensor"),
    "text": (*question(ONE, data=["1.0"] * ONE.size), "numbers alone"),
    "no data": (*question(ONE, data=None), "numbers alone"),
    "NaN in JSON": (*question(NOT_A_NUMBER), "not JSON"),
    "NaN in bytes": (*question(NOT_A_NUMBER, True), "images has nan at (0, 2, 1, 0)"),
    "Inf in bytes": (*question(ONE - np.inf, True), "images has -inf at (0, 0, 0, 0)"),
    "beyond FP32": (*question(ONE, data=[1e39] * ONE.size), "images has inf"),
    "a header too long": (question(ONE)[0], {HEADER: "99999"}, "99999"),
    "a header that is no number": (question(ONE)[0], {HEADER: "-1"}, "'-1'"),
    "bytes too few": (question(ONE, True)[0][:-1], question(ONE, True)[1], f"{FOUR - 1} bytes"),
    "bytes too many": (question(ONE, True)[0] + b"!", question(ONE, True)[1], f"{FOUR + 1} bytes"),
    "a wrong size": (*question(ONE, True, parameters={"binary_data_size": 4}), "size is 4"),
    "a size that is text": (*question(ONE, True, parameters={"binary_data_size": "8"}), "is '8'"),
    "bytes and data": (*question(ONE, True, data=[0]), "send one"),
    "bytes of no size": (*question(ONE, True, parameters={}), "no binary_data_size"),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_request_gets_400_and_is_told_why(client, wrong):
    body, headers, said = WRONG[wrong]
    reply = client.post(INFER, content=body, headers=headers)
    assert reply.status_code == 400, reply.text
    assert said in reply.json()["error"]
    assert reply.json()["send"] == "What GET /v2/models/colours describes."


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({"outputs": [{"name": "other"}]}, "output's name is 'other'"),
        ({"outputs": "logits"}, "outputs must be a list"),
        ({"outputs": [{"name": "logits", "parameters": {"classification": 2}}]}, "classification"),
        ({"parameters": {"binary_data_output": 1}}, "binary_data_output must be true or false"),
        ({"id": 5}, "id must be text"),
    ],
)
def test_a_wish_that_cannot_be_met_gets_400(client, extra, said):
    body = json.dumps({**json.loads(question(ONE)[0]), **extra})
    reply = client.post(INFER, content=body)
    assert (reply.status_code, said in reply.json()["error"]) == (400, True), reply.text


def test_a_compressed_body_is_refused(client):
    reply = client.post(INFER, content=b"x", headers={"Content-Encoding": "gzip"})
    assert reply.status_code == 415
    assert "gzip" in reply.json()["error"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
)
KEYS = ["name", "shape", "datatype", "data", "parameters"]


@settings(max_examples=150)
@given(st.sampled_from(KEYS), JSON, st.binary(max_size=40), st.none() | st.text(max_size=8))
def test_any_change_is_read_or_refused_and_never_fails_otherwise(
    classifier, key, value, noise, header_length
):
    model = protocol.metadata(classifier)
    body, _ = question(ONE, **{key: value})
    for data, length in ((body, None), (body + noise, header_length), (noise, None)):
        try:
            asked = protocol.read_request(data, length, model, 32)
        except serving.RequestError:
            continue
        assert asked.rows.shape == (math.prod(asked.rows.shape) // 192, 3, 8, 8)


TRITON = """
import sys
import numpy as np
import tritonclient.http as triton

address, wanted = sys.argv[1], np.load(sys.argv[2])
client = triton.InferenceServerClient(address)
assert client.is_server_live() and client.is_server_ready()
assert client.is_model_ready("colours") and client.is_model_ready("colours", "7")
assert not client.is_model_ready("other")
assert client.get_server_metadata()["name"] == "shipyard"
(feed,) = client.get_model_metadata("colours")["inputs"]
for binary_in in (False, True):
    for outputs in (None, [triton.InferRequestedOutput("logits", binary_data=False)],
                    [triton.InferRequestedOutput("logits", binary_data=True)]):
        images = triton.InferInput(feed["name"], wanted["images"].shape, feed["datatype"])
        images.set_data_from_numpy(wanted["images"], binary_data=binary_in)
        result = client.infer("colours", [images], outputs=outputs, request_id="7")
        np.testing.assert_allclose(result.as_numpy("logits"), wanted["logits"], rtol=1e-5)
        assert result.get_response()["id"] == "7"
pending = [client.async_infer("colours", [images]) for _ in range(50)]
for answer in pending:
    np.testing.assert_allclose(answer.get_result().as_numpy("logits"), wanted["logits"], rtol=1e-5)
images = triton.InferInput("images", [1, 3], "FP32")
images.set_data_from_numpy(np.zeros((1, 3), np.float32))
try:
    client.infer("colours", [images])
except triton.InferenceServerException as error:
    assert error.status() == "400" and "the model takes [rows, 3, 8, 8]" in error.message()
else:
    raise AssertionError("a wrong shape was taken")
print("tritonclient agrees")
"""


@pytest.mark.slow
def test_tritonclient_which_nobody_here_wrote_works_in_both_modes(client, classifier, tmp_path):
    python = python_with("tritonclient[http]==2.73.0")
    images = np.random.default_rng(0).normal(size=(5, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "wanted.npz", images=images, logits=classifier.logits(images))
    address = str(client.base_url).removeprefix("http://")
    done = subprocess.run(
        [python, "-c", TRITON, address, str(tmp_path / "wanted.npz")],
        capture_output=True, text=True, timeout=120, env=dict(os.environ, PYTHONPATH=""),
    )  # fmt: skip
    assert done.stdout.strip() == "tritonclient agrees", done.stderr
    assert sys.executable != python
