"""What the server says of itself: ``/v1/model`` and the OpenAPI description."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from scaletot_jax.population.forward import LEVELS
from scaletot_jax.serving.answers import ARROW
from scaletot_jax.serving.generation import Generation
from scaletot_jax.serving.guard import OPEN, Limits
from scaletot_jax.serving.rows_schema import row_schema

DESCRIPTION = """Predictions of an exported ScaleToT model. A row holds the columns that the model reads, null where a value
is not known, and no identifier. Every refusal has the shape of Failure."""

_TEXT = {"type": "string"}
_FAILURE = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "what": _TEXT,
                "where": {
                    "type": "object",
                    "properties": {
                        "row": {"type": ["integer", "null"], "description": "from 0"},
                        "field": {"type": ["string", "null"]},
                    },
                    "required": ["row", "field"],
                },
                "why": _TEXT,
                "do": _TEXT,
            },
            "required": ["what", "where", "why", "do"],
        }
    },
    "required": ["error"],
}
_WHEN = {
    400: "The body is not JSON, or not an Arrow stream",
    401: "No or another token",
    403: "The server has no token, so nobody may reload over HTTP",
    405: "Another method",
    408: "The body came too slowly",
    409: "The new model was refused; the old one is served on",
    413: "Too many bytes or rows",
    415: "Another content type, or a compressed body",
    421: "A server without a token answers requests to localhost alone",
    422: "A row, a value or a parameter is not allowed",
    429: "Too many requests; see Retry-After",
    500: "The server failed",
    503: "The queue is full, or the server starts or stops; see Retry-After",
}


def model_card(generation: Generation, limits: Limits) -> dict[str, Any]:
    """What is served, JSON-able."""
    spec = generation.model.spec
    chains = None if generation.chains is None else len(generation.chains.record["chains"])
    return {
        "model": generation.model.fingerprint,
        "schema": generation.model.schema.name,
        "row": row_schema(generation.fields),
        "predictions": generation.labels,
        "labels": [{"column": target.column, "kind": target.kind} for target in spec.targets],
        "quantile_levels": list(LEVELS),
        "embedding_dim": spec.encoder.dim,
        "chains": chains,
        "min_users": None if generation.chains is None else generation.chains.record["min_users"],
        "probe_error": generation.error,
        "shapes": list(generation.programs),
        "limits": {"rows": limits.rows, "body_bytes": limits.body_bytes, "rate": limits.rate},
        "versions": dict(generation.model.record["versions"]),
    }


def describe(app: FastAPI, generation: Generation, limits: Limits, *, token: bool, local: bool = False) -> None:
    """Replaces ``app.openapi`` by one with the row of this model, the answers and the refusals."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            made = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            app.openapi_schema = _complete(made, generation, limits, token, local)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _complete(
    document: dict[str, Any], generation: Generation, limits: Limits, token: bool, local: bool
) -> dict[str, Any]:
    parts = document.setdefault("components", {})
    parts["schemas"] = {"Failure": _FAILURE, "Row": row_schema(generation.fields), "Answer": _answer(generation)}
    if token:
        parts["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    binary = {"schema": {"type": "string", "format": "binary"}}
    good: dict[str, dict[str, Any]] = {
        "/v1/predict": {"application/json": {"schema": _ref("Answer")}, ARROW: binary},
        "/metrics": {"text/plain": {"schema": _TEXT}},
    }
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            codes = [429, 500, 503, 400, 405, 408, 413, 415] if path not in OPEN else [400, 405, 408, 413, 415, 503]
            codes += [401] if token and path not in OPEN else []
            codes += [421] if local and path not in OPEN else []
            codes += [422]
            codes += [403, 409] if path == "/v1/reload" else []
            plain = {"application/json": {"schema": {"type": "object"}}}
            operation["responses"] = {"200": {"description": "Done", "content": good.get(path, plain)}}
            for code in sorted(codes):
                content = {"application/json": {"schema": _ref("Failure")}}
                operation["responses"][str(code)] = {"description": _WHEN[code], "content": content}
            if token and path not in OPEN:
                operation["security"] = [{"token": []}]
            if method == "post" and path == "/v1/predict":
                operation["requestBody"] = {
                    "required": True,
                    "content": {"application/json": {"schema": _request(limits)}, ARROW: binary},
                }
    return document


def _request(limits: Limits) -> dict[str, Any]:
    rows = {"type": "array", "items": _ref("Row"), "minItems": 1, "maxItems": limits.rows}
    return {"type": "object", "properties": {"rows": rows}, "required": ["rows"], "additionalProperties": False}


def _answer(generation: Generation) -> dict[str, Any]:
    number = {"type": "number"}
    properties: dict[str, Any] = {name: number for name in generation.labels}
    properties["embedding"] = {"type": "array", "items": number}
    properties["explanation"] = {
        "type": "object",
        "properties": {"number": {"type": "integer"}, "similarity": number, "users": {"type": "integer"}},
        "required": ["number", "similarity", "chain", "answer", "users"],
    }
    row = {"type": "object", "properties": properties, "required": generation.labels, "additionalProperties": False}
    predictions = {"type": "array", "items": row}
    return {
        "type": "object",
        "properties": {"model": _TEXT, "predictions": predictions},
        "required": ["model", "predictions"],
    }


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}
