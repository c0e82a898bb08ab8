"""Tilts and searches as one of several processes, and keeps what this one saw.

    python ranks_program.py OUT_DIR all|killed

What torchrun would have put into the environment is set by the caller.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fmtt
from fmtt.evaluation.certify_problems import ProductMixture, WrongMap
from fmtt.flow.flow_map import NeuralFlowMap
from fmtt.models.mlp import MLP
from fmtt.steering.lookahead import FlowMapLookahead
from fmtt.steering.ranks import RankError

SLEEP = 10.0
"""Seconds for which a rank does not answer, well above the time-out that the others are given."""
PULL = torch.tensor([[0.5], [1.0], [-1.0]], dtype=torch.float64)

CASES: dict[str, dict[str, Any]] = {
    "exact": {},
    "wrong map, partly resampled": {"wrong": True, "resample_share": 0.6, "final_resample": True},
    "chi": {"chi": 0.3, "num_probes": 2},
    "zeroth": {"weights": "path", "gradient": "zeroth", "num_probes": 2},
    "every third": {"weights": "path", "gradient_every": 3, "guidance": 1.4},
    "adaptive": {"weights": "path", "schedule": "adaptive:0.9"},
    "renoise": {"weights": "path", "kernel": "renoise", "resample": "ssp"},
    "prompts": {"cond": {"pull": PULL}, "num_particles": 7, "chunk_size": 3},
    "edit": {"x_init": PULL[:1], "x_init_is": "clean", "t_start": 0.5, "gradient": "none", "weights": "path"},
    "network": {"network": True, "ess_threshold": 1.0, "num_steps": 4},
}
SEARCHES: dict[str, dict[str, Any]] = {
    "top": {},
    "one is kept": {"keep": 1, "num_populations": 1, "num_particles": 5},
    "tempered denoiser": {"lookahead": "denoiser", "selection": "tempered", "gradient": "none"},
    "renoise": {"kernel": "renoise", "gradient": "zeroth"},
    "prompts": {"cond": {"pull": PULL}, "num_populations": None},
}


def reward(x: Tensor, cond: Any = None) -> Tensor:
    """Bounded and sharp enough that populations are resampled; each prompt pulls its own way."""
    pull = 1.5 if cond is None else cond["pull"][:, 0]
    return pull * x[:, 0] - x[:, 0].square() / 2


def network() -> NeuralFlowMap:
    """A random network in float32."""
    torch.manual_seed(0)
    net = MLP((2,), width=16, depth=2)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return NeuralFlowMap(net, fmtt.Linear(), (2,))


def tilt(score: Any = reward, seed: int = 0, **options: Any) -> fmtt.TiltResult:
    """One of CASES."""
    wrong, own = options.pop("wrong", False), options.pop("network", False)
    settings = {"num_particles": 10, "num_steps": 8, "ess_threshold": 0.9, "num_populations": 2, **options}
    if "cond" in settings:
        settings["num_populations"] = None
    if wrong:
        settings["lookahead"] = FlowMapLookahead(WrongMap(1))
    flow = network() if own else ProductMixture(1)
    settings["dtype"] = torch.float32 if own else torch.float64
    return fmtt.tilt(flow, score, generator=torch.Generator().manual_seed(seed), **settings)


def search(**options: Any) -> fmtt.SearchResult:
    """One of SEARCHES."""
    settings = {"num_particles": 6, "keep": 2, "rounds": 3, "num_populations": 2, "num_steps": 6, **options}
    generator = torch.Generator().manual_seed(0)
    return fmtt.search(ProductMixture(1), reward, dtype=torch.float64, generator=generator, **settings)


def content(result: fmtt.TiltResult | fmtt.SearchResult) -> dict[str, Tensor]:
    """All that can be compared."""
    names = ("samples", "rewards", "population", "eve", "log_weights", "log_z", "ess")
    found = {name: getattr(result, name) for name in names if hasattr(result, name)}
    costs = ("forwards", "backwards", "jvps", "reward_calls", "decodes", "populations")
    counts = {f"cost.{name}": torch.tensor(getattr(result.cost, name)) for name in costs}
    return {**found, **counts, **{f"history.{k}": v for k, v in result.history._asdict().items()}}


def error_of(**options: Any) -> str:
    """What a tilt that must fail says, with the kind of the error."""
    try:
        tilt(**options)
    except (fmtt.UserError, RankError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def everything(rank: int) -> dict[str, Any]:
    """All cases, then what goes wrong without killing the run, and last a rank that does not answer."""

    def broken(x: Tensor, cond: Any = None) -> Tensor:
        if rank == 1:
            raise ValueError("the judge is down")
        return reward(x)

    def infinite(x: Tensor, cond: Any = None) -> Tensor:
        return reward(x) / (0.0 if rank == 1 else 1.0)

    def stuck(x: Tensor, cond: Any = None) -> Tensor:
        if rank == 1 and len(x) > 1:
            time.sleep(SLEEP)
        return reward(x)

    found: dict[str, Any] = {f"tilt {name}": content(tilt(**options)) for name, options in CASES.items()}
    found |= {f"search {name}": content(search(**options)) for name, options in SEARCHES.items()}
    unseeded = fmtt.tilt(ProductMixture(1), reward, num_particles=10, num_steps=4, dtype=torch.float64)
    alone = tilt(seed=rank, processes="one").samples
    said = {
        "broken": error_of(score=broken),
        "infinite": error_of(score=infinite),
        "seeds": error_of(seed=rank),
        "arguments": error_of(num_steps=8 + rank),
        "states": error_of(x_init=torch.full((1, 1), float(rank)), t_start=0.5, weights="path"),
        "few": error_of(num_particles=1, num_populations=1),
    }
    start = time.monotonic()
    said["stuck"] = error_of(score=stuck, rank_timeout=2)
    waited = time.monotonic() - start
    return {**found, "said": said, "waited": waited, "unseeded": unseeded.samples, "alone": alone}


def killed(rank: int) -> dict[str, Any]:
    """Rank 1 dies in the middle of a run."""

    def deadly(x: Tensor, cond: Any = None) -> Tensor:
        if rank == 1 and len(x) > 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return reward(x)

    return {"said": {"killed": error_of(score=deadly)}}


if __name__ == "__main__":
    out, mode, rank = Path(sys.argv[1]), sys.argv[2], int(os.environ["RANK"])
    torch.manual_seed(rank)  # what a run without a generator draws must not come from here
    found = everything(rank) if mode == "all" else killed(rank)
    torch.save(found, out / f"rank{rank}.pt")
