"""Gumbel noise without state: a hash of (key, token id), so a draw depends on the request's seed,
the position and the token, and on nothing else: not on the batch, its order or preemption."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from xtdist.config import derive_seed

_LOW32 = 0xFFFFFFFF


def noise_key(seed: int, *labels: int | str) -> tuple[int, int]:
    """The two signed 32-bit halves of the stream named by ``labels``."""
    key = derive_seed(seed, *labels)
    return _signed(key & _LOW32), _signed(key >> 32)


def gumbel(keys: Int[Tensor, "r 2"], ids: Int[Tensor, "#r k"]) -> Float[Tensor, "r k"]:
    """Standard Gumbel noise per (row key, id): ``argmax(logits + gumbel)`` samples the softmax.

    Two rounds of a 32-bit mixing hash, one per half of the key; 24 bits become a uniform in (0, 1).
    """
    bits = ids.to(torch.int32) ^ keys[:, :1]
    bits = mix(mix(bits).add_(keys[:, 1:]))
    uniform = bits.bitwise_right_shift_(8).bitwise_and_(0xFFFFFF).float()
    uniform.add_(0.5).mul_(2.0**-24)
    return uniform.log_().neg_().log_().neg_()


def mix(x: Int[Tensor, "*n"]) -> Int[Tensor, "*n"]:
    """A bijection of 32-bit integers in which every output bit depends on every input bit
    (the finaliser of MurmurHash3). Overwrites ``x``."""
    x.bitwise_xor_((x >> 16).bitwise_and_(0xFFFF)).mul_(_signed(0x85EBCA6B))
    x.bitwise_xor_((x >> 13).bitwise_and_(0x7FFFF)).mul_(_signed(0xC2B2AE35))
    return x.bitwise_xor_((x >> 16).bitwise_and_(0xFFFF))


def _signed(x: int) -> int:
    return x - (1 << 32) if x >= 1 << 31 else x
