"""clip-retrieval's index and server, for ``search.py``: ``peer.py build FOLDER`` and ``peer.py serve FOLDER``.

It runs in an environment with clip-retrieval. The index is made as ``clip-retrieval index`` makes it, and the server is
``clip-retrieval back`` with its index mapped. It asks for a vector's neighbours only, so CLIP itself is not loaded.
"""

import json
import socket
import sys
import time
from pathlib import Path

import numpy as np


def build(folder: Path) -> None:
    import pandas
    from clip_retrieval.clip_index import quantize

    made = folder / "index"
    (made / "metadata").mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    quantize(str(folder / "embeddings"), str(made), "image", "4G", "16G", 2)
    seconds = time.perf_counter() - began
    files = sorted((folder / "embeddings").glob("*.npy"))
    rows = sum(len(np.load(file, mmap_mode="r")) for file in files)
    known = {"image_path": [f"{row:020d}" for row in range(rows)], "caption": ["一只猫"] * rows}
    pandas.DataFrame(known | {"url": known["image_path"]}).to_parquet(made / "metadata" / "metadata_0.parquet")
    (folder / "indices.json").write_text(json.dumps({"all": str(made)}))
    (folder / "made.json").write_text(json.dumps({"build_s": seconds}))


def serve(folder: Path) -> None:
    import all_clip
    from clip_retrieval.clip_back import clip_back

    all_clip.load_clip = lambda *_, **__: (None, None, None)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    print(f"http://127.0.0.1:{port}", flush=True)
    clip_back(
        str(folder / "indices.json"),
        port=port,
        enable_faiss_memory_mapping=True,
        columns_to_return=["url", "caption"],
        enable_mclip_option=False,
        use_jit=False,
        provide_aesthetic_embeddings=False,
    )


if __name__ == "__main__":
    {"build": build, "serve": serve}[sys.argv[1]](Path(sys.argv[2]))
