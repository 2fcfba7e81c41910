"""Compare the crawl with img2dataset: same server, same images, same output, in one run.

    python benchmarks/crawl/bench.py [--count 8000] [--cores 2] [--skip-planning]
    python benchmarks/crawl/bench.py --before FOLDER [--rounds 4]

With ``--before``, the crawl of an earlier checkout in FOLDER runs in turn with this one instead, and nothing else does.
The ratio is that of the summed times.

The first run creates, in ``--work`` (by default in the user's cache), an environment for img2dataset and scikit-image,
and 1,000 images of about 100 KB. Each is served under several URLs. All processes, also the server, run on ``--cores``
cores. The results are printed and written to ``results.json`` in the same folder.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
import venv
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

HERE = Path(__file__).parent
PICTURES = 1_000
PEERS = ("img2dataset==1.47.0", "scikit-image==0.26.0")
THREADS = (16, 32, 64)
"""Thread counts to try with img2dataset; its best result counts."""

TARGETS = {
    "speed": ("images/s over img2dataset's best", 3.0, "at least"),
    "peak_mib": ("peak memory, MiB", 1024, "at most"),
    "of_decode": ("of decode + resize + encode alone", 0.60, "at least"),
    "ssim": ("mean SSIM", 0.97, "at least"),
    "bytes_share": ("bytes read where half fail the size rule", 0.60, "at most"),
    "plan_mib": ("peak memory planning 20 million URLs, MiB", 2048, "at most"),
    "of_before": ("images/s over those of the version before", 0.97, "at least"),
}


class Memory(threading.Thread):
    """Measures the peak of the proportional set size of a process and its descendants, in MiB."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.peak = 0.0
        self._process = psutil.Process(pid)
        self.ended = threading.Event()

    def run(self) -> None:
        while not self.ended.wait(0.2):
            total = 0
            try:
                for process in [self._process, *self._process.children(recursive=True)]:
                    try:
                        total += process.memory_full_info().pss
                    except psutil.Error:
                        continue
            except psutil.Error:
                break
            self.peak = max(self.peak, total / 2**20)


def run(command: list[str], watched: bool = False, code: Path = HERE.parent.parent) -> tuple[str, float]:
    """Run a command with a checkout's code; return its last line of output and, if ``watched``, its peak memory in MiB.

    Watching reads all page tables of all processes five times a second, which takes a tenth of a core or more. So runs
    that are timed are not watched.
    """
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "NO_ALBUMENTATIONS_UPDATE": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": str(code),  # Ray's workers look in the working directory too
    }
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=code
    ) as process:
        memory = Memory(process.pid)
        if watched:
            memory.start()
        output, errors = process.communicate()
        memory.ended.set()
    if process.returncode:
        sys.exit(f"{' '.join(command)}\n{errors[-3000:]}")
    return output.strip().splitlines()[-1], memory.peak


def prepare(work: Path) -> Path:
    """Create the peers' environment and the images if they are missing; return the peers' Python."""
    python = work / "peers" / "bin" / "python"
    if not python.exists():
        print("making an environment for img2dataset", flush=True)
        venv.create(work / "peers", with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PEERS], check=True)
    for name, seed, shape in (("pictures", "0", "any"), ("narrow", "1", "narrow")):
        if not (work / name).exists():
            print(f"making {PICTURES} pictures ({name})", flush=True)
            partial = work / f"{name}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            subprocess.run([python, HERE / "pictures.py", partial, str(PICTURES), seed, shape], check=True)
            partial.rename(work / name)
    return python


class Server:
    """The benchmark's web server, in a separate process."""

    def __init__(self, *folders: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, HERE / "server.py", *map(str, folders)], stdout=subprocess.PIPE, text=True
        )
        self.port = self._process.stdout.readline().strip()

    def statistics(self) -> dict[str, int]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/statistics") as answer:
            return json.load(answer)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


def write_list(path: Path, host: str, names: list[str], count: int) -> Path:
    urls = [f"http://{host}/{names[i % len(names)]}?copy={i // len(names)}" for i in range(count)]
    pq.write_table(pa.table({"url": urls, "caption": [f"图片{i}" for i in range(count)]}), path)
    return path


def crawl(
    work: Path, server: Server, listed: Path, cores: int, watched: bool = False, code: Path = HERE.parent.parent
) -> tuple[dict, float]:
    store = work / "wukong"
    shutil.rmtree(store, ignore_errors=True)
    os.environ["WUKONG_CONNECT_TO"] = f"pictures.test=127.0.0.1:{server.port}"
    command = [sys.executable, str(HERE / "run_wukong.py"), str(listed), str(store), server.port, str(cores)]
    output, peak = run(command, watched, code)
    return json.loads(output), peak


def beside(before: Path, rounds: int, count: int, work: Path, cores: int) -> float:
    """Crawl in turn with this code and with that of an earlier checkout; return the ratio of their speeds."""
    server = Server(work / "pictures")
    names = sorted(path.name for path in (work / "pictures").iterdir())
    listed = write_list(work / "wukong.parquet", "pictures.test", names, count)
    seconds = {"this": 0.0, "before": 0.0}
    for number in range(rounds):
        sides = [("this", HERE.parent.parent), ("before", before.resolve())]
        for side, code in sides if number % 2 == 0 else reversed(sides):
            result, _ = crawl(work, server, listed, cores, code=code)
            assert result["counts"]["success"] == count, result["counts"]
            seconds[side] += result["seconds"]
            print(f"{side}: {count / result['seconds']:.0f} images/s", flush=True)
    server.stop()
    return seconds["before"] / seconds["this"]


def measured(options: argparse.Namespace, names: list[str], peers: Path) -> dict[str, float]:
    """Measure the crawl, its pictures and its plan, and img2dataset beside it."""
    work, cores = options.work, options.cores
    figures: dict[str, float] = {}
    figures["decode_per_second"] = float(
        run([sys.executable, str(HERE / "run_decode.py"), str(work / "pictures"), "4000", str(cores)])[0]
    )
    print(f"decode + resize + encode alone: {figures['decode_per_second']:.0f} images/s", flush=True)

    server = Server(work / "pictures", work / "narrow")
    listed = write_list(work / "wukong.parquet", "pictures.test", names, options.count)
    _, figures["peak_mib"] = crawl(work, server, listed, cores, watched=True)
    result, _ = crawl(work, server, listed, cores)
    assert result["counts"]["success"] == options.count, result["counts"]
    figures["images_per_second"] = options.count / result["seconds"]
    print(f"wukong: {figures['images_per_second']:.0f} images/s, {figures['peak_mib']:.0f} MiB", flush=True)
    figures["of_decode"] = figures["images_per_second"] / figures["decode_per_second"]

    tars = sorted(str(path) for path in (work / "wukong").rglob("parts/*.tar"))
    quality = json.loads(run([str(peers), str(HERE / "quality.py"), str(work / "pictures"), *tars[:2]])[0])
    figures |= {"ssim": quality["mean"], "ssim_worst": quality["worst"]}
    print(f"SSIM: mean {quality['mean']:.4f}, worst {quality['worst']:.4f} of {quality['pictures']}", flush=True)

    half = [*(f"narrow-{name}" for name in names), *names]
    listed = write_list(work / "half.parquet", "pictures.test", half, len(half))
    before = server.statistics()["bytes"]
    result, _ = crawl(work, server, listed, cores)
    assert result["counts"]["success"] == result["counts"]["bad_ratio"] == len(names), result["counts"]
    figures["bytes_share"] = result["bytes_read"] / (server.statistics()["bytes"] - before)
    print(f"half fail the size rule: {figures['bytes_share']:.0%} of the bytes read", flush=True)

    listed = write_list(work / "img2dataset.parquet", f"127.0.0.1:{server.port}", names, options.count)
    best = 0.0
    for threads in THREADS:
        store = work / "img2dataset"
        shutil.rmtree(store, ignore_errors=True)
        output, _ = run(
            [str(peers), str(HERE / "run_img2dataset.py"), str(listed), str(store), str(cores), str(threads)]
        )
        answer = json.loads(output)
        assert answer["success"] == options.count, answer
        rate = options.count / answer["seconds"]
        print(f"img2dataset, {threads} threads: {rate:.0f} images/s", flush=True)
        best = max(best, rate)
    figures |= {"img2dataset_per_second": best, "speed": figures["images_per_second"] / best}
    server.stop()

    if not options.skip_planning:
        folder = work / "planning"
        shutil.rmtree(folder, ignore_errors=True)
        planned = json.loads(run([sys.executable, str(HERE / "planning.py"), str(folder), "20000000"])[0])
        shutil.rmtree(folder)
        figures |= {"plan_mib": planned["peak_mib"], "plan_seconds": planned["seconds"]}
        print(f"20 million URLs planned in {planned['seconds']:.0f} s, {planned['peak_mib']:.0f} MiB", flush=True)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=8_000)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("~/.cache/wukong/bench-crawl").expanduser())
    parser.add_argument("--skip-planning", action="store_true")
    parser.add_argument("--before", type=Path, help="folder of an earlier checkout")
    parser.add_argument("--rounds", type=int, default=4)
    options = parser.parse_args()
    work, cores = options.work, options.cores
    work.mkdir(parents=True, exist_ok=True)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    peers = prepare(work)
    names = sorted(path.name for path in (work / "pictures").iterdir())
    figures: dict[str, float] = {"load": os.getloadavg()[0]}
    print(f"{options.count} pictures, {cores} cores, load {figures['load']:.1f}", flush=True)

    if options.before:
        figures["of_before"] = beside(options.before, options.rounds, options.count, work, cores)
    else:
        figures |= measured(options, names, peers)

    figures["when"] = time.time()
    (work / "results.json").write_text(json.dumps(figures, indent=2) + "\n")
    print()
    missed = 0
    for name, (what, target, sense) in TARGETS.items():
        if name in figures:
            met = figures[name] >= target if sense == "at least" else figures[name] <= target
            missed += not met
            print(f"{'met   ' if met else 'MISSED'} {what}: {figures[name]:.3g} ({sense} {target:g})")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
