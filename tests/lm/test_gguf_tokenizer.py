"""Tokenizers rebuilt from GGUF files: pre-tokenizers by their published patterns, SentencePiece by its definition."""

import itertools
import json

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from lm.conftest import finish_gguf

from scaletot_jax.errors import DataError
from scaletot_jax.lm.tokenizer import Tokenizer

gguf = pytest.importorskip("gguf")
TEXTS = (
    "Context: settled; couple\n\n\nInterests: fresh food\t; 12345 items, I'll pay 45.60!  Yes... we've 7\r\n",
    "   leading and trailing   ",
    "Straße café cafe\u0301 你好世界 🙂 ١٢٣ x=[i**2]<|im_end|><think>12</think>",
)


@pytest.fixture(scope="module")
def trained():
    """Vocabulary and merges of the tiny byte-level tokenizer, and its control tokens."""
    described = json.loads(tiny._tokenizer(700).to_str())
    merges = [tuple(merge) for merge in described["model"]["merges"]]
    return described["model"]["vocab"], merges, [token["content"] for token in described["added_tokens"]]


def _write(path, kind, tokens, types, *, pre=None, merges=None, scores=None, prefix=None, bos=None, add_bos=None):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model(kind)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_eos_token_id(0)
    if pre:
        writer.add_tokenizer_pre(pre)
    if merges:
        writer.add_token_merges([" ".join(merge) for merge in merges])
    if scores:
        writer.add_token_scores(scores)
    if bos is not None:
        writer.add_bos_token_id(bos)
    if add_bos is not None:
        writer.add_add_bos_token(add_bos)
    if prefix is not None:
        writer.add_add_space_prefix(prefix)
    finish_gguf(writer)
    return path


def _byte_level(path, trained, pre, extra=(), **more):
    vocabulary, merges, control = trained
    tokens = [*sorted(vocabulary, key=vocabulary.get), *extra]
    types = [3 if token in control else 4 if token in extra else 1 for token in tokens]
    return Tokenizer.from_gguf(_write(path, "gpt2", tokens, types, pre=pre, merges=merges, **more))


def test_qwen2_equals_transformers(tmp_path, trained):
    transformers = pytest.importorskip("transformers")
    vocabulary, merges, control = trained
    ours = _byte_level(tmp_path / "model.gguf", trained, "qwen2", extra=("<think>",))
    theirs = transformers.Qwen2Tokenizer(
        vocab={**vocabulary, "<think>": len(vocabulary)}, merges=merges, extra_special_tokens=control
    )
    theirs.add_tokens(["<think>"])
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False), text
    assert ours.token_id("<think>") in ours.encode(TEXTS[2]) and ours.eos_id not in ours.special_ids - {0}
    assert ours.token_id("<think>") not in ours.special_ids


def test_llama_bpe_equals_its_pattern(tmp_path, trained):
    """Up to three digits together; a word that is a token is taken whole, whether merges lead there or not."""
    regex = pytest.importorskip("regex")
    import tokenizers

    vocabulary, merges, _ = trained
    whole = {**vocabulary, "ĠStraÃŁe": len(vocabulary), "456": len(vocabulary) + 1}
    ours = _byte_level(tmp_path / "model.gguf", (whole, merges, trained[2]), "llama-bpe")
    pieces = regex.compile(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    plain = tokenizers.Tokenizer(tokenizers.models.BPE(whole, merges))
    spell = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for text in (*TEXTS, " Straße 123456 7"):
        expected = []
        for piece in pieces.findall(text.replace("<|im_end|>", "")):
            ((spelled, _),) = spell.pre_tokenize_str(piece)
            expected += [whole[spelled]] if spelled in whole else plain.encode(spelled).ids
        assert ours.encode(text.replace("<|im_end|>", "")) == expected, text
    assert whole["456"] in ours.encode("123456") and whole["ĠStraÃŁe"] in ours.encode(" Straße")


@pytest.fixture(scope="module")
def sentence_piece(tmp_path_factory, trained):
    """A Gemma-like vocabulary: control, user-defined, 256 bytes, then pieces with falling scores."""
    _, merges, _ = trained
    union = ["".join(merge) for merge in merges]
    letters = sorted({letter for piece in union for letter in piece if letter.isascii() and letter.isalnum()})
    pieces = [piece.replace("Ġ", "▁") for piece in union if piece.replace("Ġ", "").isalnum() and piece.isprintable()]
    pieces = ["▁", *letters, *dict.fromkeys(piece for piece in pieces if set(piece) <= {"▁", *letters})]
    tokens = ["<eos>", "<unk>", "\n\n", *(f"<0x{i:02X}>" for i in range(256)), *pieces]
    types = [3, 2, 4, *[6] * 256, *[1] * len(pieces)]
    scores = [-1000.0, -1000.0, -1000.0, *[0.0] * 256, *(-float(i) for i in range(len(pieces)))]
    path = tmp_path_factory.mktemp("spm") / "model.gguf"
    return Tokenizer.from_gguf(_write(path, "llama", tokens, types, scores=scores, prefix=False)), tokens, scores


def _by_definition(text, tokens, scores):
    """SentencePiece BPE: join the two neighbours whose union scores highest, the first of equals, until none is a piece."""
    rank = {token: score for token, score in list(zip(tokens, scores))[259:]}
    parts = list(text.replace(" ", "▁"))
    while True:
        joined = [(rank.get(a + b, -1e9), -i) for i, (a, b) in enumerate(itertools.pairwise(parts))]
        score, place = max(joined, default=(-1e9, 0))
        if score == -1e9:
            break
        parts[-place : -place + 2] = ["".join(parts[-place : -place + 2])]
    ids = {token: i for i, token in enumerate(tokens)}
    return [i for part in parts for i in ([ids[part]] if part in rank else [3 + byte for byte in part.encode()])]


def test_sentence_piece_equals_its_definition(sentence_piece):
    ours, tokens, scores = sentence_piece
    words = st.sampled_from([*tiny.WORDS, "é", "你", "", "unlikeliest", "weekdays"])

    @given(st.lists(words, max_size=6))
    def check(chosen):
        text = " ".join(chosen)
        assert ours.encode(text) == _by_definition(text, tokens, scores)
        assert ours.decode(ours.encode(text)) == text

    check()
    assert max(len(tokens[i]) for i in ours.encode(" unlikely weekly")) > 3
    assert ours.encode("a\n\nb")[1] == 2  # user-defined, found before anything is merged
    assert ours.encode("<eos>") == [0] and 0 not in ours.encode("<eos>", control=False)


def test_what_is_not_known_is_refused(tmp_path, trained):
    vocabulary, merges, _ = trained
    tokens = sorted(vocabulary, key=vocabulary.get)
    path = _write(tmp_path / "a.gguf", "gpt2", tokens, [1] * len(tokens), pre="command-r", merges=merges)
    with pytest.raises(DataError, match=r"'command-r'[\s\S]*tokenizer\.json"):
        Tokenizer.from_gguf(path)
    path = _write(tmp_path / "b.gguf", "llama", ["a"], [1], scores=[0.0], prefix=True)
    with pytest.raises(DataError, match="add_space_prefix"):
        Tokenizer.from_gguf(path)


@pytest.mark.parametrize(
    ("pre", "told", "starts"),
    (("smollm", None, False), ("smollm", True, True), ("llama-bpe", None, True), ("llama-bpe", False, False)),
)
def test_the_token_that_begins_every_text(tmp_path, trained, pre, told, starts):
    tokenizer = _byte_level(tmp_path / "a.gguf", trained, pre, bos=1, add_bos=told)
    assert tokenizer.start == ((1,) if starts else ())
    assert tokenizer.encode(TEXTS[0]) == _byte_level(tmp_path / "b.gguf", trained, pre).encode(TEXTS[0])
    tokenizer.save(tmp_path / "tokenizer.json")
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 0}))
    assert Tokenizer.from_directory(tmp_path).start == tokenizer.start
