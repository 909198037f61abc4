"""The same networks in torch, with the same weights and data, and the order of their parameters in the JAX layout."""

from typing import Any

import numpy as np
import torch
from torch import nn


class Problem:
    """`model`, `loss_fn`, `x`, `y`, `params` (a list) and `direction` (a flat vector) in torch's layout."""

    def __init__(self, problem: dict[str, np.ndarray]) -> None:
        kernels = [problem[f"kernel_{i}"] for i in range(sum(name.startswith("kernel") for name in problem))]
        biases = [problem[f"bias_{i}"] for i in range(len(kernels))]
        layers: list[nn.Module] = []
        order, start, channels = [], 0, 0
        for i, kernel in enumerate(kernels):
            index = np.arange(start, start + kernel.size).reshape(kernel.shape)
            start += kernel.size
            if kernel.ndim == 4:
                channels = kernel.shape[3]
                layers += [nn.Conv2d(kernel.shape[2], channels, kernel.shape[0], padding=kernel.shape[0] // 2)]
                layers += [nn.Tanh(), nn.AvgPool2d(2)]
                index = index.transpose(3, 2, 0, 1)
            else:
                if i == 0 or kernels[i - 1].ndim == 4:
                    layers += [nn.Flatten()]
                if channels and kernels[i - 1].ndim == 4:  # torch flattens (C, H, W), JAX (H, W, C)
                    side = int((kernel.shape[0] // channels) ** 0.5)
                    index = index.reshape(side, side, channels, -1).transpose(2, 0, 1, 3).reshape(kernel.shape)
                layers += [nn.Linear(*kernel.shape), nn.Tanh()]
                index = index.T
            order += [index.ravel(), np.arange(start, start + biases[i].size)]
            start += biases[i].size
        self._order = np.concatenate(order)
        weights = np.concatenate([part.ravel() for pair in zip(kernels, biases, strict=True) for part in pair])
        self.model = nn.Sequential(*layers[:-1])
        nn.utils.vector_to_parameters(torch.from_numpy(weights[self._order]), self.model.parameters())
        self.params = list(self.model.parameters())
        self.loss_fn = nn.CrossEntropyLoss()
        self.x = torch.from_numpy(problem["x"].transpose(0, 3, 1, 2).copy())
        self.y = torch.from_numpy(problem["y"].astype(np.int64))
        self.direction = torch.from_numpy(problem["direction"][self._order])

    def gradient(self) -> Any:
        """As every torch user takes it."""
        return torch.autograd.grad(self.loss_fn(self.model(self.x), self.y), self.params)

    def flat(self, tensors: Any) -> np.ndarray:
        """A vector, or a list of tensors like `params`, as a vector in the JAX layout; (..., P) is kept."""
        if isinstance(tensors, list | tuple):
            tensors = torch.cat([tensor.reshape(-1) for tensor in tensors])
        given = np.asarray(tensors.detach() if isinstance(tensors, torch.Tensor) else tensors)
        result = np.empty_like(given)
        result[..., self._order] = given
        return result
