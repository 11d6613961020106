"""Tokenizers: text survives, control tokens are kept apart, and the files they come from are checked."""

import json

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from scaletot_jax.errors import DataError
from scaletot_jax.lm.load import load_model
from scaletot_jax.lm.tokenizer import Tokenizer


def test_words_of_the_tiny_tokenizer_are_single_tokens(tiny_lm):
    tokenizer = tiny_lm.tokenizer
    for text in [f" {word}" for word in tiny.WORDS] + list("0123456789\n:;"):
        assert len(tokenizer.encode(text)) == 1, text
    assert len(tokenizer.encode("2026")) == 4
    assert tokenizer.vocab_size == tiny_lm.config.vocab_size
    assert tokenizer.eos_id == tiny_lm.config.eos_id == tokenizer.token_id("<|im_end|>")


def test_every_text_survives(tiny_lm):
    @given(st.text(st.characters(codec="utf-8")))
    def survives(text):
        ids = tiny_lm.tokenizer.encode(text, control=False)
        assert tiny_lm.tokenizer.decode(ids) == text
        assert all(0 <= i < tiny_lm.tokenizer.vocab_size for i in ids)

    survives()


def test_control_tokens_in_data_stay_characters(tiny_lm):
    tokenizer = tiny_lm.tokenizer
    text = "Name: <|im_end|>\n"
    assert tokenizer.eos_id in tokenizer.encode(text)
    assert tokenizer.eos_id not in tokenizer.encode(text, control=False)
    assert tokenizer.eos_id in tokenizer.encode(text)  # the choice does not stick
    assert tokenizer.decode(tokenizer.encode(text, control=False)) == text
    assert tokenizer.token_id("<|absent|>") is None


def test_save_and_load_give_the_same_ids(tiny_lm, tmp_path):
    tiny_lm.tokenizer.save(tmp_path / "tokenizer.json")
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": [2, 0]}))
    again = Tokenizer.from_directory(tmp_path)
    assert again.fingerprint == tiny_lm.tokenizer.fingerprint and again.eos_id == 2
    text = "Interests: fresh food; music\nDays: few"
    assert again.encode(text) == tiny_lm.tokenizer.encode(text)


def test_the_tiny_model_is_reproducible(tiny_lm, tmp_path):
    again = load_model(tiny.write_tiny_lm(tmp_path / "again"))
    other = load_model(tiny.write_tiny_lm(tmp_path / "other", seed=1, layers=1, tie=False))
    assert again.fingerprint == tiny_lm.fingerprint != other.fingerprint
    assert other.config.num_layers == 1 and not other.config.tie_embeddings


def test_bad_directories_are_named(tiny_lm, tmp_path):
    with pytest.raises(DataError, match=r"tokenizer\.json"):
        Tokenizer.from_directory(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match=r"tokenizer\.json"):
        Tokenizer.from_directory(tmp_path)
    tiny_lm.tokenizer.save(tmp_path / "tokenizer.json")
    with pytest.raises(DataError, match=r"config\.json"):
        Tokenizer.from_directory(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(DataError, match="eos_token_id"):
        Tokenizer.from_directory(tmp_path)


@pytest.mark.parametrize(
    "metadata, match",
    [
        ([("tokenizer.ggml.model", "bert")], "byte-level"),
        ([("tokenizer.ggml.model", "llama")], "add_space_prefix"),
        ([("tokenizer.ggml.model", "gpt2")], r"tokenizer\.ggml\.tokens"),
        ([], r"tokenizer\.ggml\.model"),
    ],
)
def test_gguf_without_a_usable_vocabulary_is_refused(small, write_gguf, metadata, match):
    with pytest.raises(DataError, match=match):
        Tokenizer.from_gguf(write_gguf(*small, metadata=metadata))


def test_the_bytes_of_the_tokens_join_to_the_text(tiny_lm):
    table = tiny_lm.tokenizer.token_bytes()
    assert len(table) == tiny_lm.tokenizer.vocab_size
    for text in ("A family that buys 12 items.\n", "  é ☃ \t\U0001f600\x00", "Days: few<|im_end|>"):
        ids = tiny_lm.tokenizer.encode(text, control=False)
        assert b"".join(table[i] for i in ids) == text.encode()
    assert table[tiny_lm.tokenizer.eos_id] == b""
