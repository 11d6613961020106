"""llama.cpp as a peer: its server on loopback, in this process, on the same weights.

Two forms: the file as it is distributed (4 bits), and its exact expansion to float32, which is the arithmetic of ours.
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np


def expand(source: Path, target: Path) -> None:
    """Writes a GGUF file again with every tensor in float32; all else is copied."""
    import gguf

    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, reader.get_field("general.architecture").contents())
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue
        inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), field.types[0], sub_type=inner)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        writer.add_tensor(tensor.name, values.reshape([int(n) for n in reversed(tensor.shape)]))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class Server:
    """A server with ``parallel`` slots that share one cache of ``parallel * tokens`` tokens."""

    def __init__(self, file: Path, *, parallel: int, tokens: int, threads: int):
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(file)
        params.n_ctx, params.n_parallel, params.kv_unified = parallel * tokens, parallel, True
        params.n_gpu_layers, params.port, params.verbosity, params.warmup = 0, 0, 0, False
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        self._server = xllamacpp.Server(params)

    def complete(self, prompts: Sequence[Sequence[int]], *, branches: int, tokens: int, tau: float) -> list[list[Any]]:
        """Sends all prompts at once; each is answered by ``branches`` completions of exactly ``tokens`` tokens."""
        settings = {
            "n_cmpl": branches, "n_predict": tokens, "temperature": tau, "samplers": ["temperature"], "ignore_eos": True,
            "cache_prompt": True, "return_tokens": True,
        }  # fmt: skip

        def ask(prompt: Sequence[int]) -> list[Any]:
            body = json.dumps({"prompt": [int(token) for token in prompt], **settings}).encode()
            address = self._server.listening_address + "/completion"
            request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=600) as answer:
                found = json.load(answer)
            found = found if isinstance(found, list) else [found]
            if [len(one["tokens"]) for one in found] != [tokens] * branches:
                raise RuntimeError(f"llama.cpp answered {[len(one['tokens']) for one in found]} tokens")
            return found

        with ThreadPoolExecutor(len(prompts)) as pool:
            return list(pool.map(ask, prompts))


def tree_job(
    server: Server, prompts: np.ndarray, *, branches: int, segments: int, segment: int, tau: float
) -> Callable[[], float]:
    """The Tree-of-Thought workload: after each segment the first branch goes on."""

    def job() -> float:
        texts = [list(map(int, prompt)) for prompt in prompts]
        for _ in range(segments):
            answers = server.complete(texts, branches=branches, tokens=segment, tau=tau)
            texts = [text + answer[0]["tokens"] for text, answer in zip(texts, answers, strict=True)]
        return len(texts) * branches * segment * segments

    return job
