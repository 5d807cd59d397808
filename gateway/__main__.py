import sys

from engine.process import run
from gateway.server import serve

if __name__ == "__main__":
    sys.exit(run(serve, "gateway"))
