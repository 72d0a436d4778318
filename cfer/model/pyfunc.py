"""The code that is stored with a model: MLflow runs this file where the model is loaded.

It must not import `cfer`, which may not be installed there. The network is stored as a
`torch.export` program, so it needs no class definitions either.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel


class StoredModel(PythonModel):
    """Planes of frames, uint8 (N, T, C, S/2, S/2) → probabilities, float32 (N, classes)."""

    def load_context(self, context: Any) -> None:
        self.network = torch.export.load(context.artifacts["network"]).module()

    def predict(self, context: Any, model_input: np.ndarray, params: Any = None) -> np.ndarray:
        planes = torch.tensor(np.asarray(model_input))  # a copy, since the input may be read-only
        with torch.inference_mode():
            return self.network(planes).numpy()


set_model(StoredModel())
