"""MLServer around an ONNX file: ``python mlserver_peer.py MODEL PORT``."""

import json
import os
import sys
import tempfile
from pathlib import Path

import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse

PATH = "/v2/models/model/infer"


class Runtime(MLModel):
    async def load(self) -> bool:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(os.environ["MODEL"], options)
        self.feed = self.session.get_inputs()[0].name
        return True

    async def predict(self, payload):
        x = NumpyCodec.decode_input(payload.inputs[0])
        (logits,) = self.session.run(None, {self.feed: x})
        outputs = [NumpyCodec.encode_output("logits", logits)]
        return InferenceResponse(model_name=self.name, outputs=outputs)


if __name__ == "__main__":
    model, port = sys.argv[1], int(sys.argv[2])
    server = {
        "host": "127.0.0.1", "http_port": port, "grpc_port": port + 1, "metrics_port": port + 2,
        "parallel_workers": 0, "metrics_endpoint": None,
    }  # fmt: skip
    runtime = {
        "name": "model", "implementation": "mlserver_peer.Runtime",
        "max_batch_size": 32, "max_batch_time": 0.001,
    }  # fmt: skip
    folder = Path(tempfile.mkdtemp())
    (folder / "settings.json").write_text(json.dumps(server))
    (folder / "model-settings.json").write_text(json.dumps(runtime))
    os.environ.update(MODEL=model, PYTHONPATH=str(Path(__file__).parent))
    program = str(Path(sys.executable).with_name("mlserver"))
    os.execv(program, [program, "start", str(folder)])
