"""Decoder-only language models (Llama, Qwen2, Qwen3, Gemma 3) as pure functions over pytrees.

``config`` the shape, ``families`` what tells the families apart, ``rope`` angles and windows, ``model`` the forward pass,
``cache`` decoding, ``head`` log-probabilities, ``lora`` adapters, ``exit`` truncation. Files: ``huggingface`` and
``gguf_model`` say what a model's files hold, ``safetensors_file`` and ``gguf`` read them, ``placement`` puts the tensors on
devices, ``save`` writes a directory, ``tokenizer`` and ``gguf_tokenizer`` the vocabulary; ``load`` finds all of it by name.
"""
