"""OULAD and KuaiRand-Pure from tiny official-shaped archives, and from ready tables."""

import os

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from datasets import downloads_on_the_spot as spot

from scaletot_jax.config import default_config
from scaletot_jax.datasets import kuairand_pure, oulad
from scaletot_jax.datasets.load import load
from scaletot_jax.errors import DataError
from scaletot_jax.profiles.schema import load_schema
from scaletot_jax.profiles.table import validate


@pytest.fixture(autouse=True)
def no_ready_tables(monkeypatch):
    monkeypatch.delenv("SCALETOT_DATA", raising=False)


def data(name, **changes):
    config = default_config()
    config.data.name = name
    config.data.low_activity = False
    return {**config.data.to_dict(), **changes}


def test_oulad_from_the_archive(tmp_path):
    spot.write_oulad(tmp_path)
    rows = {row["user_id"]: row for row in oulad.build_table(tmp_path).to_pylist()}
    # 13 registered after the start and 14 withdrew before it; 15 has no registration date.
    assert sorted(rows) == ["oulad_AAA_2013J_11", "oulad_AAA_2013J_12", "oulad_AAA_2013J_15", "oulad_BBB_2014B_11"]
    assert rows["oulad_AAA_2013J_11"] == {
        "user_id": "oulad_AAA_2013J_11", "module": "AAA", "presentation": "October 2013", "gender": "male",
        "region": "Scotland", "highest_education": "HE Qualification", "imd_band": "10-20%", "age_band": "55<=",
        "disability": "no", "num_prev_attempts": 0, "studied_credits": 240, "days_registered_before_start": 159,
        "pre_course_active_days": 2, "pre_course_clicks": 7, "label_lt30": 2, "label_clicks30": 15,
    }  # fmt: skip
    other = rows["oulad_BBB_2014B_11"]
    assert (other["presentation"], other["imd_band"], other["disability"]) == ("February 2014", None, "yes")
    assert (other["label_lt30"], other["label_clicks30"], other["pre_course_active_days"]) == (1, 10, 0)
    assert rows["oulad_AAA_2013J_15"]["days_registered_before_start"] is None


def test_a_student_with_two_courses_is_one_group(tmp_path):
    spot.write_oulad(tmp_path)
    table, _ = load(data("oulad", manual_dir=str(tmp_path)))
    groups = dict(zip(table["user_id"].to_pylist(), table["group"].to_pylist()))
    assert groups["oulad_AAA_2013J_11"] == groups["oulad_BBB_2014B_11"] == "11"


def test_oulad_from_unpacked_files(tmp_path):
    spot.write_oulad(tmp_path)
    packed = oulad.build_table(tmp_path)
    folder = tmp_path / "unpacked"
    folder.mkdir()
    for name, text in spot.oulad_files().items():
        (folder / name).write_text(text)
    assert oulad.build_table(folder).equals(packed)
    assert [path.name for path in oulad.source_files(folder)] == list(spot.oulad_files())


def test_kuairand_from_the_archive(tmp_path):
    spot.write_kuairand(tmp_path)
    rows = kuairand_pure.build_table(tmp_path).to_pylist()
    assert rows[0] == {
        "user_id": "kuairand_0", "is_live_streamer": None, "is_video_author": "yes", "follow_user_num": 5,
        "fans_user_num": 150, "friend_user_num": 34, "register_days": 785, "views_prev16": 4,
        "days_since_last_seen": 0, "label_lt14": 0, "label_watch_min14": 0.0,
    }  # fmt: skip
    assert (rows[1]["is_live_streamer"], rows[1]["is_video_author"], rows[1]["register_days"]) == ("yes", "no", 0)
    assert (rows[1]["label_lt14"], rows[1]["label_watch_min14"], rows[1]["views_prev16"]) == (3, 2.0, 0)
    assert rows[1]["days_since_last_seen"] is None and rows[2]["label_lt14"] == 0
    validate(kuairand_pure.build_table(tmp_path), load_schema("kuairand_pure"))


def test_missing_data_says_where_to_get_it(tmp_path):
    with pytest.raises(DataError, match=r"SCALETOT_DATA[\s\S]*analyse.kmi.open.ac.uk"):
        oulad.build_table()
    with pytest.raises(DataError, match=r"anonymisedData.zip[\s\S]*studentInfo.csv"):
        oulad.build_table(tmp_path)
    with pytest.raises(DataError, match=r"KuaiRand-Pure.tar.gz"):
        kuairand_pure.build_table(tmp_path)


def test_damaged_downloads_name_the_file(tmp_path):
    path = spot.write_oulad(tmp_path, **{"studentInfo.csv": "code_module,code_presentation\nAAA,2013J\n"})
    with pytest.raises(DataError, match=r"anonymisedData.zip: studentInfo.csv"):
        oulad.build_table(tmp_path)
    spot.write_oulad(tmp_path, **{"studentVle.csv": spot.VLE + "AAA,2013J,11,1,today,5\n"})
    with pytest.raises(DataError, match=r"studentVle.csv[\s\S]*today"):
        oulad.build_table(tmp_path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match=r"anonymisedData.zip"):
        oulad.build_table(tmp_path)


def test_ready_tables(tmp_path, monkeypatch):
    spot.write_oulad(tmp_path)
    ready = oulad.build_table(tmp_path)
    (tmp_path / "ready/oulad").mkdir(parents=True)
    (tmp_path / "ready/kuairand").mkdir()
    # Ready tables have other Arrow types and further columns, and KuaiRand's register_days as published.
    loose = ready.set_column(0, "user_id", ready["user_id"].cast(pa.large_string())).append_column(
        "extra", pa.array([1] * len(ready))
    )
    registered = loose["days_registered_before_start"].cast(pa.float64())
    loose = loose.set_column(
        loose.column_names.index("days_registered_before_start"), "days_registered_before_start", registered
    )
    pq.write_table(loose, tmp_path / "ready/oulad/users.parquet")
    monkeypatch.setenv("SCALETOT_DATA", str(tmp_path / "ready"))
    assert oulad.build_table().equals(ready)

    spot.write_kuairand(tmp_path)
    published = kuairand_pure.from_download(tmp_path / "KuaiRand-Pure.tar.gz")
    pq.write_table(published, tmp_path / "ready/kuairand/users.parquet")
    assert kuairand_pure.build_table().equals(kuairand_pure.build_table(tmp_path))

    pq.write_table(published.drop_columns(["fans_user_num"]), tmp_path / "ready/kuairand/users.parquet")
    with pytest.raises(DataError, match=r"users.parquet[\s\S]*fans_user_num"):
        kuairand_pure.build_table()


BENCHMARKS = os.environ.get("SCALETOT_DATA", "")


@pytest.mark.skipif(not BENCHMARKS, reason="SCALETOT_DATA is not set")
def test_the_real_oulad_table(monkeypatch):
    monkeypatch.setenv("SCALETOT_DATA", BENCHMARKS)
    table, schema = load(data("oulad"))
    assert table.num_rows == 4_238 and len(pc.unique(table["group"])) == 4_238 - 64
    low = table.filter(pc.less_equal(table[schema.low_activity.field], schema.low_activity.at_most))
    assert low.num_rows == 2_691


@pytest.mark.skipif(not BENCHMARKS, reason="SCALETOT_DATA is not set")
def test_the_real_kuairand_table(monkeypatch):
    monkeypatch.setenv("SCALETOT_DATA", BENCHMARKS)
    table, _ = load(data("kuairand_pure", low_activity=True))
    assert table.num_rows == 5_775 and pc.min(table["register_days"]).as_py() >= 0
    assert not {"user_active_degree", "is_lowactive_period"} & set(table.column_names)
