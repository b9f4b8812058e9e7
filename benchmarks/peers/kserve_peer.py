"""KServe's ModelServer around an ONNX file: ``python kserve_peer.py MODEL PORT``."""

import sys

import onnxruntime
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer

PATH = "/v2/models/model/infer"


class OnnxModel(Model):
    def load(self):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(sys.argv[1], options)
        self.feed = self.session.get_inputs()[0].name
        self.ready = True

    def predict(self, payload: InferRequest, headers=None, response_headers=None):
        (logits,) = self.session.run(None, {self.feed: payload.inputs[0].as_numpy()})
        output = InferOutput(name="logits", shape=list(logits.shape), datatype="FP32")
        output.set_data_from_numpy(logits, binary_data=False)
        return InferResponse(
            response_id=payload.id or "0", model_name=self.name, infer_outputs=[output]
        )


if __name__ == "__main__":
    model = OnnxModel("model")
    model.load()
    server = ModelServer(
        http_port=int(sys.argv[2]), enable_grpc=False, workers=1, access_log_format=None
    )
    server.start([model])
