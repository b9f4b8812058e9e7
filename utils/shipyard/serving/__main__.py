"""``python -m shipyard.serving PATH HOST PORT``: the process that `serve_in_background` starts."""

import sys

from shipyard.serving.process import serve_for_parent

if __name__ == "__main__":
    path, host, port = sys.argv[1:]
    serve_for_parent(path, host, int(port))
