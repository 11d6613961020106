"""The obvious script that ``scaletot score`` is measured against: pandas reads and encodes, torch computes, Parquet out.

The same float32 network and heads on the same weights, the same columns written. It is the script one would write in an
afternoon with care: a batch of 8,192 rows at a time, files read one after the other, vectorised pandas throughout.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F

from scaletot_jax.population.forward import LEVELS
from scaletot_jax.population.model import ServedModel

BATCH = 8192


class Peer:
    """A served model in torch. ``bf16``: the trunk's products in bfloat16."""

    def __init__(self, model: ServedModel, *, bf16: bool = False):
        self.spec, self.space, self.bf16 = model.spec, model.space, bf16

        def tensors(value):
            if isinstance(value, dict):
                return {name: tensors(item) for name, item in value.items()}
            return torch.from_numpy(np.array(value, np.float32))

        self.encoder = tensors(dict(model.params["encoder"]))
        self.scaler = tensors(model.params["scaler"])
        self.heads = [tensors(dict(head)) for head in model.params["heads"]]
        self.maps = {
            name: {value: 4 + i for i, value in enumerate(values)} for name, values in model.space.vocabulary.items()
        }

    # -- pandas --------------------------------------------------------------------------------------------------------

    def encode(self, frame: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        space, count = self.space, len(frame)
        cat = np.stack([self._ids(frame[name], name) for name in space.cat_fields], axis=1)
        numbers, missing = [], []
        for name in space.number_fields:
            column = frame[name].astype("float64")
            scale, absent = space.scales[name], column.isna().to_numpy()
            values = column.fillna(0.0).to_numpy()
            logs = (np.sign(values) * np.log1p(np.abs(values)) - scale.mean) / scale.std
            ranks = np.interp(values, scale.knots, scale.ranks) * 2 - 1
            for part in (np.clip(logs, -5, 5), ranks):
                numbers.append(np.where(absent, 0.0, part))
                missing.append(absent)
        fields = {field.name: field for field in space.fields}
        for name in space.ordered_fields:
            order = {value: i / (len(fields[name].values) - 1) * 2 - 1 for i, value in enumerate(fields[name].values)}
            place = frame[name].map(order)
            numbers.append(place.fillna(0.0).to_numpy())
            missing.append(place.isna().to_numpy())
        multi = np.zeros((count, len(space.multi_fields), space.multi_width), np.int32)
        for j, name in enumerate(space.multi_fields):
            known, width = self.maps[name], fields[name].max_values
            for i, values in enumerate(frame[name].to_numpy()):
                if values is None:
                    multi[i, j, 0] = 1
                    continue
                ids = [known.get(value, 2) for value in sorted(values)[:width]]
                multi[i, j, : len(ids)] = ids
        return cat, np.stack(numbers, axis=1).astype(np.float32), np.stack(missing, axis=1), multi

    def _ids(self, column: pd.Series, name: str) -> np.ndarray:
        if column.dtype == bool:
            column = column.map({True: "true", False: "false"})
        ids = column.map(self.maps[name])
        return np.where(column.isna(), 1, ids.fillna(2)).astype(np.int32)

    # -- torch ---------------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def forward(self, cat, num, missing, multi) -> dict[str, np.ndarray]:
        cat, num, missing, multi = (torch.from_numpy(part) for part in (cat, num, missing, multi))
        cat, multi = cat.long(), multi.long()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            z = self._trunk(cat, num, missing, multi)
        z = z.float()
        x = torch.cat([self._dense(cat, num, missing, multi), z], dim=1)
        x = ((x - self.scaler["mean"]) / self.scaler["std"]).clamp(-8, 8)
        out = {"embedding": z.half().numpy()}
        for target, head in zip(self.spec.targets, self.heads):
            with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
                hidden = F.gelu(
                    torch.einsum("bp,spw->bsw", x, head["hidden"]["kernel"]) + head["hidden"]["bias"],
                    approximate="tanh",
                )
                scores = torch.einsum("bp,spk->bsk", x, head["linear"]["kernel"])
                scores = scores + torch.einsum("bsw,swk->bsk", hidden, head["scores"]["kernel"])
            logits = head["bias"] + scores.float() @ torch.tensor(target.mixing)
            read = _read_days if target.kind == "days" else _read_value
            mean, positive, quantiles = read(logits, target.cap)
            out[f"expected_{target.column}"], out[f"p_positive_{target.column}"] = mean.numpy(), positive.numpy()
            for j, level in enumerate(LEVELS):
                out[f"q{round(100 * level)}_{target.column}"] = quantiles[:, j].contiguous().numpy()
        return out

    def _trunk(self, cat, num, missing, multi):
        p, spec, parts = self.encoder, self.spec.encoder, []
        for j in range(len(spec.cat_sizes)):
            parts.append(F.embedding(cat[:, j], p[f"cat_{j}"]["embedding"]))
        for j in range(len(spec.multi_sizes)):
            ids = multi[:, j]
            present = (ids != 0)[:, :, None]
            embedded = F.embedding(ids, p[f"multi_{j}"]["embedding"]) * present
            values = ((ids == 2) | (ids > 3)).sum(1, keepdim=True)
            parts += [embedded.sum(1) / present.sum(1).clamp(min=1), torch.log1p(values.float())]
        known = ~missing
        for j, edges in enumerate(spec.knots):
            low, high = torch.tensor(edges[:-1]), torch.tensor(edges[1:])
            parts.append(((num[:, j : j + 1] - low) / (high - low)).clamp(0, 1) * known[:, j : j + 1])
        parts += [num * known, missing.float()]

        def linear(name, x):
            return F.linear(x, p[name]["kernel"].T, p[name]["bias"])

        def norm(name, x):
            return F.layer_norm(x, x.shape[-1:], p[name]["scale"], p[name]["bias"], eps=1e-6)

        x = base = linear("inputs", torch.cat(parts, dim=1))
        for layer in range(spec.cross_layers):
            x = base * linear(f"cross_{layer}", x) + x
        for layer in range(spec.mlp_layers):
            h = F.gelu(linear(f"mlp_{layer}_in", norm(f"mlp_{layer}_norm", x)), approximate="tanh")
            x = x + linear(f"mlp_{layer}_out", h)
        return linear("embedding", norm("norm", x))

    def _dense(self, cat, num, missing, multi):
        spec = self.spec
        bits = [2 * i for i in range(spec.numbers)] + [2 * spec.numbers + i for i in range(spec.ordered)]
        parts = [num, missing[:, bits].float()]
        for j, active in enumerate(spec.cat_active):
            parts.append((cat[:, j, None] == torch.tensor(active)).float())
        for j, active in enumerate(spec.multi_active):
            ids = multi[:, j]
            hits = (ids[:, :, None] == torch.tensor(active)).sum(1)
            parts.append(hits / (ids != 0).sum(1, keepdim=True).clamp(min=1))
        return torch.cat(parts, dim=1)

    # -- the whole -----------------------------------------------------------------------------------------------------

    def score(self, table: Path, out: Path) -> float:
        """Rows scored; seconds by part are left in ``self.seconds``."""
        out.mkdir(parents=True, exist_ok=True)
        rows, self.seconds = 0, {"read": 0.0, "encode": 0.0, "compute": 0.0, "write": 0.0}
        columns = ["user_id", *(field.source for field in self.space.fields)]
        for file in sorted(table.glob("*.parquet")):
            start = time.perf_counter()
            frame = pd.read_parquet(file, columns=columns)
            read = time.perf_counter()
            inputs = self.encode(frame)
            encoded = time.perf_counter()
            parts = [self.forward(*(part[i : i + BATCH] for part in inputs)) for i in range(0, len(frame), BATCH)]
            found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            computed = time.perf_counter()
            half = found.pop("embedding")
            result = pa.table({"row": np.arange(rows, rows + len(frame)), "user_id": frame["user_id"], **found})
            column = pa.FixedSizeListArray.from_arrays(pa.array(half.reshape(-1)), half.shape[1])
            pq.write_table(result.append_column("embedding", column), out / file.name)
            rows += len(frame)
            for name, begin, end in (("read", start, read), ("encode", read, encoded), ("compute", encoded, computed)):
                self.seconds[name] += end - begin
            self.seconds["write"] += time.perf_counter() - computed
        return rows


def _read_days(logits, cap):
    survival = torch.exp(torch.cumsum(F.logsigmoid(-logits[..., 1:]), dim=-1))
    survival = torch.cat([torch.ones_like(logits[..., :1]), survival], dim=-1)
    survival = (torch.sigmoid(logits[..., :1]) * survival).mean(1)
    quantiles = (survival[:, None, :] > 1 - torch.tensor(LEVELS)[:, None]).sum(-1).float()
    return survival.sum(1), survival[:, 0], quantiles


def _read_value(logits, cap):
    hurdle, mean, spread = logits.unbind(-1)  # [B, S]
    positive, sigma = torch.sigmoid(hurdle), F.softplus(spread).clamp(min=1e-7**0.5)
    expected = positive * torch.exp((mean + 0.5 * sigma.clamp(max=5) ** 2).clamp(max=20))
    q, zero = torch.tensor(LEVELS), torch.sigmoid(-hurdle).mean(1, keepdim=True)
    target = ((q - zero) / (1 - zero)).clamp(1e-7, 1 - 1e-7)  # [B, Q]
    parts = mean[:, None] + sigma[:, None] * torch.special.ndtri(target)[..., None]
    low, high = parts.amin(-1), parts.amax(-1)
    weights = (positive / positive.sum(1, keepdim=True))[:, None]
    for _ in range(24):
        middle = (low + high) / 2
        below = (weights * torch.special.ndtr((middle[..., None] - mean[:, None]) / sigma[:, None])).sum(-1) < target
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    quantiles = torch.where(zero >= q, 0.0, torch.exp((low + high) / 2)).clamp(max=cap)
    return expected.clamp(max=cap).mean(1), positive.mean(1), quantiles
