"""Read shards with open_clip, webdataset and img2dataset: ``foreign_readers.py TEMPORARY SHARD...``; prints JSON.

Run by an environment that holds the three; the test that starts it compares what they read with what was written.
"""

import hashlib
import json
import os
import sys
import tarfile
from argparse import Namespace
from pathlib import Path

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"

import numpy as np
import pyarrow as pa
import webdataset
from img2dataset.reader import Reader
from open_clip_train.data import get_wds_dataset


def with_webdataset(shard: str) -> dict[str, list[str]]:
    """Return, for each key, caption, digest of the image's bytes, and URL."""
    return {
        sample["__key__"]: [
            sample["txt"].decode(),
            hashlib.sha256(sample["jpg"]).hexdigest(),
            json.loads(sample["json"])["url"],
        ]
        for sample in webdataset.WebDataset(f"{shard}.tar", shardshuffle=False)
    }


def with_open_clip(shard: str, count: int) -> dict[str, list[int]]:
    """Return, for each caption, height, width and mean value of the image in open_clip's training loader."""
    options = Namespace(
        train_data=f"{shard}.tar",
        train_data_upsampling_factors=None,
        train_num_samples=count,
        val_data=None,
        val_num_samples=None,
        dataset_resampled=False,
        batch_size=1,
        workers=1,
        seed=0,
        world_size=1,
    )
    data = get_wds_dataset(options, np.asarray, is_train=True, tokenizer=lambda text: [text])
    seen = {}
    for pictures, texts in data.dataloader:
        for picture, text in zip(pictures, texts, strict=True):
            seen[text] = [*picture.shape[:2], round(float(np.asarray(picture).mean()))]
    return seen


def with_img2dataset(shard: str, temporary: str) -> list[list[str]]:
    """Return the (caption, URL) rows that img2dataset would download."""
    reader = Reader(
        url_list=f"{shard}.parquet",
        input_format="parquet",
        url_col="url",
        caption_col="caption",
        verify_hash_col="sha256",
        verify_hash_type="sha256",
        save_additional_columns=None,
        number_sample_per_shard=1000,
        done_shards=set(),
        tmp_path=temporary,
    )
    rows = []
    for _, path in reader:
        with pa.ipc.open_file(path) as file:
            rows += [[row["caption"], row["url"], row["sha256"]] for row in file.read_all().to_pylist()]
    return rows


if __name__ == "__main__":
    seen = {}
    for shard in sys.argv[2:]:
        with tarfile.open(f"{shard}.tar") as tar:
            pairs = sum(name.endswith(".jpg") for name in tar.getnames())
        seen[shard] = {
            "webdataset": with_webdataset(shard),
            "open_clip": with_open_clip(shard, pairs),
            "img2dataset": with_img2dataset(shard, Path(sys.argv[1]).as_posix()),
        }
    print(json.dumps(seen))
