"""A weighted sum of objectives, each on the samples that it is for."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from fmtt.tensor import take_cond
from fmtt.types import Cond, FlowMap, VelocityField
from train.losses.base import FlowMapLoss, LossOutput, PathSample, Times


def weighted_sum(
    terms: Mapping[str, float], table: Mapping[str, FlowMapLoss], diagonal: Collection[str]
) -> FlowMapLoss:
    """The objective sum_k w_k L_k, L_k the objective ``table[k]``.

    Where ``terms`` holds objectives of both kinds, those named in ``diagonal`` are evaluated on the samples
    with s = t alone and the others on those with s < t alone: with a share eta of the batch on the
    diagonal (``times.diagonal``) the batch's mean is eta w_d L_d + (1 - eta) w L. Objectives of one kind
    share the whole batch, whatever its times. Logs the mean of each term over its samples.
    """
    split = 0 < len(set(terms) & set(diagonal)) < len(terms)

    def total(
        student: FlowMap, teacher: VelocityField, path: PathSample, times: Times, cond: Cond | None = None
    ) -> LossOutput:
        per_sample, logs = path.x_s.new_zeros(len(path.x_s)), {}
        here = times.s == times.t
        for name, weight in terms.items():
            mask = torch.ones_like(here) if not split else here if name in diagonal else ~here
            rows = mask.nonzero().flatten()
            if len(rows) == 0:
                continue
            part = PathSample(*(v[rows] for v in path)), Times(*(v[rows] for v in times))
            out = table[name](student, teacher, *part, take_cond(cond, rows))
            per_sample = per_sample.index_add(0, rows, weight * out.per_sample.to(per_sample.dtype))
            logs |= _named(name, out)
        return LossOutput(per_sample, logs)

    return total


def _named(name: str, out: LossOutput) -> dict[str, Tensor]:
    own = {f"{name}/{key}": value for key, value in out.logs.items()}
    return {f"{name}/loss": out.per_sample.detach().mean(), **own}
