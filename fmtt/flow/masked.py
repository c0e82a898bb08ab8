"""The flow map of a part of a sample, the rest of which is known: inpainting by replacement."""

from __future__ import annotations

from torch import Tensor

from fmtt.flow.interpolant import Interpolant
from fmtt.types import Cond, FlowMap, Time, VelocityField


class Known:
    """What is known of every sample, and where: outside of ``mask``, at every time, one and the same path.

    Args:
        interpolant: of the flow map.
        sample: the known sample (*D); its values inside the mask count for nothing.
        noise: (*D), what its path starts from: alpha_t noise + beta_t sample.
        mask: (*D), true where a sample is free.
    """

    def __init__(self, interpolant: Interpolant, sample: Tensor, noise: Tensor, mask: Tensor) -> None:
        self.interpolant, self.sample, self.noise = interpolant, sample, noise
        self.free = mask.reshape(-1).nonzero()[:, 0]

    def part(self, x: Tensor) -> Tensor:
        """The free elements (B, M) of samples (B, *D)."""
        return x.flatten(1).index_select(1, self.free)

    def whole(self, part: Tensor, t: Time) -> Tensor:
        """Samples (B, *D) at time ``t`` with these free elements (B, M)."""
        size = (len(part), *self.sample.shape)
        sample, noise = (v.to(part).expand(size) for v in (self.sample, self.noise))
        path = self.interpolant.interpolate(noise, sample, t)
        return path.flatten(1).index_copy(1, self.free, part).reshape(size)


class MaskedFlowMap:
    """A flow map of the free part (B, M): that of X_{s,t}, and of b_t, on samples whose rest is known.

    The law of its samples is that of its own velocity. It is not the model's law given the known part, for
    the velocity sees that part only as noisy as it is at each time; a likelihood as a reward
    (:class:`fmtt.rewards.inverse.Inpainting`) tilts towards that law instead.
    """

    def __init__(self, flow_map: FlowMap, known: Known) -> None:
        self.flow_map, self.known = flow_map, known
        self.interpolant = flow_map.interpolant
        self.data_shape = (len(known.free),)

    def __call__(self, x: Tensor, s: Time, t: Time, cond: Cond | None = None) -> Tensor:
        return self.known.part(self.flow_map(self.known.whole(x, s), s, t, cond))

    def velocity(self, x: Tensor, t: Time, cond: Cond | None = None) -> Tensor:
        return masked_velocity(self.flow_map.velocity, self.known)(x, t, cond)


def masked_velocity(velocity: VelocityField, known: Known) -> VelocityField:
    """The free part of a velocity on samples whose rest is known."""

    def free(x: Tensor, t: Time, cond: Cond | None = None) -> Tensor:
        return known.part(velocity(known.whole(x, t), t, cond))

    return free
