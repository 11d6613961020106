"""The HTTP interface: routes, their documentation, and what ties them to the model that is served now."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from scaletot_jax import __version__
from scaletot_jax.population.exemplars import show
from scaletot_jax.profiles.fields import Field
from scaletot_jax.serving import documents
from scaletot_jax.serving.answers import ARROW, arrow_answer, json_answer, json_response
from scaletot_jax.serving.batching import Batcher
from scaletot_jax.serving.failures import RequestError, too_many
from scaletot_jax.serving.generation import Generation, open_generation, successor
from scaletot_jax.serving.guard import Guard, Limits
from scaletot_jax.serving.meters import Meters
from scaletot_jax.serving.rows import read_arrow_rows, read_json_rows

SHAPES = (8, 64, 512)
_INLINE = 16 << 10  # bytes of a body that are parsed on the event loop; more would hold up the others
_FEW = 64  # rows that are answered on it


class Service:
    """The model that is served, its queue, and the exchange of one for the next.

    Args:
      directory: of the model; a new export there, or behind a link of that name, can be taken up while requests come in.
      limits, shapes: see :class:`scaletot_jax.serving.guard.Limits` and :func:`open_generation`.

    Raises:
      DataError: the model does not pass the gate.
    """

    def __init__(self, directory: str | Path, *, limits: Limits, shapes: tuple[int, ...] = SHAPES):
        self.directory, self.limits, self.meters = Path(directory), limits, Meters()
        self.now: Generation = open_generation(directory, shapes)
        self.meters.serving(self.now.model.fingerprint)
        self.batcher = Batcher(limit=limits.queue_rows, wait=limits.wait_seconds, meters=self.meters)
        self._reloading = asyncio.Lock()

    async def reload(self) -> dict[str, Any]:
        """Takes up what lies in the directory now, if it is another model and passes; says what became of it.

        Raises:
          RequestError: 409; the old model is served on.
        """
        async with self._reloading:
            old = self.now
            try:
                new = await asyncio.to_thread(successor, old, self.directory)
            except Exception as error:  # whatever is wrong with the new one, the old one goes on
                self.meters.reloads.labels("refused").inc()
                why = " ".join(str(error).split())
                print(f"serve: a new model was refused, {old.model.fingerprint} is served on: {why}", file=sys.stderr)
                raise RequestError(
                    "the new model was refused; the old one is served on", status=409, why=why,
                    do="export it again, and reload",
                ) from error  # fmt: skip
            changed = new.model.fingerprint != old.model.fingerprint
            if changed:
                self.now = new
                self.meters.serving(new.model.fingerprint)
                print(f"serve: model {new.model.fingerprint} in place of {old.model.fingerprint}", file=sys.stderr)
            self.meters.reloads.labels("taken" if changed else "unchanged").inc()
            return {"model": self.now.model.fingerprint, "before": old.model.fingerprint, "changed": changed}

    async def watch(self, seconds: float) -> None:
        """Reloads when the model's record says another fingerprint than it did; a refused one is not tried again."""
        tried = self.now.model.fingerprint
        while True:
            await asyncio.sleep(seconds)
            stated = await asyncio.to_thread(_stated_fingerprint, self.directory)
            if stated not in ("", tried):
                tried = stated
                with contextlib.suppress(RequestError):
                    await self.reload()


def _stated_fingerprint(directory: Path) -> str:
    import json

    try:
        return str(json.loads((directory / "model.json").read_text())["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""  # being written


def build_app(service: Service, *, token: str = "", watch_seconds: float = 0.0, local: bool = False) -> FastAPI:
    """The application, behind its guard.

    Args:
      service: what it serves.
      token, local: see :class:`Guard`; without a token nobody may reload over HTTP.
      watch_seconds: how often the model's folder is looked at; 0: never.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.batcher.start()
        watching = asyncio.create_task(service.watch(watch_seconds)) if watch_seconds > 0 else None
        yield
        if watching is not None:
            watching.cancel()
        await asyncio.to_thread(service.batcher.close)

    app = FastAPI(
        title="scaletot serve", version=__version__, description=documents.DESCRIPTION, lifespan=lifespan,
        docs_url=None, redoc_url=None, redirect_slashes=False, dependencies=[Depends(_known_parameters)],
    )  # fmt: skip
    guarding = {"limits": service.limits, "meters": service.meters, "token": token, "local": local}
    app.add_middleware(Guard, **guarding)  # type: ignore[arg-type]
    _routes(app, service, reloadable=bool(token))
    app.add_exception_handler(RequestError, _refused)  # type: ignore[arg-type]
    app.add_exception_handler(RequestValidationError, _invalid)  # type: ignore[arg-type]
    app.add_exception_handler(HTTPException, _http)  # type: ignore[arg-type]
    documents.describe(app, service.now, service.limits, token=bool(token), local=local)
    return app


def _routes(app: FastAPI, service: Service, *, reloadable: bool) -> None:
    @app.get("/healthz", summary="The process lives")
    async def healthz() -> Response:
        return json_response({"status": "ok"})

    @app.get("/readyz", summary="It can answer")
    async def readyz() -> Response:
        if not service.batcher.alive:
            raise too_many("the server does not answer requests", 503, 1, "it starts or stops")
        return json_response({"status": "ready", "model": service.now.model.fingerprint})

    @app.get("/metrics", summary="Counters for Prometheus")
    async def metrics() -> Response:
        return Response(service.meters.text(), media_type="text/plain; version=1.0.0; charset=utf-8")

    @app.get("/v1/model", summary="What is served, what a row holds, what is answered")
    async def model() -> Response:
        return json_response(documents.model_card(service.now, service.limits))

    @app.get("/v1/chains", summary="The chains that explanations name by number")
    async def chains() -> Response:
        return await asyncio.to_thread(_chains, service.now)  # thousands of them take a while to write out

    @app.post("/v1/predict", summary="Predictions, embeddings and explanations for rows")
    async def predict(
        request: Request,
        embedding: Literal["none", "float16", "float32"] = Query(
            "none", description="of each row, as score writes it, or exact"
        ),
        explain: Literal["true", "false"] = Query("false", description="the nearest reasoned chain of each row"),
    ) -> Response:
        generation = service.now
        if explain == "true" and generation.chains is None:
            raise RequestError(
                "the model has no chains to explain with", field="explain",
                why="it was exported without them", do="run 'scaletot export --chains', or ask without explain",
            )  # fmt: skip
        table = await _table(request, generation, service.limits)
        found = await service.batcher.submit(generation, table)
        service.meters.rows.inc(table.num_rows)
        arrow = ARROW in request.headers.get("accept", "")
        choice = (generation, found, embedding, explain == "true", arrow)
        if table.num_rows <= _FEW:
            return _predictions(*choice)
        return await asyncio.to_thread(_predictions, *choice)

    @app.post("/v1/reload", summary="Take up a new export")
    async def reload() -> Response:
        if not reloadable:
            raise RequestError(
                "nobody may reload over HTTP", status=403, why="the server has no token",
                do="start it with one, or send the process SIGHUP",
            )  # fmt: skip
        return json_response(await service.reload())


def _chains(generation: Generation) -> Response:
    found = generation.chains
    shown = [] if found is None else [show(found.record, i) for i in range(len(found.record["chains"]))]
    return json_response({"model": generation.model.fingerprint, "chains": shown})


def _predictions(
    generation: Generation, found: dict[str, np.ndarray], embedding: str, explain: bool, arrow: bool
) -> Response:
    """The answer to a request from what was computed of its rows."""
    nearest = None
    if explain and generation.chains is not None:
        nearest = generation.chains.nearest(found["embedding"])
    columns = {name: found[name] for name in generation.labels}
    if embedding != "none":
        vector = found["embedding"].astype(embedding)
        if not np.isfinite(vector).all():
            raise RequestError("an embedding is beyond float16", status=500, do="ask for embedding=float32")
        columns = {"embedding": vector, **columns}
    return arrow_answer(generation, columns, nearest) if arrow else json_answer(generation, columns, nearest)


async def _known_parameters(request: Request) -> None:
    """A parameter that is misspelt must not be ignored."""
    known = ("embedding", "explain") if request.url.path == "/v1/predict" else ()
    for name in request.query_params:
        if name not in known:
            why = f"this path knows {', '.join(known) or 'none'}"
            raise RequestError("unknown parameter", field=name[:80], why=why, do="leave it out")


async def _table(request: Request, generation: Generation, limits: Limits) -> Any:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    readers: dict[str, Callable[[bytes, Mapping[str, Field], int], Any]] = {
        "application/json": read_json_rows,
        ARROW: partial(read_arrow_rows, most_bytes=limits.body_bytes),
    }
    if kind not in readers:
        raise RequestError(
            "the body has an unknown type", status=415, why=f"content-type is '{kind[:80]}'",
            do=f"send application/json or {ARROW}",
        )  # fmt: skip
    body = await request.body()
    if len(body) <= _INLINE:
        return readers[kind](body, generation.fields, limits.rows)
    return await asyncio.to_thread(readers[kind], body, generation.fields, limits.rows)


def _answer(error: RequestError) -> Response:
    return Response(error.encoded(), error.status, error.headers(), media_type="application/json")


async def _refused(request: Request, error: RequestError) -> Response:
    return _answer(error)


async def _invalid(request: Request, error: RequestValidationError) -> Response:
    first = error.errors()[0]
    field = str(first["loc"][-1])
    return _answer(RequestError("a parameter is not allowed", field=field, why=first["msg"], do="GET /openapi.json"))


async def _http(request: Request, error: HTTPException) -> Response:
    whats = {404: "there is nothing at this path", 405: "this path takes another method"}
    found = RequestError(
        whats.get(error.status_code, str(error.detail)), status=error.status_code, do="GET /openapi.json"
    )
    response = _answer(found)
    response.headers.update(error.headers or {})
    return response
