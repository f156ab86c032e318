"""Philox4x32-10 and the normal transform in plain torch: the same bits as csrc/common/philox.h and normal.h.

A word is an int64 tensor holding an unsigned 32-bit value. Every floating-point operation below is one float32 add,
multiply or square root, rounded on its own, in the order in which the kernels do it.
"""

from __future__ import annotations

import torch

MASK = 0xFFFFFFFF
ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)  # golden ratio, sqrt(3) - 1

Words = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def _multiply(a: int, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """High and low word of the 64-bit product. int64 wraps, which keeps all 64 bits."""
    product = b * a
    return (product >> 32) & MASK, product & MASK


def philox4x32(counter: Words, key: tuple[torch.Tensor, torch.Tensor]) -> Words:
    """Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", section 3.3; 10 rounds."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for round_ in range(ROUNDS):
        if round_:
            k0, k1 = (k0 + KEY_INCREMENTS[0]) & MASK, (k1 + KEY_INCREMENTS[1]) & MASK
        hi0, lo0 = _multiply(MULTIPLIERS[0], c0)
        hi1, lo1 = _multiply(MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = hi1 ^ c1 ^ k0, lo1, hi0 ^ c3 ^ k1, lo0
    return c0, c1, c2, c3


def split64(value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Low and high word of an int64."""
    return value & MASK, (value >> 32) & MASK


def join64(low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    return low | (high << 32)


# log(m) = x - x^2/2 + x^3 P(x) for x = m - 1, m in [sqrt(1/2), sqrt(2)); sin, cos on [-pi/4, pi/4]: Cephes logf, sinf, cosf.
LOG = (
    7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1,
    -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1,
)  # fmt: skip
LN2_HIGH, LN2_LOW = 0.693359375, -2.12194440e-4
SIN = (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)
COS = (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)
SQRT_HALF_BITS = 0x3F3504F3
ANGLE_UNIT = 1.4629180792671596e-9  # 2 pi / 2^32


def _horner(coefficients: tuple[float, ...], x: torch.Tensor) -> torch.Tensor:
    p = x * coefficients[0] + coefficients[1]
    for c in coefficients[2:]:
        p = p * x + c
    return p


def _square_root(v: torch.Tensor) -> torch.Tensor:
    """Correctly rounded float32 square root. torch's own on CPU is not (MKL, off by an ulp in one value of five); in float64
    an error of an ulp is far below the distance of a float32's root from a rounding boundary, about 2^-50."""
    return v.to(torch.float64).sqrt().to(torch.float32)


def _log(u: torch.Tensor) -> torch.Tensor:
    """Natural logarithm of float32 u in (0, 1]."""
    bits = u.view(torch.int32) - SQRT_HALF_BITS
    exponent = (bits >> 23).to(torch.float32)
    mantissa = ((bits & 0x007FFFFF) + SQRT_HALF_BITS).view(torch.float32)
    x = mantissa - 1.0
    z = x * x
    y = _horner(LOG, x) * x * z
    y = y + exponent * LN2_LOW
    y = y - z * 0.5
    return x + y + exponent * LN2_HIGH


def _sincos(word: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sine and cosine of the angle 2 pi word / 2^32, reduced in integers to [-pi/4, pi/4]."""
    quadrant = (word + 0x20000000) >> 30
    theta = (word - (quadrant << 30)).to(torch.float32) * ANGLE_UNIT
    z = theta * theta
    s = _horner(SIN, z) * z * theta + theta
    c = _horner(COS, z) * z * z - z * 0.5 + 1.0
    odd = (quadrant & 1).bool()
    sine, cosine = torch.where(odd, c, s), torch.where(odd, s, c)
    return torch.where((quadrant & 2).bool(), -sine, sine), torch.where(((quadrant + 1) & 2).bool(), -cosine, cosine)


def box_muller(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Two words to two standard normals: radius from a, angle from b. Box & Muller 1958."""
    u = a.to(torch.float32) * 2.0**-32 + 2.0**-33
    radius = _square_root(_log(u) * -2.0)
    sine, cosine = _sincos(b)
    return radius * cosine, radius * sine
