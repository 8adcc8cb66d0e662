"""What goes over the wire: OpenAI's types, with extensions."""

from xtdist.serve.protocol.base import StreamOptions, StreamRequest, Usage, Wire, parse
from xtdist.serve.protocol.completions import (
    Choice,
    Completion,
    CompletionRequest,
    Logprobs,
    Prompt,
    parse_request,
    to_params,
)
from xtdist.serve.protocol.decoding import (
    Contrastive,
    DecodingRequest,
    StructuredOutputs,
    decoding_params,
    refused,
)
from xtdist.serve.protocol.models import ModelCard, ModelList

__all__ = [
    "Choice",
    "Completion",
    "CompletionRequest",
    "Contrastive",
    "DecodingRequest",
    "Logprobs",
    "ModelCard",
    "ModelList",
    "Prompt",
    "StreamOptions",
    "StreamRequest",
    "StructuredOutputs",
    "Usage",
    "Wire",
    "decoding_params",
    "parse",
    "parse_request",
    "refused",
    "to_params",
]
