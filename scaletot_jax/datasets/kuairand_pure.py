"""KuaiRand-Pure (CC BY-SA 4.0): real users of the Kuaishou short-video app, one row each.

Source: the official ``KuaiRand-Pure.tar.gz`` (Gao et al. 2022, arXiv:2208.08696), or a ready per-user table. The logs
span 2022-04-08..2022-05-08; the profile is taken at the end of 2022-04-24:

    label_lt14 = days with a view in the 14 days after          label_watch_min14 = minutes watched in the same days
    views_prev16 = views in the 16 days before                  days_since_last_seen = since the last of them, else null

The user features are a snapshot of their own, probably taken at the end of the label window. So ``register_days`` is
reduced by 14, ``user_active_degree`` (behaviour during the label window) is left out, and so is ``is_lowactive_period``
(constant).
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from scaletot_jax.datasets import downloads
from scaletot_jax.profiles.table import read_parquet

VERSION = "1.0.0"
HORIZON = 14
BEFORE = 16
SNAPSHOT = 20220424
ARCHIVES = ("KuaiRand-Pure.tar.gz", "KuaiRand-Pure.zip")
URL = "https://kuairand.com"
READY = "kuairand/users.parquet"
LOGS = (
    "log_standard_4_08_to_4_21_pure.csv",
    "log_standard_4_22_to_5_08_pure.csv",
    "log_random_4_22_to_5_08_pure.csv",
)
USERS = "user_features_pure.csv"
_FLAGS = ("is_live_streamer", "is_video_author")
_NUMBERS = ("follow_user_num", "fans_user_num", "friend_user_num", "register_days")
TYPES = {
    **dict.fromkeys(("user_id", *_FLAGS), pa.string()),
    **dict.fromkeys((*_NUMBERS, "views_prev16", "days_since_last_seen", "label_lt14"), pa.int64()),
    "label_watch_min14": pa.float64(),
}


def source_files(manual_dir: str | Path = "") -> list[Path]:
    """The files that the table is built from."""
    found = _find(manual_dir)
    return [found / name for name in (USERS, *LOGS)] if found.is_dir() else [found]


def build_table(manual_dir: str | Path = "") -> pa.Table:
    """The per-user table, sorted by user_id; columns as in :data:`TYPES`, read by ``schemas/kuairand_pure.yaml``."""
    found = _find(manual_dir)
    table = read_parquet(found) if found.suffix == ".parquet" else from_download(found)
    table = downloads.cast(table, TYPES, where=str(found))
    days = pc.subtract(table["register_days"], HORIZON)
    return table.set_column(table.column_names.index("register_days"), "register_days", days)


def _find(manual_dir: str | Path) -> Path:
    return downloads.find(manual_dir, ARCHIVES, USERS, READY, name="KuaiRand-Pure", url=URL)


def from_download(source: Path) -> pa.Table:
    """Derives the table from the official CSV files, ``register_days`` still as published."""
    number = pa.int64()
    users = downloads.read_csv(source, USERS, dict.fromkeys(("user_id", *_FLAGS, *_NUMBERS), number))
    log = pa.concat_tables(
        downloads.read_csv(source, name, {"user_id": number, "date": number, "play_time_ms": number}) for name in LOGS
    )
    # Days relative to the snapshot; the dates are numbers such as 20220424.
    dates = pc.strptime(log["date"].cast(pa.string()), format="%Y%m%d", unit="s").cast(pa.date32()).cast(pa.int32())
    snapshot = pc.strptime(pa.array([str(SNAPSHOT)]), format="%Y%m%d", unit="s").cast(pa.date32()).cast(pa.int32())[0]
    log = log.append_column("day", pc.subtract(dates, snapshot))
    past = log.filter(pc.and_(pc.greater(log["day"], -BEFORE), pc.less_equal(log["day"], 0)))
    ahead = log.filter(pc.and_(pc.greater(log["day"], 0), pc.less_equal(log["day"], HORIZON)))

    seen = past.group_by("user_id").aggregate([("day", "count"), ("day", "max")])
    active = ahead.group_by("user_id").aggregate([("day", "count_distinct"), ("play_time_ms", "sum")])
    users = users.join(seen, "user_id", join_type="left outer").join(active, "user_id", join_type="left outer")
    columns = {
        "user_id": pc.binary_join_element_wise("kuairand", users["user_id"].cast(pa.string()), "_"),
        **{name: _flag(users[name]) for name in _FLAGS},
        **{name: users[name] for name in _NUMBERS},
        "views_prev16": pc.fill_null(users["day_count"], 0),
        "days_since_last_seen": pc.negate(users["day_max"]),
        "label_lt14": pc.fill_null(users["day_count_distinct"], 0),
        "label_watch_min14": pc.round(
            pc.divide(pc.fill_null(users["play_time_ms_sum"], 0).cast(pa.float64()), 60_000), 3
        ),
    }
    return pa.table(columns).sort_by("user_id").combine_chunks()


def _flag(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """1 is yes, 0 is no; any other code (-124) says that it is not known."""
    return pc.take(pa.array(["no", "yes"]), pc.index_in(column, value_set=pa.array([0, 1], column.type)))
