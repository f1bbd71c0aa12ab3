"""What MLflow runs to answer with a registered model: a file of code in the model, and no pickle."""

import warnings
from pathlib import Path
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

# It asks for type hints, which it could not read: the signature says what goes in.
warnings.filterwarnings("ignore", message=".*Add type hints to the `predict` method")


class Sampler(PythonModel):  # type: ignore[misc]  # MLflow has no types
    """Images for rows of ``n``, ``seed`` and ``label``; see ``hasten.trainers.generation.packaged``."""

    def load_context(self, context: Any) -> None:
        from hasten.trainers.generation import packaged

        self._model = packaged.load(Path(context.artifacts["pipeline"]))

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # MLflow reads hints
        del context
        import pandas as pd

        from hasten.trainers.errors import ConfigError
        from hasten.trainers.generation import packaged

        asked = {key: value for key, value in (params or {}).items() if value is not None and value >= 0}
        try:
            wishes = [
                packaged.Wish(
                    n=int(row["n"]),
                    seed=int(row["seed"]),
                    label=None if pd.isna(row.get("label")) else int(row["label"]),
                )
                for row in model_input.to_dict("records")
            ]
            steps = int(asked["steps"]) if "steps" in asked else None
            rows = packaged.answer(self._model, wishes, steps=steps, guidance=asked.get("guidance"))
        except ConfigError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from None
        return pd.DataFrame(rows)


set_model(Sampler())
