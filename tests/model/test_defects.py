"""Defects of x-transformers that stay out, by their numbers in the survey of it: those that other
files test are listed here, the others are tested here and in ``test_defects_numbers.py``."""

from __future__ import annotations

import ast
import copy
import importlib.util
import pickle
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
import torch
from option_grid import LAYERS, ids
from wrapper_pairs import close, ours, vectors

import xtdist
from xtdist.config import ConfigError
from xtdist.decode import ContrastiveParams, GenerationParams
from xtdist.decode.batch import BatchGenerator
from xtdist.model import Decoder, TransformerWrapper
from xtdist.objective import AutoregressiveWrapper
from xtdist.objective.xtransformer import XTransformer

ELSEWHERE = {
    "C1": "model/test_invariants.py::"
    "test_changing_later_tokens_leaves_earlier_logits_bit_identical",
    "A1": "objective/test_autoregressive.py::"
    "test_when_every_target_is_ignored_the_loss_is_zero_and_weighs_nothing",
    "A2, A9": "model/test_wrapper_returns.py::test_the_weight_of_the_z_loss_holds_on_any_backend",
    "A3": "model/test_wrapper_returns.py::test_the_z_loss_is_summed_over_layers_after_squaring",
    "A4 head": "model/test_wrapper_returns.py::"
    "test_the_next_embedding_is_predicted_for_every_width_and_prefix",
    "A4 looped": "model/test_wrapper_passes.py::"
    "test_looping_takes_prepended_vectors_and_memory_tokens",
    "A5": "model/test_wrapper_memory.py::test_who_may_be_read_is_said_for_tokens_alone",
    "A6": "model/test_wrapper.py::test_the_start_loss_is_near_that_of_a_uniform_guess",
    "A8": "model/test_wrapper_memory.py::"
    "test_no_memory_is_kept_by_default_and_an_empty_one_changes_nothing",
    "A11 mean": "model/test_wrapper_returns.py::"
    "test_a_mean_is_over_real_vectors_prepended_ones_too",
    "A11 memory": "model/test_wrapper_memory.py::"
    "test_memory_tokens_under_a_padding_mask_are_x_transformers_own",
    "A11 interspersed": "model/test_wrapper_memory.py::"
    "test_interspersed_memory_works_with_masks_and_prepended_vectors",
    "A11 deep": "model/test_wrapper_embedding.py::"
    "test_the_deep_embedding_works_beside_other_tokens",
    "A12": "model/test_wrapper_returns.py::test_any_head_can_be_left_out_for_embeddings",
    "A13 dropout": "objective/test_xtransformer.py::"
    "test_dropout_rests_while_generating_and_goes_on_afterwards",
    "A13 tied": "objective/test_xtransformer.py::"
    "test_one_embedding_for_two_vocabularies_is_refused",
    "A15": "model/test_wrapper_checks.py::test_an_input_that_can_not_be_is_one_clear_error",
    "B1": "nn/test_position_rotary.py::test_low_precision_input_is_turned_by_exact_angles",
    "D1, D1b": "model/test_invariants.py::test_copies_are_equal_and_independent",
    "D2 depth": "nn/test_residual.py::test_layers_are_dropped_by_sample_at_the_rate_asked_for",
    "D2 passes": "model/test_wrapper_passes.py::test_all_ranks_make_the_same_number_of_passes",
    "D3": "model/test_invariants.py::test_every_parameter_gets_a_finite_gradient_at_every_step",
    "D3 recycling": "model/test_wrapper_passes.py::"
    "test_recycling_uses_every_parameter_however_often_it_recycles",
    "D3 pool": "model/test_pool.py::test_every_parameter_gets_a_gradient_and_the_module_pickles",
    "D4": "model/test_invariants.py::test_activations_computed_again_give_the_same_gradients",
    "D4 ZeRO-3": "model/test_invariants.py::"
    "test_parameters_are_read_inside_their_own_modules_alone",
    "D5 window": "nn/test_attention.py::test_a_window_makes_no_table_of_all_pairs",
    "G3, G5, G9": "model/test_invariants.py::"
    "test_a_cache_fed_in_pieces_gives_the_logits_of_the_whole",
    "G4": "decode/test_recompute.py::test_options_that_no_cache_can_hold_are_named",
    "G10": "model/test_invariants.py::test_padding_changes_nothing_for_real_tokens",
    "G11": "model/test_wrapper_passes.py::test_a_looped_model_decodes_with_a_cache_as_without",
    "G11 batch": "model/test_wrapper_passes.py::test_each_token_leaves_at_its_own_pass",
    "G13": "model/test_wrapper_returns.py::test_a_cache_that_can_not_be_is_one_clear_error",
    "G14 success": "decode/test_engine.py::"
    "test_training_mode_is_left_as_it_was_and_changes_nothing",
    "G15": "model/test_wrapper_returns.py::test_going_on_from_intermediates_equals_the_whole",
    "G17": "decode/test_window.py::"
    "test_a_sequence_much_longer_than_the_pool_equals_full_recomputation",
    "G17 freed": "decode/test_window.py::test_reads_hold_every_token_that_a_later_query_may_reach",
}
TESTS = Path(__file__).parents[1]


@pytest.mark.parametrize("where", ELSEWHERE.values(), ids=ELSEWHERE.keys())
def test_the_test_of_a_defect_is_where_the_list_says(where: str) -> None:
    file, _, name = where.partition("::")
    found = ast.parse((TESTS / file).read_text()).body
    assert name in [node.name for node in found if isinstance(node, ast.FunctionDef)]


LEAKS = {
    "mv_split_residual": ConfigError,
    "attn_orthog_projected_values": TypeError,
    "attn_orthog_projected_values_per_head": TypeError,
}


@pytest.mark.parametrize(("keyword", "error"), LEAKS.items())
def test_what_would_show_tokens_their_future_is_refused(
    keyword: str, error: type[Exception]
) -> None:
    """C1"""
    with pytest.raises(error, match="future"):
        Decoder(**LAYERS, **{keyword: True})


def test_keys_are_hidden_in_training_only_and_never_those_of_vectors_before_the_tokens() -> None:
    """A5, A7"""
    wrapper = AutoregressiveWrapper(ours({"num_memory_tokens": 2}), mask_prob=0.5)
    x, before = ids(2, 9), torch.randn(2, 3, LAYERS["dim"])
    assert wrapper.train()(x, prepend_embeds=before) != wrapper(x, prepend_embeds=before)
    wrapper.eval()
    assert wrapper(x, prepend_embeds=before) == wrapper(x, prepend_embeds=before)


@pytest.mark.parametrize(
    "keywords",
    [{"attn_gumbel_softmax": True}, {"attn_sigmoid": True}, {"attn_hard": True}],
    ids=str,
)
def test_flash_refuses_what_its_kernels_can_not_do(keywords: dict[str, Any]) -> None:
    """A10"""
    with pytest.raises(ConfigError, match=r"attn_flash=True.* can't honour .* which needs eager"):
        Decoder(**LAYERS, attn_flash=True, **keywords)


def test_causality_and_the_score_function_are_no_silent_inputs() -> None:
    """A10"""
    with pytest.raises(TypeError, match="causal"):
        ours({}, {"attn_flash": True})(ids(1, 5), causal=False)
    with pytest.raises(TypeError, match="attn_custom_attn_fn"):
        Decoder(**LAYERS, attn_custom_attn_fn=torch.softmax)


SIDES = (
    {"emb_dim": 16},
    {"post_emb_norm": True},
    {"tie_embedding": True},
    {"max_mem_len": 4},
    {"l2norm_embed": True},
    {"num_memory_tokens": 2},
)


@pytest.mark.parametrize("keywords", SIDES, ids=str)
@pytest.mark.parametrize("side", ["enc", "dec"])
def test_both_sides_of_an_encoder_decoder_take_their_options(
    side: str, keywords: dict[str, Any]
) -> None:
    """A13"""
    sides = {
        f"{name}_{k}": v
        for name in ("enc", "dec")
        for k, v in {"num_tokens": 20, "max_seq_len": 16, "depth": 1, "heads": 2}.items()
    }
    more = {f"{side}_{name}": value for name, value in keywords.items()}
    if side == "enc" and "tie_embedding" in keywords:
        with pytest.raises(ConfigError, match="tied embedding"):
            XTransformer(dim=32, **sides, **more)
        return
    model = XTransformer(dim=32, **sides, **more)
    source, target = ids(2, 6) % 20, ids(2, 7) % 20
    model(source, target).backward()
    out = model.generate(source, target[:, :1], 5, src_prepend_embeds=_prepended(model))
    assert out.shape == (2, 5)


def _prepended(model: XTransformer) -> torch.Tensor:
    return vectors(2, 3, model.encoder.config.emb_dim)


HISTORY: tuple[dict[str, Any], ...] = (
    {"integrate_layers": True},
    {"attn_aggregated_residuals": True, "attn_aggregated_residual_kwargs": {"lora_rank": 8}},
)


@pytest.mark.parametrize("layers", HISTORY, ids=str)
def test_layers_that_read_earlier_ones_go_with_layer_dropout(layers: dict[str, Any]) -> None:
    """A14"""
    model = ours({}, {**layers, "layer_dropout": 0.5}).train()
    for seed in range(5):
        model.zero_grad(set_to_none=True)
        torch.manual_seed(seed)
        model(ids(2, 9)).sum().backward()
        assert all(weight.grad is not None for weight in model.parameters())


def test_an_attention_mask_of_three_axes_is_one_for_each_head() -> None:
    """A15"""
    model, x = ours({}), ids(2, 6)
    by_head = torch.rand(4, 6, 6, generator=torch.Generator().manual_seed(0)) > 0.4
    by_head |= torch.eye(6, dtype=torch.bool)
    got = model(x, attn_mask=by_head)
    close(got, model(x, attn_mask=by_head.expand(2, 4, 6, 6)))
    assert (got - model(x, attn_mask=by_head[0])).abs().max() > 1e-3


def copies(model: TransformerWrapper) -> list[TransformerWrapper]:
    return [
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        cloudpickle.loads(cloudpickle.dumps(model)),
    ]


def test_the_head_of_a_copy_is_tied_to_the_embedding_of_the_copy() -> None:
    """D1"""
    model, x = ours({"tie_embedding": True}, {"attn_flash": True}), ids(1, 5)
    hidden = model(x, return_embeddings=True)
    want = model.to_logits(hidden)
    for twin in copies(model):
        with torch.no_grad():
            twin.token_embedding.weight.mul_(2)
        close(twin.to_logits(hidden), 2 * want)
    close(model.to_logits(hidden), want)


@pytest.mark.parametrize("part", ["nn", "model", "objective", "decode"])
def test_no_part_draws_from_pythons_random(part: str) -> None:
    """D2: ranks with one torch seed would go different ways, and a resumed run another one."""
    package = importlib.util.find_spec(f"{xtdist.__name__}.{part}")
    assert package is not None
    assert package.submodule_search_locations is not None
    files = [f for root in package.submodule_search_locations for f in Path(root).rglob("*.py")]
    assert files
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            drawn = [
                n for n in names if n.split(".")[0] == "random" or n.startswith("numpy.random")
            ]
            assert not drawn, (file, drawn)


@pytest.mark.parametrize("fails", [True, False])
def test_generating_leaves_every_module_in_its_mode(fails: bool) -> None:
    """G14, S9: of the model and of the amateur, also when it fails."""
    model, amateur = ours({}).train(), ours({}, {"depth": 1}).train()
    model.layers.sublayers[0].eval()
    amateur.layers.sublayers[1].eval()
    modules = [*model.modules(), *amateur.modules()]
    modes = [m.training for m in modules]
    params = GenerationParams(max_tokens=4, contrastive=ContrastiveParams())
    generate = BatchGenerator(model, params, amateur=amateur)
    if fails:
        amateur.layers.sublayers[0].register_forward_pre_hook(_fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            generate(ids(1, 3))
    else:
        generate(ids(1, 3))
    assert [m.training for m in modules] == modes


def _fail(module: torch.nn.Module, args: Any) -> None:
    raise RuntimeError("out of memory")
