"""The schema refuses what would leak a label or mean two things, and names the place."""

import copy

import pytest
import yaml
from profiles.cases import SCHEMA, field_changed, schema

from scaletot_jax.errors import ConfigError, DataError
from scaletot_jax.profiles.schema import Schema, builtin_schemas, load_schema

STATIC = {
    "complete_journey": "age income home_ownership marital_status household_size household_comp kids_count tenure_days "
    "top_department top_categories",
    "oulad": "module presentation gender region highest_education imd_band age_band disability num_prev_attempts "
    "studied_credits days_registered_before_start",
    "kuairand_pure": "is_live_streamer is_video_author follow_user_num fans_user_num friend_user_num register_days",
    "control": "town age plan sessions recency",
    "population": "age region channel device plan language trial interests",
    "synthetic": "age city plan interests device",
}
EARLY = {
    "complete_journey": "days_since_last_visit shopping_days_30 spend_30 private_label_share coupon_use",
    "oulad": "pre_course_active_days pre_course_clicks",
    "kuairand_pure": "views_prev16 days_since_last_seen",
    "control": "",
    "population": "sessions minutes purchases recency",
    "synthetic": "visits_30 days_since_last_visit",
}


@pytest.mark.parametrize("name", sorted(STATIC))
def test_builtin_schemas_have_the_documented_fields(name):
    found = load_schema(name)
    assert [field.name for field in found.profile_fields("static")] == STATIC[name].split()
    assert [field.name for field in found.profile_fields()] == STATIC[name].split() + EARLY[name].split()
    assert Schema.from_dict(found.to_dict()) == found


def test_every_builtin_schema_is_listed():
    assert builtin_schemas() == sorted(STATIC)


def refused(value, *words):
    with pytest.raises(DataError) as caught:
        Schema.from_dict(value, where="users.yaml")
    for word in ("users.yaml", *words):
        assert word in str(caught.value)


@pytest.mark.parametrize("column", ["lt30", "LT30", "lt_30", " Lt-30 ", "LTV30"])
def test_a_label_cannot_be_a_feature(column):
    """Neither under its own name, nor with other case or punctuation, nor read under a new name."""
    fields = [*SCHEMA["fields"], {"name": "engagement", "column": column, "kind": "number", "role": "early"}]
    refused({**SCHEMA, "fields": fields}, "engagement", "a label cannot be a feature")
    name = column.strip().replace("-", "_")
    fields = [*SCHEMA["fields"], {"name": name, "kind": "number", "role": "early"}]
    refused({**SCHEMA, "fields": fields}, name, "a label cannot be a feature")


@pytest.mark.parametrize("column", ["uid", "house", "day", "UID"])
def test_identifiers_cannot_be_features(column):
    fields = [*SCHEMA["fields"], {"name": "who", "column": column, "kind": "text", "role": "static"}]
    refused({**SCHEMA, "fields": fields}, "who", "id, group or snapshot column")


def test_duplicate_fields_are_refused():
    refused({**SCHEMA, "fields": [*SCHEMA["fields"], SCHEMA["fields"][0]]}, "'age' and field 'age' are one column")
    again = {**SCHEMA["fields"][0], "name": "years", "column": "Age"}
    refused({**SCHEMA, "fields": [*SCHEMA["fields"], again]}, "'years' and field 'age' are one column")


def test_faults_carry_their_path():
    wrong = copy.deepcopy(SCHEMA)
    wrong["fields"][1]["colour"] = "red"
    refused(wrong, "fields[1](city).colour", "not permitted")
    wrong = copy.deepcopy(SCHEMA)
    wrong["fields"][7]["kind"] = "integer"
    refused(wrong, "fields[7](visits).kind", "'number'")
    wrong = copy.deepcopy(SCHEMA)
    wrong["labels"]["days"]["horizon"] = 0
    refused(wrong, "labels.days.horizon", "at least one day")
    refused({**SCHEMA, "surprise": 1}, "surprise")
    refused({**SCHEMA, "fields": []}, "at least one field")
    refused({**SCHEMA, "group": {"column": "uid", "pattern": "[0-9]+"}}, "group.pattern", "(?P<group>...)")
    refused({**SCHEMA, "low_activity": {"field": "age", "at_most": 1}}, "not a number field")
    refused([1, 2], "schema")


@pytest.mark.parametrize(
    ("name", "change", "word"),
    [
        ("age", {"values": ["one"]}, "ascending order"),
        ("age", {"values": ["a", "a"]}, "listed twice"),
        ("age", {"coarse": [1, 2]}, "number fields only"),
        ("visits", {"coarse": [3, 1]}, "ascending numbers"),
        ("visits", {"range": [3, 1]}, "range is empty"),
        ("visits", {"levels": ["low", "high"]}, "five words"),
        ("visits", {"values": ["1"]}, "no list of values"),
        ("city", {"unit": "km"}, "belong to numbers"),
        ("note", {"coarse": True}, "cannot enter the coarse key"),
        ("city", {"name": "the city"}, "not a name"),
        ("city", {"name": "split"}, "reserved"),
    ],
)
def test_impossible_fields_are_refused(name, change, word):
    with pytest.raises(DataError, match=word):
        field_changed(name, **change)


def test_files(tmp_path):
    path = tmp_path / "users.yaml"
    with pytest.raises(DataError, match="missing"):
        load_schema(path)
    path.write_text("name: [")
    with pytest.raises(DataError, match=r"not YAML[\s\S]*users.yaml"):
        load_schema(path)
    path.write_text("name: shop\nname: shop\n")
    with pytest.raises(DataError, match="'name' is given twice"):
        load_schema(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not a text file"):
        load_schema(path)
    path.write_text(yaml.safe_dump(SCHEMA))
    assert load_schema(path) == schema()


@pytest.mark.parametrize("change", [{"scale": 10**400}, {"range": [0, 10**400]}, {"coarse": [1, 10**400]}])
def test_numbers_beyond_float64_are_refused(change):
    with pytest.raises(DataError, match="too large"):
        field_changed("visits", **change)
    refused({**SCHEMA, "low_activity": {"field": "visits", "at_most": 10**400}}, "low_activity.at_most", "too large")


def test_unknown_field_and_unknown_choice():
    with pytest.raises(ConfigError, match="no field 'colour'"):
        schema().field("colour")
    with pytest.raises(ConfigError, match="static"):
        schema().profile_fields("early")


def test_further_horizons_and_outcomes_are_labels_and_horizons_nest():
    made = copy.deepcopy(load_schema("synthetic").to_dict())
    made["labels"] |= {"horizons": [{"column": "lt7", "horizon": 7}], "binary": [{"column": "paid"}]}
    assert Schema.from_dict(made).labels.columns == ("lt30", "ltv30", "lt7", "paid")
    made["labels"]["horizons"].append({"column": "lt60", "horizon": 60})
    refused(made, "labels.horizons", "shorter than the main one of 30 days")
    made["labels"]["horizons"] = [{"column": "paid", "horizon": 7}]
    refused(made, "two labels are one column")
