"""Text to token ids and back, with the Rust ``tokenizers`` library and the model's own vocabulary."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import tokenizers

from scaletot_jax.errors import DataError
from scaletot_jax.lm import gguf_tokenizer
from scaletot_jax.lm.gguf import GGUFFile


class Tokenizer:
    """A tokenizer. Made by :meth:`from_gguf` or :meth:`from_directory`.

    Attributes:
      eos_id: the id that ends a chain.
      start: ids that every text given to the model begins with: ``<bos>`` for Gemma and Llama, nothing for SmolLM2 and
        Qwen. :meth:`encode` encodes pieces and does not add them.
      vocab_size: number of ids.
      fingerprint: SHA-256 of the tokenizer's own JSON; equal fingerprints give equal ids.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, eos_id: int):
        self._tokenizer = tokenizer
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.eos_id = eos_id
        self.start = _added_in_front(tokenizer)
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

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids of the control tokens."""
        return frozenset(i for i, token in self._tokenizer.get_added_tokens_decoder().items() if token.special)

    def token_bytes(self) -> list[bytes]:
        """The bytes of every id, for matching text across token borders; a control token such as ``<|im_end|>`` has none."""
        byte_level = '"ByteLevel"' in json.dumps(json.loads(self._tokenizer.to_str())["decoder"])
        added = self._tokenizer.get_added_tokens_decoder()
        out = [b""] * self.vocab_size
        for token, number in self._tokenizer.get_vocab(with_added_tokens=True).items():
            if number >= len(out):
                continue
            if number in added:  # some are plain text, such as Gemma's line breaks
                out[number] = b"" if added[number].special else token.replace("\u2581", " ").encode()
            elif byte_level:
                out[number] = bytes(_BYTES[letter] for letter in token)
            elif len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
                out[number] = bytes([int(token[3:5], 16)])
            else:
                out[number] = token.replace("\u2581", " ").encode()
        return out

    def save(self, path: str | Path) -> None:
        """Writes ``tokenizer.json``."""
        Path(path).write_text(self._tokenizer.to_str(), encoding="utf-8")

    @classmethod
    def from_gguf(cls, source: str | Path | GGUFFile) -> Tokenizer:
        """The tokenizer inside a GGUF file.

        Raises:
          DataError: no vocabulary, a kind of tokenizer or a pre-tokenizer that is not known.
        """
        file = source if isinstance(source, GGUFFile) else GGUFFile(source)
        return cls(gguf_tokenizer.build(file), file.value("tokenizer.ggml.eos_token_id"))

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


def _added_in_front(tokenizer: tokenizers.Tokenizer) -> tuple[int, ...]:
    """What the tokenizer's own template puts before a text."""
    bare = tokenizer.encode("a", add_special_tokens=False).ids
    whole = tokenizer.encode("a").ids
    places = [i for i in range(len(whole)) if whole[i : i + len(bare)] == bare]
    return tuple(whole[: places[0]]) if bare and places else ()


def _byte_letters() -> dict[str, int]:
    """GPT-2's letters for bytes: printable ones stand for themselves, the others are moved to 256 and above."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    moved = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(moved)}


_BYTES = _byte_letters()
