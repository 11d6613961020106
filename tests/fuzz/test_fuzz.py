"""Everything that reads what others wrote takes it or refuses it with an error of ours, whatever it is.

Each target runs a number of damaged inputs, drawn from a seed: 12,000 over all targets in CI, a million in `make soak`. An
exception that is not ours, an input that takes seconds and one that takes the memory are failures; the input is shown.
"""

import asyncio
import contextlib
import json
import os
import random
import resource
import signal
import traceback

import pytest
import yaml
from chains import test_parser as chain_tests
from fuzz import formats
from fuzz.mutation import LEAVES, as_json, mutate_bytes, mutate_value
from profiles import cases
from serving import test_rows as row_tests
from teacher.served import test_reading as answer_tests

from scaletot_jax.chains.parser import parse
from scaletot_jax.chains.spec import load_spec, parse_spec
from scaletot_jax.errors import DataError
from scaletot_jax.files import read_arrays
from scaletot_jax.lm.gguf import GGUFFile
from scaletot_jax.lm.safetensors_file import SafetensorsDirectory
from scaletot_jax.population.rows import Layout, RowEncoder
from scaletot_jax.population.source import Source
from scaletot_jax.profiles.features import FeatureSpace
from scaletot_jax.profiles.schema import Schema, load_schema
from scaletot_jax.profiles.table import read_parquet, validate
from scaletot_jax.serving.failures import RequestError
from scaletot_jax.serving.guard import Guard, Limits
from scaletot_jax.serving.meters import Meters
from scaletot_jax.serving.rows import read_arrow_rows, read_json_rows
from scaletot_jax.teacher.served.reading import parse_value, read_answer, read_decision

SOAK = bool(os.environ.get("SCALETOT_SOAK"))
SECONDS, MEMORY = 20, 1 << 20  # of one input; KiB by which the process may have grown
SPEC = chain_tests.example().spec.model_dump(mode="json", exclude_defaults=True)
SCHEMA_TEXT = yaml.safe_dump(cases.SCHEMA, sort_keys=False, default_flow_style=None).encode()
SHORT_SCHEMA = yaml.safe_dump({**cases.SCHEMA, "fields": cases.SCHEMA["fields"][:2], "low_activity": None}).encode()
SPEC_TEXT = yaml.safe_dump({**SPEC, "segments": SPEC["segments"][:1]}).encode()
ROWS = {"rows": [row_tests.ROW, row_tests.ROW]}
ARROW = row_tests.WHOLE
TABLE = formats.parquet(cases.table(7))
LAYOUT = Layout({"user_id": "uid", "snapshot": "day"}, {field.name: field.source for field in cases.schema().fields})
ENCODE = RowEncoder(
    FeatureSpace.fit(validate(cases.table(7), cases.schema()), cases.schema(), cases.schema().profile_fields()), LAYOUT
)


def chain_ids(rng, folder):
    """Ids as a model may write them: whole chains with edits, and noise."""
    values = [
        tuple(rng.choices((7, 900, 2**31 - 1), k=rng.randint(0, slot.max_tokens)))
        if slot.source == "free"
        else rng.choice(slot.values)
        for slot in chain_tests.CHAIN.spec.slots
    ]
    ids = chain_tests.CHAIN.serialize(values, rng.randrange(3))
    for _ in range(rng.randrange(5)):
        at, to = sorted((rng.randint(0, len(ids)), rng.randint(0, len(ids))))
        new = rng.choices((*chain_tests.KNOWN, chain_tests.EOS, -1, 2**40, 10**30), k=rng.randrange(4))
        ids = rng.choice((ids[:at] + new + ids[at:], ids[:at] + ids[to:], ids[:to] + ids[at:], ids[to:] + new))
    parsed = parse(chain_tests.CHAIN, ids)
    chain_tests.check_partition(ids, parsed)
    return parsed.complete


def schema_values(rng, folder):
    found = Schema.from_dict(mutate_value(rng, cases.SCHEMA))
    assert Schema.from_dict(found.to_dict()).to_dict() == found.to_dict()
    return True


def schema_text(rng, folder):
    path = folder / "schema.yaml"
    whole = rng.choice((SHORT_SCHEMA, SHORT_SCHEMA, SCHEMA_TEXT[:400]))
    path.write_bytes(mutate_bytes(rng, whole, formats.YAML_WORDS, [SCHEMA_TEXT]))
    load_schema(path)
    return True


def chain_specification(rng, folder):
    found = parse_spec(mutate_value(rng, SPEC), where="fuzz")
    assert (
        len(found.fingerprint) == 64 and found.bucket_of([0, 1.5, 1e300]).shape == (3,) and found.bucket_value.ndim == 1
    )
    record = {name: rng.choice(LEAVES) for name in found.fields}
    for slot in found.slots:
        with contextlib.suppress(DataError):  # a number is needed
            assert slot.fixed_value(record) in (None, "", *slot.values)
    return True


def specification_text(rng, folder):
    path = folder / "spec.yaml"
    path.write_bytes(mutate_bytes(rng, SPEC_TEXT, formats.YAML_WORDS))
    load_spec(path)
    return True


def gguf_file(rng, folder):
    path = folder / "model.gguf"
    path.write_bytes(b"GGUF" + mutate_bytes(rng, formats.GGUF, formats.GGUF_WORDS)[4:])
    file = GGUFFile(path)
    for name in list(file.names())[:8]:
        with contextlib.suppress(DataError):
            assert file.read(name).shape == file.shape(name)
    return True


def safetensors_file(rng, folder):
    header = mutate_value(rng, formats.TENSORS) if rng.random() < 0.6 else formats.TENSORS
    data = formats.safetensors(as_json(header), formats.TENSOR_DATA)
    if header is formats.TENSORS:
        data = mutate_bytes(rng, data, formats.JSON_WORDS)
    path = folder / "model.safetensors"
    path.write_bytes(data)
    taken = 0
    with contextlib.suppress(DataError):
        directory = SafetensorsDirectory(folder)
        for name in directory.names():
            assert directory.read(name).shape == directory.shape(name)
        taken += 1
    with contextlib.suppress(DataError):
        read_arrays(path)
        taken += 1
    return taken > 0


def rows_as_arrow(rng, folder):
    table = read_arrow_rows(mutate_bytes(rng, ARROW), row_tests.FIELDS, 10)
    assert 1 <= table.num_rows <= 10 and table.column_names == list(row_tests.FIELDS)
    return True


def rows_as_json(rng, folder):
    body = (
        as_json(mutate_value(rng, ROWS)) if rng.random() < 0.6 else mutate_bytes(rng, as_json(ROWS), formats.JSON_WORDS)
    )
    table = read_json_rows(body, row_tests.FIELDS, 10)
    assert 1 <= table.num_rows <= 10 and table.column_names == list(row_tests.FIELDS)
    return True


def parquet_table(rng, folder):
    path = folder / "users.parquet"
    path.write_bytes(mutate_bytes(rng, TABLE, [TABLE[-8:], b"PAR1"]))
    validate(read_parquet(path), cases.schema())
    return True


def population_rows(rng, folder):
    """The table of a population pass, by blocks."""
    path = folder / "population.parquet"
    path.write_bytes(mutate_bytes(rng, TABLE, [TABLE[-8:], b"PAR1"]))
    source = Source(path, LAYOUT.columns, coded=["city", "plan", "note"])
    for block in source.blocks([(0, min(source.rows, 100))]):
        keys, features = ENCODE(block, first=0, where=str(path))
        assert keys.num_rows == len(features.num) == block.num_rows and all(keys["user_id"].to_pylist())
    return True


def http_request(rng, folder):
    """Headers and body of any kind, through what stands before the application; a 500 is a failure."""

    async def application(scope, receive, send):
        body = (await receive())["body"]
        kind = dict(scope["headers"]).get(b"content-type", b"")
        read = read_arrow_rows if b"arrow" in kind else read_json_rows
        read(body, row_tests.FIELDS, 10)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    pool = (
        b"",
        b"0",
        b"-1",
        b"99999999999999999999999",
        b"\xff",
        b"chunked",
        b"gzip",
        b"Bearer x",
        b"Bearer a-long-token",
    )
    names = (b"content-length", b"content-encoding", b"authorization", b"content-type", b"transfer-encoding", b"\xff")
    headers = [(rng.choice(names), rng.choice(pool)) for _ in range(rng.randrange(4))]
    headers.append((b"authorization", b"Bearer a-long-token"))
    headers.append((b"content-type", rng.choice((b"application/json", b"application/vnd.apache.arrow.stream"))))
    body = mutate_bytes(rng, rng.choice((as_json(ROWS), ARROW)), formats.JSON_WORDS)
    parts, sent = [body[: len(body) // 2], body[len(body) // 2 :]], []

    async def receive():
        return (
            {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}
            if parts
            else {"type": "http.disconnect"}
        )

    async def send(message):
        sent.append(message)

    guard = Guard(application, Limits(body_bytes=1 << 16), METERS, "a-long-token")
    scope = {
        "type": "http",
        "path": rng.choice(("/v1/predict", "/", "/\x00", "/healthz")),
        "headers": headers,
        "client": None,
    }
    asyncio.run(guard(scope, receive, send))
    status = sent[0]["status"]
    assert status == 200 or 400 <= status < 500, (status, sent[1:])
    if status != 200:
        assert set(json.loads(sent[1]["body"])["error"]) == {"what", "where", "why", "do"}
    return status == 200


METERS = Meters()


def answer_of_a_teacher(rng, folder):
    body = mutate_value(rng, rng.choice((answer_tests.ARRAYS, answer_tests.LISTS)))
    try:
        answer = read_answer(body, top_k=5)
    except ValueError:  # its caller asks again, and in the end refuses
        return False
    read_decision(answer, answer_tests.VALUES)
    said = parse_value(
        mutate_bytes(rng, b'{"value": "yes"}', formats.JSON_WORDS).decode(errors="replace"), answer_tests.VALUES
    )
    assert isinstance(said, (int, str))
    return True


# target → executions in CI, and in thousands in `make soak`
TARGETS = {
    chain_ids: (3000, 300), schema_values: (1200, 100), schema_text: (500, 30), chain_specification: (1200, 100),
    specification_text: (500, 30), gguf_file: (1500, 110), safetensors_file: (1200, 90), rows_as_arrow: (800, 60),
    rows_as_json: (1200, 90), parquet_table: (400, 20), population_rows: (400, 20), http_request: (500, 30), answer_of_a_teacher: (500, 50),
}  # fmt: skip


def too_slow(*_):
    raise AssertionError(f"an input took more than {SECONDS} s")


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.__name__)
def test_anything_is_taken_or_refused(target, tmp_path, record_property):
    count = TARGETS[target][1] * 1000 if SOAK else TARGETS[target][0]
    before, taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0
    honest = signal.signal(signal.SIGALRM, too_slow)
    try:
        for number in range(count):
            signal.alarm(SECONDS)
            try:
                taken += bool(target(random.Random(f"{target.__name__} {number}"), tmp_path))
            except (DataError, RequestError) as error:
                assert error.what and (error.where or error.why or error.do), error
            except BaseException as error:
                traceback.print_exc()
                pytest.fail(f"{target.__name__}, input {number}: {type(error).__name__}: {str(error)[:500]}")
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, honest)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEMORY
    assert 0 < taken < count, f"{taken} of {count} were taken: the inputs are not near enough to good ones, or too near"
    record_property("fuzzed", count)


def test_there_are_as_many_executions_as_promised():
    assert sum(few for few, _ in TARGETS.values()) >= 10_000 and sum(many for _, many in TARGETS.values()) >= 1000
