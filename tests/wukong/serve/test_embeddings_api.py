"""OpenAI's embeddings API on a real server, by plain HTTP; ``tests/wukong/export`` asks it with OpenAI's own client."""

import base64
import io
import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import colours
import jsonschema
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from search_site import LIMITS as SMALL
from search_site import Answer, Server, Site, running, started
from torch import nn

from wukong.evaluate.model import OwnModel
from wukong.model.saved_model import SavedModel
from wukong.serve.app import create_app
from wukong.serve.embedder import Embedder

NAME = "models:/test@champion"
TEXTS = ["红色的苹果", "紅色的蘋果", "ＡＰＰＬＥ", "一只猫在雪地里"]
LIMITS = replace(SMALL, upload_bytes=1_000_000)
FIELDS = {"message", "type", "param", "code"}


@pytest.fixture(scope="module")
def saved() -> SavedModel:
    """Real encoders with random weights, so large, or shifted, that vectors of different things differ."""
    made = colours.model("global").saved
    found = SavedModel(made.model, made.tokenizer)
    head = found.model.image_head
    assert isinstance(head, nn.Linear)
    with torch.no_grad():
        for parameter in found.model.text.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.3)
        outputs: list[torch.Tensor] = []
        seen = head.register_forward_hook(lambda _head, _given, gave: outputs.append(gave))
        found.encode_image(PICTURES)
        seen.remove()
        head.bias.sub_(outputs[0].mean(0))
    return found


def test_the_model_tells_things_apart(saved: SavedModel) -> None:
    """So that the tests below mean something."""
    pictures, texts = saved.encode_image(PICTURES).numpy(), saved.encode_text(TEXTS).vectors.numpy()
    for each in (pictures, texts):
        assert np.triu(each @ each.T, 1).max() < 0.98


@pytest.fixture(scope="module")
def server(saved: SavedModel) -> Iterator[Server]:
    """A server of vectors alone, as ``wukong serve`` without ``--data``."""
    with started(create_app(Embedder(OwnModel(saved, NAME), LIMITS), ("127.0.0.1",))) as running:
        yield running


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with running(tmp_path_factory.mktemp("site")) as started:
        yield started


def ask(server: Server, **asked: Any) -> Answer:
    return server.ask("/v1/embeddings", json.dumps(asked).encode(), {"Content-Type": "application/json"})


def vectors(answer: Answer) -> np.ndarray:
    assert answer.status == 200, answer.text
    assert [each["index"] for each in answer.json["data"]] == list(range(len(answer.json["data"])))
    return np.array([each["embedding"] for each in answer.json["data"]], np.float32)


def picture(data: bytes, kind: str = "image/png") -> dict[str, Any]:
    uri = f"data:{kind};base64,{base64.b64encode(data).decode()}"
    return {"type": "image_url", "image_url": {"url": uri}}


def messages(*parts: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


def noise(width: int, height: int, form: str, **options: Any) -> bytes:
    pixels = np.random.default_rng(width).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    made = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
    return colours.encoded(made, form, **options)


PICTURES = [noise(side, 64, "PNG") for side in (72, 80, 96, 128)]


def test_texts_have_the_vectors_of_encode_text(server: Server, saved: SavedModel) -> None:
    """As they are, and not in the form of a query: the two ways to write it are two texts."""
    answer = ask(server, model=NAME, input=TEXTS)
    np.testing.assert_allclose(vectors(answer), saved.encode_text(TEXTS).vectors, atol=1e-6)
    tokens = sum(len(each) for each in saved.tokenizer.encode(TEXTS))
    body = answer.json
    assert (body["object"], body["model"]) == ("list", NAME)
    assert body["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    assert {each["object"] for each in body["data"]} == {"embedding"}
    one = ask(server, input="红色的苹果", user="somebody", dimensions=8)
    np.testing.assert_allclose(vectors(one), vectors(answer)[:1], atol=1e-6)


def test_base64_is_float32_with_the_lowest_byte_first(server: Server) -> None:
    texts = ["红色的苹果", "猫"]
    encoded = ask(server, input=texts, encoding_format="base64").json["data"]
    found = [np.frombuffer(base64.b64decode(each["embedding"]), "<f4") for each in encoded]
    np.testing.assert_array_equal(np.stack(found), vectors(ask(server, input=texts, encoding_format="float")))


def test_a_long_text_is_refused_or_cut_when_that_is_asked(server: Server, saved: SavedModel) -> None:
    texts = ["猫", "红色" * 25]
    refused = ask(server, input=texts)
    assert (refused.status, refused.json["error"]["param"]) == (400, "input")
    assert refused.json["error"]["message"].startswith("input 1 has 52 tokens and the model reads 32: shorten it")
    for most in (-1, 32):
        cut = ask(server, input=texts, truncate_prompt_tokens=most)
        np.testing.assert_allclose(vectors(cut), saved.encode_text(texts, strict=False).vectors, atol=1e-6)
        assert cut.json["usage"]["prompt_tokens"] == 3 + 32


def test_pictures_have_the_vectors_of_encode_image(server: Server, saved: SavedModel) -> None:
    """Pictures as a shard has them, upright JPEGs of at most 256 pixels, stay as they are."""
    files = [noise(120, 80, "JPEG", quality=90), noise(256, 300, "JPEG", quality=80)]
    answer = ask(server, model=NAME, messages=messages(*(picture(file, "image/jpeg") for file in files)))
    np.testing.assert_allclose(vectors(answer), saved.encode_image(files), atol=1e-6)
    assert answer.json["usage"] == {"prompt_tokens": 0, "total_tokens": 0}


def test_other_pictures_have_almost_the_vectors_of_encode_image(server: Server, saved: SavedModel) -> None:
    """They are made small as the crawl does, and what they say of their type does not count."""
    for file in (noise(640, 480, "PNG"), noise(500, 800, "WEBP", quality=95), noise(900, 700, "JPEG", quality=95)):
        found = vectors(ask(server, messages=messages(picture(file, "image/gif"))))
        assert (found @ saved.encode_image(file).numpy().T).item() > 0.99


def test_a_text_as_a_message_is_an_input(server: Server) -> None:
    """What vLLM's own client sends for a text of CLIP, with fields that mean nothing here."""
    text = {"type": "text", "text": "一只猫"}
    wanted = vectors(ask(server, input="一只猫"))
    sent = {"continue_final_message": False, "add_special_tokens": False, "encoding_format": "float"}
    np.testing.assert_allclose(vectors(ask(server, model=NAME, messages=messages(text), **sent)), wanted, atol=1e-6)
    spoken = [{"role": "user", "content": "一只猫"}]
    np.testing.assert_allclose(vectors(ask(server, messages=spoken)), wanted, atol=1e-6)


def test_many_at_once_get_what_each_alone_gets(server: Server) -> None:
    texts = [[f"{colour}{'色' * count}" for count in range(1, 9)] for colour in colours.COLOURS] * 4
    alone = [vectors(ask(server, input=each)) for each in texts]
    with ThreadPoolExecutor(20) as pool:
        together = list(pool.map(lambda each: vectors(ask(server, input=each)), texts))
    np.testing.assert_allclose(together, alone, atol=1e-6)


def test_as_many_texts_as_openai_takes_are_one_request(server: Server, saved: SavedModel) -> None:
    texts = [f"第{number}个" for number in range(2048)]
    np.testing.assert_allclose(vectors(ask(server, input=texts)), saved.encode_text(texts).vectors, atol=1e-6)
    refused = ask(server, input=[*texts, "猫"])
    assert (refused.status, "at most 2048" in refused.json["error"]["message"]) == (400, True)


def test_the_model_is_listed_with_its_digest(server: Server, saved: SavedModel) -> None:
    (listed,) = server.ask("/v1/models").json["data"]
    assert (listed["id"], listed["object"], listed["dimensions"]) == (NAME, "model", 8)
    assert listed["digest"] == OwnModel(saved, "another name").digest


RED = colours.encoded(colours.picture("红"))
TEXT = {"type": "text", "text": "一只猫"}
WRONG: list[tuple[dict[str, Any], int, str | None, str]] = [
    ({}, 400, "input", "one of the two"),
    ({"input": "猫", "messages": messages(picture(RED))}, 400, "input", "one of the two"),
    ({"input": "猫", "model": "text-embedding-3-small"}, 404, "model", "GET /v1/models lists it"),
    ({"input": "猫", "model": 3}, 400, "model", "valid string"),
    ({"input": "猫", "dimensions": 4}, 400, "dimensions", "have 8 numbers"),
    ({"input": "猫", "dimensions": "8"}, 400, "dimensions", "valid integer"),
    ({"input": "猫", "encoding_format": "int8"}, 400, "encoding_format", "'float' or 'base64'"),
    ({"input": "猫", "truncate_prompt_tokens": 5}, 400, "truncate_prompt_tokens", "send -1"),
    ({"input": ""}, 400, "input", "nothing to read in input 0"),
    ({"input": ["猫", " "]}, 400, "input", "nothing to read in input 1"),
    ({"input": "\U0001f9ff"}, 400, "input", "vocabulary knows none"),
    ({"input": "红" * 61}, 400, "input", "at most 60"),
    ({"input": []}, 400, "input", "not empty"),
    ({"input": {"text": "猫"}}, 400, "input", "a list of texts"),
    ({"input": [101, 4344, 102]}, 400, "input", "token ids are sent"),
    ({"input": [[101, 4344, 102]]}, 400, "input", "token ids are sent"),
    ({"input": ["猫", None]}, 400, "input", "each entry of the list is a text"),
    ({"messages": []}, 400, "messages", "give messages of the role"),
    ({"messages": "猫"}, 400, "messages", "give messages of the role"),
    ({"messages": [{"role": "system", "content": "猫"}]}, 400, "messages", "give messages of the role"),
    ({"messages": messages()}, 400, "messages", "give messages of the role"),
    ({"messages": messages(TEXT, picture(RED))}, 400, "messages", "one vector for each, and none for both"),
    ({"messages": messages(TEXT, TEXT)}, 400, "messages", "as `input`, a list"),
    ({"messages": messages({"type": "input_audio"})}, 400, "messages", "of the type `image_url`"),
    ({"messages": messages({"type": "image_url"})}, 400, "messages", "lacks its `url`"),
    ({"messages": messages({"type": "image_url", "image_url": {"url": 3}})}, 400, "messages", "lacks its `url`"),
    ({"messages": messages(*[picture(RED)] * 17)}, 400, "messages", "at most 16"),
    ({"messages": messages(picture(RED), picture(RED[:60]))}, 400, "messages", "picture 1: "),
    ({"messages": messages(picture(b"hello"))}, 400, "messages", "send JPEG, PNG"),
    ({"messages": messages(picture(b"\xff\xd8\xff" + bytes(1_000_000)))}, 413, "messages", "send a smaller one"),
]


@pytest.mark.parametrize(("asked", "status", "param", "said"), WRONG)
def test_wrong_requests_say_what_is_wrong(
    server: Server, asked: dict[str, Any], status: int, param: str | None, said: str
) -> None:
    answer = ask(server, **asked)
    error = answer.json["error"]
    assert (answer.status, set(answer.json), set(error)) == (status, {"error"}, FIELDS), answer.text
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert said in error["message"]
    assert error["code"] == ("model_not_found" if status == 404 else None)


def test_no_address_is_opened(server: Server, tmp_path: Path) -> None:
    """Neither a file of the server's machine nor an address that only it may reach, however the URI is written."""
    file = tmp_path / "secret.png"
    file.write_bytes(RED)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0.5)
        inside = f"//127.0.0.1:{listening.getsockname()[1]}/picture.png"
        for url in (f"http:{inside}", f"HTTPS:{inside}", f"ftp:{inside}", inside, file.as_uri(), str(file), "s3://x/y"):
            answer = ask(server, messages=messages({"type": "image_url", "image_url": {"url": url}}))
            assert (answer.status, "this server opens none" in answer.text) == (400, True), answer.text
        with pytest.raises(TimeoutError):
            listening.accept()


@pytest.mark.parametrize(
    "uri", ["data:", "data:image/png,abc", "data:image/png;base64,", "data:;base64,a*b", "data:;base64,é"]
)
def test_a_uri_without_base64_is_refused(server: Server, uri: str) -> None:
    answer = ask(server, messages=messages({"type": "image_url", "image_url": {"url": uri}}))
    assert (answer.status, "is not in base64" in answer.text) == (400, True)


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"\xff", b'{"input": "\\ud800"}', b'{"input":' + b"[" * 50_000, b'{"input": 1' + b"0" * 9_000],
)
def test_what_is_no_json_is_refused(server: Server, body: bytes) -> None:
    answer = server.ask("/v1/embeddings", body)
    assert (answer.status, set(answer.json["error"])) == (400, FIELDS), answer.text


def test_a_token_wise_model_has_no_vector_of_a_text(site: Site) -> None:
    answer = ask(site, input="红")
    assert (answer.status, answer.json["error"]["param"]) == (400, "model")
    assert "search with GET /api/search" in answer.json["error"]["message"]
    assert site.ask("/v1/models").json["data"][0]["digest"] == site.service.model.digest


def test_other_errors_have_openais_form_too(server: Server, site: Site) -> None:
    for answer, status in (
        (server.ask("/v1/nothing"), 404),
        (server.ask("/v1/embeddings"), 405),
        (server.ask("/v1/models", headers={"Host": "evil.example"}), 400),
    ):
        assert (answer.status, set(answer.json["error"])) == (status, FIELDS)
    assert isinstance(site.ask("/api/nothing").json["error"], str), "that of the other API stays as it is"


def test_a_server_without_data_searches_nothing(server: Server) -> None:
    assert server.ask("/healthz").json == {"status": "ok"}
    assert [server.ask(path).status for path in ("/", "/api/search?q=x", "/api/about")] == [404] * 3
    assert set(server.ask("/openapi.json").json["paths"]) == {"/healthz", "/v1/embeddings", "/v1/models"}


def test_metrics_count_vectors(server: Server) -> None:
    def count(status: int) -> float:
        start = f'wukong_serve_requests_total{{route="/v1/embeddings",status="{status}"}}'
        lines = server.ask("/metrics").text.splitlines()
        return next((float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(start)), 0.0)

    before = count(200), count(400)
    ask(server, input="猫")
    ask(server, input=[1])
    assert (count(200), count(400)) == (before[0] + 1, before[1] + 1)


CHUNKED = b"POST /v1/embeddings HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n"


def connected(server: Server) -> socket.socket:
    parts = urlsplit(server.address)
    return socket.create_connection((parts.hostname, parts.port), timeout=20)


def test_a_request_that_is_too_large_is_not_read_to_its_end(server: Server) -> None:
    with connected(server) as sent:
        sent.sendall(CHUNKED)
        piece = b" " * 50_000
        for _ in range(LIMITS.upload_bytes * 3 // 2 // len(piece) + 1):
            sent.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))
        assert sent.recv(12) == b"HTTP/1.1 413"


def test_large_requests_have_places_and_small_ones_need_none(server: Server) -> None:
    """As many bodies as there are places, which do not end, and one more."""
    with ExitStack() as held:
        sent = [held.enter_context(connected(server)) for _ in range(LIMITS.uploads + 1)]
        for each in sent:
            each.sendall(CHUNKED)
        assert ask(server, input="猫").status == 200
        assert sorted(each.recv(12) for each in sent) == [b"HTTP/1.1 408"] * LIMITS.uploads + [b"HTTP/1.1 503"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
PARTS = (
    st.sampled_from([TEXT, picture(RED), picture(b"x"), {"type": "image_url", "image_url": {"url": "http://x"}}]) | JSON
)
ASKED = st.fixed_dictionaries(
    {},
    optional={
        "model": st.just(NAME) | JSON,
        "input": st.sampled_from(["猫", ["猫", "红"], [[1]]]) | JSON,
        "messages": st.lists(PARTS, max_size=3).map(lambda parts: [{"role": "user", "content": parts}]) | JSON,
        "encoding_format": st.sampled_from(["float", "base64"]) | JSON,
        "dimensions": st.just(8) | JSON,
        "truncate_prompt_tokens": st.just(-1) | JSON,
        "user": JSON,
    },
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(asked=ASKED)
def test_whatever_is_asked_the_answer_is_as_described(server: Server, asked: dict[str, Any]) -> None:
    described = server.ask("/openapi.json").json
    operation = described["paths"]["/v1/embeddings"]["post"]
    answer = ask(server, **asked)
    assert answer.status < 500
    schema = operation["responses"][str(answer.status)]["content"]["application/json"]["schema"]
    jsonschema.validate(answer.json, {**schema, "components": described["components"]})
    if answer.status == 200:
        jsonschema.validate(asked, operation["requestBody"]["content"]["application/json"]["schema"])


def test_a_picture_is_one_a_browser_would_show(server: Server) -> None:
    """Turned by EXIF: the same vector as that of the picture that is upright in the file."""
    upright = colours.picture("蓝", "红").rotate(90, expand=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    target = io.BytesIO()
    upright.rotate(90, expand=True).save(target, "PNG", exif=exif)
    turned, straight = (
        vectors(ask(server, messages=messages(picture(data)))) for data in (target.getvalue(), colours.encoded(upright))
    )
    np.testing.assert_allclose(turned, straight, atol=1e-5)
