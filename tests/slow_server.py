"""``python slow_server.py MODEL SECONDS LIMITS``: `serve` with a model that takes its time."""

from __future__ import annotations

import json
import sys
import time

from shipyard.serving import Limits, process
from shipyard.serving.model import Classifier


class Slow(Classifier):
    """Takes ``seconds`` for a batch, whatever its size, without using the processor."""

    seconds = 0.0

    def logits(self, images):
        time.sleep(self.seconds)
        return super().logits(images)


def create_app(*arguments, **settings):
    app = plain(*arguments, **settings)
    app.state.classifier = Slow(**vars(app.state.classifier))
    return app


if __name__ == "__main__":
    path, Slow.seconds = sys.argv[1], float(sys.argv[2])
    plain, process.create_app = process.create_app, create_app
    process.serve(path, port=0, limits=Limits(**json.loads(sys.argv[3])))
