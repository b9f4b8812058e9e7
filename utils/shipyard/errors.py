"""The errors that a reader can mend: their message says what was wrong and what to do."""


class ShipyardError(Exception):
    """A problem that the reader can mend; the message says what is wrong and what to do."""


class DataError(ShipyardError):
    """The data cannot be used as asked; the message names the file and how to mend it."""


class DownloadError(DataError):
    """The archive could not be fetched: no network, a refused request, a broken connection."""


class TrainingError(ShipyardError):
    """The training cannot start or go on; the message says why and what to do."""


class CheckpointError(TrainingError):
    """A checkpoint is missing, damaged, in use, or belongs to another training."""


class MetricError(ShipyardError):
    """The numbers handed in cannot be scored; the message says why."""


class RecipeError(ShipyardError):
    """A setting of a recipe does not fit; the message says which and what to do."""


class CompressionError(ShipyardError):
    """A network cannot be made smaller as asked; the message names the layer and what to do."""


class ExportError(ShipyardError):
    """The model could not be exported or compared; the message says why and what to do."""


class LaunchError(ShipyardError):
    """The workers did not come to their end; the message says what is known."""


class AuthoringError(ShipyardError):
    """A notebook or a command that its author can mend; the message says how."""


class SweepError(AuthoringError):
    """A sweep that cannot be run as asked; the message says how to mend it."""


class ServingError(ShipyardError):
    """A problem that the reader can mend; the message says what is wrong and what to do."""


class ModelError(ServingError):
    """The model file is missing, damaged, or does not say how to use it."""


class ImageError(ServingError):
    """The bytes are not a picture that can be used."""


class RequestError(ServingError):
    """A request that breaks the inference protocol, or does not fit the model."""


class MonitoringError(ShipyardError):
    """A sample, a log or a registry cannot be used as asked; the message says what to do."""


class RefusedModelError(MonitoringError):
    """A new model that must not go live; ``reason`` is a short slug, the message says why."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason
