"""``python -m shipyard.serving ARGUMENTS``: the process that `serve_in_background` starts."""

import json
import sys

from shipyard.serving.process import serve_for_parent

if __name__ == "__main__":
    serve_for_parent(**json.loads(sys.argv[1]))
