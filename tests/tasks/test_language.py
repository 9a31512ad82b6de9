"""Causal language modelling: which tokens count, and what they cost by the model's own forward."""

from __future__ import annotations

import math
import re

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fedtune.errors import ScenarioError
from fedtune.scenario.loading import validate
from fedtune.scenario.task import TaskSection
from fedtune.tasks.generation import ExactMatch
from fedtune.tasks.language import load_language
from fedtune.tasks.tokens import IGNORED
from tests.tasks import kit

ROWS = [
    {"ask": "add one and two", "say": "the sum is three", "text": "rain and wind now"},
    {"ask": "add nine", "say": "is nine", "text": "the sun is here and the wind is there so play"},
    {"ask": "sum", "say": "", "text": "a"},
    {"ask": "", "say": "three", "text": ""},
]


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def base(request, tmp_path_factory):
    return kit.save(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("csv")
    kit.as_csv(folder, "train.csv", ROWS)
    kit.as_csv(folder, "test.csv", ROWS)
    return str(folder)


def section(base, data, **changes) -> TaskSection:
    return TaskSection(kind="causal-lm", base=base, data=data, **changes)


def responses(base, data, **changes) -> TaskSection:
    return section(base, data, template="{ask} so", response="say", **changes)


def own_losses(base, examples) -> list[float]:
    """Each example alone and unpadded, through the model's own loss, summed over its tokens."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64).eval()
    found = []
    for row in range(len(examples.train)):
        one = examples.train.gather(torch.tensor([row]))
        ids, labels = one.inputs["input_ids"], one.labels
        with torch.no_grad():
            loss = model(input_ids=ids, labels=labels).loss
        found.append(float(loss) * int((labels[:, 1:] != IGNORED).sum()))
    return found


@pytest.mark.parametrize("kind", ["responses", "plain"])
def test_padded_batches_cost_what_single_examples_cost_by_the_models_own_loss(base, data, kind):
    examples = load_language(responses(base, data) if kind == "responses" else section(base, data))
    model = examples.base.model.double().eval()
    batch = examples.train.gather(torch.arange(len(examples.train)))
    with torch.no_grad():
        losses = examples.objective.losses(
            examples.objective.logits(model, batch.inputs), batch.labels
        )
    # Transformers computes its own loss in float32
    assert losses.tolist() == pytest.approx(own_losses(base, examples), rel=1e-6)


def test_only_response_and_end_of_text_count(base, data):
    examples = load_language(responses(base, data))
    words = AutoTokenizer.from_pretrained(base)
    for place, row in enumerate(ROWS):
        one = examples.train.gather(torch.tensor([place]))
        counted = one.labels[0][one.labels[0] != IGNORED]
        assert words.decode(counted) == f"{row['say']} [EOS]".strip()
        whole = words.decode(one.inputs["input_ids"][0], skip_special_tokens=True)
        assert whole == f"{row['ask']} so {row['say']}".strip()
        assert one.inputs["input_ids"][0][-1] == words.eos_token_id
        assert list(one.inputs["input_ids"][0]).count(words.eos_token_id) == 1


def test_an_instruction_column_is_the_prompt_on_a_line_of_its_own(base, data):
    short = load_language(section(base, data, instruction="ask", response="say"))
    long = load_language(section(base, data, template="{ask}\n", response="say"))
    a, b = (e.train.gather(torch.arange(3)) for e in (short, long))
    assert torch.equal(a.labels, b.labels)
    assert torch.equal(a.inputs["input_ids"], b.inputs["input_ids"])


def test_long_plain_text_becomes_blocks_without_losing_a_token(base, data):
    whole, cut = (load_language(section(base, data, max_length=n)) for n in (None, 4))
    ids = {}
    for place, row in enumerate(cut.source):
        block = cut.train.gather(torch.tensor([place])).inputs["input_ids"][0].tolist()
        assert 2 <= len(block) <= 4
        ids[row] = ids.get(row, []) + block
    row = 1
    one = whole.train.gather(torch.tensor([list(whole.source).index(row)]))
    sent = one.inputs["input_ids"][0].tolist()
    assert ids[row] == sent[: len(ids[row])]
    assert len(sent) - len(ids[row]) <= 1


def test_rows_without_a_token_to_learn_are_left_out_and_counted(base, data):
    examples = load_language(responses(base, data, max_length=5))
    for place in range(len(examples.train)):
        one = examples.train.gather(torch.tensor([place]))
        assert int(examples.objective.counts(one.labels)[0]) >= 1
    left_out = 2 * (len(ROWS) - len(set(examples.source.tolist())))
    assert left_out > 0
    said = f"data: {left_out} rows without a token to learn within max_length"
    assert [note for note in examples.notes if "hold no" not in note] == [said]
    assert "data: 1 of 4 rows of train hold no text in 'say'" in examples.notes
    assert examples.left_out == {"rows without a token to learn within max_length": left_out}


def test_perplexity_is_the_exponential_of_the_mean_loss(base, data):
    objective = load_language(section(base, data)).objective
    assert objective.finish({"loss": 2.0})["perplexity"] == pytest.approx(math.e**2)
    assert objective.finish({"loss": 1e4})["perplexity"] == math.inf


def test_generation_in_a_padded_batch_equals_generation_alone(base, data):
    words = AutoTokenizer.from_pretrained(base)
    words.pad_token = words.eos_token
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64).eval()
    prompts = [words(row["ask"])["input_ids"] for row in ROWS[:3]]
    match = ExactMatch(words, re.compile("(.*)"), [], 6)
    together = match._generate(model, prompts, torch.device("cpu"))
    alone = [match._generate(model, [prompt], torch.device("cpu"))[0] for prompt in prompts]
    assert together == alone
    assert len(set(together)) > 1


def test_exact_match_counts_equal_extracted_answers(base, data):
    words = AutoTokenizer.from_pretrained(base)
    words.pad_token = words.eos_token
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64).eval()
    prompt = words("add one")["input_ids"]
    plain = ExactMatch(words, re.compile(r"(\w+)"), [], 4)
    said = plain._generate(model, [prompt], torch.device("cpu"))[0]
    first = re.search(r"\w+", said)[0]
    half = ExactMatch(words, plain.pattern, [(prompt, first), (prompt, "never")], 4)
    assert half(model, torch.device("cpu")) == 0.5


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"template": "{asked}", "response": "say"}, "task.template: no column 'asked'"),
        ({"template": "add", "response": "say"}, "names no column"),
        ({"template": "{ask", "response": "say"}, "task.template = '{ask'"),
        ({"template": "{} {ask}", "response": "say"}, "write a column as"),
        ({"template": "{ask:d}", "response": "say"}, "write a column as"),
        (
            {"instruction": "ask", "response": "say", "extract": "(is)", "extract_tokens": 40},
            "task.extract_tokens = 40: .* at most 40 tokens",
        ),
        ({"instruction": "ask", "response": "said"}, "task.response = 'said': no such column"),
        ({"text": "body"}, "task.text = 'body': no such column"),
        ({"instruction": "ask", "response": "say", "extract": "("}, "task.extract = "),
        ({"instruction": "ask", "response": "say", "extract": "x"}, "needs one group"),
        (
            {"instruction": "ask", "response": "say", "extract": "(zz)", "extract_tokens": 4},
            "matches no response",
        ),
        ({"base": "builtin:bert-words"}, "cannot serve causal-lm|task.base"),
    ],
)
def test_what_does_not_fit_is_one_line(base, data, changes, said):
    with pytest.raises(ScenarioError, match=said) as error:
        load_language(section(base, data).model_copy(update=changes))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"instruction": "ask"}, "task.response is missing"),
        ({"response": "say"}, "task.instruction .* is missing"),
        ({"extract": "(x)"}, "task.extract needs"),
        ({"head": "local"}, "no task head"),
        ({"instruction": "a", "template": "{a}", "response": "b"}, "not both"),
        ({"kind": "text-classification", "response": "say"}, "is for kind 'causal-lm'"),
    ],
)
def test_keys_that_do_not_go_together(changes, said):
    with pytest.raises(ScenarioError, match=said):
        validate({"task": {"kind": "causal-lm", **changes}})
