"""What the JSON API answers."""

from typing import Any, Literal

from pydantic import BaseModel, Field

_TEXT: Any = {"type": "string"}
_NOTHING: Any = {"type": "null"}
_MISSING = "The parts of the index that did not answer in time, whose pictures are not among these; empty if all did."


class Problem(BaseModel):
    """Why a request is refused."""

    error: str = Field(description="What is wrong and how to mend it.")


class ShownPicture(BaseModel):
    """A picture of the collection."""

    picture: str = Field(description="Its key, for the parameter `picture` of other requests.")
    url: str = Field(description="Path of its file on this server.")
    captions: list[str] = Field(description="Its captions, as they are in the data.")


class PictureHit(ShownPicture):
    """A picture that was found."""

    score: float = Field(description="Similarity, -1 to 1; not a probability.")


class SearchAnswer(BaseModel):
    """The pictures that are most similar to a text."""

    query: str
    read_as: str = Field(description="The text as the model reads it: half width, lower case, Simplified characters.")
    cut: bool = Field(description="Whether the model reads only the beginning of the text, because it is too long.")
    nothing_similar: bool = Field(description="Whether even the best picture stands out by less than the threshold.")
    stands_out: float | None = Field(
        description="By how much the best score exceeds the mean score of pictures in general for this text; null if "
        "no picture passes the filters."
    )
    threshold: float | None = Field(description="Calibrated on the data (`/api/about`); null where none is used.")
    page: int = Field(description="Which page of the results this is, from 1.")
    more: bool = Field(description="Whether there is a next page.")
    matching: int = Field(description="How many pictures pass the filters, in the parts of the index that answered.")
    looked_at: int = Field(
        description="How many of these were ranked: all, or, with a token-wise model or an approximate index, those "
        "that are nearest to the text. No other can be among the results."
    )
    missing: list[str] = Field(description=_MISSING)
    results: list[PictureHit]


class CaptionHit(BaseModel):
    """A caption that was found."""

    caption: str
    score: float = Field(description="Similarity, -1 to 1.")
    pictures: list[str] = Field(description="Keys of the pictures with this caption, at most 10.")


class CaptionsAnswer(BaseModel):
    """The captions, and the pictures, that are most similar to a picture."""

    captions: list[CaptionHit]
    similar: list[PictureHit]
    missing: list[str] = Field(description=_MISSING)


class AlignAnswer(BaseModel):
    """Which token of a text each patch of a picture matches best (section 5.4 of the paper)."""

    tokens: list[str] = Field(description="The text's tokens, with [CLS] and [SEP].")
    highlighted: list[int] = Field(description="Places of the tokens of the word, or of all words.")
    best: list[list[int]] = Field(description="For each patch the place of its best token, row by row.")
    similarity: list[list[float]] = Field(description="For each patch its similarity to that token, -1 to 1.")
    shown: str = Field(description="The square that the model sees: a data URL of a JPEG.")


class LabelHit(BaseModel):
    """A label of a zero-shot classification."""

    label: str
    score: float = Field(description="Similarity of the picture to the label in a prompt, -1 to 1.")
    probability: float = Field(description="Softmax over the given labels.")


class ClassifyAnswer(BaseModel):
    """The labels, the best one first."""

    labels: list[LabelHit]


class Calibrated(BaseModel):
    """The threshold of `stands_out` below which nothing is similar, and its measured error rates."""

    threshold: float
    false_alarms: float = Field(description="Share of texts about other things that find something all the same.")
    misses: float = Field(description="Share of the collection's captions that find nothing.")
    texts: int = Field(description="Texts of each kind that were searched.")
    p: float | None = Field(
        None, description="Of Fisher's exact test that texts about other things find nothing more often than captions."
    )
    used: bool = Field(description="Whether it is used: only if p is at most 0.01, else there is no threshold.")


class AboutAnswer(BaseModel):
    """What is searched, with what, and what a request may hold."""

    model: str
    model_digest: str
    data: str
    data_digest: str
    pictures: int
    captions: int
    left_out: int = Field(description="Files that could not be decoded.")
    token_wise: bool = Field(description="Whether `/api/align` has an answer.")
    max_tokens: int = Field(description="Tokens of a text that the model reads, with [CLS] and [SEP].")
    calibration: Calibrated | None
    limits: dict[str, float]


class Health(BaseModel):
    """The server answers."""

    status: str


class EmbeddingsRequest(BaseModel, strict=True):
    """Texts, or pictures, whose vectors are asked for; other fields are ignored."""

    model: str | None = Field(None, description="The id of `/v1/models`.")
    input: Any = Field(
        None,
        description="The texts.",
        json_schema_extra={"anyOf": [_TEXT, {"type": "array", "items": _TEXT}, _NOTHING]},
    )
    messages: Any = Field(
        None,
        description="Pictures, each as a part `image_url` whose `url` is a `data:` URI, in the form of OpenAI's chat.",
        json_schema_extra={"anyOf": [{"type": "array", "items": {"type": "object"}}, _NOTHING]},
    )
    encoding_format: Literal["float", "base64"] = Field(
        "float", description="Numbers, or the base64 of their float32, the lowest byte first."
    )
    dimensions: int | None = Field(None, description="The numbers of a vector: those of the model.")
    truncate_prompt_tokens: int | None = Field(
        None, description="-1, or the tokens that the model reads, to have long texts cut; they are refused else."
    )


class Embedding(BaseModel):
    """The vector of a text or a picture."""

    object: Literal["embedding"] = "embedding"
    index: int = Field(description="The place of the text, or of the picture, in the request.")
    embedding: list[float] | str = Field(description="A unit vector.")


class Usage(BaseModel):
    """What the model has read."""

    prompt_tokens: int = Field(description="Tokens of all texts, with [CLS] and [SEP]; 0 for pictures.")
    total_tokens: int


class EmbeddingsAnswer(BaseModel):
    """The vectors, in the order of the request."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: Usage


class ServedModel(BaseModel):
    """The model that is served."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="When this server loaded it, in seconds since 1970.")
    owned_by: str = "wukong"
    digest: str = Field(description="SHA-256 of settings, vocabulary and weights.")
    dimensions: int = Field(description="The numbers of a vector.")
    max_model_len: int = Field(description="Tokens of a text that the model reads, with [CLS] and [SEP].")


class ModelsAnswer(BaseModel):
    """The one model of this server."""

    object: Literal["list"] = "list"
    data: list[ServedModel]


class OpenAIError(BaseModel):
    """What is wrong with a request, as OpenAI's API says it."""

    message: str = Field(description="What is wrong and how to mend it.")
    type: str
    param: str | None = Field(description="The field of the request.")
    code: str | None


class OpenAIProblem(BaseModel):
    """Why a request to `/v1` is refused."""

    error: OpenAIError
