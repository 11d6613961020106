"""The shape of a decoder-only language model: sizes, and what tells the families apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from scaletot_jax.errors import DataError


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are divided so that a model reaches beyond the length it was first trained for.

    Attributes:
      kind: ``"linear"`` divides every frequency by ``factor`` (arXiv 2306.15595); ``"llama3"`` only those whose wave is
        longer than ``original_positions / low_freq_factor`` tokens, none shorter than ``original_positions /
        high_freq_factor``, and mixes in between (arXiv 2407.21783); ``"factors"`` divides pair i by ``factors[i]``.
      factors: hd/2 divisors, for ``"factors"`` only: what a GGUF file stores of a scaling rule it does not name.
    """

    kind: Literal["linear", "llama3", "factors"]
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_positions: int = 8192
    factors: tuple[float, ...] = ()


class LayerKind(NamedTuple):
    """What one layer's attention sees: ``window`` tokens back, itself included (0: all), at these rotary angles."""

    window: int
    rope_theta: float
    rope_scaling: RopeScaling | None


@dataclass(frozen=True)
class LMConfig:
    """Sizes and constants of a model. The defaults of what is optional are those of Llama (arXiv 2307.09288).

    Frozen and hashable, so that jitted functions take it as a static argument. Features that are off leave no trace in
    the compiled program. Families: SmolLM2 and Llama (arXiv 2502.02737, 2407.21783), Qwen2 and 2.5 (arXiv 2412.15115),
    Qwen3 (arXiv 2505.09388), Gemma 3 text (arXiv 2503.19786); ``lm.families`` says which sets what.

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
      family: name in ``lm.families.FAMILIES``: how its files call things. The forward pass never asks for it.
      rope_scaling: scaling of the rotary frequencies; None for none. Not applied where ``local_rope_theta`` is.
      windows: for each layer, how many tokens back it sees, itself included; 0 sees all. Empty: every layer sees all.
      local_rope_theta: base of the rotary frequencies in layers with a window; None where it is ``rope_theta`` too.
      qkv_bias: whether q, k and v add a bias.
      qk_norm: whether each head of q and k is RMS-normalised before the rotary turn.
      post_norms: whether the attention and feed-forward outputs are normalised before they are added.
      norm_offset: added to every norm's weight: 1 where files store w of (1 + w).
      activation: of the gate, ``"silu"`` or ``"gelu_tanh"``.
      embed_scale: factor of the token embeddings on their way in; not of the tied head.
      query_scale: factor of q · k; None for hd^-0.5.
      attention: ``"einsum"``, ``"dot_product"`` or ``"splash"``: how whole sequences attend (``lm.attend``), no property of
        the weights.

    Raises:
      DataError: a size is not positive, the head counts do not divide, or an option is unknown or of another length.
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
    family: str = "llama"
    rope_scaling: RopeScaling | None = None
    windows: tuple[int, ...] = ()
    local_rope_theta: float | None = None
    qkv_bias: bool = False
    qk_norm: bool = False
    post_norms: bool = False
    norm_offset: float = 0.0
    activation: Literal["silu", "gelu_tanh"] = "silu"
    embed_scale: float = 1.0
    query_scale: float | None = None
    attention: Literal["einsum", "dot_product", "splash"] = "einsum"

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
        if self.activation not in ("silu", "gelu_tanh"):
            raise DataError("unknown activation", where="activation", why=f"{self.activation!r}")
        if self.attention not in ("einsum", "dot_product", "splash"):
            raise DataError("unknown attention", where="attention", why=f"{self.attention!r}")
        if (self.windows and len(self.windows) != self.num_layers) or min(self.windows, default=0) < 0:
            raise DataError(
                "the windows of a language model do not fit its layers",
                where="windows",
                why=f"{len(self.windows)} of them, smallest {min(self.windows)}, for {self.num_layers} layers",
            )
        if not any(self.windows):  # one spelling of "no windows", so that equal models have equal configurations
            object.__setattr__(self, "windows", ())
        factors = self.rope_scaling.factors if self.rope_scaling else ()
        if factors and len(factors) != self.head_dim // 2:
            why = f"{len(factors)} for head_dim {self.head_dim}"
            raise DataError("rotary factors do not fit head_dim", where="rope_scaling", why=why)

    @property
    def group_size(self) -> int:
        """G = H / KV, the query heads that share one key-value head."""
        return self.num_heads // self.num_kv_heads

    @property
    def layer_kinds(self) -> tuple[LayerKind, ...]:
        """What each of the L layers sees."""
        everywhere = LayerKind(0, self.rope_theta, self.rope_scaling)
        if self.local_rope_theta is None:
            return tuple(everywhere._replace(window=window) for window in self.windows or (0,) * self.num_layers)
        near = LayerKind(0, self.local_rope_theta, None)
        return tuple(
            near._replace(window=window) if window else everywhere for window in self.windows or (0,) * self.num_layers
        )

    @property
    def vectors(self) -> dict[str, int]:
        """Name -> size of the vectors of a layer: norms, and biases where there are some."""
        sizes = {"attn_norm": self.hidden_size, "mlp_norm": self.hidden_size}
        if self.qkv_bias:
            sizes |= {f"{name}_bias": self.projections[name][1] for name in ("q", "k", "v")}
        if self.qk_norm:
            sizes |= {"q_norm": self.head_dim, "k_norm": self.head_dim}
        if self.post_norms:
            sizes |= {"post_attn_norm": self.hidden_size, "post_mlp_norm": self.hidden_size}
        return sizes

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
