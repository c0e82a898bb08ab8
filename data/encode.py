"""``python -m data encode``: latents and prompt embeddings as shards, encoded once for all of training."""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from data.encode_samples import LATENTS, EncodedSamples, Encoding
from data.encode_source import Captioned, CaptionFile, PairShards
from data.index import Header
from data.shared import write_shared
from data.write_set import finished, write_set
from fmtt.errors import UserError, nearest
from fmtt.files import check_writable, write_json
from fmtt.models.diffusers.pretrained import library
from fmtt.quiet import quiet

SHARD_SIZE = 512
DTYPES = ("bfloat16", "float16", "float32")
Progress = Callable[[str, int | None], AbstractContextManager[Callable[..., None]]]


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The options of the command."""
    add = command.add_argument
    add("source", nargs="?", type=Path, metavar="SHARDS", help="folder of image-caption webdataset shards")
    add("--captions", type=Path, metavar="FILE", help="captions alone instead, one per line")
    add("--model", required=True, metavar="PIPELINE", help="a diffusers pipeline's folder, or a hub id")
    add("--out", required=True, type=Path, metavar="DIR", help="folder of the encoded shards")
    add("--latents", default="", help="with --captions: generate (default) or noise")
    add("--height", type=int, metavar="PIXELS", help="default: the model's usual size")
    add("--width", type=int, metavar="PIXELS")
    add("--negative-prompt", default="", help="of models guided by two passes")
    add("--max-sequence-length", type=int, metavar="TOKENS", help="default: the pipeline's own")
    add("--steps", type=int, default=28, help="of generated latents (default: %(default)s)")
    add("--shift", type=float, default=3.0, help="of their noise levels (default: %(default)s)")
    add("--guidance-scale", type=float, metavar="W", help="of generated latents")
    add("--seed", type=int, default=0, help="of generated latents and noise")
    add("--batch-size", type=int, default=8, help="samples encoded together (default: %(default)s)")
    add("--shard-size", type=int, default=SHARD_SIZE, help="samples a shard (default: %(default)s)")
    add("--dtype", default="bfloat16", help="that the model computes in (default: %(default)s)")
    add("--device", default="auto", help="cpu, cuda, cuda:1, ... (default: this task's GPU if there)")
    add("--part", type=int, default=0, metavar="I", help="encode every N-th shard from the I-th on")
    add("--parts", type=int, default=1, metavar="N", help="the last part to finish writes the index")
    add("--max-bad-fraction", type=float, default=0.01, help="share of damaged samples that is replaced")


def encode(args: argparse.Namespace, progress: Progress) -> int:
    """Run the command.

    Raises:
        UserError: for arguments that do not go together, a model or source that is missing, too many damaged
            samples, or a folder that holds another set.
    """
    start = time.monotonic()
    encoding = _encoding(args)
    check_writable(args.out, "--out")
    source = _source(args, progress)
    with quiet(library().__name__, "transformers"):
        _encode(args, encoding, source, progress, start)
    return 0


def _encode(
    args: argparse.Namespace, encoding: Encoding, source: Captioned, progress: Progress, start: float
) -> None:
    samples = EncodedSamples(source, encoding)
    name = f"{samples.family.names.family}-{_digest(encoding, source)}"
    header = Header(name, encoding.seed, len(source), args.shard_size, samples.x, samples.cond)
    finished(args.out, header)  # refuses a folder that holds another set before that set is touched
    if samples.negative:
        write_shared(args.out, samples.negative)
    ready = time.monotonic()
    with progress(f"encode {args.model}", len(source)) as show:
        begun: list[int] = []
        written = write_set(
            args.out, header, _counted(samples, begun), part=(args.part, args.parts), progress=show
        )
    seconds = time.monotonic() - ready
    size = sum(shard.bytes for shard in written.index.shards)
    encoded = len(begun)
    summary: dict[str, Any] = {"command": "encode", "set": name, "num_samples": len(source)}
    summary |= {"encoded": encoded, "shards": len(written.index.shards), "shards_kept": written.kept}
    summary |= {"bytes": size, "data_shape": list(samples.x.shape), "replaced": samples.problems}
    summary |= {"model": args.model, "latents": encoding.latents, "part": [args.part, args.parts]}
    length = samples.prompt_length
    summary |= {"max_sequence_length": length.limit, "captions_cut": length.cut}
    summary |= {"samples_per_second": encoded / seconds if encoded else None}
    several = f"-{args.part:05d}-of-{args.parts:05d}" if args.parts > 1 else ""
    total = round(time.monotonic() - start, 3)
    write_json(args.out / f"summary{several}.json", {**summary, "seconds": total})
    for problem in samples.problems:
        print(f"{problem}; replaced by the next sample")
    if length.cut:
        more = f"raise --max-sequence-length (to {length.most} at most)"
        print(
            f"{length.cut} of {encoded} captions are longer than the {length.limit} tokens that are read, "
            f"and are cut; {more if length.limit < length.most else 'shorten them'}"
        )
    rate = f"{encoded / seconds:.3g} samples/s" if encoded else "nothing left to do"
    print(
        f"{args.out}: {encoded} samples in {seconds:.1f} s ({rate}); {header}, "
        f"{len(written.index.shards)} shards ({written.kept} kept), {size / 1e6:.1f} MB"
    )


def _encoding(args: argparse.Namespace) -> Encoding:
    if (args.source is None) == (args.captions is None):
        raise UserError("give either a folder of image-caption SHARDS or --captions FILE")
    if not args.model.strip():
        raise UserError("--model is empty; give a diffusers pipeline's folder, or a hub id")
    latents = args.latents or ("images" if args.captions is None else "generate")
    if latents not in LATENTS:
        raise UserError(f"--latents must be generate or noise, got {latents!r}{nearest(latents, LATENTS)}")
    if (latents == "images") != (args.captions is None):
        raise UserError("--latents generate and noise go with --captions; latents of images with SHARDS")
    for key in ("batch_size", "shard_size", "steps"):
        if getattr(args, key) < 1:
            raise UserError(f"--{key.replace('_', '-')} must be at least 1, got {getattr(args, key)}")
    if args.max_sequence_length is not None and args.max_sequence_length < 1:
        raise UserError(f"--max-sequence-length must be at least 1, got {args.max_sequence_length}")
    if not 0 < args.shift < math.inf:
        raise UserError(f"--shift must be finite and greater than 0, got {args.shift}")
    if args.guidance_scale is not None and not 0 <= args.guidance_scale < math.inf:
        raise UserError(f"--guidance-scale must be finite and at least 0, got {args.guidance_scale}")
    if not 0 <= args.max_bad_fraction < 1:
        raise UserError(f"--max-bad-fraction must lie in [0, 1), got {args.max_bad_fraction}")
    if args.dtype not in DTYPES:
        raise UserError(f"--dtype must be one of {', '.join(DTYPES)}, got {args.dtype!r}")
    if not 0 <= args.part < args.parts:
        raise UserError(f"--part must be I with 0 <= I < --parts, got {args.part} of {args.parts}")
    names = [n for n in Encoding._fields if n not in ("latents", "device")]
    values = {name: getattr(args, name) for name in names}
    return Encoding(**values, latents=latents, device=_device(args.device))


def _source(args: argparse.Namespace, progress: Progress) -> Captioned:
    if args.captions is not None:
        return CaptionFile(args.captions)
    with progress(f"list {args.source}", None) as show:
        pairs = PairShards(args.source, show)
    if pairs.incomplete:
        print(f"{args.source}: {pairs.incomplete} samples without image or caption are left out")
    return pairs


def _device(name: str) -> str:
    """``auto`` is this task's own GPU: SLURM's tasks of one node see all of them."""
    if name != "auto":
        try:
            if (kind := torch.device(name).type) not in ("cpu", "cuda"):
                raise RuntimeError(f"{kind} is neither cpu nor cuda")
            return str(torch.empty(0, device=name).device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"--device {name} cannot be used ({reason}); give cpu, cuda or auto") from error
    if not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{int(os.environ.get('SLURM_LOCALID', '0')) % torch.cuda.device_count()}"


def _digest(encoding: Encoding, source: Captioned) -> str:
    """Eight letters that differ where the samples would."""
    folder = Path(encoding.model).expanduser()
    model = str(folder.resolve()) if folder.is_dir() else encoding.model
    free = {"batch_size", "device", "max_bad_fraction", "model"}
    settings = {name: value for name, value in encoding._asdict().items() if name not in free}
    told = json.dumps([model, settings, source.fingerprint()])
    return hashlib.sha256(told.encode()).hexdigest()[:8]


def _counted(samples: EncodedSamples, begun: list[int]) -> Any:
    def counted(start: int, stop: int) -> Any:
        for number, sample in enumerate(samples(start, stop), start):
            begun.append(number)
            yield sample

    return counted
