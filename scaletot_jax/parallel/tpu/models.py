"""Shapes of published models, for plans that need no weights."""

from scaletot_jax.lm.config import LMConfig

MODELS = {
    "smollm2-135m": LMConfig(49_152, 576, 1536, 30, 9, 3, 64),
    "qwen2.5-0.5b": LMConfig(151_936, 896, 4864, 24, 14, 2, 64, family="qwen2", qkv_bias=True),
    "llama3.1-8b": LMConfig(128_256, 4096, 14_336, 32, 32, 8, 128, tie_embeddings=False),
    "qwen2.5-72b": LMConfig(152_064, 8192, 29_568, 80, 64, 8, 128, family="qwen2", qkv_bias=True, tie_embeddings=False),
}


def parameters(config: LMConfig) -> int:
    """How many numbers the model has."""
    layer = sum(inputs * outputs for inputs, outputs in config.projections.values()) + sum(config.vectors.values())
    tables = 1 if config.tie_embeddings else 2
    return config.num_layers * layer + tables * config.vocab_size * config.hidden_size + config.hidden_size
