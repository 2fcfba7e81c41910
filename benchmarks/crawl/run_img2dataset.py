"""Download a list with img2dataset: ``run_img2dataset.py LIST STORE CORES THREADS``; prints time and counts as JSON."""

import json
import sys
import time
from pathlib import Path

from img2dataset import download

if __name__ == "__main__":
    listed, store, cores, threads = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    started = time.monotonic()
    download(
        url_list=listed,
        input_format="parquet",
        url_col="url",
        caption_col="caption",
        output_folder=store,
        output_format="webdataset",
        processes_count=cores,
        thread_count=threads,
        number_sample_per_shard=1000,
        image_size=256,
        resize_mode="keep_ratio",
        resize_only_if_bigger=True,
        min_image_size=201,
        max_aspect_ratio=3.0,
        encode_quality=95,
        compute_hash="sha256",
        retries=0,
        enable_wandb=False,
    )
    seconds = time.monotonic() - started
    statistics = [json.loads(path.read_text()) for path in Path(store).glob("*_stats.json")]
    print(json.dumps({"seconds": seconds, "success": sum(shard["successes"] for shard in statistics)}))
