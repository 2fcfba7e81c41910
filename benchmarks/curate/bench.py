"""The text rules against data-juicer on the same captions, the count of 100 million captions, and memory by parts.

    python benchmarks/curate/bench.py [--captions 400000] [--peer-captions 50000] [--corpus 100000000]

The first run makes an environment for data-juicer in the work folder (``--work``, by default in the user's cache). The
corpus to count, about 3 GB, is made before the measurement and deleted at the end; ``--corpus 0`` leaves it out.
``--parts`` gives the numbers of parts at which memory is measured. Results are printed, and written to ``results.json``
in the work folder.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import polars as pl

from wukong.crawl.url import key_of
from wukong.curate import sensitive_words
from wukong.data.schema import CRAWLED

HERE = Path(__file__).parent
JUICER = "py-data-juicer==1.6.1"
# Its declared requirements, and aiohttp, which it imports. It is installed with --no-deps, because its first operator
# would install torch.
DECLARED = (
    "beautifulsoup4", "datasets>=4.7.0", "dep-logic", "dill==0.3.8", "emoji==2.2.0", "gitpython", "httpx",
    "jsonargparse[signatures]", "jsonlines", "loguru", "lz4", "multiprocess==0.70.16", "mwparserfromhell", "numpy",
    "pandas", "pillow", "psutil", "pydantic>=2", "regex", "requests", "streamlit", "tabulate", "tomli", "tomli-w",
    "tqdm", "uv", "wget", "zstandard", "aiohttp",
)  # fmt: skip
PART_ROWS = 20_000

TARGETS = {
    "chain": ("captions/s a core, text rules without names", 500_000, "at least"),
    "over_peer": ("times data-juicer's three filters", 100, "at least"),
    "count_seconds": ("seconds to count the corpus, 2 cores", 90, "at most"),
    "count_mib": ("peak memory of it, MiB", 2048, "at most"),
    "memory_growth": ("peak memory with the most parts over that with the fewest", 1.1, "at most"),
}


def peer_python(work: Path) -> Path:
    python = work / "peers" / "bin" / "python"
    if not (work / "peers" / ".complete").exists():
        print("making an environment for data-juicer", flush=True)
        venv.create(work / "peers", with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", JUICER], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *DECLARED], check=True)
        (work / "peers" / ".complete").touch()
    return python


def run(command: list[object], cores: str) -> dict:
    threads = str(len(cores.split(",")))
    settings = {"POLARS_MAX_THREADS": threads, "OMP_NUM_THREADS": threads, "PYTHONPATH": str(HERE.parents[1])}
    pinned = ["taskset", "--cpu-list", cores, *map(str, command)]
    made = subprocess.run(pinned, env=os.environ | settings, capture_output=True, text=True, check=False)
    if made.returncode:
        sys.exit(f"{' '.join(pinned)} failed:\n{made.stderr[-3000:]}")
    return json.loads(made.stdout.strip().splitlines()[-1])


def write_parts(folder: Path, captions: pl.Series, parts: int) -> None:
    folder.mkdir(parents=True)
    for part in range(parts):
        some = captions[part * PART_ROWS : (part + 1) * PART_ROWS]
        urls = [f"http://example.com/{part}/{number}.jpg" for number in range(len(some))]
        columns = {name: pl.Series([None] * len(some)) for name in CRAWLED.names}
        columns |= {"url": pl.Series(urls), "key": pl.Series([key_of(url) for url in urls]), "caption": some}
        columns |= {"status": pl.Series(["success"] * len(some)), "engine": pl.Series(["bench"] * len(some))}
        columns |= {"queries": pl.Series([["词"]] * len(some)), "width": pl.Series([300] * len(some))}
        columns |= {"height": pl.Series([300] * len(some)), "sha256": pl.Series(["0" * 64] * len(some))}
        pl.DataFrame(pl.DataFrame(columns).to_arrow().cast(CRAWLED)).write_parquet(folder / f"{part:05d}.parquet")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=int, default=400_000)
    parser.add_argument("--peer-captions", type=int, default=50_000)
    parser.add_argument("--corpus", type=int, default=100_000_000)
    parser.add_argument("--parts", type=int, nargs="+", default=[1, 10, 100])
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    parser.add_argument("--work", type=Path, default=cache / "wukong" / "bench-curate")
    parser.add_argument("--prepare", action="store_true", help="make the input data, and stop")
    options = parser.parse_args()
    work = options.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    sys.path.insert(0, str(HERE))
    import captions as synthetic

    peer, ours = peer_python(work), HERE / "run_wukong.py"
    vocabulary = synthetic.words()
    pool = synthetic.make(synthetic.POOL, 0, vocabulary)
    some = synthetic.corpus(options.captions, 1, vocabulary, pool, 0.3)
    (work / "captions.txt").write_text("\n".join(some), encoding="utf-8")
    (work / "peer.txt").write_text("\n".join(some[: options.peer_captions]), encoding="utf-8")
    (work / "words.txt").write_text("\n".join(sensitive_words.load()._words), encoding="utf-8")
    corpus = work / f"corpus-{options.corpus}"
    if options.corpus and not (corpus / ".complete").exists():
        print(f"making {options.corpus:,} captions", flush=True)
        subprocess.run([sys.executable, HERE / "captions.py", corpus, str(options.corpus)], check=True)
        (corpus / ".complete").touch()
    shutil.rmtree(work / "parts", ignore_errors=True)
    for number in options.parts:
        write_parts(work / "parts" / str(number), synthetic.make(number * PART_ROWS, 9, vocabulary), number)
    if options.prepare:
        return

    found = {"chain": run([sys.executable, ours, "chain", work / "captions.txt"], "0")}
    command = [peer, HERE / "run_datajuicer.py", work / "peer.txt", work / "words.txt", work / "assets"]
    found["peer"] = run(command, "0")
    found["parts"] = {
        number: run([sys.executable, ours, "parts", work / "parts" / str(number)], "0") for number in options.parts
    }
    if options.corpus:
        found["count"] = run([sys.executable, ours, "count", corpus], "0,1")
        shutil.rmtree(corpus)
    shutil.rmtree(work / "parts")

    speed = found["chain"]["captions"] / found["chain"]["seconds"]
    theirs = options.peer_captions / found["peer"]["filters"]
    values = {
        "chain": speed,
        "over_peer": speed / theirs,
        "memory_growth": found["parts"][max(options.parts)]["peak_mib"]
        / found["parts"][min(options.parts)]["peak_mib"],
    }
    if options.corpus:
        values |= {"count_seconds": found["count"]["seconds"], "count_mib": found["count"]["peak_mib"]}
    print(f"mean length {some.str.len_chars().mean():.1f} characters")
    deduplicator = options.peer_captions / found["peer"]["deduplicator"]
    print(f"data-juicer: three filters {theirs:,.0f}/s, its deduplicator {deduplicator:,.0f}/s")
    for number, result in found["parts"].items():
        rate = result["pairs"] / result["seconds"]
        print(f"{number:>3} parts of {PART_ROWS:,}: peak {result['peak_mib']:,.0f} MiB, {rate:,.0f} pairs/s")
    for name, value in values.items():
        what, target, direction = TARGETS[name]
        met = value >= target if direction == "at least" else value <= target
        print(f"{'met   ' if met else 'MISSED'}  {what}: {value:,.2f} ({direction} {target:,})")
    (work / "results.json").write_text(json.dumps({"values": values, "runs": found}, indent=2))


if __name__ == "__main__":
    main()
