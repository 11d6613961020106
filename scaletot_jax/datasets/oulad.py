"""Open University Learning Analytics (OULAD, CC BY 4.0): one row per student and course presentation.

Source: the official ``anonymisedData.zip`` (Kuzilek, Hlosta and Zdrahal 2017, doi 10.1038/sdata.2017.171), or a ready
per-user table. The profile is taken on the day before the course starts: students who registered before that day and
had not withdrawn by it. Course day d is the file's date d - 1, so that

    label_lt30 = days with clicks in course days 1..30          label_clicks30 = clicks in the same days
    pre_course_active_days, pre_course_clicks: the same before the course starts

The number at the end of ``user_id`` is the student; a student who takes two courses has two rows, and one group.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from scaletot_jax.datasets import downloads
from scaletot_jax.profiles.table import read_parquet

VERSION = "1.0.0"
HORIZON = 30
ARCHIVES = ("anonymisedData.zip",)
URL = "https://analyse.kmi.open.ac.uk/open_dataset"
READY = "oulad/users.parquet"
TYPES = {
    **dict.fromkeys(("user_id", "module", "presentation", "gender", "region", "highest_education"), pa.string()),
    **dict.fromkeys(("imd_band", "age_band", "disability"), pa.string()),
    **dict.fromkeys(("num_prev_attempts", "studied_credits", "days_registered_before_start"), pa.int64()),
    **dict.fromkeys(("pre_course_active_days", "pre_course_clicks", "label_lt30", "label_clicks30"), pa.int64()),
}
_KEY = ["code_module", "code_presentation", "id_student"]
_STARTS = {"B": "February", "J": "October"}


def source_files(manual_dir: str | Path = "") -> list[Path]:
    """The files that the table is built from."""
    found = _find(manual_dir)
    if found.is_dir():
        return [found / name for name in ("studentInfo.csv", "studentRegistration.csv", "studentVle.csv")]
    return [found]


def build_table(manual_dir: str | Path = "") -> pa.Table:
    """The per-student table, sorted by user_id; columns as in :data:`TYPES`, read by ``schemas/oulad.yaml``."""
    found = _find(manual_dir)
    table = read_parquet(found) if found.suffix == ".parquet" else from_download(found)
    return downloads.cast(table, TYPES, where=str(found))


def _find(manual_dir: str | Path) -> Path:
    return downloads.find(manual_dir, ARCHIVES, "studentInfo.csv", READY, name="OULAD", url=URL)


def from_download(source: Path) -> pa.Table:
    """Derives the table from the official CSV files, in their archive or unpacked."""
    words, number = pa.string(), pa.int64()
    key = dict(zip(_KEY, (words, words, number)))
    info = downloads.read_csv(
        source,
        "studentInfo.csv",
        {
            **key,
            **dict.fromkeys(("gender", "region", "highest_education", "imd_band", "age_band"), words),
            "num_of_prev_attempts": number,
            "studied_credits": number,
            "disability": words,
        },
    )
    registration = downloads.read_csv(
        source, "studentRegistration.csv", {**key, "date_registration": number, "date_unregistration": number}
    )
    students = info.join(registration, keys=_KEY, join_type="left outer")
    late = pc.fill_null(pc.greater_equal(students["date_registration"], 0), False)
    gone = pc.fill_null(pc.less(students["date_unregistration"], 0), False)
    students = students.filter(pc.invert(pc.or_(late, gone)))

    clicks = downloads.read_csv(source, "studentVle.csv", {**key, "date": number, "sum_click": number})
    daily = clicks.filter(pc.less(clicks["date"], HORIZON)).group_by([*_KEY, "date"]).aggregate([("sum_click", "sum")])
    before = pc.less(daily["date"], 0)
    students = _with_activity(students, daily.filter(before), "pre_course_active_days", "pre_course_clicks")
    students = _with_activity(students, daily.filter(pc.invert(before)), "label_lt30", "label_clicks30")
    return _columns(students).sort_by("user_id").combine_chunks()


def _with_activity(students: pa.Table, daily: pa.Table, days: str, clicks: str) -> pa.Table:
    """Adds the number of days and the clicks of ``daily``; 0 where a student has none."""
    sums = daily.group_by(_KEY).aggregate([("date", "count"), ("sum_click_sum", "sum")])
    sums = sums.rename_columns({"date_count": days, "sum_click_sum_sum": clicks})
    students = students.join(sums, keys=_KEY, join_type="left outer")
    for name in (days, clicks):
        students = students.set_column(students.column_names.index(name), name, pc.fill_null(students[name], 0))
    return students


def _columns(students: pa.Table) -> pa.Table:
    module, presentation = students["code_module"], students["code_presentation"]
    student = students["id_student"].cast(pa.string())
    year, start = pc.utf8_slice_codeunits(presentation, 0, 4), pc.utf8_slice_codeunits(presentation, 4, 5)
    band = pc.replace_substring_regex(students["imd_band"], r"^(\d+-\d+)$", r"\1%")  # one band lacks its sign
    return pa.table(
        {
            "user_id": pc.binary_join_element_wise("oulad", module, presentation, student, "_"),
            "module": module,
            "presentation": pc.binary_join_element_wise(_replace(start, _STARTS), year, " "),
            "gender": _replace(students["gender"], {"M": "male", "F": "female"}),
            "region": students["region"],
            "highest_education": students["highest_education"],
            "imd_band": band,
            "age_band": students["age_band"],
            "disability": _replace(students["disability"], {"Y": "yes", "N": "no"}),
            "num_prev_attempts": students["num_of_prev_attempts"],
            "studied_credits": students["studied_credits"],
            "days_registered_before_start": pc.negate(students["date_registration"]),
            "pre_course_active_days": students["pre_course_active_days"],
            "pre_course_clicks": students["pre_course_clicks"],
            "label_lt30": students["label_lt30"],
            "label_clicks30": students["label_clicks30"],
        }
    )


def _replace(column: pa.ChunkedArray, words: dict[str, str]) -> pa.ChunkedArray:
    """Each listed value by its word; others stay."""
    found = pc.index_in(column, value_set=pa.array(list(words)))
    return pc.coalesce(pc.take(pa.array(list(words.values())), found), column)
