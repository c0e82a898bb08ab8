"""What happened along a run, step by step, as plain tensors."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class History(NamedTuple):
    """What happened at each of K steps; row k describes the arrival at ``t[k]``.

    Attributes:
        t: (K,) times.
        ess: (K, P) effective sample size as a fraction, before any resampling.
        log_z: (K, P) running estimate of log E[e^{r_t}].
        work_variance: (K, P) variance of the step's log-weight increment.
        thermodynamic_length: (K, P) running sum of its root, averaged over the weights before and after.
        total_discrepancy: (K, P) running sum of log E[w^2] - 2 log E[w] over incremental weights w.
        resampled: (K, P) bool.
        ancestors: (K, P, N) the particle of the step before that each one continues.
        strength: (K, P) lambda.
        mean_reward: (K, P) weighted mean of the look-ahead rewards last computed; nan before the first.
        best_reward: (K, P) their maximum.
        guidance_ratio: (K, P) root mean square of the guidance increment over that of the unguided step's
            own move (h b of the SDE, the jump of a renoising step).
    """

    t: Tensor
    ess: Tensor
    log_z: Tensor
    work_variance: Tensor
    thermodynamic_length: Tensor
    total_discrepancy: Tensor
    resampled: Tensor
    ancestors: Tensor
    strength: Tensor
    mean_reward: Tensor
    best_reward: Tensor
    guidance_ratio: Tensor


class SearchHistory(NamedTuple):
    """Look-ahead rewards of the candidates at each round.

    Attributes:
        t: (R,) times of the selections.
        best: (R, P) highest reward among candidates.
        mean: (R, P) mean reward of candidates.
    """

    t: Tensor
    best: Tensor
    mean: Tensor
