"""Procedural analogue clocks: geometry, the density of their times, and an anti-aliased renderer.

A clock is a time in minutes, T in [0, 720), and four shades in [0, 1] (face, rim, hour hand, minute
hand). Images are (B, 3, SIZE, SIZE) with values in VALUE_RANGE: SCALE (RGB - 1/2). Lengths are in units of
half the image side, measured from the centre; angles in radians, clockwise from 12 o'clock.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fmtt.errors import UserError

SIZE = 32
DATA_SHAPE = (3, SIZE, SIZE)
MINUTES = 720
NUM_SHADES = 4
SCALE = 0.5
"""How large the data are beside the noise of variance 1. At this scale a clock's time is decided around the
middle of the path, so that evenly spaced steps are well spent and a look-ahead has something to look ahead
to; at scale 1 it would be decided in the first third."""
VALUE_RANGE = (-SCALE / 2, SCALE / 2)
"""The values of black and white."""

RIM_RADIUS, FACE_RADIUS, TICK_RADII, CAP_RADIUS = 0.97, 0.84, (0.72, 0.80), 0.10
HOUR_LENGTH, HOUR_WIDTH = 0.50, 0.34
MINUTE_LENGTH, MINUTE_WIDTH = 0.70, 0.09

# Each part's colour runs linearly between two RGB values as its shade goes from 0 to 1.
BACKGROUND = (0.55, 0.56, 0.58)
FACE = ((0.86, 0.86, 0.84), (0.98, 0.97, 0.95))
RIM = ((0.16, 0.20, 0.26), (0.42, 0.36, 0.30))
HOUR = ((0.80, 0.10, 0.16), (0.92, 0.42, 0.06))
MINUTE = ((0.10, 0.12, 0.62), (0.04, 0.46, 0.72))
INK = (0.22, 0.22, 0.24)

LIKELY_TIME, LIKELY_SHARE, LIKELY_CONCENTRATION = 610.0, 0.64, 6.5


class Clock(NamedTuple):
    """Latent variables: time (B,) in minutes and shades (B, 4) in [0, 1]."""

    time: Tensor
    shades: Tensor


def parse_time(text: str) -> float:
    """Minutes after 12 o'clock of a time written ``h:mm`` with 1 <= h <= 12.

    Raises:
        UserError: when the text is not such a time.
    """
    hour, colon, minute = text.partition(":")
    valid = colon and hour.isdecimal() and minute.isdecimal() and len(minute) == 2
    if not valid or not 1 <= int(hour) <= 12 or int(minute) > 59:
        raise UserError(f"a clock time is written h:mm with h from 1 to 12, got {text!r}")
    return float(int(hour) % 12 * 60 + int(minute))


def format_time(minutes: float) -> str:
    """The inverse of :func:`parse_time`, rounded to the minute."""
    m = round(minutes) % MINUTES
    return f"{m // 60 or 12}:{m % 60:02d}"


def hand_angles(time: Tensor) -> tuple[Tensor, Tensor]:
    """(hour, minute) hand angles; the hour hand moves with the minutes."""
    return time * (2 * math.pi / MINUTES), time * (2 * math.pi / 60)


def time_difference(a: Tensor, b: Tensor | float) -> Tensor:
    """The signed difference a - b on the 12-hour circle, in [-360, 360)."""
    return (a - b + MINUTES / 2) % MINUTES - MINUTES / 2


def time_density(time: Tensor) -> Tensor:
    """The prior density of the time, per minute: uniform plus a von Mises bump at 10:10.

    Its mass within ten minutes of 3:47 is 1.0 %.
    """
    kappa = torch.tensor(LIKELY_CONCENTRATION, dtype=torch.float64)
    angle = time_difference(time.double(), LIKELY_TIME) * (2 * math.pi / MINUTES)
    # exp(kappa (cos - 1)) / i0e(kappa) is the von Mises density times 2 pi, without overflow.
    bump = torch.exp(kappa * (angle.cos() - 1)) / torch.special.i0e(kappa)
    return (LIKELY_SHARE * bump + (1 - LIKELY_SHARE)) / MINUTES


def time_quantile(u: Tensor) -> Tensor:
    """The time (float64) below which a share ``u`` in [0, 1) of the prior lies."""
    grid = torch.linspace(0, MINUTES, 7201, dtype=torch.float64)
    density = time_density(grid)
    cdf = torch.cat([torch.zeros(1), ((density[1:] + density[:-1]) / 2).cumsum(0)]).double()
    cdf = cdf / cdf[-1]
    right = torch.searchsorted(cdf, u.double().contiguous(), right=True).clamp(1, len(grid) - 1)
    lo, hi = cdf[right - 1], cdf[right]
    fraction = (u.double() - lo) / (hi - lo)
    return grid[right - 1] + fraction * (grid[right] - grid[right - 1])


def pixel_grid(size: int = SIZE, *, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Pixel centres (x to the right, y upward), each (size, size), in [-1, 1]."""
    centres = (torch.arange(size, device=device, dtype=torch.float32) + 0.5) * (2 / size) - 1
    y, x = torch.meshgrid(-centres, centres, indexing="ij")
    return x, y


def _coverage(distance: Tensor, size: int) -> Tensor:
    """Share of a pixel inside a shape whose signed distance (negative inside) is given."""
    return (0.5 - distance * (size / 2)).clamp(0, 1)


def _hand(angle: Tensor, length: float, width: float, size: int) -> Tensor:
    """Coverage (B, size, size) of a tapered hand from the centre."""
    x, y = pixel_grid(size, device=angle.device)
    sin, cos = angle.sin()[:, None, None], angle.cos()[:, None, None]
    along, across = x * sin + y * cos, x * cos - y * sin
    nearest = along.clamp(0, length)
    half_width = (width / 2) * (1.15 - 0.3 * nearest / length)
    distance = torch.sqrt((along - nearest).square() + across.square() + 1e-12) - half_width
    return _coverage(distance, size)


def layer_weights(time: Tensor, size: int = SIZE) -> Tensor:
    """How much each part shows in each pixel: (B, 6, size, size), summing to 1 over parts.

    Parts in order: background, rim, face, ink (ticks and cap), hour hand, minute hand.
    """
    x, y = pixel_grid(size, device=time.device)
    radius = (x.square() + y.square()).sqrt()
    rim, face = _coverage(radius - RIM_RADIUS, size), _coverage(radius - FACE_RADIUS, size)
    inner, outer = TICK_RADII
    ticks = torch.zeros_like(radius)
    for k in range(12):
        sin, cos = math.sin(k * math.pi / 6), math.cos(k * math.pi / 6)
        along, across = x * sin + y * cos, x * cos - y * sin
        half = 0.045 if k % 3 == 0 else 0.025
        gap = torch.maximum((along - (inner + outer) / 2).abs() - (outer - inner) / 2, across.abs() - half)
        ticks = torch.maximum(ticks, _coverage(gap, size))
    hour_angle, minute_angle = hand_angles(time.float())
    hour = _hand(hour_angle, HOUR_LENGTH, HOUR_WIDTH, size)
    minute = _hand(minute_angle, MINUTE_LENGTH, MINUTE_WIDTH, size)
    cap = _coverage(radius - CAP_RADIUS, size).expand_as(hour)
    # Painted from back to front; what a part shows is its coverage times what later parts leave.
    painted = [torch.ones_like(hour), rim.expand_as(hour), face.expand_as(hour)]
    painted += [ticks.expand_as(hour), hour, minute, cap]
    shown: list[Tensor] = []
    left = torch.ones_like(hour)
    for coverage in reversed(painted):
        shown.append(coverage * left)
        left = left * (1 - coverage)
    cap_shown, minute_shown, hour_shown, ticks_shown, face_shown, rim_shown, back_shown = shown
    ink = cap_shown + ticks_shown
    return torch.stack([back_shown, rim_shown, face_shown, ink, hour_shown, minute_shown], dim=1)


def colours(shades: Tensor) -> Tensor:
    """RGB of the six parts of :func:`layer_weights`, (B, 6, 3) in [0, 1], from shades (B, 4)."""

    def between(ends: tuple[tuple[float, ...], tuple[float, ...]], shade: Tensor) -> Tensor:
        low, high = shades.new_tensor(ends[0]), shades.new_tensor(ends[1])
        return low + shade[:, None] * (high - low)

    face, rim, hour, minute = shades.unbind(1)
    fixed = [shades.new_tensor(c).expand(len(shades), 3) for c in (BACKGROUND, INK)]
    return torch.stack(
        [
            fixed[0],
            between(RIM, rim),
            between(FACE, face),
            fixed[1],
            between(HOUR, hour),
            between(MINUTE, minute),
        ],
        dim=1,
    )


def render(clock: Clock, size: int = SIZE) -> Tensor:
    """Images (B, 3, size, size) with values in VALUE_RANGE."""
    image = torch.einsum("bkhw,bkc->bchw", layer_weights(clock.time, size), colours(clock.shades.float()))
    return SCALE * (image - 0.5)


def unscale(images: Tensor) -> Tensor:
    """RGB of images of this data set, as far as they keep within its range in [0, 1]."""
    return images / SCALE + 0.5


def to_rgb(images: Tensor) -> Tensor:
    """Clip images of this data set to displayable RGB in [0, 1]."""
    return unscale(images.float()).clamp(0, 1)
