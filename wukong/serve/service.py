"""The answers of the search page and its JSON API: checks of requests, and the model's work in threads."""

import io
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

from PIL import Image
from torch import Tensor

from wukong.crawl import image_header, uploads
from wukong.crawl.uploads import Limits, RefusedError, data_url
from wukong.curate.text.characters import has_han
from wukong.data import images
from wukong.evaluate import alignment
from wukong.evaluate.model import OwnModel
from wukong.runtime.language import message
from wukong.serve import answers, index
from wukong.serve.batcher import Batcher
from wukong.serve.collection import Collection
from wukong.serve.embedder import BATCH, Embedder
from wukong.serve.query import search_forms
from wukong.serve.search import DIGITS, Hit, Searcher, SearchResult
from wukong.store.manifest import Manifest

_READERS = 4
_PICTURES_OF_A_CAPTION = 10
_FREQUENT = 1_000
"""Captions among which examples of queries are looked for."""
_SHORT = range(2, 13)
"""Characters of such a caption."""
_KINDS = {"jpeg": "image/jpeg", "png": "image/png", "gif": "image/gif", "webp": "image/webp"}


@dataclass(frozen=True)
class Picture:
    """A picture that is asked about.

    Attributes:
        row: its row in the index; None for one that was sent.
        data: the bytes of its file.
    """

    row: int | None
    data: bytes


class Service(Embedder):
    """Answers requests about a collection. Beside the model's threads, others read files.

    Args:
        collection: what is searched.
        model: the model, with its image tower.
        found: manifest of the index of both.
        limits: what a request may hold.
    """

    def __init__(self, collection: Collection, model: OwnModel, found: Manifest, limits: Limits) -> None:
        super().__init__(model, limits)
        self.index = index.open_index(found, model)
        self.collection, self._counts = collection, found.counts
        self._searcher = Searcher(self.index, model)
        self._files = ThreadPoolExecutor(_READERS, thread_name_prefix="files")
        self._search = Batcher(self._searched, self._texts, BATCH, limits.waiting)

    def close(self) -> None:
        """End the threads and the child process."""
        self._files.shutdown(cancel_futures=True)
        super().close()

    # --- what is asked

    def about(self) -> answers.AboutAnswer:
        """Describe collection, model and limits."""
        calibration = self.index.calibration
        return answers.AboutAnswer(
            model=self.model.name,
            model_digest=self.model.digest,
            data=self.collection.uri,
            data_digest=self.collection.digest,
            pictures=len(self.index.keys),
            captions=len(self.index.captions),
            left_out=self._counts.get("left_out", 0),
            token_wise=self.model.token_wise,
            max_tokens=self.model.saved.tokenizer.max_tokens,
            calibration=answers.Calibrated.model_validate(calibration) if calibration else None,
            limits=asdict(self.limits),
        )

    async def search(self, query: str, count: int) -> answers.SearchAnswer:
        """Find pictures for a text.

        Raises:
            RefusedError: (422) the text has nothing that the model can read, or is too long; (503) too many wait.
        """
        (form,), cut = self._readable([query], message("the query"))
        results = await self._search((form, count))
        calibration = self.index.calibration
        threshold = calibration["threshold"] if calibration.get("used") else None
        return answers.SearchAnswer(
            query=query,
            read_as=form,
            cut=cut,
            nothing_similar=threshold is not None and results.stands_out < threshold,
            stands_out=results.stands_out,
            threshold=threshold,
            results=self._shown(results.hits[:count]),
        )

    async def captions(self, picture: Picture, count: int) -> answers.CaptionsAnswer:
        """Find captions and other pictures for a picture.

        Raises:
            RefusedError: (422) the picture cannot be encoded; (503) too many wait.
        """

        def work() -> tuple[list[Hit], list[Hit]]:
            vectors = self._encoded(picture)
            similar = self._searcher.similar_pictures(vectors, count + 1)
            return self._searcher.captions_of_picture(vectors, count), similar

        captions, similar = await self._of_pictures(work)
        return answers.CaptionsAnswer(
            captions=[
                answers.CaptionHit(
                    caption=self.index.captions[hit.row],
                    score=hit.score,
                    pictures=[self.index.keys[row] for row in self.index.pictures_of[hit.row][:_PICTURES_OF_A_CAPTION]],
                )
                for hit in captions
            ],
            similar=self._shown([hit for hit in similar if hit.row != picture.row][:count]),
        )

    async def align(self, picture: Picture, text: str, word: str | None = None) -> answers.AlignAnswer:
        """Find the best token of each patch of a picture.

        Raises:
            RefusedError: (422) the model is not token-wise, the text cannot be read or is too long, or the word is not
                in it; (503) too many wait.
        """
        if not self.model.token_wise:
            raise RefusedError(
                422, "this model has one vector for a picture, so no patch can be compared: serve a token-wise model"
            )
        (form,), cut = self._readable([text], message("the text"))
        if cut:
            most = self.model.saved.tokenizer.max_tokens
            raise RefusedError(422, f"the model reads {most} tokens of a text, with [CLS] and [SEP]: shorten it")
        part = search_forms([word])[0] if word else None

        def work() -> answers.AlignAnswer:
            aligned = alignment.align(self.model.saved, images.decode(picture.data), form, part)
            return answers.AlignAnswer(
                tokens=list(aligned.tokens),
                highlighted=sorted(aligned.highlighted),
                best=aligned.best.tolist(),
                similarity=[[round(value, DIGITS) for value in row] for row in aligned.similarity.tolist()],
                shown=data_url(_jpeg(aligned.shown)),
            )

        return await self._of_pictures(work)

    async def classify(self, picture: Picture, labels: Sequence[str]) -> answers.ClassifyAnswer:
        """Compare a picture with labels.

        Raises:
            RefusedError: (422) there are too many labels or fewer than two, or one cannot be read; (503) too many wait.
        """
        given = list(dict.fromkeys(label.strip() for label in labels if label.strip()))
        if not 2 <= len(given) <= self.limits.labels:
            raise RefusedError(422, f"{len(given)} different labels are given: give 2 to {self.limits.labels}")
        self._readable(given, message("a label"))

        def work() -> tuple[Tensor, Tensor]:
            return self._searcher.label_scores(self._encoded(picture), given)

        scores, probabilities = await self._of_pictures(work)
        rows = sorted(zip(given, scores.tolist(), probabilities.tolist(), strict=True), key=lambda row: -row[1])
        return answers.ClassifyAnswer(
            labels=[
                answers.LabelHit(label=label, score=round(score, DIGITS), probability=round(probability, DIGITS))
                for label, score, probability in rows
            ]
        )

    async def stored(self, key: str) -> Picture:
        """Read a picture of the collection.

        Raises:
            RefusedError: (404) there is none with this key.
        """
        row = self.index.row_of(key)
        if row is None:
            raise RefusedError(404, "the collection has no picture with this key: search for one")
        return Picture(row, await self._in(self._files, self.collection.read, self.index.places[row]))

    async def sent(self, chunks: AsyncIterator[bytes], declared: str | None) -> Picture:
        """Receive and decode a picture; for arguments and errors see ``uploads.read`` and ``UploadDecoder.decode``.

        Raises:
            RefusedError: (503) too many pictures are sent at this moment.
        """
        with self.receiving():
            return Picture(None, await self._decoder.decode(await uploads.read(chunks, declared, self.limits)))

    async def file(self, picture: Picture) -> tuple[bytes, str]:
        """Return a picture's file as a browser can show it, and its type; large ones are made small."""
        kind = _KINDS.get(image_header.sniff(picture.data[:16]) or "")
        if kind is not None and picture.row is not None and self.index.places[picture.row].size:
            return picture.data, kind
        return await self._decoder.decode(picture.data), "image/jpeg"

    def captions_of(self, row: int) -> list[str]:
        """The captions of a picture of the collection."""
        return [self.index.captions[each] for each in self.index.captions_of[row]]

    def urls_of(self, keys: Sequence[str]) -> dict[str, str]:
        """The URLs of pictures of the collection, by key; see ``Collection.urls``."""
        rows = {key: self.index.row_of(key) for key in keys}
        return self.collection.urls({key: self.index.places[row] for key, row in rows.items() if row is not None})

    def spread(self, count: int) -> list[answers.ShownPicture]:
        """Return some pictures, spread evenly over the collection."""
        total = len(self.index.keys)
        count = min(count, total)
        return [self._picture(place * total // count) for place in range(count)]

    def examples(self, count: int) -> list[str]:
        """Return queries that suit the collection: frequent short Chinese captions that share no character.

        Some share one, or there are fewer, where the collection has no others.
        """
        frequent = [self.index.captions[row] for row in self.index.frequent(_FREQUENT)]
        short = [caption for caption in frequent if len(caption) in _SHORT and has_han(caption)]
        chosen: list[str] = []
        for caption in short:
            if len(chosen) < count and not set(caption) & set("".join(chosen)):
                chosen.append(caption)
        return chosen + [caption for caption in short if caption not in chosen][: count - len(chosen)]

    # --- how it is computed

    def _searched(self, asked: Sequence[tuple[str, int]]) -> list[SearchResult]:
        return self._searcher.pictures_of_texts([form for form, _ in asked], max(count for _, count in asked))

    def _encoded(self, picture: Picture) -> Tensor:
        if picture.row is not None:
            return self._searcher.stored_picture(picture.row)
        return self.model.saved.encode_image([images.decode(picture.data)])[0]

    def _shown(self, hits: Sequence[Hit]) -> list[answers.PictureHit]:
        return [answers.PictureHit(**dict(self._picture(hit.row)), score=hit.score) for hit in hits]

    def _picture(self, row: int) -> answers.ShownPicture:
        key = self.index.keys[row]
        return answers.ShownPicture(picture=key, url=f"/pictures/{key}/file", captions=self.captions_of(row))

    def _readable(self, texts: Sequence[str], name: str) -> tuple[list[str], bool]:
        """Return the forms of texts in which they are searched, and whether the model reads less than all of one."""
        forms = search_forms(texts)
        lengths = self.lengths(texts, forms, [name] * len(texts))
        return forms, max(lengths) > self.model.saved.tokenizer.max_tokens


def _jpeg(image: Image.Image) -> bytes:
    target = io.BytesIO()
    image.save(target, "JPEG", quality=90)
    return target.getvalue()
