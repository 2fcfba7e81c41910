"""``wukong queries``: make the list of words that a crawl searches for."""

from pathlib import Path
from typing import Annotated

import typer

from wukong.commands.output import echo
from wukong.errors import ConfigError
from wukong.store import storage

app = typer.Typer(help="Make the list of words that a crawl searches for.", no_args_is_help=True)


@app.callback()
def queries() -> None:
    """Make the list of words that a crawl searches for."""


@app.command()
def build(
    vocabulary: Annotated[
        str,
        typer.Option(
            metavar="FILE",
            help="The words to choose from: one a line, or word vectors in text form (a line 'COUNT DIMENSIONS', then "
            "a word and its numbers a line). A path or a URI; .gz is read as such.",
        ),
    ],
    corpus: Annotated[
        list[str],
        typer.Option(
            metavar="FILE",
            help="The text to count in (repeatable): a file or a folder of plain text or JSON lines (.jsonl), each "
            "also as .gz.",
        ),
    ],
    output: Annotated[str, typer.Option("--output", "-o", metavar="FILE", help="Where the list is written.")],
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many words to keep.")] = 200_000,
    min_length: Annotated[int, typer.Option(min=1, help="Characters a word has at least.")] = 2,
    max_length: Annotated[int, typer.Option(min=1, help="Characters a word has at most.")] = 16,
    stop_words: Annotated[str | None, typer.Option(metavar="FILE", help="Words never to keep, one a line.")] = None,
    text_field: Annotated[str, typer.Option(help="The field of a JSON line that holds its text.")] = "text",
    counts: Annotated[bool, typer.Option("--counts", help="Write a tab and the count behind each word.")] = False,
) -> None:
    """Rank a vocabulary by how often its words occur in a text corpus, and keep the most frequent.

    This is how the paper came to its 200,000 queries (section 3). Words are found without spaces, by longest match.
    Everything is read as a stream: 8 million words and any amount of text take less than 4 GiB of memory. Example:

        wukong queries build --vocabulary tencent-vectors.txt.gz --corpus news/ --output queries.txt

    The list is then named by crawl.queries in an experiment.
    """
    from wukong.crawl import queries as library

    if min_length > max_length:
        raise ConfigError(f"--min-length {min_length} is more than --max-length {max_length}")
    ranked = library.build(
        _uri(vocabulary),
        [_uri(path) for path in corpus],
        limit=limit,
        min_length=min_length,
        max_length=max_length,
        stop_words=_uri(stop_words) if stop_words else None,
        text_field=text_field,
    )
    if not ranked:
        raise ConfigError("no word of the vocabulary occurs in the corpus; are both in the same script (Simplified)?")
    lines = (f"{word}\t{count}\n" if counts else f"{word}\n" for word, count in ranked)
    storage.write_bytes(_uri(output), "".join(lines).encode())
    first = ", ".join(word for word, _ in ranked[:5])
    echo(f"{len(ranked):,} queries in {output}, from {first} to {ranked[-1][0]} ({ranked[-1][1]:,} occurrences)")


def _uri(place: str) -> str:
    return place if "://" in place else storage.from_path(Path(place))
