"""Times data-juicer's image_nsfw_filter on pictures with a model in a folder, one process.

``picture_models.py`` runs it in data-juicer's environment. It prints the pictures a second of its process, decoding and
all, and the first scores.
"""

import json
import sys
import time
from pathlib import Path

import torch


def main() -> None:
    from data_juicer.ops.filter.image_nsfw_filter import ImageNSFWFilter
    from data_juicer.utils.constant import Fields, StatsKeys

    torch.set_num_threads(1)
    listed, model = map(Path, sys.argv[1:])
    files = json.loads(listed.read_text("utf-8"))
    operator = ImageNSFWFilter(hf_nsfw_model=str(model), max_score=1.0, num_proc=1, accelerator="cpu")
    rows = {"images": [[file] for file in files], Fields.stats: [{} for _ in files], "text": [""] * len(files)}
    operator.compute_stats_batched({name: values[:2] for name, values in rows.items()})  # loads the model
    started = time.process_time()
    judged = operator.compute_stats_batched(rows)
    seconds = time.process_time() - started
    scores = [each[StatsKeys.image_nsfw_score][0] for each in judged[Fields.stats][:3]]
    print(json.dumps({"pictures/s": round(len(files) / seconds, 1), "scores": scores}))


if __name__ == "__main__":
    main()
