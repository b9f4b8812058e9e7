"""A model file that says by itself how to use it, in ONNX Runtime."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import onnxruntime

from shipyard.errors import ImageError, ModelError
from shipyard.serving.pictures import MAX_PIXELS, InputSpec, decode, resize_and_crop


def softmax(logits: np.ndarray) -> np.ndarray:
    """exp(z - max z) / Σ exp(z - max z) over the last axis: no overflow for any finite z."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


@dataclass(frozen=True)
class Classifier:
    """A loaded model. Thread-safe: several threads may predict at once.

    ``can_batch`` says whether a picture's answer is the same in any company. It is not where the
    file takes one picture only, or where a scale is computed from the whole batch, as dynamic
    quantization does.
    """

    name: str
    version: str
    exported_by: str
    classes: tuple[str, ...]
    input: InputSpec
    sha256: str
    bytes: int
    can_batch: bool
    session: onnxruntime.InferenceSession = field(repr=False)

    def preprocess(self, data: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
        """PNG or JPEG bytes → float32 (3, height, width), as the model wants it.

        Raises:
            ImageError: the bytes are no usable picture.
        """
        image = resize_and_crop(decode(data, max_pixels), self.input.height, self.input.width)
        return self.input.normalise(np.asarray(image))

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Preprocessed images (batch, 3, height, width) → logits (batch, classes)."""
        images = np.asarray(images, dtype=np.float32)
        height, width = self.input.height, self.input.width
        if images.ndim != 4 or images.shape[1:] != (3, height, width):
            raise ImageError(
                f"images has shape {images.shape}; expected (batch, 3, {height}, {width})."
            )
        feed = self.session.get_inputs()[0].name
        return self.session.run(None, {feed: images})[0]

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Preprocessed images (batch, 3, height, width) → probabilities (batch, classes)."""
        return softmax(self.logits(images))

    def describe(self) -> dict:
        """What a client may want to know, ready for JSON."""
        return {
            "name": self.name,
            "version": self.version,
            "exported_by": self.exported_by,
            "classes": list(self.classes),
            "input": asdict(self.input),
            "sha256": self.sha256,
            "bytes": self.bytes,
        }


def load_model(path: str | os.PathLike[str], threads: int = 1) -> Classifier:
    """Load an ONNX file that `shipyard.onnx_export.export` wrote, and try it once.

    Args:
        threads: CPU threads inside one prediction. 1 suits a server, which runs several
            predictions side by side; more can help a large model with a single user.

    Raises:
        ModelError: no such file, not ONNX, metadata missing or wrong, or the graph does not
            take the input and give the outputs that the metadata promise.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(
            f"Cannot read the model {path}: {error.strerror}. Give the path of an .onnx file."
        ) from error
    session, entries = _open_session(content, path, threads)
    classes, spec = _read_metadata(entries, path)
    classifier = Classifier(
        name=entries.get("name", path.stem),
        version=entries.get("version", "unknown"),
        exported_by=f"shipyard {entries.get('shipyard_version', '(unknown version)')}",
        classes=classes,
        input=spec,
        sha256=hashlib.sha256(content).hexdigest(),
        bytes=len(content),
        can_batch=False,
        session=session,
    )
    _try_once(classifier, path)
    return replace(classifier, can_batch=_answers_do_not_depend_on_the_batch(classifier))


def _open_session(
    content: bytes, path: Path, threads: int
) -> tuple[onnxruntime.InferenceSession, dict[str, str]]:
    """The session, and the metadata that stand in the file."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        # Names and metadata are decoded only when they are asked for.
        _ = [tensor.name for tensor in (*session.get_inputs(), *session.get_outputs())]
        return session, session.get_modelmeta().custom_metadata_map
    except Exception as error:  # ONNX Runtime's own error types have no public base class
        raise ModelError(
            f"{path} is not a model that ONNX Runtime can load ({len(content):,} bytes): {error}"
        ) from error


def _read_metadata(entries: dict[str, str], path: Path) -> tuple[tuple[str, ...], InputSpec]:
    missing = [key for key in ("classes", "preprocessing") if key not in entries]
    if missing:
        raise ModelError(
            f"{path} has no metadata for {' and '.join(missing)}, so nobody can know how to feed "
            "it. Write the file with shipyard.onnx_export.export, which puts them in."
        )
    try:
        classes = json.loads(entries["classes"])
        how = json.loads(entries["preprocessing"])
        height, width = map(int, how["size"])
        mean, std = tuple(map(float, how["mean"])), tuple(map(float, how["std"]))
        spec = InputSpec(height, width, float(how["scale"]), mean, std)
        problems = {
            "classes is not a list of names": not isinstance(classes, list)
            or not classes
            or not all(isinstance(name, str) for name in classes),
            "size is not positive": min(height, width) < 1,
            "mean and std need 3 numbers each": len(mean) != 3 or len(std) != 3,
            "a number is not finite, or std is 0": not np.isfinite([*mean, *std, spec.scale]).all()
            or 0 in std,
            "layout is not NCHW or color is not RGB": (how["layout"], how["color"])
            != ("NCHW", "RGB"),
        }
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{path}: its metadata cannot be read: {error!r}. Export it again."
        ) from error
    for problem, found in problems.items():
        if found:
            raise ModelError(f"{path}: in its metadata {problem}. Export it again.")
    return tuple(classes), spec


def _try_once(classifier: Classifier, path: Path) -> None:
    """Two pictures: the graph must take what its metadata promise, and answer in numbers.

    One is black, the other is noise, since a weight that is not finite does not show at a zero.
    """
    height, width = classifier.input.height, classifier.input.width
    noise = np.random.default_rng(0).normal(size=(1, 3, height, width))
    try:
        logits = classifier.logits(np.zeros((1, 3, height, width)))
        finite = np.isfinite([logits, classifier.logits(noise)]).all()
    except Exception as error:
        raise ModelError(
            f"{path} does not take one picture of {height} × {width}, which its metadata "
            f"promise: {error}"
        ) from error
    if logits.shape != (1, len(classifier.classes)):
        raise ModelError(
            f"{path} gives outputs of shape {logits.shape} for one picture, but its metadata "
            f"name {len(classifier.classes)} classes. Export it again with the right class names."
        )
    if not finite:
        raise ModelError(
            f"{path} answers nan or ∞ to a picture of ordinary numbers, so its weights are not "
            "finite or far too large. Train again from a checkpoint whose loss was finite."
        )


def _answers_do_not_depend_on_the_batch(classifier: Classifier) -> bool:
    """Whether three pictures, one of them far brighter, get together what each gets alone."""
    height, width = classifier.input.height, classifier.input.width
    images = np.random.default_rng(1).normal(size=(3, 3, height, width)) * [
        [[[1]]],
        [[[9]]],
        [[[3]]],
    ]
    alone = np.concatenate([classifier.logits(image[np.newaxis]) for image in images])
    try:
        together = classifier.logits(images)
    except Exception:  # a file that was exported for one picture at a time
        return False
    scale = np.abs(alone, where=np.isfinite(alone), out=np.zeros_like(alone)).max()
    return alone.shape == together.shape and np.allclose(
        alone, together, rtol=1e-3, atol=1e-4 * scale, equal_nan=True
    )
