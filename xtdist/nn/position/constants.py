"""Numbers of a module that are not learned."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def constants(values: tuple[float, ...], device: torch.device) -> Float[Tensor, " h"]:
    """``values`` in fp32 on ``device``.

    Made at every call: a buffer would be rounded when the module is cast to bf16, and left empty
    when it is built on the meta device. A few fills do not wait for the device, as a copy would.
    """
    if device.type == "cpu":
        return torch.tensor(values, dtype=torch.float32, device=device)
    return torch.stack([torch.full((), v, dtype=torch.float32, device=device) for v in values])
