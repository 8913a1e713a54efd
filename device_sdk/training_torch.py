"""Train by the round's recipe with PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy.typing as npt
import torch

from device_sdk.training import MOMENTUM, TrainingData, TrainingRecipe
from gradledger.errors import ConfigError
from gradledger.models import FloatArray, Mlp, Model

__all__ = ["torch_fit"]


def torch_fit(
    x: npt.ArrayLike, y: npt.ArrayLike, recipe: TrainingRecipe
) -> Callable[[Model, tuple[FloatArray, npt.NDArray[Any]]], tuple[Model, list[int]]]:
    """Return a `fit` for `Round.train` that follows the recipe with PyTorch.

    Parameters
    ----------
    x : array of float, shape (examples, features)
    y : array of int or float, shape (examples,)
        Floats for a regression.
    recipe : TrainingRecipe
        `round.recipe`.

    Returns
    -------
    callable
        `fit(model, validation) -> (trained, errors)`; for models of the kind `mlp`.

    Notes
    -----
    The same steps as `sklearn_fit`, on the CPU and one thread; the two agree to rounding errors,
    not to the bit.
    """
    data = TrainingData(x, y)

    def fit(
        model: Model, validation: tuple[FloatArray, npt.NDArray[Any]]
    ) -> tuple[Model, list[int]]:
        network = model.network
        if not isinstance(network, Mlp):
            raise ConfigError(f"this helper trains models of kind mlp, got {network.kind}")
        data.check(network)
        errors: list[int] = []
        with _one_thread():
            weights = {
                name: torch.tensor(array, requires_grad=True)
                for name, array in model.arrays.items()
            }
            optimiser = torch.optim.SGD(weights.values(), lr=recipe.rate, momentum=MOMENTUM)
            inputs, labels = torch.from_numpy(data.x), torch.from_numpy(data.y)
            for rows, measures in recipe.runs(len(data)):
                for batch in torch.from_numpy(rows).split(recipe.batch_size) if len(rows) else ():
                    optimiser.zero_grad()
                    scores = _scores(network, weights, inputs[batch])
                    _loss(network, scores, labels[batch]).backward()
                    optimiser.step()
                if measures:
                    model = model.with_arrays({k: v.detach().numpy() for k, v in weights.items()})
                    errors += [recipe.measure(model, validation)] * measures
        return model, errors + recipe.closing(model, validation)

    return fit


def _loss(network: Mlp, scores: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    if network.identity:
        return torch.nn.functional.mse_loss(scores[:, 0], y) / 2
    return torch.nn.functional.cross_entropy(scores, y)


def _scores(network: Mlp, weights: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    last = len(network.layers) - 2
    for i in range(last + 1):
        x = x @ weights[f"w{i}"] + weights[f"b{i}"]
        if i < last:
            x = torch.relu(x)
    return x


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keep the order of additions the same, whatever the machine's number of cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
