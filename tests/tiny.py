"""A tiny random Llama model with a real tokenizer, written in a second, for tests that need a language model."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import quick_compile
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from scaletot_jax.lm.config import LMConfig
from scaletot_jax.lm.model import init_params
from scaletot_jax.lm.save import save_directory

# Words that chain specifications use as one-token codes; repeated in the corpus until each is one token.
_WORD_LIST = (
    "none one two few some several many most daily every day days week weekly monthly rare rarely often never always "
    "yes no unknown low medium high new old young adult senior single couple family settled active inactive steady "
    "rising falling lapsed loyal light heavy weekend evening morning home work study music sport food fresh frozen "
    "budget premium price quality likely unlikely early late short long small large male female urban rural"
)
WORDS = tuple(_WORD_LIST.split())
_SENTENCES = (
    "Context: settled; couple\nInterests: fresh food; music\nHabit: weekly; evening\nDays: few\n",
    "The customer bought 12 items on 3 days of the first week and spent 45.60 in total.\n",
    "Age: 35-44 (middle)\nRegion: North West\nActivity: 7 clicks on 2 days (low)\n",
    "What will this user do in the next 30 days? Think of the age, the household and the habits of the user.\n",
    "A student who studies in the evening and works in the morning; a family that buys food every weekend.\n",
)


def write_tiny_lm(
    directory: str | Path, *, layers: int = 2, hidden: int = 32, seed: int = 0, vocab: int = 768, tie: bool = True
) -> Path:
    """Writes ``config.json``, ``model.safetensors`` and ``tokenizer.json``; ``load_model(directory)`` reads them.

    ``vocab`` bounds the number of tokens from above. The same arguments give the same bytes. Four query heads share two key-value heads. Every word of :data:`WORDS`
    with a leading space, every digit, and ``"\\n"``, ``":"``, ``";"`` are single tokens; ``<|im_end|>`` is the end.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer(vocab)
    tokenizer.save(str(directory / "tokenizer.json"))
    config = LMConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_layers=layers,
        num_heads=4,
        num_kv_heads=2,
        head_dim=hidden // 4,
        rope_theta=10000.0,
        tie_embeddings=tie,
        max_positions=1024,
        eos_id=tokenizer.token_to_id("<|im_end|>"),
    )
    with quick_compile.never():
        params = jax.jit(functools.partial(init_params, config))(jax.random.key(seed))
    save_directory(directory, config, params)
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>"})
    )
    return directory


def random_params(config: LMConfig, seed: int = 0) -> dict[str, Any]:
    """Parameters like ``init_params`` but with norms that are not one and biases that are not zero, drawn by NumPy: nothing to compile."""
    rng = np.random.default_rng(seed)

    def draw(*shape: int, scale: float, mean: float = 0.0) -> jax.Array:
        return jnp.asarray(mean + scale * rng.normal(size=shape), jnp.float32)

    width = config.hidden_size
    layers = {
        name: draw(config.num_layers, inputs, outputs, scale=inputs**-0.5)
        for name, (inputs, outputs) in config.projections.items()
    }
    for name, size in config.vectors.items():
        mean = 0.0 if name.endswith("_bias") else 1.0 - config.norm_offset
        layers[name] = draw(config.num_layers, size, scale=0.3, mean=mean)
    params = {
        "embed": draw(config.vocab_size, width, scale=width**-0.5),
        "layers": layers,
        "final_norm": draw(width, scale=0.3, mean=1.0 - config.norm_offset),
    }
    if not config.tie_embeddings:
        params["head"] = draw(width, config.vocab_size, scale=width**-0.5)
    return params


def _tokenizer(vocab: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = [AddedToken(name, special=True) for name in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=control,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" " + " ".join(WORDS)] * 50 + list(_SENTENCES) * 2, trainer)
    return tokenizer
