"""The documentation: it builds strictly, its commands are commands, its keys are keys, its examples load."""

import re
import shlex
from pathlib import Path

import pytest
import tiny

from scaletot_jax import recipes
from scaletot_jax.chains.grammar import compile_chain
from scaletot_jax.chains.spec import ChainSpec
from scaletot_jax.cli import VERBS
from scaletot_jax.config import default_config
from scaletot_jax.lm.load import load_tokenizer
from scaletot_jax.profiles.schema import Schema
from scaletot_jax.strict_yaml import load_yaml

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEXTS = {str(page.relative_to(ROOT)): page.read_text() for page in PAGES}


def commands(text: str):
    """Lines of code that call scaletot, continued lines joined, as words."""
    joined = re.sub(r"\\\n\s*", " ", text)
    for line in joined.splitlines():
        found = re.match(r"(?:    |\$ )?\s*(scaletot [a-z].*)", line)
        if found and (line.startswith("    ") or line.startswith("scaletot ")):
            yield shlex.split(found[1], comments=True)


ALL = [(page, words) for page, text in TEXTS.items() for words in commands(text)]


def test_there_is_something_to_check():
    assert len(ALL) > 20


@pytest.mark.parametrize(("page", "words"), ALL, ids=[f"{page}:{' '.join(words)[:60]}" for page, words in ALL])
def test_a_command_names_a_verb_and_keys_that_exist(page, words):
    assert words[1] in {*VERBS, "VERB"}, page
    known = default_config()
    for word in words[2:]:
        if word.startswith("--config."):
            node = known
            for part in word.removeprefix("--config.").split("=")[0].split("."):
                assert part in node, f"{page}: {word}"
                node = node[part]
        elif word == "--config":
            recipe = words[words.index(word) + 1]
            assert not recipe.startswith("configs/") or (ROOT / recipe).is_file(), f"{page}: {recipe}"
            assert "/" in recipe or recipe in {"FILE", "RECIPE", *recipes.names()}, f"{page}: {recipe}"


@pytest.mark.parametrize("page", TEXTS)
def test_a_command_of_several_lines_can_be_copied(page):
    lines = TEXTS[page].splitlines()
    later = re.compile(r" {5,}--[a-z]")
    broken = [n + 1 for n in range(1, len(lines)) if later.match(lines[n]) and not lines[n - 1].endswith("\\")]
    assert not broken, f"{page}: no backslash before lines {broken}"


def key_like(text: str):
    """`section.key` in backticks, where the section is one of the configuration."""
    sections = "|".join(default_config())
    return set(re.findall(rf"`((?:{sections})\.[a-z_]+(?:\.[a-z_]+)?)(?:=[^`]*)?`", text))


@pytest.mark.parametrize("page", TEXTS)
def test_keys_in_backticks_exist(page):
    known, missing = default_config(), []
    for key in sorted(key_like(TEXTS[page])):
        node = known
        for part in key.split("."):
            if part not in node:
                # the same form names a module, e.g. `teacher.search`, or a file, e.g. `coverage.parquet`
                place = ROOT / "scaletot_jax" / key.split(".")[0] / f"{key.split('.')[1]}.py"
                missing += [] if place.exists() or key.endswith((".parquet", ".json", ".jsonl", ".html")) else [key]
                break
            node = node[part]
    assert not missing, f"{page}: {missing}"


def blocks(page: str, kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", TEXTS[page], flags=re.DOTALL)


def test_the_example_schema_and_chain_of_the_how_to_are_valid_and_fit_each_other(tmp_path):
    (schema_text,) = blocks("docs/howto.md", 'yaml title="users.yaml"')
    (spec_text,) = blocks("docs/howto.md", 'yaml title="chain.yaml"')
    schema = Schema.from_dict(load_yaml(schema_text))
    spec = ChainSpec.model_validate(load_yaml(spec_text))
    assert spec.num_buckets == 3 and [segment.name for segment in spec.segments] == ["context", "outlook"]
    fields = {field.name for field in schema.fields}
    assert set(re.findall(r"field: (\w+)", spec_text)) <= fields
    tokenizer = load_tokenizer(tiny.write_tiny_lm(tmp_path / "lm"))
    assert compile_chain(spec, tokenizer.encode, tokenizer.eos_id) is not None  # every word of the answer is one token


def test_functions_named_in_the_way_from_the_paper_exist():
    import importlib

    table = TEXTS["docs/paper_to_code.md"]
    names = set(re.findall(r"`([a-z_]+(?:\.\w+)+)`", table)) - key_like(table)
    assert len(names) > 15
    for name in names:
        parts = name.split(".")
        for cut in range(len(parts), 0, -1):
            try:
                found = importlib.import_module("scaletot_jax." + ".".join(parts[:cut]))
            except ModuleNotFoundError:
                continue
            for part in parts[cut:]:
                assert hasattr(found, part), name
                found = getattr(found, part)
            break
        else:
            raise AssertionError(name)


def test_a_page_that_the_site_makes_of_another_file_links_to_it_for_readers_of_the_repository():
    text = TEXTS["docs/performance.md"]
    (taken,) = re.findall(r'^--8<-- "(.*)"$', text, re.M)
    (link,) = re.findall(r'<a href="(.*?)">', text)
    assert (ROOT / "docs" / link).resolve() == ROOT / taken and (ROOT / taken).is_file()


def test_the_public_tables_can_be_cut_to_ours_as_the_how_to_says(tmp_path, monkeypatch):
    from datasets import downloads_on_the_spot as spot

    from scaletot_jax.datasets import oulad

    (code,) = blocks("docs/howto.md", "python")
    spot.write_oulad(tmp_path)
    monkeypatch.chdir(tmp_path)
    whole = oulad.build_table(tmp_path)
    exec(compile(code.replace('"DIR"', '"."'), "howto.md", "exec"), {})
    monkeypatch.setenv("SCALETOT_DATA", "tables")
    kept = oulad.build_table()
    assert 0 < kept.num_rows < whole.num_rows
    assert kept.to_pylist() == [
        row
        for row in whole.to_pylist()
        if f"{row['module']} {row['presentation']}"
        in ("AAA October 2013", "AAA October 2014", "BBB February 2013", "BBB October 2013")
    ]


def test_it_builds_strictly(tmp_path):
    mkdocs_build = pytest.importorskip("mkdocs.commands.build")
    pytest.importorskip("material")
    pytest.importorskip("mkdocstrings")
    from mkdocs.config import load_config

    config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path / "site"))
    assert config.strict
    mkdocs_build.build(config)  # raises on a warning: a dead link, a missing page, a module that cannot be read
    howto = (tmp_path / "site" / "howto.html").read_text()  # a fence that is not understood swallows headings
    assert howto.count("<h2") == len(re.findall(r"^## ", TEXTS["docs/howto.md"], re.M))
    index = (tmp_path / "site" / "index.html").read_text()
    assert not re.findall(
        r'(?:src|href)="https?://(?!squidfunk)[^"]*\.(?:css|js|woff2?)"', index
    )  # nothing from elsewhere
