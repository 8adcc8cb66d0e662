"""What the objectives are given in another type, shape or range is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from nets import VOCABULARY, make_net, some_ids

from xtdist.config import ConfigError
from xtdist.decode import MaskPredictParams
from xtdist.decode.fill import mask_predict
from xtdist.objective import AutoregressiveWrapper, NonAutoregressiveWrapper
from xtdist.objective.masking import schedule_of

MASK = VOCABULARY - 1
IDS = some_ids(2, 8)
REAL = torch.ones(2, 8, dtype=torch.bool)


def masked(**more: Any) -> NonAutoregressiveWrapper:
    return NonAutoregressiveWrapper(make_net(causal=False, **more), mask_id=MASK, steps=2)


@pytest.mark.parametrize(
    ("x", "named"),
    [
        ([[1, 2]], "x: got a list"),
        (torch.tensor([[1, 2, 25]]), "targets: got 25"),
        (torch.tensor([[1, 2, -1]]), "targets: got -1"),
        (torch.tensor([[1.0, 2.0]]), "targets: got torch.float32"),
    ],
)
def test_next_token_prediction_names_what_it_was_given(x: Any, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        AutoregressiveWrapper(make_net(causal=True))(x)


@pytest.mark.parametrize("given", [{"lens": [3, 2]}, {"mask": [[True] * 8] * 2}], ids=str)
def test_lengths_and_masks_are_tensors(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="got a list"):
        AutoregressiveWrapper(make_net(causal=True))(IDS, **given)


def test_targets_of_another_document_may_be_any_token() -> None:
    net = make_net(causal=True, head={"dim": 12})
    documents = torch.tensor([[0, 0, 0, 1]])
    found = AutoregressiveWrapper(net)(torch.tensor([[1, 2, 3, 15]]), documents=documents)
    want = AutoregressiveWrapper(net)(torch.tensor([[1, 2, 3]]))
    torch.testing.assert_close(found, want)


@pytest.mark.parametrize(
    ("x", "given", "named"),
    [
        (some_ids(1, 17), {}, r"n from 1 to 16 \(max_seq_len\)"),
        (IDS[:0], {}, "b >= 1"),
        (IDS.tolist(), {}, "x: got a list"),
        (IDS.float(), {}, "x: got torch.float32"),
        (IDS[0], {}, "give ids"),
        (torch.full((1, 3), 25), {}, "targets: got 25"),
        (IDS, {"mask": REAL[0]}, "mask: got torch.bool"),
        (IDS, {"mask": REAL.long()}, "mask: got torch.int64"),
        (IDS, {"mask": REAL[:, 1:]}, "mask: got torch.bool"),
        (IDS, {"mask": [[True] * 8] * 2}, "mask: got a list"),
        (IDS, {"documents": torch.zeros(2, 7).long()}, "documents: got"),
        (IDS, {"documents": [0] * 8}, "documents: got a list"),
        (IDS, {"seq_start_pos": torch.zeros(3).long()}, "seq_start_pos: got"),
    ],
)
def test_masked_prediction_names_what_it_was_given(x: Any, given: Any, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        masked()(x, **given)


def test_a_training_batch_beyond_max_seq_len_is_refused() -> None:
    with pytest.raises(ValueError, match="max_seq_len"):
        masked().prepare(some_ids(1, 18), seed=0, sample_ids=torch.arange(1))


PROMPT = torch.full((2, 8), MASK)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"documents": torch.zeros(3, 8).long()}, r"documents: got .*\(3, 8\); give integer \(2,"),
        ({"documents": torch.zeros(1, 8).long()}, r"documents: got .*\(1, 8\); give integer \(2,"),
        ({"documents": torch.zeros(2, 7).long()}, "documents: got"),
        ({"context": torch.zeros(3, 5, 32)}, "context: got .*one for each of 2 rows"),
        ({"context": torch.zeros(1, 5, 32)}, "context: got .*one for each of 2 rows"),
        ({"context": torch.tensor(1.0)}, "context: got"),
        ({"context": [1]}, "context: got a list"),
        ({"documents": torch.zeros(2, 8).long(), "mask": REAL[:1]}, "mask: got"),
        ({"documents": torch.zeros(2, 8).long(), "mask": REAL.long()}, "mask: got"),
        ({"mask": REAL.tolist()}, "mask: got a list"),
        ({"prompt": PROMPT.tolist()}, "prompt: got a list"),
        ({"prompt": PROMPT[:0]}, "at least one row"),
        ({"prompt": PROMPT.bool()}, "prompt: got torch.bool"),
        ({"prompt": torch.tensor(3)}, "prompt: got"),
        ({"batch_size": 2.0}, "batch_size: got 2.0"),
        ({"prompt": PROMPT, "seq_len": 9.0}, "seq_len: got 9.0"),
    ],
)
def test_filling_names_what_it_was_given(given: dict[str, Any], named: str) -> None:
    """No row is left out, none stands for several."""
    wrapper = masked(cross_attention={"dim_head": 16}) if "context" in given else masked()
    with pytest.raises(ValueError, match=named):
        wrapper.generate(**{"prompt": PROMPT, **given})


@pytest.mark.parametrize("schedule", [3, None, ["linear"]])
def test_a_schedule_is_a_name_or_a_function(schedule: Any) -> None:
    with pytest.raises(ConfigError, match="schedule: got"):
        schedule_of(schedule)


def test_a_schedule_that_is_neither_is_not_ignored() -> None:
    with pytest.raises(ConfigError, match="schedule: got 3"):
        NonAutoregressiveWrapper(make_net(causal=False), mask_id=MASK, schedule=3)  # type: ignore[arg-type]


@pytest.mark.parametrize("found", [None, "half", torch.zeros(2)], ids=str)
def test_a_schedule_of_steps_gives_one_number(found: Any) -> None:
    params = MaskPredictParams(schedule=lambda _: found, mask_id=MASK)
    with pytest.raises(ConfigError, match="schedule: at t="):
        mask_predict(make_net(causal=False), PROMPT, params=params)


@pytest.mark.parametrize("length", [-1, 9, 99])
def test_lengths_that_a_row_can_not_have_are_refused(length: int) -> None:
    wrapper = AutoregressiveWrapper(make_net(causal=True))
    with pytest.raises(ValueError, match=f"lens: got {length}"):
        wrapper(IDS, lens=torch.tensor([8, length]))
    wrapper(IDS, lens=torch.tensor([8, 0]))


@pytest.mark.parametrize("kind", [torch.uint8, torch.int16, torch.int32])
@pytest.mark.parametrize(
    "given", [{}, {"mask": torch.arange(8) < torch.tensor([[5], [8]])}], ids=str
)
def test_ids_may_be_whole_numbers_of_any_type(kind: torch.dtype, given: dict[str, Any]) -> None:
    wrapper = AutoregressiveWrapper(make_net(causal=True))
    torch.testing.assert_close(wrapper(IDS.to(kind), **given), wrapper(IDS, **given))
    other = masked()
    one, two = (
        other(ids, generator=torch.Generator().manual_seed(0), **given).loss
        for ids in (IDS, IDS.to(kind))
    )
    torch.testing.assert_close(one, two)
