"""The rule of a tilting run: how particles move, weigh and resample, and which combinations are sound."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

from fmtt.errors import UserError
from fmtt.steering import smc
from fmtt.steering.dynamics import Needs, noisy_steps
from fmtt.steering.lookahead import Lookahead, NoLookahead
from fmtt.steering.schedule import Plan

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
class Rule:
    """How a run moves, weighs and resamples.

    Attributes:
        guides: whether the reward's gradient enters the drift.
        every: steps between look-aheads; in between, the last gradient and reward are kept.
        threshold: resample a population when its ESS fraction falls below; 0 is never.
    """

    plan: Plan
    weights: str
    kernel: str
    guides: bool
    guidance: float
    chi: float
    every: int
    threshold: float
    num_populations: int
    num_particles: int

    def noisy(self, k: int) -> bool:
        """Whether step k draws noise."""
        return 0 <= k < self.plan.num_steps and noisy_steps(self.plan.noises, self.kernel)[k]

    def needs(self, k: int) -> Needs:
        """What has to be known of the particles at t_k."""
        K, strength = self.plan.num_steps, self.plan.strengths
        if k == K:
            return Needs(value=True)
        looks = k % self.every == 0
        steered = any(strength[j] != 0 and self.noisy(j) for j in range(k, min(k + self.every, K)))
        gradient = self.guides and looks and steered
        renoises = self.kernel == "renoise"
        if self.weights == "exact":
            value, differs = True, self.noisy(k) or self.noisy(k - 1)
            gradient = gradient or (strength[k] != 0 and differs)
        elif self.weights == "path":
            value = strength[k] != 0 and (looks or renoises)
        else:
            value = self.weights == "paper"
        return Needs(velocity=not renoises, value=value or gradient, gradient=gradient, endpoint=renoises)


def check(rule: Rule, resample: str, ess_threshold: float) -> None:
    """Refuse combinations that have no right weights.

    Raises:
        UserError: naming the arguments and the remedy.
    """
    K = rule.plan.num_steps
    free = rule.weights in ("path", "none")
    if rule.weights not in WEIGHTS:
        raise UserError(f"weights must be one of {', '.join(WEIGHTS)}, got {rule.weights!r}")
    if resample not in smc.RESAMPLERS:
        raise UserError(f"resample must be one of {', '.join(smc.RESAMPLERS)}, got {resample!r}")
    if not 0 <= ess_threshold <= 1:
        raise UserError(f"ess_threshold must lie in [0, 1], got {ess_threshold}")
    if rule.every < 1:
        raise UserError(f"gradient_every must be at least 1, got {rule.every}")
    noisy = any(rule.noisy(k) for k in range(K))
    if rule.chi != 0 and not free:
        raise UserError(
            f"chi={rule.chi:g} with weights={rule.weights!r} needs a Laplacian: use weights='path'"
        )
    if rule.chi != 0 and not noisy:
        raise UserError("chi needs noise > 0: guidance of a deterministic step has no density ratio")
    if not free:
        if rule.guidance != 1:
            raise UserError(f"guidance={rule.guidance:g} under weights={rule.weights!r}: use weights='path'")
        if rule.every != 1:
            raise UserError(f"gradient_every={rule.every} under weights={rule.weights!r}: use weights='path'")
        if rule.kernel != "sde":
            raise UserError(f"kernel={rule.kernel!r} under weights={rule.weights!r}: use weights='path'")
        if not rule.guides and noisy:
            raise UserError(f"weights={rule.weights!r} needs the reward's gradient: or use weights='path'")
    if rule.weights == "paper":
        warnings.warn(
            "weights='paper' leaves out the look-ahead's error and is biased unless the flow map is exact; "
            "weights='exact' costs the same",
            stacklevel=4,
        )


def base_law(rule: Rule, given: bool, t_start: float) -> str:
    """The law that the run tilts, and how far its weights are exact for it."""
    start = f"the given states at t={t_start:g}" if given else "N(0, I) at t=0"
    process = (
        "few-step chain that jumps to the look-ahead and noises again"
        if rule.kernel == "renoise"
        else "discretised SDE of the sampler's velocity"
    )
    law = f"the law at t=1 of the {rule.plan.num_steps}-step {process}, started from {start}"
    if rule.weights == "path":
        return f"Exact at any number of steps for {law}."
    if rule.weights == "exact":
        return (
            f"Exact, as steps shrink, for the law at t=1 of the velocity's own flow started from {start}, "
            "provided that the velocity is the exact one of its marginals; a mismatch is not corrected."
        )
    if rule.weights == "paper":
        return f"Biased by the look-ahead's error; right only for an exact flow map, started from {start}."
    return f"None: unweighted samples of a guided process, started from {start}."
