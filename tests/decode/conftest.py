from __future__ import annotations

import pytest
from decode_models import make_model

from xtdist.model import TransformerWrapper
from xtdist.nn.attention.config import AttentionConfig


@pytest.fixture(scope="session")
def expert() -> TransformerWrapper:
    return make_model(1)


@pytest.fixture(scope="session")
def amateur() -> TransformerWrapper:
    return make_model(2, dim=16, depth=1, heads=2, attention=AttentionConfig(dim_head=4))
