"""Bad input at the outer surface: one clear error. Good input: one graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from option_grid import ids
from wrapper_pairs import close, ours, vectors

BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "id too large": (lambda: ours({})(torch.tensor([[3, 40]])), "x: got 40; give token ids from 0"),
    "negative id": (lambda: ours({})(torch.tensor([[3, -1]])), "x: got -1"),
    "float ids": (lambda: ours({})(torch.zeros(1, 4)), "give token ids"),
    "no ids": (lambda: ours({})(None), "give token ids"),
    "too long": (lambda: ours({})(ids(1, 25)), "learned positions end at max_seq_len=24"),
    "far position": (
        lambda: ours({})(ids(1, 2), pos=torch.tensor([3, 24])),
        "pos: got 24; give learned positions from 0 to 23",
    ),
    "position vectors": (lambda: ours({})(ids(1, 2), pos=vectors(1, 2, 16)), "pos: got"),
    "sum": (lambda: ours({})(ids(1, 2), sum_embeds=vectors(1, 3, 32)), "sum_embeds: got"),
    "prepended": (lambda: ours({})(ids(1, 2), prepend_embeds=vectors(1, 3, 8)), "prepend_embeds"),
    "prepended mask": (
        lambda: ours({})(ids(1, 2), prepend_mask=torch.ones(1, 3, dtype=torch.bool)),
        "without prepend_embeds",
    ),
    "no table": (lambda: ours({})(ids(1, 2), embed_ids={"kind": ids(1, 2)}), "embed_ids: got"),
    "no ids for a table": (
        lambda: ours({"embed_num_tokens": {"kind": 3}})(ids(1, 2)),
        r"the tables \['kind'\]",
    ),
    "id of a table": (
        lambda: ours({"embed_num_tokens": {"kind": 3}})(
            ids(1, 2), embed_ids={"kind": torch.tensor([[0, 3]])}
        ),
        "got 3; give ids from 0 to 2",
    ),
    "no next head": (
        lambda: ours({})(ids(1, 2), return_next_embed_pred=True),
        "add_continuous_pred_head",
    ),
    "no head": (
        lambda: ours({"return_only_embed": True})(ids(1, 2), return_logit_entropies=True),
        "no head",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_an_input_that_can_not_be_is_one_clear_error(case: str) -> None:
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        call()


def test_an_unknown_keyword_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="unknown keyword 'masks'"):
        ours({})(ids(1, 2), masks=None)


def test_ids_of_any_integer_type_are_taken() -> None:
    model, x = ours({}), ids(1, 5)
    for dtype in (torch.int32, torch.int16, torch.uint8):
        assert torch.equal(model(x.to(dtype)), model(x))


def test_a_position_beyond_the_length_is_fine_where_positions_are_not_a_table() -> None:
    for wrapper, layers in (({"scaled_sinu_pos_emb": True}, {}), ({}, {"rotary_pos_emb": True})):
        assert ours(wrapper, layers)(ids(1, 30)).isfinite().all()


@pytest.mark.parametrize(
    "wrapper",
    [{}, {"tie_embedding": True}, {"num_memory_tokens": 2, "memory_tokens_interspersed_every": 4}],
    ids=str,
)
def test_a_model_is_one_graph(wrapper: dict[str, Any]) -> None:
    torch._dynamo.reset()
    model = ours(wrapper)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    close(compiled(ids(2, 9)), model(ids(2, 9)))
