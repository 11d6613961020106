"""The trained model in formats that need nothing of this package: ``jax.export`` and ONNX, with everything a caller must know."""
