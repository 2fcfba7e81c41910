"""Crawl a list with Wukong on a local Ray: ``run_wukong.py LIST STORE PORT CORES``; prints time and counts as JSON."""

import json
import logging
import sys
import time
from pathlib import Path

import ray

from ray_jobs import crawl
from wukong.config import documents
from wukong.store import storage

HOST = "pictures.test"

if __name__ == "__main__":
    listed, store, port, cores = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    experiment = documents.parse(
        {
            "name": "bench",
            "storage": storage.from_path(store),
            "crawl": {
                "queries": "",
                "engine": "urls",
                "endpoint": storage.from_path(listed),
                "min_side": 201,
                "max_aspect_ratio": 3.0,
                "resize": "keep_ratio",
                "image_size": 256,
                "jpeg_quality": 95,
                "concurrency": 32,
                "politeness": {"per_host_concurrency": 32 * cores},
            },
        }
    )
    ray.init("local", num_cpus=cores, include_dashboard=False, configure_logging=False, logging_level=logging.WARNING)
    started = time.monotonic()
    manifest = crawl.run(experiment, {})
    seconds = time.monotonic() - started
    markers = storage.list_files(storage.join(manifest.uri, "_parts"), ".json")
    bytes_read = sum(storage.read_json(uri).get("bytes_read", 0) for uri in markers)
    print(json.dumps({"seconds": seconds, "counts": manifest.counts, "bytes_read": bytes_read, "uri": manifest.uri}))
