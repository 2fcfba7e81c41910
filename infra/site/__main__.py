"""Run the demo corpus's search site."""

import argparse
import os
import signal
import sys
import threading
import time
from pathlib import Path

from infra import corpus
from infra.site import server
from wukong.errors import WukongError
from wukong.store import storage


def main(arguments: list[str] | None = None) -> int:
    """Serve until a signal; return the exit status, 1 if the site cannot start."""
    parser = argparse.ArgumentParser(prog="python -m infra.site", description=__doc__)
    parser.add_argument("--catalogue", type=Path, required=True, help="the Parquet file that infra.corpus wrote")
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1; 0, the default, for any free one")
    parser.add_argument("--port-file", type=Path, help="write the port here once the site accepts connections")
    parser.add_argument("--origin", default=f"http://{corpus.HOST}", help="the beginning of the URLs in answers")
    parser.add_argument("--outlive-input", type=float, help="stop this many seconds after the end of standard input")
    options = parser.parse_args(arguments)
    if options.outlive_input is not None:
        threading.Thread(target=_stop_after_input, args=(options.outlive_input,), daemon=True).start()

    def ready(port: int) -> None:
        if options.port_file is not None:
            storage.write_bytes(storage.from_path(options.port_file), f"{port}\n".encode())
        print(f"serving {options.origin} on http://127.0.0.1:{port}", flush=True)  # noqa: T201

    try:
        server.serve(server.Site(corpus.load(options.catalogue), options.origin), options.port, ready)
    except WukongError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    except OSError as error:
        print(f"error: cannot listen on 127.0.0.1:{options.port}: {error.strerror}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


def _stop_after_input(seconds: float) -> None:
    sys.stdin.buffer.read()
    time.sleep(seconds)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
