"""Requests of one row on loopback: ``scaletot serve`` against the obvious FastAPI + ONNX Runtime endpoint, both under the same load.

    python benchmarks/serve.py [--requests 2000] [--clients 1,16,64] [--seconds 20]

The peer is benchmarks/serve_peer.py: uvicorn, FastAPI, the same model as ONNX, a request at a time, no checks beyond its own
encoding. Each is a process of its own; the load comes from this one, keep-alive connections that each send the next request when
the last is answered, at most ``--requests`` of them and ``--seconds`` a measurement. Before any time is taken both must give
the same predictions. Then ours exchanges its model twice under load: every request must be answered, by one of the two models.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from harness import last_line

from scaletot_jax.export.write import write_exports
from scaletot_jax.population.model import seal_model
from scaletot_jax.population.probe import write_probe
from scaletot_jax.population.synthetic import build_shard
from scaletot_jax.population.untrained import write_untrained_model
from scaletot_jax.profiles.schema import load_schema
from scaletot_jax.profiles.table import validate

HERE = Path(__file__).parent
HIDDEN = ["lt30", "ltv30", "activity", "state", "best_lt30", "best_p_lt30", "best_ltv30"]
TOKEN = "a-token-of-the-benchmark"


def make_models(work: Path) -> list[Path]:
    """Two models of one shape; the first with an ONNX program."""
    schema = load_schema("population")
    table = validate(build_shard(0, 4000).drop_columns(HIDDEN[2:]), schema)
    folders = []
    for seed in (0, 1):
        model = write_untrained_model(work / f"model{seed}", table, schema, seed=seed)
        model = seal_model(model.directory, add=[write_probe])
        folders.append(model.directory)
    write_exports(model._replace(directory=work / "model1"), ("onnx",), table)
    (work / "model0" / "model.onnx").unlink(missing_ok=True)
    return folders


def start(command: list[str], environment: dict[str, str], work: Path) -> tuple[subprocess.Popen, int]:
    """A server and its port, once it listens."""
    log = work / f"{Path(command[1]).stem if command[1].endswith('.py') else 'ours'}.log"
    with open(log, "wb") as handle:
        process = subprocess.Popen(command, stderr=handle, stdout=handle, env=os.environ | environment)
    while (found := re.search(r"http://127\.0\.0\.1:(\d+)", log.read_text())) is None:
        if process.poll() is not None:
            raise SystemExit(log.read_text())
        time.sleep(0.1)
    return process, int(found[1])


async def ask(reader, writer, path: str, body: bytes) -> tuple[int, bytes]:
    """One request over a connection that stays open."""
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\ncontent-type: application/json\r\n"
    writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
    answer = await reader.readuntil(b"\r\n\r\n")
    length = int(re.search(rb"content-length: (\d+)", answer, re.I)[1])
    return int(answer[9:12]), await reader.readexactly(length)


async def load(port: int, bodies: list[bytes], clients: int, requests: int, seconds: float, during=None):
    """Seconds of each request, all answers' statuses and models, and the seconds of the whole."""
    took: list[float] = []
    found: list[tuple[int, str]] = []
    numbers, end = iter(range(requests)), time.perf_counter() + seconds

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for number in numbers:
            if time.perf_counter() > end:
                break
            begin = time.perf_counter()
            status, answer = await ask(reader, writer, "/v1/predict", bodies[number % len(bodies)])
            took.append(time.perf_counter() - begin)
            found.append((status, json.loads(answer).get("model", "")))
        writer.close()

    begin = time.perf_counter()
    await asyncio.gather(*[client() for _ in range(clients)], *([during()] if during else []))
    return took, found, time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--clients", default="1,16,64")
    parser.add_argument("--seconds", type=float, default=20.0)
    options = parser.parse_args()
    rows = build_shard(1, 512).drop_columns([*HIDDEN, "user_id"]).to_pylist()
    bodies = [json.dumps({"rows": [row]}).encode() for row in rows]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        first, second = make_models(work)
        link = work / "current"
        link.symlink_to(second)
        ours, port = start(
            [sys.executable, "-m", "scaletot_jax.cli", "serve", "--model", str(link), "--port", "0"],
            {"SCALETOT_TOKEN": TOKEN, "JAX_PLATFORMS": "cpu"}, work,
        )  # fmt: skip
        peer, peer_port = start([sys.executable, str(HERE / "serve_peer.py"), str(second)], {}, work)
        try:
            asyncio.run(measure(options, bodies, port, peer_port, link, first))
        finally:
            for process in (ours, peer):
                process.terminate()
                process.wait()


async def measure(options, bodies: list[bytes], port: int, peer_port: int, link: Path, other: Path) -> None:
    answers = []
    for where in (port, peer_port):
        reader, writer = await asyncio.open_connection("127.0.0.1", where)
        answers.append([json.loads((await ask(reader, writer, "/v1/predict", body))[1]) for body in bodies[:64]])
        writer.close()
    worst = 0.0
    for a, b in zip(*answers):
        for name, value in a["predictions"][0].items():
            if not name.startswith("q"):  # a quantile jumps where its distribution is flat
                worst = max(worst, abs(value - b["predictions"][0][name]) / max(1, abs(value)))
    assert worst < 1e-4, f"the two say different things: {worst}"
    print(f"largest difference of expectations and probabilities: {worst:.2g}")
    print(f"\n{'clients':>8}  {'server':24}{'requests/s':>12}{'p50 ms':>9}{'p99 ms':>9}{'requests':>10}")
    rates: dict[str, list[float]] = {}
    percentiles = {}
    for clients in map(int, options.clients.split(",")):
        for name, where in (("ours", port), ("FastAPI + ONNX Runtime", peer_port)):
            await load(where, bodies, clients, max(64, 4 * clients), options.seconds)
            took, found, seconds = await load(where, bodies, clients, options.requests, options.seconds)
            assert {status for status, _ in found} == {200}
            p50, p99 = np.percentile(took, [50, 99]) * 1e3
            rates[name] = [seconds / len(took)]  # of the most clients, in the end
            percentiles[f"{name}, {clients} clients"] = [round(float(p50), 2), round(float(p99), 2)]
            print(f"{clients:8}  {name:24}{len(took) / seconds:12.0f}{p50:9.2f}{p99:9.2f}{len(took):10}")

    async def exchange() -> None:
        for target in (other, link.resolve()):
            await asyncio.sleep(0.3)
            aside = link.with_name("next")
            aside.symlink_to(target)
            os.replace(aside, link)
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            status, answer = await ask(reader, writer, "/v1/reload", b"")
            assert status == 200 and json.loads(answer)["changed"], answer
            writer.close()

    took, found, _ = await load(port, bodies, 16, options.requests, options.seconds, during=exchange)
    lost = sum(status != 200 for status, _ in found)
    p50, p99 = np.percentile(took, [50, 99]) * 1e3
    models = sorted({model for _, model in found})
    print(
        f"\ntwo reloads under 16 clients: {len(found)} requests, {lost} lost, by {len(models)} models; p50 {p50:.2f} ms, p99 {p99:.2f} ms"
    )
    last_line(
        "serve", rates, "requests/s of one row", missing={}, p50_p99_ms=percentiles,
        reload={"requests": len(found), "lost": lost, "models": len(models), "p50_p99_ms": [round(float(p50), 2), round(float(p99), 2)]},
    )  # fmt: skip


if __name__ == "__main__":
    main()
