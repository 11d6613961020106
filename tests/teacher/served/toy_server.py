"""A made-up language model behind an OpenAI-compatible API on loopback, with faults on order.

Its distribution depends on the prompt's hash alone, so that every run sees the same model and a test knows the truth.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

NOISE = (" the", " a", " of", "\n", ".", " very", " in", " and")


class Toy:
    """Tokens and their log-probabilities after a text."""

    def __init__(self, vocabulary: tuple[str, ...] = (), favour: float = 2.0):
        self.vocabulary = tuple(dict.fromkeys((*vocabulary, *NOISE)))
        self._favour = favour

    def log_probs(self, prompt: str) -> np.ndarray:
        """[V] float64."""
        seed = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:8])
        scores = np.random.default_rng(seed).normal(size=len(self.vocabulary))
        scores[: -len(NOISE)] += self._favour
        return scores - np.log(np.exp(scores).sum())

    def top(self, prompt: str, k: int) -> list[tuple[str, float]]:
        found = self.log_probs(prompt)
        return [(self.vocabulary[i], float(found[i])) for i in np.argsort(-found, kind="stable")[:k]]


class Api(ThreadingHTTPServer):
    """Serves ``toy``.

    Attributes:
      faults: what happens to the next requests instead of an answer: names below, or None for an answer.
      bodies: every POSTed body as text. headers: their headers. starts: when each came.
      most: the greatest number of requests in hand at once.
      schema, logprobs: whether the chat API takes a schema and tells log-probabilities.
      says: prompt text and seed -> what a chat answers.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, toy: Toy):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.toy, self.lock = toy, threading.Lock()
        self.faults: list[str | None] = []
        self.bodies: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.starts: list[float] = []
        self.most = self.in_hand = 0
        self.delay = 0.0
        self.schema = self.logprobs = True
        self.most_k = 10**6
        self.models = [{"id": "toy", "meta": {"n_params": 7}}]
        self.says: Callable[[str, int], str] = lambda prompt, seed: '{"value": "no"}'
        self.released = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def repeated(self) -> int:
        """Requests beyond the first of the same body."""
        return sum(count - 1 for count in Counter(self.bodies).values())


@contextlib.contextmanager
def serving(toy: Toy) -> Iterator[Api]:
    server = Api(toy)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: Api

    def log_message(self, *_) -> None: ...

    def do_GET(self) -> None:
        self._json(200, {"object": "list", "data": self.server.models}) if self.server.models else self._json(404, {})

    def do_POST(self) -> None:
        api = self.server
        text = self.rfile.read(int(self.headers["Content-Length"])).decode()
        with api.lock:
            api.bodies.append(text)
            api.headers.append(dict(self.headers))
            api.starts.append(time.monotonic())
            api.in_hand += 1
            api.most = max(api.most, api.in_hand)
            fault = api.faults.pop(0) if api.faults else None
        try:
            time.sleep(api.delay)
            getattr(self, f"_{fault}" if fault else "_answer")(json.loads(text))
        except (BrokenPipeError, ConnectionResetError):
            pass
        finally:
            with api.lock:
                api.in_hand -= 1

    # -- faults -----------------------------------------------------------------------------------------------------

    def _busy(self, _) -> None:
        self._json(429, {"error": {"message": "slow down"}}, {"Retry-After": "0.3"})

    def _broken(self, _) -> None:
        self._json(500, {"error": {"message": "out of luck"}})

    def _hang(self, _) -> None:
        self.server.released.wait(20)

    def _slow(self, body) -> None:
        content = self._content(body)
        self._head(200, len(content))
        for byte in content:
            self.wfile.write(bytes([byte]))
            self.wfile.flush()
            if self.server.released.wait(0.05):
                return

    def _truncated(self, body) -> None:
        content = self._content(body)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(content[: len(content) // 2])

    def _short(self, body) -> None:
        content = self._content(body)
        self._head(200, len(content))
        self.wfile.write(content[:10])

    def _shapeless(self, _) -> None:
        self._json(200, {"choices": [{"index": 0}]})

    def _reset(self, _) -> None:
        self.connection.close()

    def _forbidden(self, _) -> None:
        self._json(401, {"error": {"message": f"bad key {self.headers['Authorization']}"}})

    def _bad(self, _) -> None:
        self._json(400, {"error": {"message": "this prompt is not allowed"}})

    # -- answers ----------------------------------------------------------------------------------------------------

    def _answer(self, body) -> None:
        api = self.server
        k = body.get("top_logprobs", body["logprobs"] if "prompt" in body else 0)
        if k > api.most_k:
            self._json(400, {"error": {"message": f"at most {api.most_k} logprobs"}})
        elif "response_format" in body and not api.schema:
            self._json(400, {"error": {"message": "response_format is not supported"}})
        else:
            content = self._content(body)
            self._head(200, len(content))
            self.wfile.write(content)

    def _content(self, body) -> bytes:
        api = self.server
        usage = {"completion_tokens": 1}
        if "stop" in body:
            choice, words = self._written(body), len(body["prompt"].split())
            usage["completion_tokens"] = len(choice["logprobs"]["tokens"])
        elif "prompt" in body:
            top = api.toy.top(body["prompt"], body["logprobs"])
            words = len(body["prompt"].split())
            logprobs = {"tokens": [top[0][0]], "token_logprobs": [top[0][1]], "top_logprobs": [dict(top)]}
            choice = {"text": top[0][0], "index": 0, "logprobs": logprobs if api.logprobs else None}
        else:
            prompt = body["messages"][-1]["content"]
            words = len(prompt.split())
            text = api.says(prompt, body["seed"])
            choice = {"message": {"role": "assistant", "content": text}, "index": 0}
            if api.logprobs and body.get("logprobs"):
                choice["logprobs"] = {"content": self._places(prompt, text, body["top_logprobs"])}
        usage["prompt_tokens"] = words
        reply = {"model": "toy-1", "system_fingerprint": "fp", "choices": [choice], "usage": usage}
        return json.dumps(reply).encode()

    def _written(self, body) -> dict:
        """Greedy tokens up to one that holds a stop string; as most servers do, the text ends before it."""
        text, tokens, tops = body["prompt"], [], []
        finish = "length"
        while len(tokens) < body["max_tokens"]:
            top = self.server.toy.top(text, body["logprobs"])
            if any(stop in top[0][0] for stop in body["stop"]):
                finish = "stop"
                break
            tokens.append(top[0][0])
            tops.append(dict(top))
            text += top[0][0]
        logprobs = {"tokens": tokens, "top_logprobs": tops}
        return {"text": "".join(tokens), "index": 0, "finish_reason": finish, "logprobs": logprobs}

    def _places(self, prompt: str, text: str, k: int) -> list[dict]:
        """``{"value": "`` as one token, the value as the toy's tokens, the rest as one."""
        head, value, tail = text.partition('": "')[0] + '": "', text.partition('": "')[2][:-2], '"}'
        tokens, places = [head], []
        while value:
            token = max((t for t in self.server.toy.vocabulary if value.startswith(t)), key=len, default=value)
            tokens.append(token)
            value = value[len(token) :]
        written = ""
        for token in [*tokens, tail]:
            top = self.server.toy.top(prompt + written, k)
            places.append(
                {"token": token, "logprob": -1.0, "top_logprobs": [{"token": t, "logprob": p} for t, p in top]}
            )
            written += token
        return places

    def _json(self, status: int, value: object, headers: dict[str, str] | None = None) -> None:
        content = json.dumps(value).encode()
        self._head(status, len(content), headers)
        self.wfile.write(content)

    def _head(self, status: int, length: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(length), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
