"""TensorFlow Datasets builders ``complete_journey``, ``oulad`` and ``kuairand_pure``, without TensorFlow.

    import scaletot_jax.datasets.tfds_builders
    import tensorflow_datasets as tfds
    builder = tfds.builder("complete_journey", data_dir=folder)  # or "complete_journey/all"
    builder.download_and_prepare()
    source = builder.as_data_source(split="train")               # random access, e.g. for grain

The files are array_record, which needs no TensorFlow; ``as_dataset`` does, and is not supported. Each builder has two
configurations: ``low_activity`` (the default) and ``all``. Rows come from the table function of the data set's own
module. On disk (tf.train.Example) a missing string is empty, a missing count is the least int64, and other numbers are
float32 with NaN for none; :func:`to_table` turns the missing ones back into nulls.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import tensorflow_datasets as tfds

from scaletot_jax.datasets import complete_journey, kuairand_pure, oulad
from scaletot_jax.profiles.schema import load_schema

FILE_FORMAT = "array_record"
NO_COUNT = -(2**63)
CONFIGS = [
    tfds.core.BuilderConfig(name="low_activity", description="The low-activity population of the data set's schema."),
    tfds.core.BuilderConfig(name="all", description="Every row."),
]


class _ProfileBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """A builder whose rows are those of a module's table function."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = CONFIGS
    code_path = None  # tfds looks for checksum files beside it, by a package (importlib_resources) it does not require
    MODULE: ModuleType
    URL: str

    def __init__(self, **kwargs: Any):
        kwargs.setdefault("file_format", FILE_FORMAT)
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=(self.MODULE.__doc__ or "").strip(),
            features=tfds.features.FeaturesDict({name: _feature(kind) for name, kind in self.MODULE.TYPES.items()}),
            homepage=self.URL,
            disable_shuffling=True,  # the table's order; readers shuffle as they please
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {"train": self._generate_examples(self._manual_dir(dl_manager))}

    def _manual_dir(self, dl_manager: Any) -> str:
        if not self.MANUAL_DOWNLOAD_INSTRUCTIONS:
            return ""
        try:
            return str(dl_manager.manual_dir)
        except AssertionError:  # tfds: not there, or empty. The table function looks for the ready table then.
            return ""

    def _generate_examples(self, manual_dir: str) -> Iterator[tuple[int, dict[str, Any]]]:
        table = self.MODULE.build_table(manual_dir)
        rule = load_schema(self.name).low_activity
        if self.builder_config.name == "low_activity" and rule is not None:
            table = table.filter(pc.less_equal(table[rule.field], rule.at_most))
        columns = [_to_disk(table[name], kind) for name, kind in self.MODULE.TYPES.items()]
        for key, row in enumerate(zip(*columns)):
            yield key, dict(zip(self.MODULE.TYPES, row))


class CompleteJourney(_ProfileBuilder):
    MODULE = complete_journey
    URL = "https://github.com/bradleyboehmke/completejourney"


class Oulad(_ProfileBuilder):
    MODULE = oulad
    URL = oulad.URL
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"Put anonymisedData.zip of {oulad.URL} into the folder, or set SCALETOT_DATA."


class KuairandPure(_ProfileBuilder):
    MODULE = kuairand_pure
    URL = kuairand_pure.URL
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        f"Put KuaiRand-Pure.tar.gz of {kuairand_pure.URL} into the folder, or set SCALETOT_DATA."
    )


BUILDERS = {"complete_journey": CompleteJourney, "oulad": Oulad, "kuairand_pure": KuairandPure}


def read_built(name: str, data_dir: str | Path, manual_dir: str | Path = "", *, config: str = "all") -> pa.Table:
    """Builds a data set where it is not built yet, and reads it back as the table it was made from."""
    builder = BUILDERS[name](data_dir=str(data_dir), config=config)
    downloads = tfds.download.DownloadConfig(manual_dir=str(manual_dir) or None)
    builder.download_and_prepare(
        download_dir=str(Path(data_dir) / "downloads"), download_config=downloads, file_format=FILE_FORMAT
    )
    return to_table(builder.as_data_source(split="train"), builder.MODULE.TYPES)


def to_table(source: Any, types: dict[str, pa.DataType]) -> pa.Table:
    """The rows of a data source as an Arrow table of ``types``, with nulls for missing values."""
    rows = source.__getitems__(range(len(source)))
    return pa.table({name: _from_disk([row[name] for row in rows], kind) for name, kind in types.items()})


def _feature(kind: pa.DataType) -> Any:
    if pa.types.is_list(kind):
        return tfds.features.Sequence(tfds.features.Text())
    if pa.types.is_integer(kind):
        return tfds.features.Scalar(np.int64)
    if pa.types.is_floating(kind):
        return tfds.features.Scalar(np.float32)
    return tfds.features.Text()


def _to_disk(column: pa.ChunkedArray, kind: pa.DataType) -> list[Any]:
    if pa.types.is_list(kind):
        return [value or [] for value in column.to_pylist()]
    if pa.types.is_integer(kind):
        return pc.fill_null(column.cast(pa.int64()), NO_COUNT).to_pylist()
    if pa.types.is_floating(kind):
        return pc.fill_null(column.cast(pa.float32()), float("nan")).to_pylist()
    return pc.fill_null(column.cast(pa.string()), "").to_pylist()


def _from_disk(values: list[Any], kind: pa.DataType) -> pa.Array:
    if pa.types.is_list(kind):
        return pa.array([[word.decode() for word in value] or None for value in values], kind)
    if pa.types.is_integer(kind):
        counts = np.asarray(values, np.int64)
        return pa.array(counts, mask=counts == NO_COUNT).cast(kind)
    if pa.types.is_floating(kind):
        return pa.array(np.asarray(values, np.float32), from_pandas=True).cast(kind)
    return pa.array([value.decode() or None for value in values], pa.string()).cast(kind)
