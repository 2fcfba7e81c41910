"""OpenAI's own Python client, in an environment without this project, gets vectors from a server on loopback."""

import asyncio
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import consumers
import numpy as np
import pytest
from search_site import started

from wukong.crawl.uploads import Limits
from wukong.evaluate.model import OwnModel
from wukong.export.parts import sample_pictures
from wukong.model.saved_model import SavedModel
from wukong.serve.app import create_app
from wukong.serve.embedder import Embedder

pytestmark = [consumers.only_by_hand, pytest.mark.slow]
PACKAGES = ("openai==3.57.0",)
NAME = "models:/test@champion"
TEXTS = ["一只猫", "红色的花", "ＡＰＰＬＥ"]
SCRIPT = """
import base64, json, sys
import openai
from openai.types import CreateEmbeddingResponse
client = openai.OpenAI(base_url=sys.argv[1] + "/v1", api_key="none", max_retries=0)
texts, files = json.loads(sys.argv[2]), sys.argv[3:]
(listed,) = client.models.list().data
default = client.embeddings.create(model=listed.id, input=texts)
plain = client.embeddings.create(model=listed.id, input=texts, encoding_format="float", dimensions=32, user="x")
uris = ["data:image/jpeg;base64," + base64.b64encode(open(file, "rb").read()).decode() for file in files]
parts = [{"type": "image_url", "image_url": {"url": uri}} for uri in uris]
# As vLLM's example of a client asks for the vector of a picture.
body = {"messages": [{"role": "user", "content": parts}], "model": listed.id, "encoding_format": "float"}
body |= {"continue_final_message": False, "add_special_tokens": False}
pictures = client.post("/embeddings", cast_to=CreateEmbeddingResponse, body=body)
errors = []
for model, wrong in (("other", "x"), (listed.id, [1, 2]), (listed.id, "")):
    try:
        client.embeddings.create(model=model, input=wrong)
    except openai.APIStatusError as error:
        said = [error.type, error.param, error.code, error.body["message"]]
        errors.append([type(error).__name__, error.status_code, *said])
print(json.dumps({
    "digest": listed.digest,
    "default": [each.embedding for each in default.data],
    "plain": [each.embedding for each in plain.data],
    "pictures": [each.embedding for each in pictures.data],
    "tokens": default.usage.prompt_tokens,
    "errors": errors,
}))
"""


@pytest.fixture(scope="module")
def address(clip_vit: SavedModel) -> Iterator[str]:
    with started(create_app(Embedder(OwnModel(clip_vit, NAME), Limits()), ("127.0.0.1",))) as server:
        yield server.address


def test_the_client_gets_what_the_model_gives(address: str, clip_vit: SavedModel, tmp_path: Path) -> None:
    files = []
    for number, picture in enumerate(sample_pictures(4)):
        picture.thumbnail((256, 256))
        files.append(tmp_path / f"{number}.jpg")
        picture.save(files[-1], quality=90)
    python = consumers.environment("openai", PACKAGES)
    found = json.loads(consumers.run(python, SCRIPT, address, json.dumps(TEXTS), *files))
    texts = clip_vit.encode_text(TEXTS).vectors
    np.testing.assert_allclose(found["default"], texts, atol=1e-6)  # the client asks for base64
    np.testing.assert_allclose(found["plain"], texts, atol=1e-6)
    np.testing.assert_allclose(found["pictures"], clip_vit.encode_image(files), atol=1e-6)
    assert found["tokens"] == sum(map(len, clip_vit.tokenizer.encode(TEXTS)))
    assert found["digest"] == OwnModel(clip_vit, NAME).digest
    wrong = "invalid_request_error"
    assert [error[:-1] for error in found["errors"]] == [
        ["NotFoundError", 404, wrong, "model", "model_not_found"],
        ["BadRequestError", 400, wrong, "input", None],
        ["BadRequestError", 400, wrong, "input", None],
    ]
    assert "token ids are sent" in found["errors"][1][-1]


def test_the_vectors_of_large_pictures_are_as_close_as_the_page_says(lite0: SavedModel) -> None:
    files = []
    for picture in sample_pictures(24):
        target = io.BytesIO()
        picture.resize((3 * picture.width, 3 * picture.height)).save(target, "JPEG", quality=92)
        files.append(target.getvalue())
    embedder = Embedder(OwnModel(lite0, NAME), Limits())
    found = asyncio.run(embedder.embed_pictures(files))
    embedder.close()
    lowest = (found * lite0.encode_image(files)).sum(1).min().item()
    (stated,) = re.findall(r"is (0\.\d+) with Lite0", (consumers.ROOT / "docs" / "serving.md").read_text())
    assert lowest == pytest.approx(float(stated), abs=2e-3)


def test_the_pages_example_runs(address: str, clip_vit: SavedModel, tmp_path: Path) -> None:
    picture = tmp_path / "cat.jpg"
    sample_pictures(1)[0].save(picture, quality=90)
    page = (consumers.ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    example = "import base64" + page.partition("```python\nimport base64")[2].partition("```")[0]
    example = example.replace("http://127.0.0.1:8500", address).replace("cat.jpg", str(picture))
    printed = consumers.run(consumers.environment("openai", PACKAGES), example)
    image, texts = clip_vit.encode_image(picture), clip_vit.encode_text(["一只猫", "红色的花"])
    # The picture is larger than a crawl stores.
    np.testing.assert_allclose([float(line) for line in printed.split()], (image @ texts.vectors.T)[0], atol=0.02)
