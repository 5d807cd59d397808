"""`python -m server`: the gRPC server."""

from __future__ import annotations

import sys

from engine.process import run
from server.app import serve

if __name__ == "__main__":
    sys.exit(run(serve, "server"))
