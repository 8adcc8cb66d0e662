"""Text from a trained model by x-transformers' call forms, compared with theirs where they are
right."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import some_ids
from objective_peers import LAYERS, SIZES, VARIANTS, both
from torch import Tensor

from xtdist.config import ConfigError
from xtdist.model import Decoder, TransformerWrapper
from xtdist.objective import AutoregressiveWrapper


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("cache_kv", [True, False])
def test_greedy_tokens_equal_theirs(variant: str, cache_kv: bool) -> None:
    ours, theirs = both(variant)
    prompts = some_ids(3, 5)
    want = theirs.generate(prompts, 20, temperature=0.0, cache_kv=cache_kv)
    assert len(want.unique()) > 5
    assert torch.equal(ours.generate(prompts, 20, temperature=0.0, cache_kv=cache_kv), want)
    assert torch.equal(ours.generate(prompts[0], 20, temperature=0.0), want[0])
    eos = int(want[0, 6])
    if not (prompts == eos).any():  # there, one in the prompt counts as the end (G1)
        want = theirs.generate(prompts, 20, temperature=0.0, eos_token=eos)
        assert torch.equal(ours.generate(prompts, 20, temperature=0.0, eos_token=eos), want)


@pytest.mark.parametrize("variant", ["learned", "rotary", "memories"])
def test_ragged_prompts_are_continued_as_alone(variant: str) -> None:
    """G10"""
    ours, _ = both(variant)
    prompts, lens = some_ids(3, 6), torch.tensor([2, 6, 3])
    rows = [row[:n] for row, n in zip(prompts, lens.tolist(), strict=True)]
    want = torch.stack([ours.generate(row, 9, temperature=0.0) for row in rows])
    assert torch.equal(ours.generate(prompts, 9, temperature=0.0, prompt_lens=lens), want)
    assert torch.equal(ours.generate(rows, 9, temperature=0.0), want)
    with pytest.raises(ConfigError, match="lengths of its own"):
        ours.generate(rows, 9, prompt_lens=lens)


@pytest.mark.parametrize("variant", ["learned", "rotary"])
@pytest.mark.parametrize("beams", [1, 2, 5])
def test_beams_and_their_scores_equal_theirs(variant: str, beams: int) -> None:
    """Without their cache: with it, it can be of another beam (S1)."""
    ours, theirs = both(variant)
    prompts = some_ids(3, 5)
    want, scores = theirs.beam_search(
        prompts, 8, beams=beams, return_beams_and_scores=True, cache_kv=False
    )
    got, ours_scores = ours.beam_search(prompts, 8, beams=beams, return_beams_and_scores=True)
    assert torch.equal(got, want)
    torch.testing.assert_close(ours_scores, scores, atol=1e-4, rtol=1e-5)
    assert torch.equal(ours.beam_search(prompts, 8, beams=beams), want[0])
    one, its = ours.beam_search(prompts[1], 8, beams=beams, return_beams_and_scores=True)
    assert torch.equal(one, want[:, 1])
    torch.testing.assert_close(its, ours_scores[:, 1])


def test_beams_end_at_an_eos_and_divide_by_length_on_request() -> None:
    """S5"""
    ours, _ = both()
    prompts = some_ids(2, 4)
    plain, scores = ours.beam_search(prompts, 9, beams=3, return_beams_and_scores=True)
    eos = int(plain[0, 0, 3])
    found, ended = ours.beam_search(
        prompts, 9, beams=3, return_beams_and_scores=True, eos_token=eos
    )
    for row in found.flatten(0, 1).tolist():
        if eos in row:
            assert set(row[row.index(eos) + 1 :]) <= {23}
    for b in range(2):
        for k in range(3):
            torch.testing.assert_close(ended[k, b], likelihood(ours, prompts[b], found[k, b], eos))
    _, penalised = ours.beam_search(
        prompts, 9, beams=3, return_beams_and_scores=True, length_penalty=1.0
    )
    torch.testing.assert_close(penalised, scores / 9)


def likelihood(ours: AutoregressiveWrapper, prompt: Tensor, new: Tensor, eos: int) -> Tensor:
    """log p of ``new`` up to its end."""
    end = new.tolist().index(eos) + 1 if eos in new.tolist() else len(new)
    whole = torch.cat((prompt, new[:end]))
    logp = ours.net.eval()(whole[None, :-1])[0].log_softmax(dim=-1)
    return logp.gather(1, whole[1:, None])[len(prompt) - 1 :].sum()


def test_more_beams_than_tokens_and_prompts_of_a_list() -> None:
    """S5"""
    torch.manual_seed(0)
    stack = Decoder(dim=16, depth=1, heads=2, attn_dim_head=8)
    net = TransformerWrapper(num_tokens=3, max_seq_len=8, attn_layers=stack)
    ours = AutoregressiveWrapper(net)
    prompts = [torch.tensor([1, 2]), torch.tensor([0])]
    tokens, scores = ours.beam_search(prompts, 3, beams=27, return_beams_and_scores=True)
    assert tokens.shape == (27, 2, 3)
    for b, prompt in enumerate(prompts):
        assert len({tuple(row) for row in tokens[:, b].tolist()}) == 27
        torch.testing.assert_close(scores[:, b].exp().sum(), torch.tensor(1.0))
        torch.testing.assert_close(scores[4, b], likelihood(ours, prompt, tokens[4, b], -1))


@pytest.mark.parametrize("amateurs", [1, 2])
@pytest.mark.parametrize("wrapped", [True, False])
def test_greedy_contrast_is_that_of_their_function(amateurs: int, wrapped: bool) -> None:
    """S2, S7, S9"""
    from x_transformers.autoregressive_wrapper import contrastive_decode_fn

    ours, _ = both()
    others = [both("learned", seed=s)[0] for s in (5, 6)][:amateurs]
    kwargs = ({"alpha": 0.05, "beta": 1.5}, {"alpha": 0.2, "beta": 0.7})[:amateurs]
    given: Any = tuple(others if wrapped else (o.net for o in others))
    others[0].train()
    prompt = some_ids(1, 4)
    found = ours.generate(
        prompt,
        8,
        temperature=0.0,
        amateur_model=given if amateurs > 1 else given[0],
        contrastive_decode_kwargs=kwargs if amateurs > 1 else kwargs[0],
    )
    assert others[0].training
    tokens = prompt
    for _ in range(8):
        logits = ours.net.eval()(tokens)[:, -1]
        for other, each in zip(others, kwargs, strict=True):
            logits = contrastive_decode_fn(logits, other.net.eval()(tokens)[:, -1], **each)
        tokens = torch.cat((tokens, logits.argmax(dim=-1, keepdim=True)), dim=1)
    assert torch.equal(found, tokens[:, 4:])
    plain = ours.generate(prompt, 8, temperature=0.0)
    assert not torch.equal(found, plain)
    if amateurs == 1:
        drafted = ours.generate(prompt, 8, temperature=0.0, amateur_model=given[0], draft_tokens=3)
        assert torch.equal(drafted, plain)


@settings(max_examples=20, deadline=None)
@given(
    lens=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    seq_len=st.integers(0, 6),
    eos=st.integers(0, 23),
)
def test_shapes_and_padding_are_what_the_rows_make_them(
    lens: list[int], seq_len: int, eos: int
) -> None:
    """G1, G2: an EOS in the prompt ends nothing, no tokens are no error."""
    ours, _ = both()
    prompts = [some_ids(n, seed=i) for i, n in enumerate(lens)]
    prompts[0][-1] = eos
    whole = ours.generate(prompts, seq_len, temperature=0.0)
    found = ours.generate(prompts, seq_len, temperature=0.0, eos_token=eos)
    assert whole.shape == (len(lens), seq_len)
    ends = [r.index(eos) + 1 if eos in r else seq_len for r in whole.tolist()]
    assert found.shape == (len(lens), max(ends))
    for row, complete, end in zip(found, whole, ends, strict=True):
        assert torch.equal(row[:end], complete[:end])
        assert (row[end:] == 23).all()


def test_no_tokens_have_shapes_too() -> None:
    ours, _ = both()
    prompts = some_ids(2, 4)
    assert ours.generate(prompts[0], 0, eos_token=3).shape == (0,)
    tokens, scores = ours.beam_search(prompts, 0, return_beams_and_scores=True)
    assert (tokens.shape, scores.tolist()) == ((4, 2, 0), [[0, 0]] * 4)
    assert ours.beam_search(prompts[0], 0).shape == (0,)


def test_draws_follow_torch_or_the_seed() -> None:
    ours, _ = both()
    prompts = some_ids(2, 4)
    torch.manual_seed(4)
    first = ours.generate(prompts, 12)
    assert not torch.equal(ours.generate(prompts, 12), first)
    torch.manual_seed(4)
    assert torch.equal(ours.generate(prompts, 12), first)
    seeded = [ours.generate(prompts, 12, seed=5, filter_logits_fn="top_p") for _ in range(2)]
    assert torch.equal(*seeded)


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [("top_k", {"k": 1}), ("top_p", {"thres": 1e-6}), ("min_p", {"min_p": 0.999})],
)
def test_a_filter_that_keeps_one_token_is_greedy(name: str, kwargs: dict[str, float]) -> None:
    ours, _ = both()
    prompts = some_ids(2, 4)
    want = ours.generate(prompts, 9, temperature=0.0)
    found = ours.generate(prompts, 9, temperature=3.0, filter_logits_fn=name, filter_kwargs=kwargs)
    assert torch.equal(found, want)


@pytest.mark.parametrize(("name", "kwargs"), [("top_k", {"k": 2}), ("top_p", {"thres": 0.3})])
def test_drawn_beams_are_of_what_the_filter_keeps(name: str, kwargs: dict[str, float]) -> None:
    """S6"""
    from x_transformers import autoregressive_wrapper

    ours, _ = both()
    torch.manual_seed(0)
    prompt = some_ids(1, 4)
    found = ours.beam_search(
        prompt,
        6,
        beams=5,
        stochastic=True,
        return_beams_and_scores=True,
        filter_logits_fn=name,
        filter_kwargs=kwargs,
    )[0][:, 0]
    assert len(found.unique(dim=0)) > 1
    keep = getattr(autoregressive_wrapper, name)
    whole = torch.cat((prompt.expand(len(found), 4), found), dim=1)
    logits = ours.net.eval()(whole[:, :-1])[:, 3:].flatten(0, 1)
    kept = keep(logits, **kwargs).gather(1, found.flatten()[:, None])
    assert kept.isfinite().all()


def test_a_function_filters_too() -> None:
    ours, _ = both()
    prompts = some_ids(2, 4)

    def without(logits: Tensor, *, ids: list[int]) -> Tensor:
        return logits.index_fill(-1, torch.tensor(ids), -torch.inf)

    likely = ours.generate(prompts, 9, temperature=0.0).unique().tolist()[:3]
    kwargs: dict[str, Any] = {"filter_logits_fn": without, "filter_kwargs": {"ids": likely}}
    drawn = ours.generate(prompts, 30, **kwargs)
    assert not set(likely) & set(drawn.flatten().tolist())
    assert len(drawn.unique()) > 10
    greedy = ours.generate(prompts, 9, temperature=0.0, **kwargs)
    one_by_one = prompts
    for _ in range(9):
        logits = without(ours.net.eval()(one_by_one)[:, -1], ids=likely)
        one_by_one = torch.cat((one_by_one, logits.argmax(dim=-1, keepdim=True)), dim=1)
    assert torch.equal(greedy, one_by_one[:, 4:])
    beams = ours.beam_search(prompts, 9, beams=3, **kwargs)
    assert not set(likely) & set(beams.flatten().tolist())


def test_modes_are_as_before_also_after_an_error() -> None:
    """G14"""
    ours, _ = both()
    ours.train()
    ours.net.layers.eval()
    modes = [m.training for m in ours.modules()]
    ours.generate(some_ids(2, 4), 3)
    ours.beam_search(some_ids(2, 4), 3, beams=2)
    assert [m.training for m in ours.modules()] == modes

    def fail(*_: object) -> None:
        raise RuntimeError("no")

    hook = ours.net.head.register_forward_hook(fail)  # type: ignore[union-attr]
    with pytest.raises(RuntimeError, match="no"):
        ours.generate(some_ids(2, 4), 3)
    hook.remove()
    assert [m.training for m in ours.modules()] == modes


def test_a_sequence_goes_on_past_its_length_where_positions_do() -> None:
    """S3, G7: nothing is dropped, so the cache changes no token."""
    ours, _ = both("rotary")
    prompt = some_ids(1, 5)
    with pytest.raises(ConfigError, match="limit of 40"):
        ours.generate(prompt, 50)
    found = [
        ours.generate(prompt, 50, temperature=0.0, restrict_to_max_seq_len=False, cache_kv=c)
        for c in (True, False)
    ]
    assert torch.equal(*found)
    assert torch.equal(found[0][:, :35], ours.generate(prompt, 35, temperature=0.0))
    with pytest.raises(ConfigError, match="learned"):
        both("learned")[0].generate(prompt, 50, restrict_to_max_seq_len=False)


def test_cross_attention_reads_a_context() -> None:
    """S4"""
    torch.manual_seed(1)
    stack = Decoder(**LAYERS, cross_attend=True)
    ours = AutoregressiveWrapper(TransformerWrapper(**SIZES, attn_layers=stack))
    with torch.no_grad():
        for p in ours.parameters():
            p.add_(torch.randn_like(p) * 0.2)
    prompts, context = some_ids(2, 3), torch.randn(2, 5, 32)
    mask = torch.arange(5) < torch.tensor([[5], [2]])
    for method in (ours.generate, ours.beam_search):
        more = {"temperature": 0.0} if method == ours.generate else {"beams": 3}
        both_rows = method(prompts, 6, context=context, context_mask=mask, **more)
        alone = method(prompts[1], 6, context=context[1:, :2], **more)
        assert torch.equal(both_rows[1], alone)
    with pytest.raises(ConfigError, match="context"):
        ours.generate(prompts, 6)


@pytest.mark.parametrize(
    ("keywords", "error", "named"),
    [
        ({"return_intermediates": True}, TypeError, "return_intermediates"),
        ({"prepend_embeds": torch.zeros(1, 1, 32)}, TypeError, "does not carry"),
        ({"amateur_model": torch.nn.Linear(1, 1)}, ConfigError, "got a Linear"),
        ({"n": 2}, ConfigError, "repeat the rows"),
        ({"temperature": -1.0}, ConfigError, "temperature"),
        ({"contrastive_decode_kwargs": {}}, ConfigError, "no amateur"),
    ],
)
def test_what_can_not_be_honoured_is_refused(
    keywords: dict[str, Any], error: type[Exception], named: str
) -> None:
    with pytest.raises(error, match=named):
        both()[0].generate(some_ids(2, 4), 3, **keywords)


@pytest.mark.parametrize("name", ["num_beams", "n", "stochastic_beams"])
def test_beams_have_one_name(name: str) -> None:
    with pytest.raises(TypeError, match="is called"):
        both()[0].beam_search(some_ids(2, 4), 3, **{name: 2})


@pytest.mark.parametrize("count", [12, 30])
def test_fewer_and_more_logits_than_tokens(count: int) -> None:
    torch.manual_seed(0)
    stack = Decoder(dim=16, depth=1, heads=2, attn_dim_head=8)
    net = TransformerWrapper(num_tokens=24, max_seq_len=40, attn_layers=stack, logits_dim=count)
    found = AutoregressiveWrapper(net).generate(some_ids(2, 4), 30, temperature=5.0)
    assert found.max() < min(count, 24)
