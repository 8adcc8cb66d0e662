from __future__ import annotations

import copy
import itertools
import pickle
from typing import Any

import pytest
import torch
import x_transformers
from nets import some_ids

from xtdist.config import ConfigError
from xtdist.model import Decoder, TransformerWrapper
from xtdist.model.compat_weights import from_x_transformers
from xtdist.objective.xtransformer import XTransformer

SIZES: dict[str, Any] = {
    "dim": 32,
    "enc_num_tokens": 24,
    "enc_max_seq_len": 20,
    "enc_depth": 2,
    "enc_heads": 4,
    "enc_attn_dim_head": 8,
    "dec_num_tokens": 20,
    "dec_max_seq_len": 24,
    "dec_depth": 2,
    "dec_heads": 4,
    "dec_attn_dim_head": 8,
}
SOURCE, TARGET = some_ids(3, 7, high=24), some_ids(3, 9, seed=1)
MASK = torch.arange(7) < torch.tensor([7, 4, 1])[:, None]
VARIANTS: tuple[dict[str, Any], ...] = (
    {},
    {
        "dec_rotary_pos_emb": True,
        "dec_attn_kv_heads": 2,
        "dec_ff_glu": True,
        "enc_alibi_pos_bias": True,
    },
    {"tie_token_emb": True, "enc_num_tokens": 20, "dec_use_rmsnorm": True},
)


def make(seed: int = 0, **more: Any) -> XTransformer:
    torch.manual_seed(seed)
    return peaked(XTransformer(**{**SIZES, **more}))


def peaked(model: XTransformer) -> XTransformer:
    """Start values are too small to make a difference to greedy decoding."""
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.3)
    return model.eval()


def make_both(**more: Any) -> tuple[XTransformer, Any]:
    """Ours and theirs with the same weights."""
    torch.manual_seed(3)
    theirs = x_transformers.XTransformer(**{**SIZES, **more}).eval()
    with torch.no_grad():
        for p in theirs.parameters():
            p.add_(torch.randn_like(p) * 0.2)
    ours = XTransformer(**{**SIZES, **more}).eval()
    for side, net in (
        (theirs.encoder, ours.encoder),
        (theirs.decoder.net, ours.decoder.net),
    ):
        net.load_state_dict(from_x_transformers(side.state_dict(), net.config))
    return ours, theirs


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("mask", [None, MASK])
def test_the_loss_equals_that_of_x_transformers(variant: dict[str, Any], mask: Any) -> None:
    ours, theirs = make_both(**variant)
    source = SOURCE % ours.encoder.num_tokens
    assert torch.allclose(ours(source, TARGET, mask), theirs(source, TARGET, mask), atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("mask", [None, MASK])
def test_greedy_tokens_equal_those_of_x_transformers(variant: dict[str, Any], mask: Any) -> None:
    ours, theirs = make_both(**variant)
    source, start = SOURCE % ours.encoder.num_tokens, TARGET[:, :2]
    expected = theirs.generate(source, start, 15, mask, temperature=0.0)
    assert torch.equal(ours.generate(source, start, 15, mask, temperature=0.0), expected)
    assert len(expected.unique()) > 3
    eos = int(expected[0, 4])
    ended = theirs.generate(source, start, 15, mask, temperature=0.0, eos_token=eos)
    found = ours.generate(source, start, 15, mask, temperature=0.0, eos_token=eos)
    if not (start == eos).any():  # there, one in the prompt counts as the end
        assert torch.equal(found, ended)


def test_padding_of_the_source_changes_nothing() -> None:
    model = make()
    start = TARGET[:, :1]
    together = model.generate(SOURCE, start, 12, MASK, temperature=0.0)
    for i, n in enumerate(MASK.sum(dim=1).tolist()):
        alone = model.generate(SOURCE[i : i + 1, :n], start[i : i + 1], 12, temperature=0.0)
        assert torch.equal(together[i : i + 1], alone)


def test_prompts_of_different_lengths_are_continued_as_alone() -> None:
    model = make()
    lens = torch.tensor([1, 4, 2])
    together = model.generate(SOURCE, TARGET[:, :4], 8, prompt_lens=lens, temperature=0.0)
    for i, n in enumerate(lens.tolist()):
        alone = model.generate(SOURCE[i : i + 1], TARGET[i : i + 1, :n], 8, temperature=0.0)
        assert torch.equal(together[i : i + 1], alone)


def test_wide_beams_find_the_likeliest_continuation_of_each_source() -> None:
    model = make(dec_num_tokens=5)
    start, net = TARGET[:, :1] % 5, model.decoder.net
    found = model.generate(SOURCE, start, 3, MASK, num_beams=125)
    encoded = model.encoder(SOURCE, mask=MASK, return_embeddings=True)
    everything = torch.tensor(list(itertools.product(range(5), repeat=3)))
    for i in range(3):
        rows = torch.cat((start[i].expand(125, 1), everything), dim=1)
        context, mask = encoded[i].expand(125, -1, -1), MASK[i].expand(125, -1)
        logprobs = net(rows, context=context, context_mask=mask).log_softmax(-1)[:, :-1]
        total = logprobs.gather(2, rows[:, 1:, None]).sum(dim=(1, 2))
        assert torch.equal(found[i], everything[total.argmax()])


def test_draws_follow_torch_and_a_seed() -> None:
    model = make()
    start = TARGET[:, :1]
    torch.manual_seed(1)
    first = model.generate(SOURCE, start, 15)
    torch.manual_seed(1)
    assert torch.equal(model.generate(SOURCE, start, 15), first)
    assert not torch.equal(model.generate(SOURCE, start, 15), first)
    seeded = [model.generate(SOURCE, start, 15, seed=5, top_p=0.9) for _ in range(2)]
    assert torch.equal(*seeded)


def test_dropout_rests_while_generating_and_goes_on_afterwards() -> None:
    dropouts = {
        f"{side}_{k}": 0.5 for side in ("enc", "dec") for k in ("emb_dropout", "ff_dropout")
    }
    model = make(**dropouts, cross_attn_tokens_dropout=0.5)
    expected = model.generate(SOURCE, TARGET[:, :1], 12, temperature=0.0)
    model.train()
    model.encoder.layers.eval()
    modes = [m.training for m in model.modules()]
    assert torch.equal(model.generate(SOURCE, TARGET[:, :1], 12, temperature=0.0), expected)
    assert [m.training for m in model.modules()] == modes


def test_source_tokens_are_dropped_in_training_only() -> None:
    model = make(cross_attn_tokens_dropout=0.5)
    assert torch.equal(model(SOURCE, TARGET), model(SOURCE, TARGET))
    assert torch.allclose(model(SOURCE, TARGET), make()(SOURCE, TARGET))
    model.train()
    assert len({float(model(SOURCE, TARGET).detach()) for _ in range(5)}) == 5


def test_every_parameter_gets_a_gradient_and_a_tied_embedding_is_one() -> None:
    for model in (
        make(),
        make(tie_token_emb=True, enc_num_tokens=20),
        make(dec_tie_embedding=True),
    ):
        model.train()(SOURCE % 20, TARGET, MASK).backward()
        assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
    tied = make(tie_token_emb=True, enc_num_tokens=20)
    for again in (copy.deepcopy(tied), pickle.loads(pickle.dumps(tied))):
        assert again.decoder.net.token_embedding is again.encoder.token_embedding
        assert torch.equal(again(SOURCE % 20, TARGET), tied(SOURCE % 20, TARGET))


def test_an_amateur_decoder_reads_the_same_encoding() -> None:
    model, other = make(), make(4)
    start, same = TARGET[:, :1], {"temperature": 0.0}
    plain = model.generate(SOURCE, start, 12, MASK, **same)
    itself = model.generate(SOURCE, start, 12, MASK, amateur_model=model.decoder, **same)
    assert torch.equal(itself, plain)
    weaker = model.generate(
        SOURCE,
        start,
        12,
        MASK,
        amateur_model=other.decoder,
        contrastive_decode_kwargs={"alpha": 0.01, "beta": 2.0},
        **same,
    )
    assert not torch.equal(weaker, plain)
    with pytest.raises(ConfigError, match="encoding of its own"):
        model.generate(SOURCE, start, 12, amateur_model=other)


def test_an_amateur_without_cross_attention_is_what_the_text_is_without_its_source() -> None:
    layers = Decoder(dim=16, depth=1, heads=2)
    amateur = TransformerWrapper(num_tokens=20, max_seq_len=24, attn_layers=layers)
    found = make().generate(SOURCE, TARGET[:, :1], 5, amateur_model=amateur, temperature=0.0)
    assert found.shape == (3, 5)


@pytest.mark.parametrize(
    ("keyword", "named"),
    [
        ("depth", "begin with enc_"),
        ("enc_dim", "keyword dim"),
        ("dec_cross_attend", "always"),
        ("dec_cross_attn_tokens_dropout", "without a prefix"),
        ("enc_dept", "'depth'"),
    ],
)
def test_keywords_of_neither_side_are_refused(keyword: str, named: str) -> None:
    with pytest.raises(TypeError, match=named):
        make(**{keyword: 1})


@pytest.mark.parametrize("pool", ["enc_average_pool_embed", "enc_use_cls_token", "enc_attn_pool"])
def test_an_encoder_with_one_output_for_all_is_refused(pool: str) -> None:
    with pytest.raises(ConfigError, match=f"{pool}.*leave it out"):
        make(**{pool: True})


def test_one_embedding_for_two_vocabularies_is_refused() -> None:
    with pytest.raises(ConfigError, match="enc_num_tokens 24"):
        make(tie_token_emb=True)


def test_a_source_without_any_real_token_is_refused_and_named() -> None:
    empty = torch.zeros(3, 7, dtype=torch.bool)
    with pytest.raises(ConfigError, match="context"):
        make().generate(SOURCE, TARGET[:, :1], 4, empty)
