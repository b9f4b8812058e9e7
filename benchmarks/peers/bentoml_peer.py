"""BentoML around an ONNX file: ``python bentoml_peer.py MODEL PORT``."""

import os
import sys
from pathlib import Path

import bentoml
import numpy as np
import onnxruntime

PATH = "/infer"


@bentoml.service(workers=1, traffic={"timeout": 10, "max_concurrency": 1000})
class Service:
    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(os.environ["MODEL"], options)
        self.feed = self.session.get_inputs()[0].name

    @bentoml.api(batchable=True, max_batch_size=32, max_latency_ms=50)
    def infer(self, images: np.ndarray) -> np.ndarray:
        return self.session.run(None, {self.feed: images.astype(np.float32)})[0]


if __name__ == "__main__":
    os.environ.update(MODEL=sys.argv[1], BENTOML_DO_NOT_TRACK="True")
    command = ["-m", "bentoml", "serve", "bentoml_peer:Service"]
    where = ["--host", "127.0.0.1", "--port", sys.argv[2]]
    folder = ["--working-dir", str(Path(__file__).parent)]
    os.execv(sys.executable, [sys.executable, *command, *where, *folder])
