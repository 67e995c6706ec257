"""Tensors out of safetensors files, whoever wrote them. No code of a file ever runs."""

from __future__ import annotations

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from pipeline.records.documents import check_tensor_header
from pipeline.records.vocabulary import UsageError
from pipeline.storage.redaction import unquoted

# Of a file of weights; the largest network here has 0.6 GB of them.
MAX_WEIGHTS_BYTES = 2**33


def read_tensors(content: bytes, what: str, *, cure: str) -> dict[str, Tensor]:
    """The tensors by name.

    what: names the file in errors. Raises UsageError for what is no safetensors, or claims a header of absurd length.
    """
    try:
        check_tensor_header(content, what)
        return safetensors.torch.load(content)
    except (SafetensorError, ValueError, KeyError, TypeError, OverflowError) as error:
        reason = unquoted(str(error))[:120]
        told = str(error) if isinstance(error, UsageError) else f"{what} is not safetensors ({reason})"
        raise UsageError(f"{told}; {cure}") from None
