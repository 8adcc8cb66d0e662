"""The wire format of ``/tokenize`` and ``/detokenize``: vLLM's."""

from __future__ import annotations

from pydantic import Field

from xtdist.serve.protocol.base import Wire
from xtdist.serve.protocol.decoding import TokenId


class TokenizeRequest(Wire):
    """Body of ``POST /tokenize``.

    Attributes:
        add_special_tokens: our tokenizers have none to add, so that it changes nothing.
        return_token_strs: also give the text of each token alone.
    """

    model: str
    prompt: str
    add_special_tokens: bool = True
    return_token_strs: bool = False


class Tokenized(Wire):
    """``max_model_len``: tokens that prompt and answer may have together."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeRequest(Wire):
    """Body of ``POST /detokenize``."""

    model: str
    tokens: list[TokenId] = Field(max_length=2**17)


class Detokenized(Wire):
    prompt: str
