"""Batch norm over the examples of all workers, so that a global batch means the same on any number of them."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class BatchNormOfAllWorkers(nn.modules.batchnorm._BatchNorm):
    """Batch norm, 1d or 2d, whose statistics are those of the global batch; the workers' shares are equal.

    torch's own SyncBatchNorm does the same on GPUs and refuses to run elsewhere.
    """

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002 (torch's name)
        if input.dim() not in (2, 4):
            raise ValueError(f"expected (B, C) or (B, C, H, W), got {tuple(input.shape)}")

    def forward(self, features: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        if not self.training:
            return super().forward(features)
        values = features.float()  # (B, C) or (B, C, H, W); its statistics in float32 under autocast too
        others = tuple(dim for dim in range(values.dim()) if dim != 1)
        shape = (1, -1) + (1,) * (values.dim() - 2)
        mean = _mean_of_all(values.mean(dim=others, keepdim=True))  # (1, C, 1, 1), or (1, C)
        centred = values - mean
        variance = _mean_of_all(centred.square().mean(dim=others, keepdim=True))
        count = values.numel() // values.shape[1] * dist.get_world_size()
        with torch.no_grad():
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            assert self.momentum is not None
            self.running_mean.lerp_(mean.flatten(), self.momentum)
            self.running_var.lerp_(variance.flatten() * count / (count - 1), self.momentum)
            self.num_batches_tracked += 1
        gain = self.weight.view(shape) * (variance + self.eps).rsqrt()
        return (centred * gain + self.bias.view(shape)).to(features.dtype)


def synchronised(model: nn.Module, *, device: torch.device) -> nn.Module:
    """The model with every batch norm over all workers of the process group; parameters and their names stay."""
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) in (nn.BatchNorm1d, nn.BatchNorm2d):
                assert isinstance(child, nn.modules.batchnorm._BatchNorm)
                norm = BatchNormOfAllWorkers(child.num_features, eps=child.eps, momentum=child.momentum)
                norm.weight, norm.bias = child.weight, child.bias
                norm.load_state_dict(child.state_dict())
                setattr(parent, name, norm)
    return model


class _MeanOfWorkers(torch.autograd.Function):
    """A tensor's mean over the workers; its gradient is the mean of theirs."""

    @staticmethod
    def forward(_: Any, local: Tensor) -> Tensor:
        mean = local.clone()
        dist.all_reduce(mean)
        return mean / dist.get_world_size()

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _MeanOfWorkers.forward(_, gradient.contiguous())


def _mean_of_all(local: Tensor) -> Tensor:
    return _MeanOfWorkers.apply(local)  # pyright: ignore[reportReturnType]
