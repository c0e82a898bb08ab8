"""A vision-language model as a differentiable reward: how surely it gives an answer about an image.

For a question q and an image x with answer tokens a_1..a_k, log p(a | q, x) = sum_i log p(a_i | q, x, a_<i),
by teacher forcing; the end of the answer is not scored. The reward is
    sum over questions of weight · log p(answer)                        kind="log_prob"
    sum over questions of weight · (log p(answer) - log p(against))     kind="log_odds"
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, get_args

import torch
from torch import Tensor

from fmtt.errors import UserError
from fmtt.png import DEFAULT_RANGE
from fmtt.rewards.description import Description
from fmtt.rewards.learned import loading
from fmtt.rewards.learned.base import LearnedReward
from fmtt.rewards.learned.prompts import Prompts
from fmtt.rewards.learned.question import PROMPT, Question, pictures, questions
from fmtt.rewards.learned.vlm_text import Layout, Reader

Kind = Literal["log_odds", "log_prob"]


class VisionLanguage(LearnedReward):
    """How surely a vision-language model answers questions about an image as wished, summed.

    Models of the types in ``vlm_pixels.FAMILIES``: Qwen2-VL, Qwen2.5-VL, Qwen3-VL, SmolVLM, Idefics3 and
    PaliGemma. A question costs one forward pass, two where an answer of several tokens is set against
    another. PaliGemma has no chat template and takes the text as it is trained on, for instance
    ``answer en Does the clock read 3:47?`` with answers ``yes`` and ``no``.

    Args:
        model: folder or hub id, in safetensors.
        question: one question; several, as texts or :class:`Question`; or ``@FILE`` of JSON lines.
            ``{prompt}`` in a text stands for the sample's prompt.
        answer, against: of questions given as text.
        kind: "log_odds" or "log_prob".
        reference: image file shown after the sample, for questions given as text that compare the two.
        prompt: the prompts that ``{prompt}`` stands for: one, several, or ``@FILE`` with one per line;
            with several, ``cond["prompt_index"]`` says which belongs to a sample.
        revision: branch, tag or commit on the hub.
        value_range, dtype, device, max_batch, rounding: see :class:`LearnedReward`.

    Raises:
        UserError: when the model's type is not supported, a package, file or prompt is missing, or a
            question makes no sense.
    """

    description = Description("answer of a vision-language model", True, space="pixels")

    def __init__(
        self,
        model: str,
        question: str | Sequence[str | Question],
        answer: str = "Yes",
        against: str = "No",
        kind: Kind = "log_odds",
        reference: str = "",
        prompt: str | Sequence[str] = "",
        revision: str = "main",
        value_range: tuple[float, float] = DEFAULT_RANGE,
        dtype: str = "float32",
        device: str = "cpu",
        max_batch: int = 4,
        rounding: bool = False,
    ) -> None:
        if kind not in get_args(Kind):
            raise UserError(f"kind must be one of {', '.join(get_args(Kind))}, got {kind!r}")
        default = Question("", answer, against, references=(reference,) if reference else ())
        self.questions, self.kind = questions(question, default), kind
        same = [q.answer for q in self.questions if q.answer == q.against]
        if same and kind == "log_odds":
            raise UserError(f"answer and against are both {same[0]!r}, so that their log-odds are always 0")
        asks_prompt = any(PROMPT in q.text for q in self.questions)
        if asks_prompt and not prompt:
            raise UserError(
                f"a question has {PROMPT} in it: give prompt=TEXT, or prompt=@FILE with one per line"
            )
        prompts = Prompts(prompt) if asks_prompt else None
        super().__init__(prompts, value_range, dtype, device, max_batch, rounding)
        bound = 0.0 if kind == "log_prob" and all(q.weight >= 0 for q in self.questions) else math.inf
        self.description = replace(self.description, value_range=(-math.inf, bound), uses_prompt=asks_prompt)
        self.references = [[p[None].to(device) for p in pictures(q)] for q in self.questions]
        self.reader = Reader(model, revision)
        self.pixels = self.reader.family(self.reader.image_processor, rounding=rounding)
        self.model = loading.model("AutoModelForImageTextToText", model, revision, self.dtype, device)
        self._layouts: dict[tuple, Layout] = {}

    def _score(self, rgb: Tensor, index: Tensor) -> Tensor:
        total = rgb.new_zeros(len(rgb))
        for question, references in zip(self.questions, self.references, strict=True):
            for prompt, rows in self._groups(question, index):
                text = question.text.replace(PROMPT, prompt)
                score = self._log_probs(question, text, rgb[rows], references)
                total = total.index_add(0, rows.to(rgb.device), question.weight * score.to(rgb.dtype))
        return total

    def _groups(self, question: Question, index: Tensor) -> list[tuple[str, Tensor]]:
        """The prompts that a batch's rows read in this question; one group where it reads none."""
        if self.prompts is None or PROMPT not in question.text:
            return [("", torch.arange(len(index)))]
        return [(self.prompts.texts[k], (index == k).nonzero()[:, 0]) for k in index.unique().tolist()]

    def _log_probs(self, question: Question, text: str, rgb: Tensor, references: list[Tensor]) -> Tensor:
        """The score (b,) of one question, with ``{prompt}`` replaced, about images (b, 3, H, W)."""
        answers = (question.answer,) if self.kind == "log_prob" else (question.answer, question.against)
        images = [rgb, *(reference.to(rgb) for reference in references)]
        layout = self._layout(text, answers, images)
        pixels = self.pixels(images).to(self.dtype)
        log_p: dict[tuple[int, ...], Tensor] = {}  # next-token log-probabilities after the tokens of the key
        scores = []
        for tokens in layout.answers:
            begun = tokens[:-1]
            if begun not in log_p:
                log_p[begun] = self._forward(layout, pixels, len(rgb), begun)
            chosen = torch.tensor(tokens, device=rgb.device)
            scores.append(log_p[begun][:, torch.arange(len(tokens), device=rgb.device), chosen].sum(1))
        return scores[0] if self.kind == "log_prob" else scores[0] - scores[1]

    def _forward(self, layout: Layout, pixels: Tensor, batch: int, begun: tuple[int, ...]) -> Tensor:
        """Log-probabilities (b, len(begun) + 1, vocabulary) of each token of an answer given those before."""
        inputs = {name: value.to(pixels.device) for name, value in layout.repeated(batch, begun).items()}
        steps = len(begun) + 1
        out = self.model(**inputs, pixel_values=pixels, use_cache=False, logits_to_keep=steps)
        logits = out.logits[:, -steps:]
        return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)

    def _layout(self, text: str, answers: tuple[str, ...], images: list[Tensor]) -> Layout:
        sizes = tuple((image.shape[-2], image.shape[-1]) for image in images)
        key = (text, answers, sizes)
        if key not in self._layouts:
            self._layouts[key] = self.reader.layout(text, answers, sizes)
        return self._layouts[key]
