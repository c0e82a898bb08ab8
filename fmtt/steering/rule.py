"""The rule of a tilting run: how particles move, weigh and resample, and which combinations are sound."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from fmtt.errors import UserError
from fmtt.steering.dynamics import Needs, noisy_steps
from fmtt.steering.lookahead import Lookahead, NoLookahead
from fmtt.steering.resampling import RESAMPLERS
from fmtt.steering.schedule import Plan
from fmtt.steering.shift import check_step_size

WEIGHTS = ("exact", "paper", "path", "none")
KERNELS = ("sde", "renoise")


def check_kernel(kernel: str, lookahead: Lookahead) -> None:
    """Refuse an unknown kernel, and renoising where there is no endpoint to jump to.

    Raises:
        UserError: naming the argument.
    """
    if kernel not in KERNELS:
        raise UserError(f"kernel must be one of {', '.join(KERNELS)}, got {kernel!r}")
    if kernel == "renoise" and isinstance(lookahead, NoLookahead):
        raise UserError("kernel='renoise' needs a look-ahead to jump to: lookahead='none' has no endpoint")


@dataclass(frozen=True)
class Resampling:
    """When and how a population is resampled.

    Attributes:
        scheme: its name, or "none".
        threshold: resample when the ESS fraction falls below; 0 is never.
        steps: resample on arrival at these steps and no others; None leaves it to the threshold.
        share: the part of the population that takes part.
        final: whether the finished samples are resampled to equal weights.
    """

    scheme: str = "systematic"
    threshold: float = 0.5
    steps: frozenset[int] | None = None
    share: float = 1.0
    final: bool = False


def resampling_steps(times: Sequence[float], at: Sequence[float] | None) -> frozenset[int] | None:
    """The steps that first reach each of the times ``at``; None where none are given.

    Raises:
        UserError: when a time is not inside the run.
    """
    if at is None:
        return None
    wrong = [t for t in at if not times[0] < t < 1]
    if wrong:
        raise UserError(f"resample_at must lie between {times[0]:g} and 1, got {wrong[0]:g}")
    return frozenset(next(k for k, t in enumerate(times) if t >= wanted - 1e-9) for wanted in at)


@dataclass(frozen=True)
class Rule:
    """How a run moves, weighs and resamples.

    Attributes:
        gradient: "reverse", "zeroth" or "none": what enters the drift.
        step_size: one of STEP_SIZES, how long a guided step is.
        drifts: chi of each step.
        every: steps between look-aheads; in between, the last gradient and reward are kept.
    """

    plan: Plan
    weights: str
    kernel: str
    gradient: str
    guidance: float
    step_size: str
    drifts: tuple[float, ...]
    every: int
    resampling: Resampling
    num_populations: int
    num_particles: int

    @property
    def guides(self) -> bool:
        """Whether the reward's gradient enters the drift."""
        return self.gradient != "none"

    @property
    def drifts_any(self) -> bool:
        """Whether chi is positive somewhere."""
        return any(chi != 0 for chi in self.drifts)

    @cached_property
    def _noisy(self) -> tuple[bool, ...]:
        return noisy_steps(self.plan.noises, self.kernel)

    def noisy(self, k: int) -> bool:
        """Whether step k draws noise."""
        return 0 <= k < self.plan.num_steps and self._noisy[k]

    def active(self, k: int) -> bool:
        """Whether lambda at t_k may be other than 0."""
        return k > 0 if self.plan.adaptive else self.plan.strengths[k] != 0

    def needs(self, k: int) -> Needs:
        """What has to be known of the particles at t_k."""
        return self._needs[k]

    @cached_property
    def _needs(self) -> tuple[Needs, ...]:
        return tuple(self._needed(k) for k in range(self.plan.num_steps + 1))

    def _needed(self, k: int) -> Needs:
        K = self.plan.num_steps
        if k == K:
            return Needs(value=True)
        looks = k % self.every == 0
        steered = any(self.active(j) and self.noisy(j) for j in range(k, min(k + self.every, K)))
        gradient = self.guides and looks and steered
        renoises = self.kernel == "renoise"
        laplacian = residual = False
        if self.weights == "exact":
            value, differs = True, self.noisy(k) or self.noisy(k - 1)
            gradient = gradient or (self.active(k) and differs)
            residual = gradient
            laplacian = gradient and self.drifts_any
        elif self.weights == "path":
            value = self.active(k) and (looks or renoises)
        else:
            value = self.weights == "paper"
        return Needs(not renoises, value or gradient, gradient, renoises, laplacian, residual)

    @cached_property
    def looks_left(self) -> tuple[int, ...]:
        """How many of the arrivals after t_k compute rewards, for every k < K."""
        seen = [needs.value for needs in self._needs]
        return tuple(sum(seen[k + 1 :]) for k in range(self.plan.num_steps))

    def reward_calls(self, probes: int) -> int:
        """Reward calls per particle, with ``probes`` antithetic pairs for each zeroth-order gradient."""
        pairs = probes * sum(n.gradient for n in self._needs) if self.gradient == "zeroth" else 0
        return sum(n.value for n in self._needs) + 2 * pairs


def check(rule: Rule, given: str | None = None) -> None:
    """Refuse combinations that have no right weights.

    Args:
        given: what was given to start from, "state" or "clean"; None for noise.

    Raises:
        UserError: naming the arguments and the remedy.
    """
    if rule.weights not in WEIGHTS:
        raise UserError(f"weights must be one of {', '.join(WEIGHTS)}, got {rule.weights!r}")
    _check_resampling(rule.resampling, rule.weights)
    check_step_size(rule.step_size, rule.guidance)
    if rule.every < 1:
        raise UserError(f"gradient_every must be at least 1, got {rule.every}")
    noisy = any(rule.noisy(k) for k in range(rule.plan.num_steps))
    if rule.drifts_any and not noisy:
        raise UserError("chi needs noise > 0: guidance of a deterministic step has no density ratio")
    if rule.drifts_any and not rule.guides:
        raise UserError("chi moves along the reward's gradient: it needs a gradient other than 'none'")
    if rule.drifts_any and rule.step_size == "normalized":
        raise UserError("chi contradicts step_size='normalized', whose length is given: use 'clipped'")
    if rule.weights in ("exact", "paper"):
        _check_continuous(rule, noisy, given)
    if rule.weights == "paper":
        warnings.warn(
            "weights='paper' leaves out the look-ahead's error and is biased unless the flow map is exact; "
            "weights='exact' costs the same",
            stacklevel=4,
        )


def _check_continuous(rule: Rule, noisy: bool, given: str | None) -> None:
    """Refuse what only path weights can make up for."""
    under = f"under weights={rule.weights!r}: use weights='path'"
    if given == "clean" and noisy and rule.plan.times[0] > 0:
        # Noise and score keep a law only where it is the velocity's own at that time.
        raise UserError(
            f"samples noised to t={rule.plan.times[0]:g} do not have the velocity's own law there, {under}"
        )
    if rule.drifts_any and rule.weights == "paper":
        raise UserError("chi with weights='paper' needs a Laplacian: use weights='exact' or 'path'")
    if rule.guidance != 1:
        raise UserError(f"guidance={rule.guidance:g} {under}")
    if rule.step_size != "gradient":
        raise UserError(f"step_size={rule.step_size!r} {under}")
    if rule.every != 1:
        raise UserError(f"gradient_every={rule.every} {under}")
    if rule.kernel != "sde":
        raise UserError(f"kernel={rule.kernel!r} {under}")
    if rule.gradient == "zeroth":
        raise UserError(f"gradient='zeroth' {under}")
    if not rule.guides and noisy:
        raise UserError(
            f"weights={rule.weights!r} needs the reward's gradient, which is left out: use weights='path'"
        )


def _check_resampling(resampling: Resampling, weights: str) -> None:
    if resampling.scheme not in RESAMPLERS:
        raise UserError(f"resample must be one of {', '.join(RESAMPLERS)}, got {resampling.scheme!r}")
    if not 0 <= resampling.threshold <= 1:
        raise UserError(f"ess_threshold must lie in [0, 1], got {resampling.threshold}")
    if not 0 < resampling.share <= 1:
        raise UserError(f"resample_share must lie in (0, 1], got {resampling.share}")
    wanted = resampling.final or resampling.steps is not None
    if wanted and (resampling.scheme == "none" or weights == "none"):
        argument = "final_resample" if resampling.final else "resample_at"
        why = "resample='none'" if resampling.scheme == "none" else "weights='none'"
        raise UserError(f"{argument} contradicts {why}")


def base_law(rule: Rule, given: str | None, t_start: float) -> str:
    """The law that the run tilts, and how far its weights are exact for it.

    Args:
        given: as for :func:`check`.
    """
    start = {
        None: "N(0, I) at t=0",
        "state": f"the given states at t={t_start:g}",
        "clean": f"the given samples noised by the interpolant to t={t_start:g}",
    }[given]
    process = (
        "few-step chain that jumps to the look-ahead and noises again"
        if rule.kernel == "renoise"
        else "discretised SDE of the sampler's velocity"
    )
    law = f"the law at t=1 of the {rule.plan.num_steps}-step {process}, started from {start}"
    if rule.weights == "path":
        return f"Exact at any number of steps for {law}."
    if rule.weights == "exact":
        noisy = any(rule.noisy(k) for k in range(rule.plan.num_steps))
        drawn = " and the states are drawn from its law there" if given == "state" and noisy else ""
        return (
            f"Exact, as steps shrink, for the law at t=1 of the velocity's own flow started from {start}, "
            f"provided that the velocity is the exact one of its marginals{drawn}; "
            "a mismatch is not corrected."
        )
    if rule.weights == "paper":
        return f"Biased by the look-ahead's error; right only for an exact flow map, started from {start}."
    return f"None: unweighted samples of a guided process, started from {start}."
