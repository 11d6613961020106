"""The peer of benchmarks/serve.py: what one writes first, FastAPI around ONNX Runtime, each request by itself.

python benchmarks/serve_peer.py MODEL_DIR        prints its address
"""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import uvicorn
from fastapi import FastAPI, Request

folder = Path(sys.argv[1])
says = json.loads((folder / "interface.json").read_text())
columns, width, ids = says["columns"], says["inputs"]["multi"]["shape"][2], says["ids"]
session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
outputs = [output.name for output in session.get_outputs() if output.name != "embedding"]
app = FastAPI()


def word(value, known):
    text = value if isinstance(value, str) else str(value).lower()
    return ids["missing"] if value is None else known.get(text, ids["unknown"])


def number(x, column):
    if x is None or column["part"] == "order":
        return column.get("places", {}).get(x, np.nan)
    x = round(x, column.get("digits", 15))
    if column["part"] == "rank":
        return np.interp(x, column["knots"], column["ranks"])
    return np.clip((np.sign(x) * np.log1p(abs(x)) - column["mean"]) / column["std"], -column["clip"], column["clip"])


def words(x, column):
    x = [None] if x is None else list(dict.fromkeys(x if column["ranked"] else sorted(x)))[: column["keep"]]
    return [word(value, column["ids"]) for value in x] + [ids["padding"]] * (width - len(x))


@app.post("/v1/predict")
async def predict(request: Request) -> dict:
    rows = (await request.json())["rows"]
    num = np.array([[number(row[c["field"]], c) for c in columns["num"]] for row in rows], float)
    inputs = {
        "cat": np.array([[word(row[c["field"]], c["ids"]) for c in columns["cat"]] for row in rows], np.int32),
        "num": np.nan_to_num(num).astype(np.float32),
        "missing": np.isnan(num),
        "multi": np.array([[words(row[c["field"]], c) for c in columns["multi"]] for row in rows], np.int32),
    }
    found = session.run(outputs, {item.name: inputs[item.name] for item in session.get_inputs()})
    return {"predictions": [dict(zip(outputs, map(float, values))) for values in zip(*found)]}


if __name__ == "__main__":
    listening = socket.create_server(("127.0.0.1", 0))
    print(f"http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False)).run(sockets=[listening])
