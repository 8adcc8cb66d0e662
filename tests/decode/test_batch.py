from __future__ import annotations

from typing import Any

import pytest
import torch
from decode_double import Double
from decode_models import greedy, make_model

from xtdist.config import ConfigError
from xtdist.decode import ContrastiveParams, GenerationParams
from xtdist.decode.batch import BatchGenerator, unpadded
from xtdist.model import TransformerWrapper

GREEDY = GenerationParams(max_tokens=6, temperature=0.0)


def test_rows_of_a_batch_a_list_and_a_padded_batch_are_continued_alike(
    expert: TransformerWrapper,
) -> None:
    prompts = [[1, 2, 3], [4], [5, 6]]
    expected = torch.tensor([greedy(expert, p, 6) for p in prompts])
    generator = BatchGenerator(expert, GREEDY)
    assert torch.equal(generator([torch.tensor(p) for p in prompts]), expected)
    padded = torch.tensor([[1, 2, 3], [4, 0, 0], [5, 6, 0]])
    lens = torch.tensor([3, 1, 2])
    assert torch.equal(generator(padded, prompt_lens=lens), expected)
    assert torch.equal(generator(padded[:1]), expected[:1])
    assert torch.equal(generator(padded[0]), expected[0])


def test_what_follows_the_end_is_padding_and_no_row_waits_for_seq_len(
    expert: TransformerWrapper,
) -> None:
    prompts, eos = torch.tensor([[7], [1]]), 14
    whole = BatchGenerator(expert, GenerationParams(max_tokens=30, temperature=0.0))(prompts)
    stop = [row.tolist().index(eos) + 1 for row in whole]
    assert stop[0] < stop[1] < 30
    params = GenerationParams(max_tokens=30, temperature=0.0)
    found = BatchGenerator(expert, params, eos_token=eos, pad_value=39)(prompts)
    assert found.shape == (2, max(stop))
    for row, complete, n in zip(found, whole, stop, strict=True):
        assert torch.equal(row[:n], complete[:n])
        assert (row[n:] == 39).all()


def test_draws_follow_torch_or_the_seed_and_differ_between_rows(
    expert: TransformerWrapper,
) -> None:
    prompts = torch.tensor([[1, 2], [1, 2]])

    def draw(seed: int | None = None) -> torch.Tensor:
        return BatchGenerator(expert, GenerationParams(max_tokens=20, seed=seed))(prompts)

    torch.manual_seed(4)
    first = draw()
    assert not torch.equal(draw(), first)
    torch.manual_seed(4)
    assert torch.equal(draw(), first)
    assert torch.equal(draw(seed=1), draw(seed=1))
    assert not torch.equal(draw(seed=1)[0], draw(seed=1)[1])


def test_more_rows_than_run_at_once_and_beams(expert: TransformerWrapper) -> None:
    prompts = torch.arange(70)[:, None] % 40
    found = BatchGenerator(expert, GenerationParams(max_tokens=3, num_beams=2))(prompts)
    assert found.shape == (70, 3)
    assert torch.equal(found[:30], found[40:])


@pytest.mark.parametrize(
    ("prompts", "lens"),
    [
        (torch.zeros(2, 3), None),
        (torch.zeros(1, 2, 3, dtype=torch.long), None),
        ([], None),
        ([torch.zeros(2, 2, dtype=torch.long)], None),
        (torch.zeros(2, 3, dtype=torch.long), torch.tensor([1])),
        (torch.zeros(2, 3, dtype=torch.long), torch.tensor([1, 4])),
        (torch.zeros(2, 3, dtype=torch.long), [1, 2]),
        (torch.zeros(2, 3, dtype=torch.long), torch.tensor([1.0, 2.0])),
        (torch.tensor(3), None),
        (torch.ones(2, 3, dtype=torch.bool), None),
        (None, None),
        ([1, 2], None),
    ],
)
def test_prompts_of_another_form_are_refused(
    expert: TransformerWrapper, prompts: Any, lens: Any
) -> None:
    with pytest.raises(ValueError, match="prompt"):
        BatchGenerator(expert, GREEDY)(prompts, prompt_lens=lens)


@pytest.mark.parametrize("eos", [[2], 2.0, True, torch.tensor([1, 2]), torch.tensor(1.0)])
def test_an_end_that_is_no_token_is_refused(expert: TransformerWrapper, eos: Any) -> None:
    with pytest.raises(ConfigError, match="eos_token: got"):
        BatchGenerator(expert, GREEDY, eos_token=eos)
    assert BatchGenerator(expert, GREEDY, eos_token=torch.tensor(3)).eos_ids == (3,)  # type: ignore[arg-type]


def test_several_continuations_of_a_row_are_refused(expert: TransformerWrapper) -> None:
    with pytest.raises(ConfigError, match="repeat the rows"):
        BatchGenerator(expert, GenerationParams(n=2))(torch.tensor([1]))


def test_several_continuations_come_as_completions(expert: TransformerWrapper) -> None:
    params = GenerationParams(max_tokens=4, n=3, num_beams=3)
    found = BatchGenerator(expert, params).complete(torch.tensor([[1], [2]]))
    assert [len(c.choices) for c in found] == [3, 3]


def test_without_a_cache_the_tokens_are_the_same(expert: TransformerWrapper) -> None:
    prompts, other = torch.tensor([[1, 2], [3, 4]]), make_model(5)
    params = GenerationParams(max_tokens=9, seed=2, contrastive=ContrastiveParams())
    both = [
        BatchGenerator(expert, params, amateur=[other], cached=cached)(prompts)
        for cached in (True, False)
    ]
    assert torch.equal(*both)


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("root", [True, False])
def test_modules_of_either_mode_stay_in_it(cached: bool, root: bool) -> None:
    model = make_model(1, emb_dropout=0.5).eval()
    model.training = root
    model.layers.sublayers[0].train()
    modes = [m.training for m in model.modules()]
    params = GenerationParams(max_tokens=3, temperature=0.0)
    prompts = torch.tensor([[1, 2, 3]])
    found = BatchGenerator(model, params, cached=cached)(prompts)
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(found, BatchGenerator(model.eval(), params)(prompts))


def test_a_sequence_may_be_as_long_as_the_model_allows(expert: TransformerWrapper) -> None:
    params = GenerationParams(max_tokens=60, temperature=0.0)
    assert BatchGenerator(expert, params)(torch.tensor([1, 2, 3, 4])).shape == (60,)
    longer = torch.tensor([1, 2, 3, 4, 5])
    with pytest.raises(ConfigError, match="limit of 64"):
        BatchGenerator(expert, params)(longer)
    found = BatchGenerator(expert, params, beyond=True)(longer)
    assert tuple(found.tolist()) == greedy(expert, longer.tolist(), 60)


def test_padding_of_contexts_is_left_out() -> None:
    context = torch.arange(12.0, dtype=torch.float64).view(2, 3, 2)
    mask = torch.tensor([[True, False, True], [False, True, False]])
    assert [row.tolist() for row in unpadded(context, mask) or ()] == [[[0, 1], [4, 5]], [[8, 9]]]
    model = Double(1, context_dim=2).eval()
    prompts = torch.tensor([[1], [2]])
    assert unpadded(None, None) is None
    both = BatchGenerator(model, GREEDY)(prompts, contexts=unpadded(context, mask))
    alone = BatchGenerator(model, GREEDY)(prompts[1], contexts=[context[1, 1:2]])
    assert torch.equal(both[1], alone)


@pytest.mark.parametrize(
    ("context", "mask", "named"),
    [
        (torch.zeros(1, 4, 2), torch.tensor([[1, 1, 1, 0]]), "context_mask: got torch.int64"),
        (torch.zeros(1, 4, 2), torch.ones(1, 4), "context_mask: got torch.float32"),
        (torch.zeros(1, 4, 2), torch.ones(1, 3, dtype=torch.bool), "context_mask"),
        (torch.zeros(1, 4, 2), [[True] * 4], "context_mask: got a list"),
        (None, torch.ones(1, 4, dtype=torch.bool), "given without context"),
        (torch.zeros(4, 2), None, "context: got torch.float32"),
        (torch.zeros(1, 4, 2).long(), None, "context: got torch.int64"),
        ([torch.zeros(4, 2)], None, "context: got a list"),
    ],
)
def test_a_mask_that_says_not_which_vectors_are_real_is_refused(
    context: Any, mask: Any, named: str
) -> None:
    """Numbers would select other vectors than they mark."""
    with pytest.raises(ValueError, match=named):
        unpadded(context, mask)
