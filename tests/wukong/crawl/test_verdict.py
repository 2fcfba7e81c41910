"""The verdict on a crawl and its message."""

import re
from collections.abc import Mapping
from typing import Any

import pytest
from crawl_samples import make_config

from wukong.crawl.status import Status, is_transient
from wukong.crawl.verdict import failure, may_change_if_retried


def counts(transient: int | None = None, queries: int = 0, failed: int = 0, **statuses: int) -> dict[str, int]:
    named = {status.value: statuses.get(status.value, 0) for status in Status}
    assert sum(named.values()) == sum(statuses.values()), "only statuses that there are"
    passing = sum(number for status, number in statuses.items() if is_transient(status, 404))
    return {
        "queries": queries,
        "queries_failed": failed,
        "queries_unexpected": 0,
        "urls": sum(statuses.values()),
        "transient": passing if transient is None else transient,
        **named,
    }


@pytest.mark.parametrize(
    ("ended", "settings", "expected"),
    [
        # Typical for old lists of URLs: missing pages, hosts that no longer exist, servers that fail.
        ({"success": 45, "http_error": 30, "dns_error": 12, "timeout": 8, "tls_error": 5}, {}, None),
        ({"success": 1, "http_error": 99}, {}, None),
        ({"success": 50, "dns_error": 50}, {}, None),
        ({"success": 49, "dns_error": 51}, {}, "max_transient_share"),
        ({"success": 30, "dns_error": 70}, {"max_transient_share": 0.8}, None),
        ({"dns_error": 200}, {}, "200 of 200 URLs .*dns_error 200.*resolves names"),
        ({"success": 10, "timeout": 30, "dns_error": 20}, {}, "timeout 30, dns_error 20.*Check the network"),
        ({"success": 10, "host_too_slow": 30}, {}, "max_host_seconds"),
        ({"dns_error": 200}, {"max_transient_share": 1.0}, "stored no picture: 200 URLs ended as dns_error 200"),
        ({"too_small": 7, "not_image": 3}, {}, "stored no picture: 10 URLs ended as too_small 7, not_image 3"),
        ({"forbidden_address": 400}, {"engine": "urls"}, "forbidden_address 400.*WUKONG_CONNECT_TO=HOST=ADDRESS:PORT"),
        ({"success": 95, "internal_error": 5}, {}, None),
        ({"success": 80, "internal_error": 20}, {}, "20 of 100 URLs .*Wukong's own code, more than 10%"),
        ({"success": 90, "internal_error": 10}, {}, None),
        ({}, {"engine": "urls", "endpoint": "file:///list.csv"}, "found nothing.*file:///list.csv.*url_column"),
    ],
)
def test_the_verdict_on_urls(ended: Mapping[str, int], settings: dict[str, Any], expected: str | None) -> None:
    why = failure(counts(**ended), make_config(**settings))
    if expected is None:
        assert why is None
    else:
        assert why is not None
        assert re.search(expected, why), why


def test_http_codes_of_busy_servers_are_transient() -> None:
    assert [
        code for code in (400, 403, 404, 408, 410, 425, 429, 500, 503, 599) if is_transient("http_error", code)
    ] == [
        408,
        425,
        429,
        500,
        503,
        599,
    ]
    assert failure(counts(transient=60, success=40, http_error=60), make_config()) is not None
    assert failure(counts(transient=0, success=40, http_error=60), make_config()) is None


def test_the_verdict_on_searches() -> None:
    fine = {"success": 10}
    assert failure(counts(queries=10, failed=5, **fine), make_config()) is None
    why = failure(
        counts(queries=10, failed=6, **fine), make_config(), {"search": ["熊", "the host name does not resolve"]}
    )
    assert why is not None
    assert "6 of 10 searches failed" in why
    assert "熊: the host name does not resolve" in why
    unexpected = counts(queries=10, **fine) | {"queries_failed": 2, "queries_unexpected": 2}
    assert "2 of 10 searches ended in an error of Wukong's own code" in (failure(unexpected, make_config()) or "")


def test_no_result_at_all() -> None:
    why = failure(counts(queries=3), make_config())
    assert why is not None
    assert "3 searches gave no result" in why
    assert "crawl.endpoint" in why
    assert "crawl.queries" in why


def test_the_message_names_examples() -> None:
    examples = {"dns_error": ["http://a.test/1.jpg", "the host name does not resolve"], "too_small": ["u", "e"]}
    why = failure(counts(dns_error=9, too_small=1), make_config(), examples)
    assert why is not None
    assert "for instance http://a.test/1.jpg: the host name does not resolve." in why
    assert "u: e" not in why


def test_which_crawls_may_change_if_retried() -> None:
    assert may_change_if_retried(counts(dns_error=1))
    assert may_change_if_retried(counts(http_error=1))
    assert may_change_if_retried(counts(internal_error=1))
    assert may_change_if_retried(counts(queries=1))
    assert may_change_if_retried(counts(queries=2, failed=1, too_small=1))
    assert not may_change_if_retried(counts(too_small=5, not_image=5))
