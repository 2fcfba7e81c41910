"""Write ``docs/sizes.md`` from what ``wukong plan`` says of each overlay: ``python -m tools.size_tables``.

It builds the overlays with kustomize or kubectl, one of which must be installed.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from wukong.commands.app import app

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "sizes.md"
PAIRS = {1_000_000: "1 M", 10_000_000: "10 M", 100_000_000: "100 M"}
URLS_A_PAIR = 1.66
"""The paper's 166 million URLs for its 100 million pairs."""

OVERLAYS = {
    "base": ("k8s/base", "configs/demo.yaml", "CPUs alone, and the demo's model"),
    "kind": ("k8s/overlays/kind", "configs/demo.yaml", "a cluster on a laptop, and the demo's model"),
    "external-s3": ("k8s/overlays/external-s3", "configs/demo.yaml", "CPUs, a store outside, and the demo's model"),
    "gpu": ("k8s/overlays/gpu", "configs/paper/vit-b-32.yaml", "GPUs, and the paper's ViT-B/32"),
}
"""Folder of each overlay, the experiment that is planned on it, and what both are."""

_HEAD = """# Sizes and costs

What a whole run takes on each overlay of `k8s/`, for 1, 10 and 100 million pairs out of 1.66 times as many URLs, as
`wukong plan` computes it. One line of the table is one stage: the cores and GPUs that it occupies, the memory of its
driver and of its largest task at 100 million pairs, its time, and what it writes and leaves in the store. `wukong plan`
does the same for your own experiment and your own overlay, and `--price` adds what it costs:

```sh
wukong plan --config configs/paper/vit-l.yaml --overlay k8s/overlays/gpu --pairs 100000000 --urls 166000000 \\
  --price cpu=0.04,gpu=2.50,gib_month=0.02
```

Core-hours and GPU-hours are those that the stages occupy, so they count what waits; prices differ too much to be
written here. The object store, MLflow, the database and the heads come on top: their sizes stand in `k8s/`.

The rates are packaged ones:
{rates}.
The speed of a GPU is assumed (50 TFLOP/s); `--rate gpu=TFLOPS` tells it. The crawl's time is that of its cores; the
network and slow hosts may take longer. The demo holds out a share of its pairs, so its evaluation grows with the square
of their number; an experiment for so many pairs names sets of a fixed size, as those of the paper do.

`make generate` writes this page.
"""


def page() -> str:
    """Return the page: a section for each overlay, in Markdown."""
    planned = {
        name: [_plan(folder, config, pairs) for pairs in PAIRS] for name, (folder, config, _) in OVERLAYS.items()
    }
    measured = planned["base"][0]["measured"]
    rates = f"measured on {measured['on']} on {measured['machine']}"
    sections = (line for name, plans in planned.items() for line in _section(name, plans))
    return "\n".join([_HEAD.format(rates=rates), *sections]).rstrip() + "\n"


def _plan(folder: str, config: str, pairs: int) -> Any:
    numbers = ("--pairs", str(pairs), "--urls", str(int(URLS_A_PAIR * pairs)), "--set", "validation.min_pairs=1")
    arguments = ["plan", "--config", str(ROOT / config), "--overlay", str(ROOT / folder), *numbers, "--json"]
    answer = CliRunner().invoke(app, arguments, catch_exceptions=False)
    return json.loads(answer.stdout)


def _section(name: str, plans: list[Any]) -> Iterator[str]:
    folder, config, what = OVERLAYS[name]
    yield f"\n## {name}\n\n`{folder}`, `{config}`: {what}.\n"
    sizes = list(PAIRS.values())
    titles = ["stage", "cores", "GPUs", "driver", "task", *(f"time, {size}" for size in sizes)]
    titles += [f"writes, {size}" for size in sizes]
    yield _row(titles)
    yield _row(["---", *["---:"] * (len(titles) - 1)])
    for stage in plans[0]["stages"]:
        of_size = [plan["stages"][stage] for plan in plans]
        last = of_size[-1]
        memory = [_bytes(last[key]) if last[key] else "-" for key in ("driver_memory", "task_memory")]
        cells = [stage, f"{last['cores']:,}", f"{last['gpus']:,}" if last["gpus"] else "-", *memory]
        yield _row(
            [*cells, *(_time(each["seconds"]) for each in of_size), *(_bytes(each["bytes"]) for each in of_size)]
        )
    together = [_time(sum(each["seconds"] for each in plan["stages"].values())) for plan in plans]
    yield _row(["**all**", "", "", "", "", *together, *(_bytes(plan["stored_bytes"]) for plan in plans)])
    yield _row(["**core-hours**", "", "", "", "", *(_hours(plan, "cores") for plan in plans), *[""] * len(plans)])
    if plans[0]["gpus"]:
        yield _row(["**GPU-hours**", "", "", "", "", *(_hours(plan, "gpus") for plan in plans), *[""] * len(plans)])
    yield ""
    problems = {problem: size for plan, size in zip(plans, sizes, strict=True) for problem in plan["problems"]}
    for problem, size in problems.items():
        yield f"- Does not fit with {size} pairs: {problem}."


def _hours(plan: Mapping[str, Any], what: str) -> str:
    return f"{sum(each['seconds'] * each[what] for each in plan['stages'].values()) / 3600:,.0f}"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _bytes(count: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count / 1e3:,.0f} KB"


def _time(seconds: float) -> str:
    return f"{seconds / 86_400:,.1f} d" if seconds >= 172_800 else f"{seconds / 3600:,.2f} h"


def main() -> int:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
