"""Strict configuration: unknown keys, wrong types and impossible combinations name the key."""

import pytest

from scaletot_jax.config import default_config, load_config, override, validate
from scaletot_jax.errors import ConfigError

RECIPES = ("quickstart", "complete_journey", "oulad")


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
    ],
)
def test_an_impossible_value_is_refused_before_anything_is_loaded(key, value):
    config = default_config()
    override(config, key, str(value))
    with pytest.raises(ConfigError) as caught:
        validate(config)
    assert key.split(".")[0] in str(caught.value)


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
