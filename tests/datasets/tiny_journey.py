"""A folder shaped like the Complete Journey package, and a plain-Python reference of the table."""

import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

EASTERN = ZoneInfo("America/New_York")
PRODUCTS = [
    (1, "GROCERY", "FROZEN PIZZA", "PIZZA", "National"),
    (2, "GROCERY", "FLUID MILK PRODUCTS", "MILK", "Private"),
    (3, "FUEL", "COUPON/MISC ITEMS", "GASOLINE-REG UNLEADED", "National"),
    (4, "MEAT", "BEEF", "STEAK", "National"),
    (5, "MISCELLANEOUS", None, None, "Private"),
    (6, "PASTRY", "CAKES", "CAKE", "National"),
    (7, "PASTRY", "PIES", "PIE", "National"),
]
WORDS = {1: ("groceries", "frozen pizza"), 2: ("groceries", "milk"), 3: ("fuel", "fuel"), 4: ("fresh meat", "beef")}
WORDS |= {5: ("other", None), 6: ("bakery", "cakes and pies"), 7: ("bakery", "cakes and pies")}
HOUSEHOLDS = (7, 11, 900)
DEMOGRAPHICS = {7: ["45-54", "50-74K", "Homeowner", "Married", "2", "2 Adults No Kids", "0"], 900: ["65+", "Under 15K", None, None, "1", "1 Adult No Kids", "0"]}  # fmt: skip


def write(folder: Path, count: int = 260, seed: int = 0) -> list[tuple]:
    """Writes the three files; returns the transactions (household, product, sales, coupon, UTC instant)."""
    rng = np.random.default_rng(seed)
    start = datetime.datetime(2017, 1, 1, 5, tzinfo=datetime.UTC)
    rows = []
    for i in range(count):
        household = HOUSEHOLDS[rng.integers(3)]
        earliest = 120 * 86400 if household == 11 else 0  # one household is new
        stamp = start + datetime.timedelta(seconds=int(rng.integers(earliest, 364 * 86400)))
        rows.append(
            (household, int(rng.integers(1, 9)), round(float(rng.gamma(1.5, 4)), 2), float(rng.random() < 0.1), stamp)
        )
        if i % 9 == 0:  # shortly before and after midnight in the shop, on the dates around both clock changes
            night = datetime.datetime(2017, [3, 7, 11][i % 3], [12, 1, 5][i % 3], tzinfo=EASTERN)
            night += datetime.timedelta(minutes=int(rng.integers(-90, 90)))
            if night.astimezone(datetime.UTC) >= start + datetime.timedelta(seconds=earliest):
                rows.append((household, 1, 1.25, 0.0, night.astimezone(datetime.UTC)))
    rows.append((900, 1, 2.0, 0.0, datetime.datetime(2018, 1, 1, 4, 1, tzinfo=datetime.UTC)))  # the last day of 2017
    folder.mkdir(parents=True, exist_ok=True)
    household, product, sales, coupon, stamp = (list(column) for column in zip(*rows))
    transactions = {
        "household_id": pa.array(household),
        "product_id": pa.array(product),
        "sales_value": pa.array(sales),
        "coupon_disc": pa.array(coupon),
        "transaction_timestamp": pa.array([s.replace(tzinfo=None) for s in stamp], pa.timestamp("ns")),
    }
    pq.write_table(pa.table(transactions), folder / "transactions.parquet")
    names = ["product_id", "department", "product_category", "product_type", "brand"]
    pq.write_table(pa.table(dict(zip(names, zip(*PRODUCTS)))), folder / "products.parquet")
    names = ["age", "income", "home_ownership", "marital_status", "household_size", "household_comp", "kids_count"]
    people = {"household_id": list(DEMOGRAPHICS), **dict(zip(names, zip(*DEMOGRAPHICS.values())))}
    pq.write_table(pa.table(people), folder / "demographics.parquet")
    return rows


def reference(rows: list[tuple]) -> dict[str, dict]:
    """user_id -> the numbers and words of its row, one household and snapshot at a time."""
    out = {}
    private = {number for number, *_, brand in PRODUCTS if brand == "Private"}
    local = [(*row[:4], row[4].astimezone(EASTERN).date()) for row in rows]
    last = max(day for *_, day in local)
    snapshot = datetime.date(2017, 3, 1)
    while snapshot + datetime.timedelta(days=30) <= last:
        for household in HOUSEHOLDS:
            own = [row for row in local if row[0] == household]
            past = [row for row in own if row[4] <= snapshot]
            if not past:
                continue
            ago = [(snapshot - row[4]).days for row in past]
            quarter = [row for row, days in zip(past, ago) if days < 90]
            ahead = [row for row in own if 0 < (row[4] - snapshot).days <= 30]
            spend = sum(row[2] for row in quarter)
            out[f"cj_{household}_{snapshot:%Y%m%d}"] = {
                "tenure_days": max(ago),
                "days_since_last_visit": min(ago),
                "shopping_days_30": len({days for days in ago if days < 30}),
                "spend_30": sum(row[2] for row, days in zip(past, ago) if days < 30),
                "private_label_share": sum(r[2] for r in quarter if r[1] in private) / spend if spend else None,
                "coupon_use": len({row[4] for row in quarter if row[3]}),
                "lt30": len({row[4] for row in ahead}),
                "ltv30": sum(row[2] for row in ahead),
                "top_department": _top([(WORDS[r[1]][0], r[2]) for r in past if r[1] in WORDS], 1)[0],
                "top_categories": _top([(WORDS[r[1]][1], r[2]) for r in past if r[1] in WORDS], 3),
                "age": DEMOGRAPHICS.get(household, [None])[0],
                "household": str(household),
                "snapshot": snapshot,
            }
        snapshot += datetime.timedelta(days=30)
    return out


def _top(pairs: list[tuple], count: int) -> list[str]:
    sums: dict[str, float] = {}
    for word, money in pairs:
        if word is not None:
            sums[word] = sums.get(word, 0.0) + money
    return sorted(sums, key=lambda word: (-round(sums[word], 2), word))[:count]
