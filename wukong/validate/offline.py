"""Make data docs that need no network.

The pages that Great Expectations builds load style sheets, scripts and images from eight hosts, and the first page is
empty without the scripts. Here everything that a page loads is removed, and each page gets one small style sheet.
Folded sections are shown, and the first page is written anew. A content policy in each page forbids a browser to load
anything that a caption may name.
"""

import html
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_STYLE = """
:root { --paper: #fbfaf7; --card: #fff; --ink: #22211e; --soft: #6d6a63; --line: #e4e0d8; --good: #2f7d4f;
  --bad: #a8322a; --warn: #a06a10; }
@media (prefers-color-scheme: dark) { :root { --paper: #191a1c; --card: #212326; --ink: #e8e6e1; --soft: #a09c93;
  --line: #35373b; --good: #6cc191; --bad: #e2776c; --warn: #d9a441; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1080px; padding: 24px 20px 80px; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, "Noto Sans", "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", sans-serif; }
a { color: var(--bad); } h1 { font-size: 1.6rem; } h4, h5, h6 { margin: 6px 0; font-size: 1rem; }
nav.pages { display: flex; flex-wrap: wrap; gap: 4px 18px; font-size: .93rem; }
ol.breadcrumb, ul.nav { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: 2px 14px; }
.alert, .card-header { border-top: 2px solid var(--ink); padding-top: 8px; margin-top: 28px; }
.table-responsive, .show-scrollbars { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; margin: 8px 0; }
th { text-align: left; color: var(--soft); font-size: .82rem; }
th, td { padding: 5px 18px 5px 0; border-bottom: 1px solid var(--line); vertical-align: top; overflow-wrap: anywhere; }
.badge { background: var(--line); border-radius: 4px; padding: 0 6px; font-size: .86em; }
.cooltip .top { display: none; } .cooltip:hover .top { display: block; color: var(--soft); white-space: pre-wrap; }
.fa-check-circle::before { content: "✓"; color: var(--good); font-style: normal; }
.fa-times::before { content: "✗"; color: var(--bad); font-style: normal; }
.fa-exclamation-triangle::before, .fa-question-circle::before { content: "!"; color: var(--warn); font-style: normal; }
pre, code { font-size: .86em; }
"""

_POLICY = (
    '<meta http-equiv="Content-Security-Policy" '
    """content="default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'none'; base-uri 'none'">"""
)

_DROPPED = re.compile(
    r"<(script|style|footer|iframe|object|button)\b.*?(?:</\1\s*>|\Z)"
    r"|<label\b[^>]*\bbtn\b.*?</label\s*>|<a\b[^>]*\bdata-toggle=\"collapse\".*?</a\s*>"
    r"|<(?:link|img|base|image|embed|source|track|video|audio|meta\s+http-equiv)\b[^>]*>"
    r"|<div class=\"card-header p-2\">\s*<strong>Actions</strong>\s*</div>|Validation Filter:",
    re.IGNORECASE | re.DOTALL,
)
_HANDLERS = re.compile(r"""\s(?:on[a-z]+|srcset|background|poster)\s*=\s*(?:"[^"]*"|'[^']*'|[^\s>]+)""", re.IGNORECASE)
_TAG = re.compile(r"<[a-zA-Z][^>]*>", re.DOTALL)
_HEAD = re.compile(r"<head\b[^>]*>", re.IGNORECASE)


def without_network(folder: Path, results: Mapping[str, Mapping[str, Any]]) -> None:
    """Rewrite the pages of data docs so that a browser without a network shows all of them.

    Args:
        folder: where Great Expectations has built them. Its images and fonts are deleted, since no page uses them.
        results: batch name to the result of ``wukong.validate.gate.run_suite``, for the first page.
    """
    for page in sorted(folder.rglob("*.html")):
        page.write_text(_cleaned(page.read_text(encoding="utf-8")), encoding="utf-8")
    (folder / "index.html").write_text(_first_page(folder, results), encoding="utf-8")
    shutil.rmtree(folder / "static", ignore_errors=True)


def _cleaned(text: str) -> str:
    text = _DROPPED.sub("", text)
    text = _TAG.sub(lambda tag: _HANDLERS.sub("", tag[0]), text)
    return _HEAD.sub(lambda begin: f"{begin[0]}{_POLICY}<style>{_STYLE}</style>", text, count=1)


def _first_page(folder: Path, results: Mapping[str, Mapping[str, Any]]) -> str:
    rows = []
    for batch, result in results.items():
        # A page lies at validations/SUITE/RUN/TIME/BATCH.html.
        (page,) = folder.glob(f"validations/*/*/*/{batch}.html")
        mark = '<i class="fa-check-circle"></i>' if result["success"] else '<i class="fa-times"></i>'
        address = html.escape(page.relative_to(folder).as_posix())
        counted = result["statistics"]
        held = f"{counted['successful_expectations']} of {counted['evaluated_expectations']}"
        rows.append(f'<tr><td>{mark}</td><td><a href="{address}">{html.escape(batch)}</a></td><td>{held}</td></tr>')
    suites = [
        f'<li><a href="{html.escape(page.relative_to(folder).as_posix())}">{html.escape(page.stem)}</a></li>'
        for page in sorted(folder.glob("expectations/*.html"))
    ]
    return f"""<!DOCTYPE html>
<html lang="en"><head>{_POLICY}<meta charset="UTF-8">
<meta name="viewport" content="width=device-width, initial-scale=1.0">
<title>Data docs</title><style>{_STYLE}</style></head><body>
<h1>Data docs</h1>
<h5 class="alert">Validation results</h5>
<table><tr><th></th><th>batch</th><th>expectations that hold</th></tr>
{chr(10).join(rows)}
</table>
<h5 class="alert">Expectation suites</h5>
<ul>
{chr(10).join(suites)}
</ul>
</body></html>
"""
