"""LitServe around an ONNX file: ``python litserve_peer.py MODEL PORT``."""

import sys

import litserve as ls
import numpy as np
import onnxruntime

PATH = "/infer"


class Api(ls.LitAPI):
    def setup(self, device):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(sys.argv[1], options)
        self.feed = self.session.get_inputs()[0].name

    def decode_request(self, request):
        (tensor,) = request["inputs"]
        return np.asarray(tensor["data"], np.float32).reshape(tensor["shape"])

    def batch(self, inputs):
        return np.concatenate(inputs)

    def predict(self, x):
        return self.session.run(None, {self.feed: x})[0]

    def unbatch(self, output):
        return np.split(output, len(output))

    def encode_response(self, output):
        data = {"name": "logits", "datatype": "FP32", "shape": output.shape}
        return {"outputs": [{**data, "data": output.ravel().tolist()}]}


if __name__ == "__main__":
    api = Api(max_batch_size=32, batch_timeout=0.0, api_path=PATH)
    server = ls.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(
        host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False, log_level="warning"
    )
