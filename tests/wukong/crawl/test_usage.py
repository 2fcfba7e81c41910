"""What owners say about the use of a picture. The cases of preferences are those of the AIPREF drafts and RFC 9651."""

import email.utils
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wukong.crawl.usage import as_text, combined, forbids_training, from_text, preferences, said_in

US = "wukong-crawler"
PAST, FUTURE = time.time() - 86_400, time.time() + 400 * 86_400


def tag(*lines: str) -> set[str]:
    return set(said_in({"x-robots-tag": "\n".join(lines)}, US))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("noai", True),
        ("noindex, noimageai", True),
        ("otherbot: noindex, NOAI", True),
        ("otherbot:noai", True),
        ("noindex, nofollow", False),
        ("noindex; noai", True),
        ("noindex noai", True),
        ("noindex|NoImageAI", True),
        ('"noai"', True),
        ("noai: true", True),
        ("unavailable_after: 31 Dec 2126 23:00:00 GMT; noai", True),
        ("noairplane", False),
        ("x-noai", False),
        ("", False),
    ],
)
def test_x_robots_tag_forbids_training(value: str, expected: bool) -> None:
    assert forbids_training(said_in({"x-robots-tag": value}, US)) is expected


@given(
    st.lists(st.sampled_from(["nofollow", "all", "noarchive"]), max_size=3),
    st.sampled_from([",", ";", "|", " ", "\t", " , ", "; "]),
    st.sampled_from(["noai", "NoImageAI", "noindex"]),
    st.integers(0, 3),
)
def test_a_refusal_counts_whatever_stands_between_directives(
    others: list[str], mark: str, refusal: str, at: int
) -> None:
    others.insert(at, refusal)
    assert tag(mark.join(others)) == {refusal.lower()}


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["noindex"], {"noindex"}),
        (["NOINDEX, nofollow"], {"noindex"}),
        (["none"], {"noindex"}),
        (["noimageindex"], {"noindex"}),
        (["all"], set()),
        (["nofollow, max-snippet: 0, max-image-preview:none"], set()),
        (["max-image-preview: none, noindex"], {"noindex"}),
        (["Wukong-Crawler: noindex"], {"noindex"}),
        (["wukong: noindex"], set()),
        (["otherbot: nofollow, noindex"], set()),
        (["otherbot: nofollow, wukong-crawler: noindex"], {"noindex"}),
        (["otherbot: nofollow", "noindex"], {"noindex"}),
        (["nofollow; noindex"], {"noindex"}),
        (["nofollow noindex"], {"noindex"}),
        (["wukong-crawler: nofollow; none"], {"noindex"}),
        (["max-snippet:-1 noindex"], {"noindex"}),
        (["max-image-preview: none; nofollow"], set()),
        (["otherbot: nofollow; noindex"], set()),
        (["noindex=true"], {"noindex"}),
        (["nofollow", "otherbot: noindex", "noai"], {"noai"}),
        (["unavailable_after: 25 Jun 2010 15:00:00 PST"], {"noindex"}),
        (["unavailable_after: Wednesday, 03-Dec-2014 10:00:00 GMT, nofollow"], {"noindex"}),
        (["unavailable_after: 2010-06-25T15:00:00+08:00"], {"noindex"}),
        (["unavailable_after: soon"], {"noindex"}),
        (["otherbot: unavailable_after: 25 Jun 2010 15:00:00 PST"], set()),
        (["unavailable_after: 31 Dec 2126 23:00:00 GMT, noai"], {"unavailable_after=2126-12-31", "noai"}),
        (
            ["unavailable_after: Tuesday, 31 Dec 2126 23:00:00 GMT, noimageai"],
            {"unavailable_after=2126-12-31", "noimageai"},
        ),
    ],
)
def test_directives_of_x_robots_tag(lines: list[str], expected: set[str]) -> None:
    assert tag(*lines) == expected


def test_a_date_is_compared_with_today() -> None:
    assert tag(f"unavailable_after: {email.utils.formatdate(PAST, usegmt=True)}") == {"noindex"}
    (said,) = tag(f"unavailable_after: {email.utils.formatdate(FUTURE, usegmt=True)}")
    assert said == f"unavailable_after={time.strftime('%Y-%m-%d', time.gmtime(FUTURE))}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train-ai=n", {"train-ai=n"}),
        ("train-ai=y, search=n", {"train-ai=y", "search=n"}),
        ("search=n ,\ttrain-ai=n", {"search=n", "train-ai=n"}),
        ('train-ai=y, train-ai, search=n, search="n"', set()),  # draft-ietf-aipref-vocab-07, 6.5.1
        ("train-ai;allow=n, train-ai=y", {"train-ai=y"}),  # 6.5.2
        ('train-ai;has;parameters="?"', set()),
        ("train-ai=n;because=:aGk=:;since=@1700000000;w=0.5", {"train-ai=n"}),
        ('other=n, train-ai=n, list=(a "b" 1;x);y', {"train-ai=n"}),
        ("train-ai=?0", set()),
        ("train-ai=N", set()),
        ("Train-AI=n", set()),  # capitals are no key, so all is unknown
        ("train-ai=n, SEARCH=n", set()),
        ("train-ai=n,", set()),
        ("train-ai=n search=n", set()),
        ("train-ai= n", set()),
        ("", set()),
        ("  ", set()),
        ('train-ai=n, x="', set()),
        ("train-ai=n, x=é", set()),
    ],
)
def test_preferences(text: str, expected: set[str]) -> None:
    assert set(preferences(text)) == expected
    assert set(said_in({"content-usage": text}, US)) == expected


@given(st.text(max_size=30) | st.text('train-ai=ysearchn,; \t()"', max_size=40))
@settings(deadline=None)
def test_any_header_is_read(text: str) -> None:
    said = said_in({"content-usage": text, "x-robots-tag": text}, US)
    assert from_text(as_text(said)) == said


@pytest.mark.parametrize("text", ["a=" * 30_000, "(" * 60_000, "a=(" + "b " * 30_000, "a;" * 30_000, '"' * 60_000])
def test_hostile_preferences_take_no_time(text: str) -> None:
    started = time.process_time()
    preferences(text)
    tag(text)
    assert time.process_time() - started < 1


def test_the_most_restrictive_of_several_statements_counts() -> None:
    one, other = preferences("train-ai=y, search=y"), preferences("train-ai=n")
    assert combined([one, other]) == {"train-ai=n", "search=y"}
    assert as_text(combined([])) is None
