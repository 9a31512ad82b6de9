"""How long a row a base takes: what is read off equals what is found by trying, for any family."""

from __future__ import annotations

import pytest
import torch
import transformers

from fedtune.errors import ScenarioError
from fedtune.scenario.task import TaskSection
from fedtune.tasks.base import Classification
from fedtune.tasks.bases import load_base
from fedtune.tasks.language import load_language
from fedtune.tasks.lengths import fitting, most_tokens, positions
from fedtune.tasks.text import load_text
from tests.kits.families import ENCODER_ENDS, FAMILIES, SMALL, WORDS
from tests.tasks.kit import as_csv, tokenizer

PAD = WORDS.index("[PAD]")
TABLES = {
    **{name: FAMILIES[name] for name in ("bert", "roberta", "distilbert", "albert", "gpt2", "opt")},
}
MORE = {  # by configuration: RoBERTa's way of counting under other names, tables of other names
    "roberta-prelayernorm": {**SMALL, "pad_token_id": PAD},
    "xlm-roberta": {**SMALL, "pad_token_id": PAD},
    "camembert": {**SMALL, "pad_token_id": PAD},
    "data2vec-text": {**SMALL, "pad_token_id": PAD},
    "xmod": {**SMALL, "pad_token_id": PAD, "languages": ["en_XX"], "default_language": "en_XX"},
    "mpnet": {**SMALL, "pad_token_id": 1},
    "ibert": {**SMALL, "pad_token_id": PAD},
    "electra": {**SMALL, "embedding_size": 16},
    "mpt": {
        "vocab_size": len(WORDS),
        "d_model": 16,
        "n_heads": 2,
        "n_layers": 1,
        "max_seq_len": 30,
    },
}


def bare(name: str) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    if name in MORE:
        config = transformers.AutoConfig.for_model(name, **MORE[name])
    else:
        config = getattr(transformers, FAMILIES[name].config)(**FAMILIES[name].given)
    return transformers.AutoModel.from_config(config).eval()


class Body(Classification):
    """Tries a bare model."""

    def logits(self, model, inputs):
        return model(**inputs)[0]


def row(width: int) -> dict[str, torch.Tensor]:
    ids = torch.full((1, width), 12)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.mark.parametrize("name", [*TABLES, *MORE])
def test_the_limit_that_is_read_off_is_the_one_that_is_found_by_trying(name):
    model = bare(name)
    assert most_tokens(model, Body(), row(64)) == positions(model)


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma", "gpt-neox"])
def test_a_base_without_a_table_takes_any_length(name):
    assert most_tokens(bare(name), Body(), row(200)) == 200


def rows(folder, words: int) -> str:
    text = " ".join(WORDS[12:14] * words)[: 8 * words]
    short = {"text": WORDS[12], "label": "a"}
    return as_csv(folder, "rows.csv", [{"text": text, "label": "b"}, short] * 6)


def saved(name: str, folder) -> str:
    bare(name).save_pretrained(folder)
    tokenizer(**ENCODER_ENDS).save_pretrained(folder)
    return str(folder)


def test_rows_longer_than_the_table_are_cut_to_it(tmp_path, monkeypatch):
    """Also where nothing in a configuration tells the limit."""
    base = saved("roberta-prelayernorm", tmp_path / "base")
    task = TaskSection(kind="text-classification", base=base, data=rows(tmp_path, 60))
    plain = load_text(task)
    monkeypatch.setattr("fedtune.tasks.lengths.positions", lambda model: None)
    tried = load_text(task)
    limit = SMALL["max_position_embeddings"] - PAD - 1
    for found in (plain, tried):
        assert int(found.train.lengths.max()) == limit
        found.base.model(**found.train.gather(torch.arange(len(found.train))).inputs)
    assert any(f"cut to {limit} tokens" in note for note in tried.notes)


def test_more_tokens_than_a_table_holds_are_refused_by_the_number(tmp_path, monkeypatch):
    base = saved("roberta-prelayernorm", tmp_path / "base")
    limit = SMALL["max_position_embeddings"] - PAD - 1
    task = TaskSection(
        kind="text-classification", base=base, data=rows(tmp_path, 60), max_length=limit + 1
    )
    for unknown in (False, True):
        if unknown:
            monkeypatch.setattr("fedtune.tasks.lengths.positions", lambda model: None)
        with pytest.raises(ScenarioError, match=rf"max_length = {limit + 1}: .* at most {limit} "):
            load_text(task)


def test_a_decoder_with_a_limit_of_its_own_name_is_cut_to_it(tmp_path):
    config = transformers.AutoConfig.for_model("mpt", **MORE["mpt"])
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    tokenizer("[BOS]", eos="[EOS]").save_pretrained(tmp_path / "base")
    task = TaskSection(
        kind="causal-lm", base=str(tmp_path / "base"), data=rows(tmp_path, 60), text="text"
    )
    found = load_language(task)
    assert int(found.train.lengths.max()) == 30
    found.base.model(**found.train.gather(torch.arange(len(found.train))).inputs)


def test_a_position_table_keeps_its_padding_index_whatever_the_tokenizer_pads_with(tmp_path):
    """Saved with another one, a model would count its positions from another place."""
    base = saved("roberta", tmp_path / "base")
    words = tokenizer(**{**ENCODER_ENDS, "pad": "[SEP]"})
    words.save_pretrained(tmp_path / "base")
    task = TaskSection(kind="text-classification", base=base, data=rows(tmp_path, 3))
    assert load_base(task, ["a", "b"]).model.config.pad_token_id == PAD != words.pad_token_id


def test_a_base_that_nothing_goes_through_is_refused_with_the_reason():
    task = TaskSection(kind="causal-lm", base="x", data="y.csv", text="text")
    model = bare("llama")
    model.layers[0].mlp = torch.nn.Linear(3, 3)
    with pytest.raises(ScenarioError, match=r"no row goes through it: .*cannot be multiplied"):
        fitting(task, model, Body(), row(5))


SEQUENCES = {
    "bart": {
        "vocab_size": len(WORDS), "d_model": 16, "encoder_layers": 1, "decoder_layers": 1,
        "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 24,
        "decoder_ffn_dim": 24, "max_position_embeddings": 30,
    },
    "t5": {
        "vocab_size": len(WORDS), "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1,
        "num_heads": 2, "decoder_start_token_id": PAD,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", SEQUENCES)
def test_a_base_that_reads_a_row_at_its_closing_token_is_tried_with_one(tmp_path, name):
    special = {"eos_token_id": WORDS.index("[EOS]"), "pad_token_id": PAD, "bos_token_id": None}
    config = transformers.AutoConfig.for_model(name, **SEQUENCES[name], **special, num_labels=2)
    made = transformers.AutoModelForSequenceClassification.from_config(config)
    made.save_pretrained(tmp_path / "base")
    tokenizer(closing="[EOS]", pad="[PAD]", eos="[EOS]").save_pretrained(tmp_path / "base")
    task = TaskSection(
        kind="text-classification", base=str(tmp_path / "base"), data=rows(tmp_path, 60)
    )
    found = load_text(task)
    if name == "bart":
        assert int(found.train.lengths.max()) == SEQUENCES[name]["max_position_embeddings"]
    found.base.model(**found.train.gather(torch.arange(2)).inputs)
