"""What no served teacher can do is refused before anything is loaded, and what decides the answers is told apart."""

import pytest

from scaletot_jax.config import default_config, override, validate
from scaletot_jax.errors import ConfigError
from scaletot_jax.teacher.served.settings import DECISIVE, stage_sections


def served(**values):
    config = default_config()
    config.teacher.backend, config.teacher.served.base_url = "served", "http://127.0.0.1:8000/v1"
    for key, value in values.items():
        override(config, f"teacher.{key.replace('__', '.')}", str(value))
    return config


def test_a_plain_served_teacher_is_valid():
    validate(served())
    validate(
        served(served__api="chat", served__max_usd=3, served__usd_per_million_input=1, served__api_key_env="MY_KEY")
    )


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"scoring": "full"}, "teacher.scoring"),
        ({"served__base_url": ""}, "base_url"),
        ({"served__base_url": "127.0.0.1:8000"}, "base_url"),
        ({"served__base_url": "https://sk-123:x@host/v1"}, "base_url"),
        ({"served__base_url": "https://host/v1?key=sk-123"}, "base_url"),
        ({"served__api_key_env": "sk-123"}, "api_key_env"),
        ({"served__max_usd": 1}, "max_usd"),
        ({"served__api": "assistants"}, "served.api"),
        ({"served__top_k": 0}, "top_k"),
        ({"served__timeout_s": 0}, "timeout_s"),
        ({"served__retries": -1}, "retries"),
        ({"backend": "oracle"}, "teacher.backend"),
    ],
)
def test_an_impossible_one_names_its_key_and_no_secret(values, key):
    with pytest.raises(ConfigError) as caught:
        validate(served(**values))
    assert key in str(caught.value) and "sk-123" not in str(caught.value)


def test_a_local_teacher_needs_none_of_it():
    config = default_config()
    config.teacher.scoring = "full"
    validate(config)


def test_only_what_decides_the_answers_makes_a_run_stale():
    local, remote = (stage_sections(c.teacher.to_dict()) for c in (default_config(), served()))
    assert "teacher.backend" in local and "teacher.beam" in local and not [k for k in local if "served" in k]
    assert set(remote) == {*local, *(f"teacher.served.{key}" for key in DECISIVE), "seed"}
    assert "teacher.served.max_usd" not in remote and "teacher.served.base_url" not in remote
