"""Every refusal as one JSON shape: what went wrong, where (row, field), why, and what to do.

    {"error": {"what": "...", "where": {"row": 3, "field": "age"}, "why": "...", "do": "..."}}

``row`` counts from 0 in the request; both are null where the fault is not in a row or a field.
"""

from __future__ import annotations

import http
from typing import Any

from pydantic_core import to_json

from scaletot_jax.errors import ScaleToTError
from scaletot_jax.profiles.faults import BadCells


class RequestError(ScaleToTError):
    """A request that is answered with an error.

    Args:
      status: of HTTP.
      row, field: where in the request.
      retry_after: seconds after which it may be sent again; 0: no such header.
    """

    def __init__(
        self,
        what: str,
        *,
        status: int = 422,
        row: int | None = None,
        field: str | None = None,
        why: str = "",
        do: str = "",
        retry_after: int = 0,
    ):
        place = ", ".join(f"{name} {value}" for name, value in (("row", row), ("field", field)) if value is not None)
        super().__init__(what, where=place, why=why, do=do)
        self.status, self.row, self.field, self.retry_after = status, row, field, retry_after

    def body(self) -> dict[str, Any]:
        where = {"row": self.row, "field": self.field}
        return {"error": {"what": self.what, "where": where, "why": self.why, "do": self.do}}

    def encoded(self) -> bytes:
        return to_json(self.body())

    def headers(self) -> dict[str, str]:
        out = {"retry-after": str(self.retry_after)} if self.retry_after else {}
        if self.status == http.HTTPStatus.UNAUTHORIZED:
            out["www-authenticate"] = "Bearer"
        return out


def from_data_error(error: ScaleToTError) -> RequestError:
    """What reading a table says of its cells, as an answer to the request that brought them."""
    row, field = error.cells[0][:2] if isinstance(error, BadCells) and error.cells else (None, None)
    return RequestError(
        error.what, row=row, field=field, why=error.why, do="repair the request: GET /v1/model says what a row holds"
    )


def too_many(what: str, status: int, retry_after: int, why: str) -> RequestError:
    """429 or 503, with the seconds after which to come again."""
    return RequestError(
        what, status=status, why=why, do=f"send it again in {retry_after} s or later", retry_after=retry_after
    )
