"""What a trained network's cross-attention does: a network and examples come in, two figures out."""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.dataset.dataset import ExampleDataset
from pipeline.models.cahfw import CrossAttention
from pipeline.models.predict import predict

BATCH_SIZE = 64


def attention_use(model: nn.Module, examples: ExampleDataset, *, device: str) -> dict[str, float] | None:
    """How a network uses cross-attention on labelled examples in an order that tells nothing; None where it has none.

    channels_mixed: over how many of the 256 channels a row of its softmax spreads, exp of its entropy, mean over rows,
    blocks and examples: 256 is the plain mean, which takes nothing from the other stream.
    top1_with_other_keys: the accuracy where each block is given the other stream of another example. Where that is the
    accuracy itself, nothing that the network answers passed from one stream to the other there.
    """
    blocks = [module for module in model.to(device).modules() if isinstance(module, CrossAttention)]
    if not blocks:
        return None
    spreads: list[float] = []

    def watch(block: nn.Module, maps: tuple[Any, ...]) -> None:
        assert isinstance(block, CrossAttention)
        spreads.append(float(torch.special.entr(block.attention(*maps)).sum(-1).exp().mean()))

    def give_another(_: nn.Module, maps: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
        own, other = maps
        return own, other.roll(1, dims=0)

    watching = [block.register_forward_pre_hook(watch) for block in blocks]
    _top1(model, examples, device=device)
    for hook in watching:
        hook.remove()
    giving = [block.register_forward_pre_hook(give_another) for block in blocks]
    top1 = _top1(model, examples, device=device)
    for hook in giving:
        hook.remove()
    return {"channels_mixed": statistics.mean(spreads), "top1_with_other_keys": top1}


def _top1(model: nn.Module, examples: ExampleDataset, *, device: str) -> float:
    starts = range(0, len(examples), BATCH_SIZE)
    rows = (np.arange(start, min(start + BATCH_SIZE, len(examples))) for start in starts)
    found = [logits.argmax(1) for _, logits in predict(model, map(examples.read_batch, rows), device=device)]
    return float((np.concatenate(found) == examples.labels).mean())
