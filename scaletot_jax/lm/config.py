"""The shape of a decoder-only language model of the Llama family."""

from __future__ import annotations

from dataclasses import dataclass

from scaletot_jax.errors import DataError


@dataclass(frozen=True)
class LMConfig:
    """Sizes and constants of a Llama-architecture model (arXiv 2307.09288; SmolLM2: arXiv 2502.02737).

    Frozen and hashable, so that jitted functions take it as a static argument.

    Attributes:
      vocab_size: V, rows of the embedding.
      hidden_size: D, width of the residual stream.
      intermediate_size: F, width of the gated feed-forward layer.
      num_layers: L.
      num_heads: H query heads.
      num_kv_heads: KV heads; H is a multiple of it (grouped-query attention, arXiv 2305.13245).
      head_dim: hd, an even number (rotary embedding turns pairs).
      rope_theta: base of the rotary frequencies.
      rms_norm_eps: added to the mean square before its root.
      tie_embeddings: whether the output head is the embedding itself.
      max_positions: the longest sequence the model was trained for.
      eos_id: the token that ends a chain.

    Raises:
      DataError: a size is not positive, or the head counts do not divide.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5
    tie_embeddings: bool = True
    max_positions: int = 2048
    eos_id: int = 2

    def __post_init__(self) -> None:
        sizes = (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_layers",
            "num_heads",
            "num_kv_heads",
            "head_dim",
        )
        for name in sizes:
            if getattr(self, name) < 1:
                raise DataError("a language model has an impossible size", where=name, why=f"{getattr(self, name)} < 1")
        if self.num_heads % self.num_kv_heads:
            raise DataError(
                "the query heads of a language model do not divide among its key-value heads",
                where="num_heads, num_kv_heads",
                why=f"{self.num_heads} is not a multiple of {self.num_kv_heads}",
            )
        if self.head_dim % 2:
            raise DataError("rotary embedding needs an even head_dim", where="head_dim", why=f"{self.head_dim} is odd")

    @property
    def group_size(self) -> int:
        """G = H / KV, the query heads that share one key-value head."""
        return self.num_heads // self.num_kv_heads

    @property
    def projections(self) -> dict[str, tuple[int, int]]:
        """Name -> (inputs, outputs) of the seven weight matrices of a layer."""
        width, queries, keys = self.hidden_size, self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        return {
            "q": (width, queries),
            "k": (width, keys),
            "v": (width, keys),
            "o": (queries, width),
            "gate": (width, self.intermediate_size),
            "up": (width, self.intermediate_size),
            "down": (self.intermediate_size, width),
        }
