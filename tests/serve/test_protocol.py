import pytest

from xtdist.decode import GenerationParams
from xtdist.serve.config import LimitsConfig
from xtdist.serve.errors import ApiError
from xtdist.serve.limits import check_ids, check_request
from xtdist.serve.protocol import parse_request, to_params

BASE = {"model": "m", "prompt": "p"}


def accept(body):
    request = parse_request({**BASE, **body})
    check_request(request, LimitsConfig())
    check_ids(request, 259)
    return to_params(request)


def refused(body):
    with pytest.raises(ApiError) as e:
        accept(body)
    assert e.value.status == 400
    return e.value


def test_a_request_of_nothing_but_model_and_prompt_has_openais_defaults():
    params = to_params(parse_request(BASE))
    assert params == GenerationParams()
    assert (params.max_tokens, params.temperature, params.top_p, params.n) == (16, 1.0, 1.0, 1)


def test_every_decoding_key_reaches_the_engine_under_its_own_name():
    body = {
        "max_tokens": 9,
        "temperature": 0.5,
        "top_k": 3,
        "top_p": 0.9,
        "min_p": 0.1,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.3,
        "frequency_penalty": 0.4,
        "seed": 5,
        "n": 2,
        "ignore_eos": True,
        "min_tokens": 2,
        "logprobs": 4,
        "best_of": 3,
        "top_a": 0.2,
        "typical_p": 0.8,
        "temperature_last": True,
        "draft_tokens": 2,
    }
    beams = {"num_beams": 3, "n": 2, "length_penalty": 0.6, "early_stopping": "never"}
    drawn = {"num_beams": 3, "stochastic_beams": True}
    search = {"penalty_alpha": 0.6, "top_k": 4}
    for given in (body, beams, drawn, search, {"dola": "low"}):
        params = to_params(parse_request({**BASE, **given}))
        for key, value in given.items():
            assert getattr(params, key) == value != getattr(GenerationParams(), key), key


def test_stop_bias_and_contrast_are_translated():
    body = {
        "stop": "end",
        "stop_token_ids": [7],
        "logit_bias": {"65": 2},
        "contrastive": {"alpha": 0.2, "beta": 1, "temperature": 2},
    }
    params = to_params(parse_request({**BASE, **body}))
    assert params.stop == ("end",)
    assert params.stop_token_ids == (7,)
    assert params.logit_bias == {65: 2.0}
    assert params.contrastive is not None
    assert (params.contrastive.alpha, params.contrastive.beta) == (0.2, 1.0)
    assert params.contrastive.temperature == 2.0


@pytest.mark.parametrize(
    ("body", "beams"),
    [
        ({}, 1),
        ({"num_beams": 4}, 4),
        ({"n": 3, "use_beam_search": True}, 3),
        ({"n": 2, "num_beams": 4, "use_beam_search": True}, 4),
    ],
)
def test_beam_width_by_our_name_or_by_vllms(body, beams):
    assert to_params(parse_request({**BASE, **body})).num_beams == beams


def test_null_means_the_default():
    nulls = dict.fromkeys(["max_tokens", "temperature", "n", "stop", "suffix", "user"])
    assert parse_request({**BASE, **nulls}) == parse_request(BASE)


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("text", ["text"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1, 2], [3]], [[1, 2], [3]]),
    ],
)
def test_the_four_forms_of_a_prompt(prompt, prompts):
    assert parse_request({**BASE, "prompt": prompt}).prompt == prompts


@pytest.mark.parametrize(
    ("key", "near"),
    [("temprature", "temperature"), ("topk", "top_k"), ("num_beam", "num_beams"), ("eco", "echo")],
)
def test_an_unknown_key_is_named_with_the_nearest_one(key, near):
    e = refused({key: 1})
    assert e.param == key
    assert e.code == "unknown_parameter"
    assert f"did you mean '{near}'" in e.message


def test_an_unknown_key_inside_an_object_is_named_with_the_nearest_one():
    e = refused({"contrastive": {"alfa": 1}})
    assert e.param == "contrastive.alfa"
    assert "did you mean 'alpha'" in e.message
    assert "'include_usage'" in refused({"stream_options": {"include_usge": True}}).message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("prompt", None),
        ("prompt", []),
        ("prompt", [[]]),
        ("prompt", [1, "a"]),
        ("prompt", [1.5]),
        ("prompt", [True]),
        ("prompt", {"a": 1}),
        ("prompt", 5),
        ("prompt", [-1]),
        ("prompt", [259]),
        ("prompt", ["x"] * 17),
        ("model", 5),
        ("max_tokens", 0),
        ("max_tokens", -1),
        ("max_tokens", "5"),
        ("max_tokens", 5.0),
        ("max_tokens", True),
        ("max_tokens", 10**6),
        ("max_tokens", 10**30),
        ("temperature", -0.1),
        ("temperature", "hot"),
        ("temperature", True),
        ("temperature", 10**39),
        ("top_p", 0),
        ("top_p", 1.1),
        ("min_p", 1),
        ("top_k", -2),
        ("n", 0),
        ("n", 10**6),
        ("num_beams", 10**6),
        ("seed", 2**63),
        ("logprobs", 21),
        ("logprobs", -1),
        ("stop", ["x"] * 17),
        ("stop", ["x" * 257]),
        ("stop", [""]),
        ("stop", [1]),
        ("stop_token_ids", [259]),
        ("stop_token_ids", list(range(17))),
        ("logit_bias", {"a": 1}),
        ("logit_bias", {"-1": 1}),
        ("logit_bias", {"٣": 1}),
        ("logit_bias", {"259": 1}),
        ("logit_bias", {"0" * 30 + "259": 1}),
        ("logit_bias", {"5": 101}),
        ("presence_penalty", 2.5),
        ("repetition_penalty", 0),
        ("min_tokens", 17),
        ("early_stopping", "always"),
        ("stream", 1),
        ("stream_options", {"include_usage": True}),
        ("best_of", 0),
        ("best_of", 10**6),
        ("top_a", 1.5),
        ("typical_p", 0),
        ("user", "u" * 257),
        ("contrastive", True),
        ("prompt_logprobs", 21),
        ("prompt_logprobs", -1),
        ("prompt_logprobs", True),
        ("allowed_token_ids", [259]),
        ("allowed_token_ids", []),
        ("bad_words", [""]),
        ("bad_words", ["x"] * 65),
        ("truncate_prompt_tokens", -2),
        ("resume_tokens", 1),
        ("priority", 1),
        ("cache_salt", ""),
        ("request_id", "a b"),
        ("skip_special_tokens", 0),
        ("draft_tokens", 65),
        ("penalty_alpha", 1.5),
        ("dola", "middle"),
        ("dola", [True]),
        ("structured_outputs", {"regex": "x" * 20_000}),
    ],
)
def test_a_wrong_value_names_its_key(key, value):
    e = refused({key: value})
    assert e.param is not None
    assert e.param.split(".")[0] == key


@pytest.mark.parametrize(
    "body",
    [
        {"num_beams": 2, "stream": True},
        {"best_of": 2, "stream": True},
        {"best_of": 2, "n": 3},
        {"best_of": 4, "num_beams": 4},
        {"early_stopping": True},
        {"num_beams": 2, "n": 3},
        {"num_beams": 2, "temperature": 0.7},
        {"num_beams": 2, "top_k": 5},
        {"max_tokens": 0},
        {"truncate_prompt_tokens": 0},
        {"max_tokens": 0, "logprobs": 1},
        {"prompt": [1, 2], "resume_tokens": 1, "echo": True},
        {"prompt": [1, 2], "resume_tokens": 1, "logprobs": 0},
        {"prompt": [1, 2], "resume_tokens": 1, "n": 2},
        {"prompt": [1, 2, 3], "resume_tokens": 2, "max_tokens": 2},
        {"penalty_alpha": 0.5},
        {"ignore_eos": True, "structured_outputs": {"regex": "a"}},
        {"ignore_eos": True, "skip_special_tokens": False},
    ],
)
def test_what_does_not_go_together_is_refused(body):
    assert refused(body).param in body


def test_the_sequences_of_all_prompts_count_together():
    assert refused({"prompt": ["a"] * 16, "n": 3}).param == "n"
    check_request(parse_request({**BASE, "prompt": ["a"] * 16, "n": 2}), LimitsConfig())


def test_a_refusal_does_not_repeat_the_value():
    for body in ({"prompt": [1, "canary"]}, {"temperature": "canary"}, {"stop": {"canary": 1}}):
        assert "canary" not in str(refused(body).body())


@pytest.mark.parametrize(
    "body",
    [
        {"top_k": 2**31},
        {"top_k": 2**63},
        {"temperature": 1e300},
        {"repetition_penalty": 1e-300},
        {"length_penalty": 101},
        {"logit_bias": {"65": 1e300}},
        {"contrastive": {"temperature": 1e-4}},
    ],
)
def test_values_that_no_number_in_the_engine_can_hold_are_refused(body):
    assert refused(body).code == "invalid_value"


def test_beam_search_with_one_beam_is_greedy():
    assert accept({"use_beam_search": True}).greedy
    assert accept({"use_beam_search": True, "num_beams": 1}).greedy
    assert not accept({"num_beams": 1}).greedy
