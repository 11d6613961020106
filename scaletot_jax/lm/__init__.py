"""Decoder-only language models of the Llama family as pure functions over pytrees.

``config`` the shape, ``model`` the forward pass, ``cache`` decoding, ``head`` log-probabilities, ``lora`` adapters,
``exit`` truncation; ``gguf``, ``huggingface`` and ``tokenizer`` read files, ``load`` finds them by name.
"""
