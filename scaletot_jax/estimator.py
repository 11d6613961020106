"""``ScaleToTEncoder``: fit, transform, predict, in the manner of scikit-learn, which need not be installed.

    encoder = ScaleToTEncoder(schema="users.yaml").fit(table)               # labels are columns of the schema
    encoder = ScaleToTEncoder(schema="users.yaml").fit(table, states=z)     # and reasoning states of some of the users
    encoder = ScaleToTEncoder().fit("runs/quickstart")                      # a finished run
    z, days = encoder.transform(table), encoder.predict(table)
    encoder.save_pretrained("model")                                        # for scaletot score, serve, watch

It is a shell around the code of the line: the encoder of :mod:`scaletot_jax.encoder`, the heads of
:mod:`scaletot_jax.evaluation.comparison`, the served model of :mod:`scaletot_jax.population`.
"""

from __future__ import annotations

import contextlib
import inspect
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from scaletot_jax.errors import ConfigError, DataError
from scaletot_jax.profiles.schema import Schema, load_schema


class Distribution(NamedTuple):
    """What is predicted of one label for U rows.

    Attributes:
      mean: [U] expected label. positive: [U] P(y > 0).
      levels: of the quantiles. quantiles: [U, len(levels)].
      probabilities: [U, horizon + 1], P(y = j) of days; None of a value.
    """

    mean: np.ndarray
    positive: np.ndarray
    levels: tuple[float, ...]
    quantiles: np.ndarray
    probabilities: np.ndarray | None


class ScaleToTEncoder:
    """An encoder of profiles with its LTV heads.

    Args:
      schema: what the table's columns are: a YAML file, the name of a built-in schema, a mapping or a Schema. Not needed to
        fit from a run.
      profile_fields: ``static+early`` or ``static``.
      dim, width, steps, batch_size, learning_rate, field_dropout, whiten_dim: of the encoder, as ``distill.*``.
      head_seeds, head_width, head_steps, head_learning_rate, head_penalties: of the heads, as ``head.*``.
      seed: of everything drawn.

    Attributes:
      model_: the fitted :class:`scaletot_jax.population.model.ServedModel`.
      target_: what the encoder learnt from: ``states``, ``labels``, or that of the run.
    """

    def __init__(
        self,
        schema: Any = None,
        *,
        profile_fields: str = "static+early",
        dim: int = 64,
        width: int = 256,
        steps: int = 2000,
        batch_size: int = 256,
        learning_rate: float = 1e-3,
        field_dropout: float = 0.2,
        whiten_dim: int = 64,
        head_seeds: int = 5,
        head_width: int = 64,
        head_steps: int = 1500,
        head_learning_rate: float = 1e-3,
        head_penalties: Sequence[float] = (1e-3, 1e-2, 1e-1, 1.0),
        seed: int = 0,
    ):
        self.schema = schema
        self.profile_fields = profile_fields
        self.dim, self.width, self.steps, self.batch_size = dim, width, steps, batch_size
        self.learning_rate, self.field_dropout, self.whiten_dim = learning_rate, field_dropout, whiten_dim
        self.head_seeds, self.head_width, self.head_steps = head_seeds, head_width, head_steps
        self.head_learning_rate, self.head_penalties = head_learning_rate, head_penalties
        self.seed = seed

    # -- the conventions of scikit-learn ------------------------------------------------------------------------------

    @classmethod
    def _names(cls) -> list[str]:
        return [name for name in inspect.signature(cls.__init__).parameters if name != "self"]

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self._names()}

    def set_params(self, **params: Any) -> ScaleToTEncoder:
        unknown = sorted(set(params) - set(self._names()))
        if unknown:
            raise ValueError(f"unknown parameters: {', '.join(unknown)}; there are {', '.join(self._names())}")
        for name, value in params.items():
            setattr(self, name, value)
        return self

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "model_")

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import InputTags, Tags, TargetTags, TransformerTags

        return Tags(
            estimator_type=None, target_tags=TargetTags(required=False), transformer_tags=TransformerTags(),
            input_tags=InputTags(two_d_array=False, string=True, categorical=True, allow_nan=True),
        )  # fmt: skip

    def __repr__(self) -> str:
        defaults = inspect.signature(type(self).__init__).parameters
        changed = [f"{name}={value!r}" for name, value in self.get_params().items() if value != defaults[name].default]
        return f"{type(self).__name__}({', '.join(changed)})"

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        return np.asarray([f"z{i}" for i in range(self._fitted().spec.encoder.dim)], object)

    # -- fitting ------------------------------------------------------------------------------------------------------

    def fit(self, X: Any, y: Any = None, *, states: Any = None) -> ScaleToTEncoder:
        """Fits encoder and heads; a fit that fails leaves what was fitted before as it was.

        Without ``states`` the encoder learns from the labels of its own part of the users, and the heads from the others'
        (the placebo ``labels`` of :mod:`scaletot_jax.encoder.targets`); with them no label trains the encoder.

        Args:
          X: a pyarrow Table, a pandas DataFrame, a mapping column → values, the path of a Parquet file, or the folder of a
            finished run, whose encoder and heads are taken as they are.
          y: labels that are no columns of X: [U] of the days label, or a mapping column → [U].
          states: reasoning states, [U, K, D] or [U, N, K, D] of N chains, or a mapping segment → [U, D] or [U, N, D]; rows
            of NaN where there was no reasoning.

        Raises:
          DataError: the table does not fit the schema, or has too few rows.
          ConfigError: no schema.
          StaleRunError: the run is not finished.
        """
        from scaletot_jax.estimator_fit import fit_run, fit_table

        with contextlib.ExitStack() as undo:  # what was fitted before stays whole until this has succeeded
            place = tempfile.TemporaryDirectory(prefix="scaletot-")
            undo.callback(place.cleanup)
            folder = Path(place.name) / "model"
            if isinstance(X, str | Path) and Path(X).is_dir():
                if y is not None or states is not None:
                    raise ConfigError("a run brings its own labels and states", where="fit", do="fit(run_directory)")
                model, target = fit_run(Path(X), folder)
            else:
                table = _with_labels(read_table(X), self._schema(), y)
                model, target = fit_table(table, self._schema(), states, self.get_params(), folder)
            undo.pop_all()
        self._folder, self.model_, self.target_ = place, model, target
        return self

    def fit_transform(self, X: Any, y: Any = None, **fit_params: Any) -> np.ndarray:
        return self.fit(X, y, **fit_params).transform(X)

    def _schema(self) -> Schema:
        if self.schema is None:
            raise ConfigError(
                "a table needs a schema",
                where="ScaleToTEncoder(schema=…)",
                do="give a YAML file, a mapping or a built-in name",
            )
        if isinstance(self.schema, Schema):
            return self.schema
        return Schema.from_dict(self.schema) if isinstance(self.schema, Mapping) else load_schema(self.schema)

    # -- use ----------------------------------------------------------------------------------------------------------

    def transform(self, X: Any) -> np.ndarray:
        """ẑ [U, E] float32."""
        return self._columns(X)["embedding"]

    def predict(self, X: Any, label: str | None = None) -> np.ndarray:
        """The expected label [U] float32: active days, or the column named ``label``."""
        return self._columns(X)[f"expected_{self._target(label).column}"]

    def predict_distribution(self, X: Any, label: str | None = None) -> Distribution:
        """Mean, P(y > 0) and quantiles of a label, of days also the probability of each number; as :class:`Distribution`."""
        from scaletot_jax.population.forward import LEVELS

        target, found = self._target(label), self._columns(X, probabilities=True)
        names = [f"q{round(100 * level)}_{target.column}" for level in LEVELS]
        return Distribution(
            found[f"expected_{target.column}"], found[f"p_positive_{target.column}"], LEVELS,
            np.stack([found[name] for name in names], 1), found.get(f"probabilities_{target.column}"),
        )  # fmt: skip

    def save_pretrained(self, directory: str | Path) -> Path:
        """Writes the model with its card, see :mod:`scaletot_jax.population.pretrained`."""
        from scaletot_jax.population.pretrained import save_pretrained

        return save_pretrained(self._fitted(), directory)

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> ScaleToTEncoder:
        """A fitted encoder from what :meth:`save_pretrained` or ``scaletot export`` wrote."""
        from scaletot_jax.population.pretrained import from_pretrained

        model = from_pretrained(directory)
        encoder = cls(model.schema, dim=model.spec.encoder.dim, width=model.spec.encoder.width)
        encoder.model_, encoder.target_ = model, str(model.record.get("target", "run"))
        return encoder

    def _fitted(self) -> Any:
        if not hasattr(self, "model_"):
            raise DataError("the encoder is not fitted", where=type(self).__name__, do="call fit or from_pretrained")
        return self.model_

    def _target(self, label: str | None) -> Any:
        targets = self._fitted().spec.targets
        for target in targets:
            if label is None or target.column == label:
                return target
        raise DataError(
            "the model has no such label",
            why=repr(label),
            do=f"one of {', '.join(t.column for t in targets) or 'none'}",
        )

    def _columns(self, X: Any, *, probabilities: bool = False) -> dict[str, np.ndarray]:
        from scaletot_jax.estimator_fit import predict_table

        return predict_table(self._fitted(), read_table(X), probabilities=probabilities)


def read_table(X: Any) -> pa.Table:
    """A table from what people have at hand; DataError otherwise."""
    if isinstance(X, pa.Table):
        return X
    try:
        if isinstance(X, str | Path):
            from scaletot_jax.profiles.table import read_parquet

            return read_parquet(X)
        if hasattr(X, "columns") and hasattr(X, "iloc"):
            return pa.Table.from_pandas(X, preserve_index=False)
        if isinstance(X, Mapping):
            return pa.table(dict(X))
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise DataError("the table cannot be read", where=type(X).__name__, why=" ".join(str(error).split())) from error
    raise DataError(
        "this is no table", where="X", why=f"it is a {type(X).__name__}",
        do="give a pyarrow Table, a pandas DataFrame, a mapping of columns, or the path of a Parquet file",
    )  # fmt: skip


def _with_labels(table: pa.Table, schema: Schema, y: Any) -> pa.Table:
    """Adds labels that came apart, and row numbers for an identifier that is not there."""
    if y is not None:
        for name, values in (y if isinstance(y, Mapping) else {schema.labels.days.column: y}).items():
            if name not in schema.labels.columns:
                raise DataError("y names no label of the schema", where="y", why=repr(name), do=f"one of {', '.join(schema.labels.columns)}")  # fmt: skip
            column = pa.array(np.asarray(values))
            if len(column) != table.num_rows:
                raise DataError("y has another length than X", why=f"{len(column)}, not {table.num_rows}")
            if name in table.column_names:
                table = table.drop_columns([name])
            table = table.append_column(name, column)
    if schema.id not in table.column_names:
        table = table.append_column(schema.id, pa.array([f"row {i}" for i in range(table.num_rows)]))
    return table
