"""Gives a fresh student the principal components of its data."""

from __future__ import annotations

import numpy as np

from data.module import Sources, open_batches
from fmtt.errors import UserError
from fmtt.flow.flow_map import NeuralFlowMap
from fmtt.models.principal import PrincipalEmbedding

NUM_SAMPLES = 16384


def fit_principal(student: NeuralFlowMap, source: Sources, *, seed: int) -> None:
    """Fit the components of the student's input layer on the first samples of ``source``, if it has such a
    layer and has not taken it from its teacher. Every rank reads the same samples.

    Raises:
        UserError: when the source has fewer samples than the layer has components.
    """
    for layer in student.modules():
        if isinstance(layer, PrincipalEmbedding) and not layer.fitted:
            batches = open_batches(source, 1, seed=seed)
            count = min(NUM_SAMPLES, batches.batches_per_epoch or NUM_SAMPLES)
            try:
                layer.fit(batches.take(np.arange(count)).x)
            except ValueError as error:
                raise UserError(f"student.args.principal: {error}") from error
