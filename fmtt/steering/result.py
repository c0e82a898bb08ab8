"""What a run returns: samples, weights, what they mean, what they cost."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from fmtt.steering import diversity, smc
from fmtt.steering.cost import Cost
from fmtt.steering.history import History, SearchHistory

if TYPE_CHECKING:
    from matplotlib.figure import Figure


__all__ = ["Expectation", "History", "SearchHistory", "SearchResult", "TiltResult"]


class Expectation(NamedTuple):
    """A self-normalised estimate with its standard error.

    Attributes:
        value: float64, the shape of f for one sample; with a leading (P,) for several populations.
        standard_error: the same shape; nan where it cannot be estimated.
        reason: why it is nan, or "".
    """

    value: Tensor
    standard_error: Tensor
    reason: str = ""


@dataclass(frozen=True, eq=False)
class TiltResult:
    """Weighted samples of P populations of N particles, population by population.

    Attributes:
        samples: (P*N, *D).
        log_weights: (P*N,) float64, as they stand after the last resampling.
        log_z: estimate of log E[e^r] under the base law; a scalar, or (P,) for several populations. nan with
            weights="none", which estimate nothing.
        ess: effective sample size as a fraction of N, before a final resampling; a scalar, or (P,).
        rewards: (P*N,) of the samples.
        population: (P*N,) the population of each sample.
        eve: (P*N,) the initial particle (within its population) that each sample descends from.
        history: per step.
        cost: what the run spent.
        base_law: the law that is tilted, as a sentence.
    """

    samples: Tensor
    log_weights: Tensor
    log_z: Tensor
    ess: Tensor
    rewards: Tensor
    population: Tensor
    eve: Tensor
    history: History
    cost: Cost
    base_law: str
    num_populations: int = 1

    def __repr__(self) -> str:
        samples = f"samples of shape {tuple(self.samples.shape)}"
        numbers = {"log_z": self.log_z, "ess": self.ess, "distinct_ancestors": self.distinct_ancestors}
        written = [f"{name}={_written(value)}" for name, value in numbers.items()]
        return f"{type(self).__name__}({', '.join([samples, *written])})"

    @property
    def best(self) -> Tensor:
        """The sample of highest reward of each population, (P, *D)."""
        return self.samples[_best_rows(self.rewards, self.num_populations)]

    @property
    def best_rewards(self) -> Tensor:
        """Rewards of :attr:`best`, (P,)."""
        return self.rewards[_best_rows(self.rewards, self.num_populations)]

    @property
    def pooled_log_weights(self) -> Tensor:
        """Log-weights (P*N,) of independent runs of one problem taken together, each weighted by its Z."""
        table = self.log_weights.reshape(self.num_populations, -1)
        log_z = self.log_z.reshape(self.num_populations).nan_to_num()  # without weights all count alike
        return (table + (log_z - smc.log_mean_exp(table))[:, None]).reshape(-1)

    def expect(self, f: Callable[[Tensor], Tensor], *, pool: bool = False) -> Expectation:
        """Estimate E[f(x)] under the tilted law.

        The standard error groups particles by their common ancestor at the first step (Chan and Lai 2013),
        since descendants of one particle are not independent.

        Args:
            f: samples (B, *D) to (B,) or (B, M).
            pool: treat the populations as independent runs of one problem, each weighted by its Z.

        Returns:
            One estimate, or one per population if there are several and they are not pooled.
        """
        P = self.num_populations
        values = f(self.samples).detach().double()
        phi = values.reshape(P, -1, *values.shape[1:])  # (P, N, ...)
        log_weights = self.log_weights.reshape(P, -1)
        eve = self.eve.reshape(P, -1)
        N = eve.shape[1]
        if pool:
            eve = eve + N * torch.arange(P, device=eve.device)[:, None]
            phi, log_weights, eve = values[None], self.pooled_log_weights[None], eve.reshape(1, -1)
        parts = [_expect_one(*row) for row in zip(phi, log_weights, eve, strict=True)]
        reason = next((p.reason for p in parts if p.reason), "")
        if len(parts) == 1:
            return parts[0]
        return Expectation(
            torch.stack([p.value for p in parts]), torch.stack([p.standard_error for p in parts]), reason
        )

    @property
    def distinct_ancestors(self) -> Tensor:
        """How many initial particles the samples of each population descend from, (P,)."""
        return diversity.distinct_ancestors(self.eve, self.num_populations)

    @property
    def pooled_log_z(self) -> Expectation:
        """log of the mean Z of independent runs of one problem, with a standard error from their spread."""
        log_z = self.log_z.reshape(-1)
        P = log_z.shape[0]
        value = torch.logsumexp(log_z, 0) - math.log(P)
        if P < 2:
            return Expectation(value, torch.full_like(value, float("nan")), "there is one population only")
        return Expectation(value, (log_z - value).exp().std() / P**0.5)

    def plot(self, path: str | Path | None = None) -> Figure:
        """Draw the history (needs matplotlib), one line per population, and write it to ``path`` if given."""
        from fmtt.steering.plot import plot_history

        return plot_history(self.history, path)

    def resample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw n unweighted samples per population: (P*n, *D)."""
        log_weights = self.log_weights.reshape(self.num_populations, -1)
        ancestors = smc.systematic(log_weights, generator, n)
        return self.samples[smc.flat_index(ancestors, log_weights.shape[1])]


@dataclass(frozen=True, eq=False)
class SearchResult:
    """Finished samples of a search. A search maximises: it carries no weights and claims no law.

    Attributes:
        samples: (P*N, *D), population by population.
        rewards: (P*N,).
        population: (P*N,).
        history: one row per round and population: time, highest and mean look-ahead reward.
        cost: what the search spent.
        base_law: a sentence that says that there is none.
        eve: (P*N,) the initial candidate (within its population) that each sample descends from, where the
            method knows it.
        judge_rewards: (P,) what another reward says of :attr:`best`, where one was given.
    """

    samples: Tensor
    rewards: Tensor
    population: Tensor
    history: SearchHistory
    cost: Cost
    base_law: str
    num_populations: int = 1
    eve: Tensor | None = None
    judge_rewards: Tensor | None = None

    @property
    def best_rows(self) -> Tensor:
        """Row numbers (P,) of :attr:`best` in ``samples``."""
        return _best_rows(self.rewards, self.num_populations)

    @property
    def best(self) -> Tensor:
        """The sample of highest reward of each population, (P, *D)."""
        return self.samples[self.best_rows]

    @property
    def best_rewards(self) -> Tensor:
        """Rewards of :attr:`best`, (P,)."""
        return self.rewards[self.best_rows]

    @property
    def distinct_ancestors(self) -> Tensor | None:
        """How many initial candidates the samples of each population descend from, (P,)."""
        return None if self.eve is None else diversity.distinct_ancestors(self.eve, self.num_populations)

    @property
    def mean_pairwise_distance(self) -> Tensor:
        """Mean root-mean-square difference per coordinate over pairs of samples, (P,); nan for N = 1."""
        return diversity.mean_pairwise_distance(self.samples, self.num_populations)


def _written(values: Tensor) -> str:
    shown = [f"{value:.4g}" for value in values.reshape(-1).tolist()]
    return shown[0] if len(shown) == 1 else f"[{', '.join(shown)}]"


def _best_rows(rewards: Tensor, num_populations: int) -> Tensor:
    table = rewards.reshape(num_populations, -1)
    return smc.flat_index(table.argmax(1, keepdim=True), table.shape[1])


def _expect_one(phi: Tensor, log_weights: Tensor, eve: Tensor) -> Expectation:
    """The estimate of one genealogy: phi (N, ...), log_weights (N,), eve (N,)."""
    N = eve.shape[0]
    weights = torch.softmax(log_weights, 0)
    w = weights.reshape(-1, *([1] * (phi.ndim - 1)))
    value = (w * phi).sum(0)
    families, family = torch.unique(eve[weights > 0], return_inverse=True)
    if len(families) < 2:
        nan = torch.full_like(value, float("nan"))
        return Expectation(value, nan, "all weighted samples descend from one initial particle")
    sums = torch.zeros(len(families), *phi.shape[1:], dtype=phi.dtype, device=phi.device)
    sums.index_add_(0, family, (w * (phi - value))[weights > 0])
    return Expectation(value, (sums.square().sum(0) * (N / (N - 1))).sqrt())
