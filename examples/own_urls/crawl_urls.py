"""Crawl and filter a list of URLs with captions of your own.

``experiment.yaml`` beside this file is the experiment: its engine is ``urls``, and its list is a CSV file with a column
``url`` and a column ``caption``. For a list of your own, set ``crawl.endpoint`` to its URI and leave out the web
server, which stands for the internet here: it serves a few images on loopback.
"""

import csv
import os
import sys
import tempfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import ray
from PIL import Image

from ray_jobs import crawl
from ray_jobs import filter as filter_job
from wukong.config import documents
from wukong.report.funnel import funnel
from wukong.store import storage

CAPTIONS = {"cat.jpg": "一只猫在窗台上", "dog.jpg": "一只狗在草地上", "sea.jpg": "the sea", "small.jpg": "一张小图片"}
HOST = "images.test"


class Quiet(SimpleHTTPRequestHandler):
    """A web server for a folder that logs nothing."""

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - the name of the base class
        """Log nothing."""


def main() -> int:
    """Serve four images, crawl their URLs, filter the pairs and print what became of them."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for image in CAPTIONS:
            side = 100 if image == "small.jpg" else 300
            Image.new("RGB", (side, side), "teal").save(folder / image)
        with (folder / "list.csv").open("w", encoding="utf-8", newline="") as file:
            rows = [("url", "caption"), *((f"http://{HOST}/{image}", text) for image, text in CAPTIONS.items())]
            csv.writer(file).writerows([*rows, (f"http://{HOST}/gone.jpg", "不在了")])

        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        # The crawler refuses private addresses, loopback among them; this allows one host to be there.
        os.environ["WUKONG_CONNECT_TO"] = f"{HOST}=127.0.0.1:{server.server_port}"

        experiment = documents.load(
            Path(__file__).with_name("experiment.yaml"),
            [
                f"storage={storage.from_path(folder / 'store')}",
                f"crawl.endpoint={storage.from_path(folder / 'list.csv')}",
            ],
        )
        ray.init("local", num_cpus=2, include_dashboard=False, configure_logging=False, log_to_driver=False)
        crawled = crawl.run(experiment, {})
        filtered = filter_job.run(experiment, {"crawl": crawled})
        ray.shutdown()
        server.shutdown()

        for step in funnel(crawled, filtered):
            sys.stdout.write(f"{step.title:45} {step.rows:3} {step.lost:3} left out\n")
        for uri in filtered.part_uris("train/", ".parquet"):
            for pair in storage.read_table(uri).to_pylist():
                sys.stdout.write(f"kept {pair['url']} {pair['caption']}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
