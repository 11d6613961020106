"""Text to token ids and back, with the Rust ``tokenizers`` library and the model's own vocabulary."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from scaletot_jax.errors import DataError
from scaletot_jax.lm.gguf import GGUFFile

_CONTROL = 3  # GGUF token type of <|im_end|> and the like


class Tokenizer:
    """A byte-level BPE tokenizer. Made by :meth:`from_gguf` or :meth:`from_directory`.

    Attributes:
      eos_id: the id that ends a chain.
      vocab_size: number of ids.
      fingerprint: SHA-256 of the tokenizer's own JSON; equal fingerprints give equal ids.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, eos_id: int):
        self._tokenizer = tokenizer
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.eos_id = eos_id
        self.vocab_size: int = tokenizer.get_vocab_size(with_added_tokens=True)
        self.fingerprint = hashlib.sha256(tokenizer.to_str().encode()).hexdigest()

    def encode(self, text: str, *, control: bool = True) -> list[int]:
        """Ids of ``text``; nothing is added before or after.

        Args:
          text: any text; every string can be encoded.
          control: whether the name of a control token in the text, such as ``<|im_end|>``, becomes that token. Pass
            False for data from outside, where it is only characters.
        """
        self._tokenizer.encode_special_tokens = not control
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids``, control tokens included."""
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=False)

    def token_id(self, token: str) -> int | None:
        """The id of a token by its name in the vocabulary, e.g. ``"<|im_start|>"``; None where there is none."""
        return self._tokenizer.token_to_id(token)

    def save(self, path: str | Path) -> None:
        """Writes ``tokenizer.json``."""
        Path(path).write_text(self._tokenizer.to_str(), encoding="utf-8")

    @classmethod
    def from_gguf(cls, source: str | Path | GGUFFile) -> Tokenizer:
        """The tokenizer inside a GGUF file.

        Raises:
          DataError: no vocabulary, another model than byte-level BPE, or an unknown pre-tokenizer.
        """
        file = source if isinstance(source, GGUFFile) else GGUFFile(source)
        if file.value("tokenizer.ggml.model") != "gpt2":
            raise DataError(
                "the tokenizer is not a byte-level BPE",
                where=f"{file.path}, tokenizer.ggml.model",
                why=f"'{file.value('tokenizer.ggml.model')}'; only 'gpt2' is supported",
                do="use a Hugging Face directory with tokenizer.json",
            )
        tokens: list[str] = file.value("tokenizer.ggml.tokens")
        merges = [tuple(merge.split(" ", 1)) for merge in file.value("tokenizer.ggml.merges")]
        tokenizer = tokenizers.Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))  # type: ignore[arg-type]
        tokenizer.pre_tokenizer = _pre_tokenizer(file)
        tokenizer.decoder = decoders.ByteLevel()
        kinds = file.value("tokenizer.ggml.token_type", [0] * len(tokens))
        control = [token for token, kind in zip(tokens, kinds) if kind == _CONTROL]
        tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
        return cls(tokenizer, file.value("tokenizer.ggml.eos_token_id"))

    @classmethod
    def from_directory(cls, path: str | Path) -> Tokenizer:
        """The ``tokenizer.json`` of a Hugging Face directory; the end token is that of its ``config.json``.

        Raises:
          DataError: either file is missing or damaged, or no end token is named.
        """
        file = Path(path) / "tokenizer.json"
        try:
            tokenizer = tokenizers.Tokenizer.from_str(file.read_text(encoding="utf-8"))
        except Exception as error:  # the library raises bare Exception for a damaged file
            raise DataError("a tokenizer cannot be read", where=str(file), why=str(error)) from error
        config = Path(path) / "config.json"
        try:
            eos = json.loads(config.read_text(encoding="utf-8")).get("eos_token_id")
        except (OSError, ValueError) as error:
            raise DataError("a model configuration cannot be read", where=str(config), why=str(error)) from error
        eos = eos[0] if isinstance(eos, list) and eos else eos
        if not isinstance(eos, int):
            raise DataError("a model names no end token", where=f"{config}, eos_token_id", why=f"{eos!r}")
        return cls(tokenizer, eos)


def _pre_tokenizer(file: GGUFFile):
    name = file.value("tokenizer.ggml.pre", "default")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if name == "smollm":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    if name == "gpt-2":
        return byte_level
    raise DataError(
        "the pre-tokenizer of a GGUF file is not known",
        where=f"{file.path}, tokenizer.ggml.pre",
        why=f"'{name}'; 'smollm' and 'gpt-2' are",
        do="use a Hugging Face directory with tokenizer.json",
    )
