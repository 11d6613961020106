"""Strict configuration: unknown keys, wrong types and impossible combinations name the key."""

import pytest

from scaletot_jax.config import default_config, load_config, override, validate
from scaletot_jax.config_limits import RANGES
from scaletot_jax.errors import ConfigError
from scaletot_jax.run import flatten

RECIPES = ("quickstart", "complete_journey", "oulad", "oulad_low_activity", "oulad_shift", "kuairand")


@pytest.mark.parametrize("name", RECIPES)
def test_the_recipes_are_valid(name, pytestconfig):
    validate(load_config(pytestconfig.rootpath / "configs" / f"{name}.py"))


def test_override_keeps_the_type_of_the_default():
    config = default_config()
    override(config, "sft.epochs", "3")
    override(config, "sft.learning_rate", "1")
    override(config, "data.low_activity", "false")
    override(config, "data.path", "1")
    assert (config.sft.epochs, config.sft.learning_rate, config.data.low_activity, config.data.path) == (
        3,
        1.0,
        False,
        "1",
    )


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("sft.epoch", "1", "did you mean sft.epochs"),
        ("nothing.at.all", "1", "unknown configuration key"),
        ("sft", "1", "is a section"),
        ("sft.epochs", "1.5", "of type int"),
        ("sft.epochs", "true", "of type int"),
        ("sft.epochs", "three", "of type int"),
        ("sft.learning_rate", "fast", "of type float"),
        ("data.low_activity", "7", "of type bool"),
    ],
)
def test_a_bad_override_names_the_key(key, text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        override(default_config(), key, text)
    assert key in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.name", "movielens"),
        ("split.test", 0.5),
        ("sft.batch_size", 0),
        ("osipo.beta", -1.0),
        ("teacher.pilot_profiles", 10**6),
        ("data.name", "parquet"),
        ("split.shift_field", "module"),
    ],
)
def test_an_impossible_value_is_refused_before_anything_is_loaded(key, value):
    config = default_config()
    override(config, key, str(value))
    with pytest.raises(ConfigError) as caught:
        validate(config)
    assert key.split(".")[0] in str(caught.value)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("distill.layer", "abc"), ("evaluate.level", "2"), ("sft.keep", "best"), ("teacher.refine_quantile", "3"), ("student.num_layers", "-1"),
        ("distill.field_dropout", "1.5"), ("head.penalties", "[]"), ("head.penalties", "[a]"), ("head.learning_rate", "-1"),
        ("lm.max_profile_tokens", "0"), ("distill.width", "0"), ("mesh.data", "-1"), ("sft.learning_rate", ".nan"),
        ("seed", "-1"), ("osipo.clip_low", "1.5"),
    ],
)  # fmt: skip
def test_a_value_out_of_range_names_its_key(key, text):
    config = default_config()
    override(config, key, text)
    with pytest.raises(ConfigError) as caught:
        validate(config)
    assert key in str(caught.value)


def test_every_numeric_key_has_a_range():
    flat = flatten(default_config().to_dict())
    numeric = {key for key, value in flat.items() if isinstance(value, (int, float)) and not isinstance(value, bool)}
    assert numeric == set(RANGES)


def test_a_broken_recipe_is_a_configuration_error(tmp_path):
    recipe = tmp_path / "recipe.py"
    with pytest.raises(ConfigError, match="missing"):
        load_config(recipe)
    recipe.write_text(
        "from scaletot_jax.config import default_config\ndef get_config():\n    c = default_config()\n    c.sft.epoch = 3\n    return c\n"
    )
    with pytest.raises(ConfigError, match="epoch"):
        load_config(recipe)
    recipe.write_text("def get_config(:\n")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(recipe)


def test_a_list_of_another_type_is_told_how_a_list_is_written():
    config = default_config()
    with pytest.raises(ConfigError, match=r"--config\.coverage\.points=\[0\.005, 0\.01, .*\]"):
        override(config, "coverage.points", "0.0732")
    override(config, "coverage.points", "[0.0732, 0.2]")
    assert config.coverage.points == (0.0732, 0.2)
