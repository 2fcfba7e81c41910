"""OpenAI's embeddings API under ``/v1``, with pictures in the form of vLLM: what is asked, and routes that answer it.

OpenAI's ``input`` holds texts. vLLM's embeddings API takes ``messages`` of OpenAI's chat in its place, so that pictures
can be sent ("Embeddings API" in vLLM's page about its OpenAI-compatible server); its clients send fields such as
``continue_final_message`` with them, which mean nothing here and are ignored as there.
"""

import base64
import binascii
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from pydantic import ValidationError
from torch import Tensor

from wukong.crawl import uploads
from wukong.crawl.uploads import Limits, RefusedError
from wukong.serve import answers
from wukong.serve.embedder import Embedder

PREFIX = "/v1/"
_SMALL = 2**20
"""Bytes of a request that may arrive beside any number of others."""
_BAD_REQUEST, _NOT_FOUND, _SERVER_ERROR = 400, 404, 500
_STATUS = {415: _BAD_REQUEST, 422: _BAD_REQUEST}
"""OpenAI's status for a request whose content is wrong."""
_REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": answers.OpenAIProblem, "description": text}
    for status, text in {
        400: "A field is wrong, a text or a picture cannot be read, or the host is not served.",
        404: "The server has another model.",
        408: "The request arrives too slowly.",
        413: "The request, or a picture in it, is too large.",
        503: "Too many requests wait.",
    }.items()
}
_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": answers.EmbeddingsRequest.model_json_schema()}},
    }
}


class WrongError(RefusedError):
    """A request with a wrong field."""

    def __init__(self, param: str, message: str, status: int = _BAD_REQUEST, code: str | None = None) -> None:
        super().__init__(status, message)
        self.param, self.code = param, code


def problem(status: int, message: str, param: str | None = None, code: str | None = None) -> JSONResponse:
    """Return OpenAI's error object with its status."""
    status = _STATUS.get(status, status)
    kind = "server_error" if status >= _SERVER_ERROR else "invalid_request_error"
    error = answers.OpenAIError(message=message, type=kind, param=param, code=code)
    return JSONResponse({"error": error.model_dump()}, status, {"retry-after": "1"} if status == 503 else None)


def add(app: FastAPI, embedder: Embedder) -> None:
    """Add the routes to an application; its handler of ``RefusedError`` answers with ``problem``."""
    loaded = int(time.time())
    model = embedder.model

    @app.post(
        "/v1/embeddings",
        response_model=answers.EmbeddingsAnswer,
        responses=_REFUSALS,
        openapi_extra=_BODY,
        tags=["OpenAI"],
    )
    async def embeddings(request: Request) -> Response:
        """Compute vectors of texts or pictures."""
        declared = request.headers.get("content-length")
        with ExitStack() as held:
            is_large = declared is None or uploads.is_above(declared, _SMALL)
            if is_large:
                held.enter_context(embedder.receiving())
            asked = _asked(await uploads.read_json(request.stream(), declared, embedder.limits))
            _refuse_wrong(asked, embedder)
            texts, pictures = _contents(asked, embedder.limits)
            if pictures and not is_large:
                held.enter_context(embedder.receiving())
            try:
                if pictures:
                    vectors, tokens = await embedder.embed_pictures(pictures), 0
                else:
                    vectors, tokens = await embedder.embed_texts(texts, cut=asked.truncate_prompt_tokens is not None)
            except RefusedError as error:
                if error.status >= _SERVER_ERROR:
                    raise
                raise WrongError("messages" if asked.input is None else "input", str(error), error.status) from error
        answer = answers.EmbeddingsAnswer(
            data=[
                answers.Embedding(index=index, embedding=_written(vector, asked.encoding_format))
                for index, vector in enumerate(vectors)
            ],
            model=embedder.model_name,
            usage=answers.Usage(prompt_tokens=tokens, total_tokens=tokens),
        )
        # As bytes, because FastAPI would check millions of numbers before it writes them.
        return Response(answer.model_dump_json(), media_type="application/json")

    @app.get("/v1/models", responses={400: _REFUSALS[400]}, tags=["OpenAI"])
    async def models() -> answers.ModelsAnswer:
        """List the one model of this server."""
        served = answers.ServedModel(
            id=embedder.model_name,
            created=loaded,
            digest=model.digest,
            dimensions=model.saved.model.width,
            max_model_len=model.saved.tokenizer.max_tokens,
        )
        return answers.ModelsAnswer(data=[served])


def _asked(body: bytes) -> answers.EmbeddingsRequest:
    try:
        return answers.EmbeddingsRequest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        field = str(first["loc"][0]) if first["loc"] else None
        if field is None:
            raise RefusedError(_BAD_REQUEST, f"the body is no JSON object: {first['msg']}") from error
        raise WrongError(field, f"{field}: {first['msg']}") from error


def _refuse_wrong(asked: answers.EmbeddingsRequest, embedder: Embedder) -> None:
    """Raise WrongError for what this model cannot do."""
    name, width = embedder.model_name, embedder.model.saved.model.width
    if asked.model not in (None, name, embedder.model.name):
        wrong = f"this server has one model, {name!r}: GET /v1/models lists it"
        raise WrongError("model", wrong, _NOT_FOUND, "model_not_found")
    if embedder.model.token_wise:
        raise WrongError(
            "model",
            "this model has a vector for each token and each patch, and none for a whole text or picture: serve a "
            "model that was trained with model.similarity=global, or search with GET /api/search",
        )
    if asked.dimensions not in (None, width):
        raise WrongError("dimensions", f"this model's vectors have {width} numbers: leave `dimensions` out")
    most = embedder.model.saved.tokenizer.max_tokens
    if asked.truncate_prompt_tokens not in (None, -1, most):
        raise WrongError("truncate_prompt_tokens", f"texts are cut to the {most} tokens that the model reads: send -1")


def _contents(asked: answers.EmbeddingsRequest, limits: Limits) -> tuple[Sequence[str], Sequence[bytes]]:
    """Return the texts or the pictures of a request; one of both is empty."""
    if (asked.input is None) == (asked.messages is None):
        raise WrongError("input", "give `input`, texts, or `messages`, pictures: one of the two")
    if asked.messages is None:
        return _texts(asked.input, limits), ()
    parts = _parts(asked.messages)
    texts = [_field(part, "text") for part in parts if part.get("type") == "text"]
    urls = [_field(part.get("image_url"), "url") for part in parts if part.get("type") == "image_url"]
    if len(texts) + len(urls) < len(parts):
        raise WrongError("messages", "each part is of the type `image_url`, or the only one is of the type `text`")
    if texts and urls:
        raise WrongError(
            "messages",
            "a text and a picture are sent together: this model has one vector for each, and none for both; send the "
            "text as `input`, in a request of its own",
        )
    if len(texts) > 1:
        raise WrongError("messages", "several texts are sent as messages: send them as `input`, a list")
    if len(urls) > limits.uploads:
        raise WrongError("messages", f"{len(urls)} pictures are sent: send at most {limits.uploads} at a time")
    return texts, [_picture(url, number, limits) for number, url in enumerate(urls)]


def _texts(given: Any, limits: Limits) -> list[str]:
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts:
        raise WrongError("input", "give a text, or a list of texts that is not empty")
    if any(isinstance(each, int | list) for each in texts):
        raise WrongError(
            "input",
            "token ids are sent, and those of another vocabulary mean something else here: send the texts themselves "
            "(LangChain does with check_embedding_ctx_length=False)",
        )
    if not all(isinstance(each, str) for each in texts):
        raise WrongError("input", "each entry of the list is a text")
    if len(texts) > limits.inputs:
        raise WrongError("input", f"{len(texts)} texts are sent: send at most {limits.inputs} at a time")
    return texts


def _parts(messages: Any) -> list[Mapping[str, Any]]:
    """Return the parts of all messages, which are one prompt in vLLM."""
    parts: list[Any] = []
    for message in messages if isinstance(messages, list) else ():
        content = message.get("content") if isinstance(message, dict) and message.get("role") == "user" else None
        parts += [{"type": "text", "text": content}] if isinstance(content, str) else _listed(content)
    if not parts or not all(isinstance(part, dict) for part in parts):
        raise WrongError(
            "messages",
            'give messages of the role `user`, whose `content` is a list of parts such as {"type": "image_url", '
            '"image_url": {"url": "data:image/jpeg;base64,…"}}',
        )
    return parts


def _listed(content: Any) -> list[Any]:
    return content if isinstance(content, list) and content else [None]


def _field(part: Any, name: str) -> str:
    value = part.get(name) if isinstance(part, dict) else None
    if not isinstance(value, str):
        raise WrongError("messages", f"a part lacks its `{name}`, a string")
    return value


def _picture(url: str, number: int, limits: Limits) -> bytes:
    """Return the bytes of a picture's file. What a URI says of its type does not count: the bytes say it."""
    head, _, content = url.partition(",")
    if not head.startswith("data:"):
        raise WrongError(
            "messages",
            f"picture {number} is an address: this server opens none, neither of the web nor of a file; send the "
            "picture itself, as data:image/jpeg;base64,…",
        )
    try:
        data = base64.b64decode(content, validate=True) if head.endswith(";base64") else b""
    except (binascii.Error, ValueError):  # ValueError: a character that is not of ASCII
        data = b""
    if not data:
        raise WrongError("messages", f"picture {number} is not in base64: send data:image/jpeg;base64,…")
    if len(data) > limits.upload_bytes:
        raise WrongError(
            "messages", f"picture {number} has more than {limits.upload_bytes / 2**20:g} MiB: send a smaller one", 413
        )
    return data


def _written(vector: Tensor, encoding: str) -> list[float] | str:
    if encoding == "base64":
        return base64.b64encode(vector.numpy().astype("<f4").tobytes()).decode()
    numbers: list[float] = vector.tolist()
    return numbers
