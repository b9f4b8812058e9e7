"""An ONNX image classifier behind HTTP: load, preprocess, predict, serve. No torch.

    PNG or JPEG bytes → decode → resize → normalise → ONNX Runtime → softmax → JSON

The model file says by itself how to use it: `shipyard.onnx_export` wrote the class names and
the preprocessing into its metadata. `pictures` makes numbers of bytes, `model` makes
probabilities of them, `batching` sends those that wait through the model together, `protocol`
speaks the Open Inference Protocol, `app` answers requests within its `limits` or `refusals` says
why not, `envelope` gives each its id and its line in the `logs`, and `process` starts and stops
the server.
"""

from shipyard.errors import ImageError, ModelError, RequestError, ServingError
from shipyard.serving.app import create_app
from shipyard.serving.batching import MicroBatcher, QueueFull
from shipyard.serving.limits import MAX_BYTES, Limits
from shipyard.serving.model import Classifier, load_model, softmax
from shipyard.serving.pictures import InputSpec, decode, resize_and_crop
from shipyard.serving.process import RunningServer, serve, serve_in_background

__all__ = [
    "MAX_BYTES",
    "Classifier",
    "ImageError",
    "InputSpec",
    "Limits",
    "MicroBatcher",
    "ModelError",
    "QueueFull",
    "RequestError",
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
