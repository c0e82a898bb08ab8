"""What distilling each family of text-to-image models takes of a GPU's memory, counted without one.

``python -m tests.benchmarks.memory`` builds the shipped configurations' models in full size on torch's meta
device, whose tensors have shapes and lifetimes and no content, and runs an objective and its gradient there.
The peak is that of live bytes. Not in it: the allocator's fragments, kernels' workspaces, text encoders and
autoencoder (which training does not load), and the CUDA context, together a few GB.

Attention is counted as a fused kernel's (queries, keys, values, output); inside of a jvp it is the math
kernel's, which forward-mode AD needs (``derivative: jvp``) and which holds the matrix of all pairs.
"""

from __future__ import annotations

import argparse
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from fmtt.errors import UserError
from fmtt.files import make_writable, write_json
from fmtt.flow.derivative import BACKENDS, using
from fmtt.flow.flow_map import NeuralFlowMap
from fmtt.flow.interpolant import Linear
from fmtt.models.diffusers.pretrained import FAMILIES, library
from fmtt.models.diffusers.student import Lora, network_of, student_of, teacher_of
from train.config import Config, load_config
from train.config_pretrained import PretrainedConfig
from train.losses import OBJECTIVES
from train.losses.base import PathSample, Times

ROOT = Path(__file__).resolve().parents[2]
GB = 1e9


class Public(NamedTuple):
    """A public model: its configuration file, its transformer, latents of 512 x 512, tokens of a prompt."""

    file: str
    transformer: dict[str, Any]
    latents: tuple[int, int, int]
    tokens: int


MODELS = {
    "flux": Public("flux/distill_lora.yaml", {"guidance_embeds": True}, (16, 64, 64), 512),
    "sd3": Public(
        "sd3/distill_lora.yaml",
        {
            **{"sample_size": 128, "num_layers": 24, "num_attention_heads": 24, "attention_head_dim": 64},
            **{"joint_attention_dim": 4096, "caption_projection_dim": 1536, "pooled_projection_dim": 2048},
            **{"pos_embed_max_size": 384, "qk_norm": "rms_norm", "dual_attention_layers": tuple(range(13))},
        },
        (16, 64, 64),
        333,
    ),
    "sana": Public(
        "sana/distill.yaml",
        {
            **{"num_layers": 28, "num_attention_heads": 36, "attention_head_dim": 32, "sample_size": 16},
            **{"num_cross_attention_heads": 16, "cross_attention_head_dim": 72, "cross_attention_dim": 1152},
        },
        (32, 16, 16),
        300,
    ),
    "lumina2": Public("lumina2/distill_lora.yaml", {"cap_feat_dim": 2304}, (16, 64, 64), 256),
}


class Live(TorchDispatchMode):
    """Counts the bytes of storages born inside the block while they live.

    Args:
        there: what was there before, of which views are born inside.
    """

    def __init__(self, there: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.known = {tensor.untyped_storage()._cdata for tensor in there}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._see, out)
        return out

    def _see(self, value: Tensor) -> None:
        storage = value.untyped_storage()
        key = storage._cdata
        if key not in self.known:
            self.known.add(key)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, key, storage.nbytes())

    def _forget(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


class _Fused(torch.autograd.Function):
    """Keeps what a fused attention kernel keeps."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:  # type: ignore[override]
        out = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, out)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        return tuple(torch.empty_like(v) for v in ctx.saved_tensors[:3])


@contextmanager
def meta_kernels(tokens: int) -> Iterator[None]:
    """What torch does on the meta device inside the block: attention is fused unless the math kernel is asked
    for, a mask keeps all of ``tokens``, and there is no autocast."""
    plain = F.scaled_dot_product_attention

    def attend(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not torch.backends.cuda.flash_sdp_enabled():  # as inside of a jvp
            return plain(query, key, value, *args, **kwargs)
        return _Fused.apply(query, key, value)  # type: ignore[return-value]

    with (
        patch.object(F, "scaled_dot_product_attention", attend),
        patch.object(Tensor, "tolist", lambda mask: [tokens] * len(mask)),
        patch.object(torch, "autocast", lambda *_, **__: nullcontext()),
    ):
        yield


def build(name: str, config: Config) -> NeuralFlowMap:
    """The student of a configuration on the meta device."""
    family, given = FAMILIES[name], config.teacher
    assert isinstance(given, PretrainedConfig)
    package = library()
    with torch.device("meta"):
        transformer = getattr(package, family.names.transformer)(**MODELS[name].transformer)
    half = config.student.lora is None or given.dtype == "bfloat16"
    transformer = transformer.to(torch.bfloat16 if half else torch.float32)
    teacher = NeuralFlowMap(family(transformer, guidance=3.5), Linear(), MODELS[name].latents)
    c = config.student
    lora = None if c.lora is None else Lora(c.lora.rank, c.lora.alpha, c.lora.targets)
    student = student_of(
        teacher.requires_grad_(False), second_time=c.second_time, lora=lora, own_guidance=c.own_guidance
    )
    return student.to("meta")


def conditions(name: str, network: Any, rows: int) -> dict[str, Tensor]:
    """Of prompts in full length."""
    widths = network.widths(network.transformer.config)
    cond = {key: torch.empty(rows, width, device="meta") for key, width in widths.items()}
    tokens = MODELS[name].tokens
    cond["prompt_embeds"] = torch.empty(rows, tokens, widths["prompt_embeds"], device="meta")
    if "prompt_attention_mask" in network.names.conditions:
        cond["prompt_attention_mask"] = torch.empty(rows, tokens, dtype=torch.long, device="meta")
    if network.guided:
        cond |= {f"negative_{key}": value for key, value in cond.items()}
    return cond | {"guidance_scale": torch.empty(rows, device="meta")}


def activations(name: str, student: NeuralFlowMap, objective: str, derivative: str, checkpoint: bool) -> int:
    """Peak bytes of one sample's loss and gradient, above what was there before."""
    network = network_of(student)
    if checkpoint:
        network.transformer.enable_gradient_checkpointing()
    teacher = teacher_of(student) if network.adapters else student
    x, s = torch.empty(1, *student.data_shape, device="meta"), torch.empty(1, device="meta")
    inputs = (PathSample(x, x, x, x), Times(s, s, s), conditions(name, network, 1))
    trained = [p for p in student.parameters() if p.requires_grad]
    for weight in trained:
        weight.grad = torch.empty_like(weight)
    live = Live([*student.parameters(), *student.buffers(), *(p.grad for p in trained if p.grad is not None)])
    with meta_kernels(MODELS[name].tokens), using(BACKENDS[derivative]), live:
        loss = OBJECTIVES[objective](student, teacher.velocity, *inputs).per_sample.mean()
        loss.backward()
    student.zero_grad()
    if checkpoint:
        network.transformer.disable_gradient_checkpointing()
    return live.peak


STEPS: dict[str, tuple[str, str, bool]] = {
    "lmd, jvp": ("lmd", "jvp", True),
    "psd": ("psd_u", "jvp", True),
}
"""Objective, derivative, checkpointing, of one sample; a pass with a tangent is never checkpointed."""


def count(name: str, steps: Sequence[str] = tuple(STEPS)) -> dict[str, float]:
    """GB by what takes it: the model and the optimizer's state once, steps per sample of the batch."""
    config = load_config(ROOT / "configs" / MODELS[name].file)
    student = build(name, config)
    trained = sum(p.numel() for p in student.parameters() if p.requires_grad)
    total = sum(p.numel() for p in student.parameters())
    frozen = total - trained
    given = config.teacher
    assert isinstance(given, PretrainedConfig)
    width = 2 if given.dtype == "bfloat16" else 4
    teacher = (frozen if config.student.lora is not None else total) * width
    # Weights, gradients, two moments, and the averages, all in float32.
    state = trained * 4 * (4 + len(config.ema.half_lives))
    found = {"parameters, 1e9": total / GB, "trained, 1e6": trained / 1e6}
    found |= {"teacher": teacher / GB, "trained state": state / GB}
    return found | {step: activations(name, student, *STEPS[step]) / GB for step in steps}


def table(counted: dict[str, dict[str, float]]) -> str:
    """A Markdown table, a row per family."""
    columns = list(next(iter(counted.values())))
    lines = ["| | " + " | ".join(columns) + " |", "|" + "---|" * (len(columns) + 1)]
    for name, row in counted.items():
        lines.append(f"| {name} | " + " | ".join(f"{row[c]:.3g}" for c in columns) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None, out: Callable[[str], None] = print) -> int:
    """Print the table and write OUT/summary.json."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--families", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--out", type=Path, default=Path("runs/bench-memory"))
    args = parser.parse_args(argv)
    make_writable(args.out, "--out")
    counted = {name: count(name) for name in args.families}
    out(table(counted))
    write_json(args.out / "summary.json", counted)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        print(f"memory: {error}", file=sys.stderr)
        sys.exit(2)
