"""The answers of the search page and its JSON API: checks of requests, and the model's work in threads."""

import io
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from wukong.crawl import image_header, uploads
from wukong.crawl.uploads import Limits, RefusedError, data_url
from wukong.data import images
from wukong.evaluate import alignment
from wukong.evaluate.model import OwnModel
from wukong.model.dual import Texts
from wukong.runtime.language import _
from wukong.serve import answers, index
from wukong.serve.batcher import Batcher
from wukong.serve.collection import Collection
from wukong.serve.embedder import BATCH, Embedder, shown
from wukong.serve.filters import NO_FILTERS, Filters
from wukong.serve.query import search_forms
from wukong.serve.router import SECONDS, At, Hit, Router
from wukong.serve.search import DIGITS, Searcher, label_scores
from wukong.serve.served_shard import LocalShard, Question, Shard
from wukong.store.manifest import Manifest

_READERS = 4
_KINDS = {"jpeg": "image/jpeg", "png": "image/png", "gif": "image/gif", "webp": "image/webp"}


@dataclass(frozen=True)
class Picture:
    """A picture that is asked about.

    Attributes:
        at: where it is in the index; None for one that was sent.
        data: the bytes of its file.
    """

    at: At | None
    data: bytes

    @property
    def captions(self) -> list[str]:
        """The captions of a picture of the collection."""
        return list(self.at.item.captions) if self.at else []


class Service(Embedder):
    """Answers requests about a collection. Beside the model's threads, others read files.

    Args:
        collection: what is searched.
        model: the model, with its image tower.
        found: manifest of the index of both.
        limits: what a request may hold.
        shards: the shards of the index; None to open them in this process.
        seconds: how long an answer waits for a shard of ``shards``.

    Attributes:
        calibration: what ``calibration.json`` holds; empty where there is none.
        made: the manifest of the index.
        router: asks the shards.
    """

    def __init__(
        self,
        collection: Collection,
        model: OwnModel,
        found: Manifest,
        limits: Limits,
        shards: Sequence[Shard] | None = None,
        seconds: float = SECONDS,
    ) -> None:
        super().__init__(model, limits)
        self.collection, self.made = collection, found
        self.calibration = index.calibration_of(found)
        self._files = ThreadPoolExecutor(_READERS, thread_name_prefix="files")
        self._encode = Batcher(self._encoded_texts, self._texts, BATCH, limits.waiting)
        within = None if shards is None else seconds
        self._local: list[LocalShard] = []
        self._searches = ThreadPoolExecutor(2 * torch.get_num_threads(), "shards")
        if shards is None:
            searchers = [Searcher(index.open_index(found, model, n), model) for n in range(index.shards(found))]
            self._local = [LocalShard(each, self._searches, self._pictures, limits.waiting) for each in searchers]
            shards = self._local
        self.router = Router(shards, within)

    def close(self) -> None:
        """End the threads and the child process."""
        self.router.close()
        for shard in self._local:
            shard.close()
        for pool in (self._files, self._searches):
            pool.shutdown(cancel_futures=True)
        super().close()

    # --- what is asked

    @property
    def pictures(self) -> int:
        """How many pictures the index has."""
        return self.made.counts["pictures"]

    @property
    def recall(self) -> float | None:
        """Share of the exact answers that a search finds of the questions that are kept with the index.

        None where all pictures are compared, and until it is measured.
        """
        measured = [each.description.recall for each in self.router.states if each.description]
        known = [each for each in measured if each is not None]
        return sum(share * count for share, count in known) / sum(count for _, count in known) if known else None

    def about(self) -> answers.AboutAnswer:
        """Describe collection, model and limits."""
        return answers.AboutAnswer(
            model=self.model_name,
            model_digest=self.model.digest,
            data=shown(self.collection.uri),
            data_digest=self.collection.digest,
            pictures=self.pictures,
            captions=self.made.counts["captions"],
            left_out=self.made.counts.get("left_out", 0),
            token_wise=self.model.token_wise,
            max_tokens=self.model.saved.tokenizer.max_tokens,
            calibration=answers.Calibrated.model_validate(self.calibration) if self.calibration else None,
            limits=asdict(self.limits),
        )

    async def search(
        self, query: str, count: int, page: int = 1, filters: Filters = NO_FILTERS
    ) -> answers.SearchAnswer:
        """Find pictures for a text.

        Args:
            query: the text.
            count: how many pictures a page has.
            page: which page, from 1.
            filters: what the pictures must have.

        Raises:
            RefusedError: (422) the text has nothing that the model can read, or is too long; the page is too far; the
                data lack what is filtered by; (503) too many wait, or no part of the index answers.
        """
        (form,), cut = self._readable([query], _("the query"))
        held = await self.router.describe()
        filters.refuse_unknown(frozenset().union(*(each.columns for each in held.values())))
        depth = min([self.limits.ranks, *(each.depth for each in held.values() if each.depth is not None)])
        last = page * count
        if count > depth:
            raise RefusedError(
                422,
                _("{count} pictures are too many: only the first {depth} are ranked, ask for fewer").format(
                    count=count, depth=depth
                ),
            )
        if last > depth:
            raise RefusedError(
                422,
                _(
                    "page {page} is too far: only the first {depth} pictures are ranked, so ask otherwise or filter"
                ).format(page=page, depth=depth),
            )
        question = Question(await self._encode(form), min(last + 1, depth), filters)
        found = await self.router.search(question, last - count, last)
        threshold = self.calibration["threshold"] if self.calibration.get("used") else None
        return answers.SearchAnswer(
            query=query,
            read_as=form,
            cut=cut,
            nothing_similar=bool(threshold and found.stands_out is not None and found.stands_out < threshold),
            stands_out=found.stands_out,
            threshold=threshold,
            page=page,
            more=found.more,
            matching=found.matching,
            looked_at=found.looked_at,
            missing=self._names(found.missing),
            results=_shown(found.hits),
        )

    async def captions(self, picture: Picture, count: int) -> answers.CaptionsAnswer:
        """Find captions and other pictures for a picture.

        Raises:
            RefusedError: (422) the picture cannot be encoded; (503) too many wait, or no part of the index answers.
        """
        found = await self.router.near(await self._encoded(picture), count + 1)
        others = [hit for hit in found.pictures if hit.at != picture.at]
        return answers.CaptionsAnswer(
            captions=[
                answers.CaptionHit(caption=each.text, score=each.score, pictures=list(each.pictures))
                for each in found.captions[:count]
            ],
            similar=_shown(others[:count]),
            missing=self._names(found.missing),
        )

    async def align(self, picture: Picture, text: str, word: str | None = None) -> answers.AlignAnswer:
        """Find the best token of each patch of a picture.

        Raises:
            RefusedError: (422) the model is not token-wise, the text cannot be read or is too long, or the word is not
                in it; (503) too many wait.
        """
        if not self.model.token_wise:
            raise RefusedError(
                422, _("this model has one vector for a picture, so no patch can be compared: serve a token-wise model")
            )
        (form,), cut = self._readable([text], _("the text"))
        if cut:
            most = self.model.saved.tokenizer.max_tokens
            raise RefusedError(
                422, _("the model reads {most} tokens of a text, with [CLS] and [SEP]: shorten it").format(most=most)
            )
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
            raise RefusedError(
                422,
                _("{count} different labels are given: give 2 to {labels}").format(
                    count=len(given), labels=self.limits.labels
                ),
            )
        self._readable(given, _("a label"))

        vectors = await self._encoded(picture)
        scores, probabilities = await self._of_pictures(lambda: label_scores(self.model, vectors, given))
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
            RefusedError: (404) there is none with this key; (503) the part of the index that may have it does not
                answer.
        """
        at = await self.router.find(key)
        return Picture(at, await self._in(self._files, self.collection.read, at.item.place))

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
        if kind is not None and picture.at is not None and picture.at.item.place.size:
            return picture.data, kind
        return await self._decoder.decode(picture.data), "image/jpeg"

    async def urls_of(self, keys: Sequence[str]) -> dict[str, str]:
        """The URLs of pictures of the collection, by key; see ``Collection.urls``."""
        places = {key: (await self.router.find(key)).item.place for key in keys}
        return await self._in(self._files, self.collection.urls, places)

    async def spread(self, count: int) -> list[answers.ShownPicture]:
        """Return some pictures, spread evenly over the collection."""
        return [answers.ShownPicture(**_of(at)) for at in await self.router.spread(count)]

    async def examples(self, count: int) -> list[str]:
        """Return queries that suit the collection: frequent short Chinese captions that share no character.

        Some share one, or there are fewer, where the collection has no others.
        """
        times: Counter[str] = Counter()
        for each in (await self.router.describe()).values():
            times.update(dict(each.frequent))
        short = [caption for caption, _ in times.most_common()]
        chosen: list[str] = []
        for caption in short:
            if len(chosen) < count and not set(caption) & set("".join(chosen)):
                chosen.append(caption)
        return chosen + [caption for caption in short if caption not in chosen][: count - len(chosen)]

    # --- how it is computed

    def _encoded_texts(self, forms: Sequence[str]) -> list[Texts]:
        texts = self.model.saved.encode_text(forms, strict=False)
        return [Texts(texts.vectors[row : row + 1], texts.counted[row : row + 1]) for row in range(len(forms))]

    async def _encoded(self, picture: Picture) -> Tensor:
        if picture.at is not None:
            return await self.router.vectors(picture.at)
        return await self._of_pictures(lambda: self.model.saved.encode_image([images.decode(picture.data)])[0])

    def _names(self, shards: Sequence[int]) -> list[str]:
        return [self.router.name(number) for number in shards]

    def _readable(self, texts: Sequence[str], name: str) -> tuple[list[str], bool]:
        """Return the forms of texts in which they are searched, and whether the model reads less than all of one."""
        forms = search_forms(texts)
        lengths = self.lengths(texts, forms, [name] * len(texts))
        return forms, max(lengths) > self.model.saved.tokenizer.max_tokens


def _of(at: At) -> dict[str, Any]:
    """What is shown of a picture."""
    return {"picture": at.item.key, "url": f"/pictures/{at.item.key}/file", "captions": list(at.item.captions)}


def _shown(hits: Sequence[Hit]) -> list[answers.PictureHit]:
    return [answers.PictureHit(**_of(hit.at), score=hit.score) for hit in hits]


def _jpeg(image: Image.Image) -> bytes:
    target = io.BytesIO()
    image.save(target, "JPEG", quality=90)
    return target.getvalue()
