"""An ONNX image classifier behind HTTP: load, preprocess, predict, serve. No torch.

    PNG or JPEG bytes → decode → resize → normalise → ONNX Runtime → softmax → JSON

The model file says by itself how to use it: `shipyard.onnx_export` wrote the class names and
the preprocessing into its metadata. `pictures` makes numbers of bytes, `model` makes
probabilities of them, `app` answers requests, and `process` starts and stops the server.
"""

from shipyard.errors import ImageError, ModelError, ServingError
from shipyard.serving.app import MAX_BYTES, create_app
from shipyard.serving.model import Classifier, load_model, softmax
from shipyard.serving.pictures import InputSpec, decode, resize_and_crop
from shipyard.serving.process import RunningServer, serve, serve_in_background

__all__ = [
    "MAX_BYTES",
    "Classifier",
    "ImageError",
    "InputSpec",
    "ModelError",
    "RunningServer",
    "ServingError",
    "create_app",
    "decode",
    "load_model",
    "resize_and_crop",
    "serve",
    "serve_in_background",
    "softmax",
]
