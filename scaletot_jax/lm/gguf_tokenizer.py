"""The tokenizer inside a GGUF file, rebuilt with the ``tokenizers`` library.

Two kinds: byte-level BPE with its merges and the name of a pre-tokenizer (``gpt2``: SmolLM2, Llama 3, Qwen), and
SentencePiece BPE, of which the file keeps pieces and scores (``llama``: Gemma 3, Llama 2). SentencePiece merges the two
neighbours whose union has the highest score, so every split of a piece into two others is a merge, ranked by that score.
Pre-tokenizers: llama.cpp ``src/llama-vocab.cpp``.
"""

from __future__ import annotations

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from scaletot_jax.errors import DataError
from scaletot_jax.lm.gguf import GGUFFile

_UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 2, 3, 4, 6  # GGUF token types
_WORDS = (  # Llama 3 and Qwen 2; they differ in how many digits stay together
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def build(file: GGUFFile) -> tokenizers.Tokenizer:
    """The tokenizer of a GGUF file.

    Raises:
      DataError: no vocabulary, another kind of tokenizer, or an unknown pre-tokenizer.
    """
    kind = file.value("tokenizer.ggml.model")
    if kind == "gpt2":
        tokenizer = _byte_level(file)
    elif kind == "llama":
        tokenizer = _sentence_piece(file)
    else:
        raise DataError(
            "the tokenizer is neither a byte-level nor a SentencePiece BPE",
            where=f"{file.path}, tokenizer.ggml.model",
            why=f"'{kind}'; 'gpt2' and 'llama' are supported",
            do="use a Hugging Face directory with tokenizer.json",
        )
    tokens = file.value("tokenizer.ggml.tokens")
    kinds = file.value("tokenizer.ggml.token_type", [0] * len(tokens))
    whole = [(token, kind) for token, kind in zip(tokens, kinds) if kind in (_CONTROL, _USER_DEFINED)]
    control = [AddedToken(token, special=True, normalized=False) for token, kind in whole if kind == _CONTROL]
    tokenizer.add_special_tokens(control)
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token, kind in whole if kind == _USER_DEFINED])
    # Where a file does not say, llama.cpp adds its <bos> for SentencePiece and for Llama 3.
    unsaid = file.value("tokenizer.ggml.model") == "llama" or file.metadata.get("tokenizer.ggml.pre") == "llama-bpe"
    if file.metadata.get("tokenizer.ggml.add_bos_token", unsaid and "tokenizer.ggml.bos_token_id" in file.metadata):
        bos = file.value("tokenizer.ggml.bos_token_id")
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{tokens[bos]} $A", special_tokens=[(tokens[bos], bos)]
        )
    return tokenizer


def _byte_level(file: GGUFFile) -> tokenizers.Tokenizer:
    tokens = file.value("tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ", 1)) for merge in file.value("tokenizer.ggml.merges")]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    name = file.value("tokenizer.ggml.pre", "default")
    # Llama 3's tokenizer takes a word that is a token as it is, whether merges lead there or not.
    model = models.BPE(vocabulary, merges, ignore_merges=name == "llama-bpe")  # type: ignore[arg-type]
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = _pre_tokenizer(name, file)
    if name == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _pre_tokenizer(name: str, file: GGUFFile):
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if name == "smollm":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    if name == "gpt-2":
        return byte_level
    if name in ("llama-bpe", "qwen2"):
        pattern = Regex(_WORDS % ("{1,3}" if name == "llama-bpe" else ""))
        words = pre_tokenizers.Split(pattern, behavior="isolated")
        return pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    raise DataError(
        "the pre-tokenizer of a GGUF file is not known",
        where=f"{file.path}, tokenizer.ggml.pre",
        why=f"'{name}'; 'smollm', 'gpt-2', 'llama-bpe' and 'qwen2' are",
        do="use a Hugging Face directory with tokenizer.json",
    )


def _sentence_piece(file: GGUFFile) -> tokenizers.Tokenizer:
    if file.metadata.get("tokenizer.ggml.add_space_prefix", True):
        raise DataError(
            "a tokenizer that begins every text with a space is not supported",
            where=f"{file.path}, tokenizer.ggml.add_space_prefix",
            do="use a Hugging Face directory with tokenizer.json",
        )
    tokens: list[str] = file.value("tokenizer.ggml.tokens")
    kinds = file.value("tokenizer.ggml.token_type")
    scores = file.value("tokenizer.ggml.scores")
    vocabulary = {token: i for i, token in enumerate(tokens)}
    plain = {token for token, kind in zip(tokens, kinds) if kind not in (_UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE)}
    unknown = next((token for token, kind in zip(tokens, kinds) if kind == _UNKNOWN), None)
    tokenizer = tokenizers.Tokenizer(
        models.BPE(vocabulary, _merges(plain, vocabulary, scores), unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def _merges(plain: set[str], vocabulary: dict[str, int], scores: list[float]) -> list[tuple[str, str]]:
    ranked = []
    for piece in plain:
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in plain and right in plain:
                token = vocabulary[piece]
                ranked.append((-scores[token], token, vocabulary[left], vocabulary[right], left, right))
    ranked.sort()
    return [(left, right) for *_, left, right in ranked]
