"""Programs beside a served model: they say what Flax says, carry what a caller needs, and are refused where they do not fit."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest
from export import tiny_model
from jax import export as jax_export

from scaletot_jax import __version__, cli
from scaletot_jax.encoder import model as encoder_model
from scaletot_jax.encoder.model import Inputs
from scaletot_jax.errors import ConfigError, DataError, StaleRunError
from scaletot_jax.estimator_fit import predict_table
from scaletot_jax.evaluation.monotone import order_horizons
from scaletot_jax.evaluation.predictions import of_distribution
from scaletot_jax.export import interface, onnx_format, parity
from scaletot_jax.export.jax_format import PLATFORMS
from scaletot_jax.export.onnx_encoder import encoder_graph
from scaletot_jax.export.onnx_graph import Graph
from scaletot_jax.export.onnx_heads import served_graph
from scaletot_jax.export.read import open_export
from scaletot_jax.export.write import GATE_ROWS, parse_formats, write_exports
from scaletot_jax.files import read_json, write_json
from scaletot_jax.losses.ltv import hurdle_distribution
from scaletot_jax.profiles.features import FeatureSpace

pytestmark = pytest.mark.xdist_group("export")
EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = {"jax": "consume_jax_export.py", "onnx": "consume_onnx.py"}
PROFILES = [
    {
        "age": "old", "region": "atlantis", "loyal": True, "tops": ["toys", "food", "toys"], "visits": 3, "spend": 12.5,
        "since": "2020-05-01", "rating": 3.14, "likes": ["jazz", "tea", "golf"],
    },
    {
        "age": "middle", "region": "[redacted]", "loyal": False, "tops": [], "visits": -2.5, "spend": 1e9,
        "since": "1950-01-01", "rating": None, "likes": ["paragliding"],
    },
    dict.fromkeys(("age", "region", "loyal", "tops", "visits", "spend", "since", "rating", "likes")),
]  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model.make(tmp_path_factory.mktemp("served") / "model")


@pytest.fixture(scope="module")
def record(model):
    return write_exports(model, ("jax", "onnx"), tiny_model.table())


@pytest.fixture(scope="module")
def outputs(model):
    """What Flax says of GATE_ROWS real rows (one shape, one compilation)."""
    table = tiny_model.table(GATE_ROWS, seed=5)
    return table, parity.flax_outputs(model, Inputs(*model.space.encode(table)))[0]


@pytest.fixture
def copy(model, record, tmp_path):
    shutil.copytree(model.directory, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.mark.parametrize("format", list(interface.PROGRAMS))
def test_a_program_says_what_flax_says_of_rows_it_never_saw(model, record, outputs, format):
    table, want = outputs
    program = open_export(model.directory, format, fingerprint=model.fingerprint)
    got = program.predict(table)
    for name in want:
        assert got[name].shape == want[name].shape and got[name].dtype == np.float32
    errors = parity.worst_error(want, got)
    assert max(error for name, error in errors.items() if name[0] != "q") <= 1e-5
    assert max(errors.values()) <= 1e-4  # quantiles without the measure in probability: no jump among these rows
    one = program.predict(table.slice(7, 1))
    for name in want:
        np.testing.assert_allclose(one[name][0], want[name][7], rtol=1e-4, atol=1e-5)


def test_the_record_names_everything(model, record):
    assert record == read_json(model.directory / interface.FILE)
    assert record["version"] == __version__ and record["model"]["fingerprint"] == model.fingerprint
    assert record["schema"] == model.schema.to_dict() and record["features"] == model.space.to_dict()
    assert record["outputs"] == {
        "embedding": ["batch", 8],
        **{f"{part}_{label}": ["batch"] for label in ("lt30", "ltv30") for part in
           ("expected", "p_positive", "q10", "q50", "q90")},
    }  # fmt: skip
    worst = [
        error
        for by_sample in record["parity"]["errors"].values()
        for one in by_sample.values()
        for error in one.values()
    ]
    assert len(worst) == 2 * 2 * 11 and 0 < max(worst) <= 1e-5


def test_onnx_is_one_checked_file_that_carries_the_record(model, record):
    program = onnx.load(model.directory / "model.onnx")
    onnx.checker.check_model(program, full_check=True)
    carried = {item.key: item.value for item in program.metadata_props}
    assert carried["fingerprint"] == model.fingerprint and carried["version"] == __version__
    stated = json.loads(carried["interface"])
    assert stated == json.loads(json.dumps({key: record[key] for key in stated}))
    assert {"columns", "schema", "features", "ids", "model"} <= set(stated)
    assert all(item.type.tensor_type.shape.dim[0].dim_param == "batch" for item in program.graph.input)
    again = onnx_format.to_onnx(model, {key: record[key] for key in stated})
    assert again == (model.directory / "model.onnx").read_bytes()  # equal models give equal bytes


def test_the_jax_program_is_for_three_platforms_and_any_batch(model, record):
    program = jax_export.deserialize(bytearray((model.directory / "model.jax_export").read_bytes()))
    assert program.platforms == PLATFORMS == ("cpu", "cuda", "tpu")
    assert all(jax_export.is_symbolic_dim(value.shape[0]) for value in program.in_avals)


def test_a_program_that_computes_something_else_is_not_written(model, record, copy, monkeypatch):
    wrong = jax.tree.map(lambda leaf: leaf, model.params)
    wrong["encoder"]["embedding"]["bias"] = wrong["encoder"]["embedding"]["bias"] + 3e-5
    real = onnx_format.to_onnx
    monkeypatch.setattr(onnx_format, "to_onnx", lambda m, carried: real(m._replace(params=wrong), carried))
    with pytest.raises(DataError, match=r"not written[\s\S]*onnx, output '\w+', random rows"):
        write_exports(model._replace(directory=copy), ("onnx",), tiny_model.table())
    assert not any((copy / name).exists() for name in (interface.FILE, *interface.PROGRAMS.values()))


def test_an_export_of_another_model_a_changed_file_and_a_format_not_made_are_refused(model, copy):
    with pytest.raises(StaleRunError, match="another model"):
        open_export(copy, "onnx", fingerprint="0" * 16)
    for name, format in (("model.onnx", "onnx"), ("model.jax_export", "jax")):
        with open(copy / name, "ab") as file:
            file.write(b"\0")
        with pytest.raises(DataError, match="missing or was changed"):
            open_export(copy, format)
    record = read_json(copy / interface.FILE)
    record["features"]["vocabulary"]["region"][0] = "elsewhere"
    write_json(copy / interface.FILE, record)
    with pytest.raises(DataError, match="vocabulary and statistics were changed"):
        open_export(copy, "onnx")
    write_json(copy / interface.FILE, record | {"format": 99})
    with pytest.raises(DataError, match="another format"):
        open_export(copy, "onnx")


def test_an_export_again_leaves_no_program_of_before(model, copy):
    record = write_exports(model._replace(directory=copy), ("onnx",), tiny_model.table())
    assert list(record["files"]) == ["model.onnx"] and not (copy / "model.jax_export").exists()
    with pytest.raises(DataError, match="not exported as jax"):
        open_export(copy, "jax")
    write_exports(model._replace(directory=copy), (), tiny_model.table())
    assert not (copy / interface.FILE).exists() and not (copy / "model.onnx").exists()


def test_a_table_of_other_fields_is_refused(model, record):
    table = tiny_model.table(5)
    program = open_export(model.directory, "onnx")
    with pytest.raises(DataError, match="'region' is missing"):
        program.predict(table.drop_columns(["region"]))
    with pytest.raises(DataError, match="'visits' is string, not number"):
        program.predict(table.set_column(table.column_names.index("visits"), "visits", table["visits"].cast("string")))
    index = table.column_names.index("region")
    words = table.set_column(index, "region", table["region"].combine_chunks().dictionary_encode())
    interface.check_table(record, words.schema)


def test_an_id_outside_the_vocabulary_is_heard(model, record):
    call = open_export(model.directory, "onnx").call
    inputs = parity.random_inputs(model.spec.encoder, model.space.multi_width, 2, 0)
    with pytest.raises(Exception, match=r"(?i)indices|index|range"):
        call(inputs._replace(cat=inputs.cat + 1000))


def test_a_horizon_of_one_day_has_no_hazards(tmp_path):
    model = tiny_model.make(tmp_path / "model", horizon=1)
    write_exports(model, ("onnx",), tiny_model.table(horizon=1))  # the gate compares


def test_labels_of_several_horizons_agree_in_every_form(tmp_path):
    """What is served of nested labels is what evaluation makes of the averaged heads: ordered in every row, quantiles too."""
    model = tiny_model.make_nested(tmp_path / "model")
    assert [model.spec.targets[place].column for place in model.spec.nested] == ["lt1", "lt7", "lt30"]
    inputs = Inputs(*model.space.encode(tiny_model.table(GATE_ROWS, seed=5)))
    said, logits = parity.flax_outputs(model, inputs)
    heads = [np.asarray(hurdle_distribution(jnp.asarray(logits[i])), np.float64).mean(1) for i in model.spec.nested]
    apart = [of_distribution(one) for one in heads]
    assert np.mean(apart[0].positive > apart[1].positive) > 0.1  # or there would be nothing to do
    names = ["lt1", "lt7", "lt30"]
    for name, want in zip(names, order_horizons(apart)):
        np.testing.assert_allclose(said[f"expected_{name}"], want.mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(said[f"p_positive_{name}"], want.positive, atol=1e-6)
        reached = np.cumsum(want.distribution, axis=1)
        for quantile, level in (("q10", 0.1), ("q50", 0.5), ("q90", 0.9)):
            exact = (reached[:, :-1] < level).sum(1)
            near = np.abs(reached[np.arange(len(exact)), exact] - level) < 1e-6
            assert (near | (said[f"{quantile}_{name}"] == exact)).all()
    for shorter, longer in pairwise(names):
        for column in ("expected", "p_positive", "q10", "q50", "q90"):
            assert (said[f"{column}_{shorter}"] <= said[f"{column}_{longer}"] + 1e-6).all()
    won = [target.column for target in model.spec.targets].index("won")  # no day of any horizon
    alone = np.asarray(hurdle_distribution(jnp.asarray(logits[won]))).mean(1)[:, 1]
    np.testing.assert_allclose(said["expected_won"], alone, atol=1e-6)
    write_exports(model, ("onnx", "jax"), tiny_model.table())  # the gate compares


def test_probabilities_of_several_horizons_are_those_of_the_expectations(tmp_path):
    model, table = tiny_model.make_nested(tmp_path / "model"), tiny_model.table(50, seed=6)
    found = predict_table(model, table, probabilities=True)
    for name, horizon in (("lt1", 1), ("lt7", 7), ("lt30", 30), ("won", 1)):
        p = found[f"probabilities_{name}"]
        assert p.shape == (50, horizon + 1) and (p >= 0).all()
        np.testing.assert_allclose(p.sum(1), 1, atol=1e-9)
        np.testing.assert_allclose(p @ np.arange(horizon + 1), found[f"expected_{name}"], rtol=1e-4, atol=1e-5)


def test_an_encoder_without_labels(model):
    bare = model._replace(spec=dataclasses.replace(model.spec, targets=()))
    graph = Graph()
    outputs = served_graph(graph, bare.spec, bare.params)
    program = graph.model(interface.input_arrays(model.space), outputs, {}).SerializeToString()
    rows = parity.random_inputs(model.spec.encoder, model.space.multi_width, GATE_ROWS, 1)
    errors = parity.worst_error(
        {"embedding": parity.flax_outputs(model, rows)[0]["embedding"]}, onnx_format.load_onnx(program)(rows)
    )
    assert errors["embedding"] <= 1e-5


@pytest.mark.parametrize("kept", [("enum",), ("number",)])
def test_encoders_of_one_kind_of_fields(kept):
    table, schema = tiny_model.table(40), tiny_model.schema()
    space = FeatureSpace.fit(table, schema, [field for field in schema.profile_fields() if field.kind in kept])
    inputs = Inputs(*space.encode(table))
    spec = encoder_model.describe(space, inputs, segments=(), target_dims=(), dim=4, width=8, mlp_layers=1)
    params = encoder_model.init_params(spec, 0)
    graph = Graph()
    outputs = {"embedding": (encoder_graph(graph, spec, params), (4,))}
    call = onnx_format.load_onnx(graph.model(interface.input_arrays(space), outputs, {}).SerializeToString())
    want = encoder_model.encode(params, spec=spec, inputs=inputs).embedding
    np.testing.assert_allclose(call(inputs)["embedding"], want, atol=1e-5)


def test_a_bare_number_in_a_graph_is_refused():
    with pytest.raises(TypeError, match="no type"):
        Graph()("Add", "x", 1.0)


def test_formats_are_parsed(capsys):
    assert parse_formats("jax, onnx,jax") == ("jax", "onnx") and parse_formats("") == ()
    with pytest.raises(ConfigError, match="tflite"):
        parse_formats("onnx,tflite")
    assert cli.main(["export", "--config", "none.py", "--out", "nowhere", "--format", "tflite"]) == 2
    assert "unknown export format" in capsys.readouterr().err


def _expected(model, profiles):
    """What Flax says of profiles, through the package's own encoding; canonical: words distinct, sorted unless ranked."""
    import datetime

    import pyarrow as pa

    kinds = tiny_model.table(1).schema
    canonical = []
    for profile in profiles:
        row = dict(profile)
        row["tops"] = None if row["tops"] is None else sorted(set(row["tops"]))
        row["rating"] = None if row["rating"] is None else round(row["rating"], 1)
        row["since"] = None if row["since"] is None else datetime.date.fromisoformat(row["since"])
        canonical.append(row)
    table = pa.table(
        {name: pa.array([row[name] for row in canonical], kinds.field(name).type) for name in canonical[0]}
    )
    inputs = Inputs(*model.space.encode(table))
    filled = Inputs(*(np.resize(part, (GATE_ROWS, *part.shape[1:])) for part in inputs))  # the shape compiled already
    return {name: value[: len(profiles)] for name, value in parity.flax_outputs(model, filled)[0].items()}


def _consume(script: str, directory: Path, profiles) -> subprocess.CompletedProcess:
    """Runs an example where neither our package nor flax can be imported."""
    program = (
        "import runpy, sys; sys.modules['scaletot_jax'] = sys.modules['flax'] = None; "
        f"sys.path.insert(0, {str(EXAMPLES)!r}); "  # as for a script that is started by its name
        f"sys.argv = ['consume', {str(directory)!r}]; runpy.run_path({str(EXAMPLES / script)!r}, run_name='__main__')"
    )
    lines = "".join(json.dumps(profile) + "\n" for profile in profiles)
    return subprocess.run(
        [sys.executable, "-c", program], input=lines, capture_output=True, text=True, timeout=120,
        cwd=directory, env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )  # fmt: skip


@pytest.mark.parametrize("format", list(SCRIPTS))
def test_a_consumer_without_the_package_gets_the_same_numbers(model, record, format):
    done = _consume(SCRIPTS[format], model.directory, PROFILES)
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    want = _expected(model, PROFILES)
    assert len(answers) == len(PROFILES) and set(answers[0]) == set(want)
    for name, value in want.items():
        np.testing.assert_allclose([answer[name] for answer in answers], value, rtol=2e-5, atol=2e-5)


def test_a_consumer_refuses_a_profile_without_a_field_and_a_changed_program(copy):
    done = _consume(SCRIPTS["onnx"], copy, [{name: None for name in PROFILES[0] if name != "spend"}])
    assert done.returncode and "KeyError: 'spend'" in done.stderr
    with open(copy / "model.onnx", "ab") as file:
        file.write(b"\0")
    done = _consume(SCRIPTS["onnx"], copy, PROFILES)
    assert done.returncode and "not the one described" in done.stderr
