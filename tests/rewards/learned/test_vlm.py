"""The vision-language reward on tiny random models of every family: pixels, gradients, answers, questions."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fmtt.errors import UserError
from fmtt.rewards.learned.preprocess import as_array, random_picture
from fmtt.rewards.learned.question import Question
from fmtt.rewards.learned.vlm import VisionLanguage
from fmtt.rewards.learned.vlm_text import Reader

transformers: Any = pytest.importorskip("transformers")

WITHOUT_SMOLVLM = importlib.util.find_spec("num2words") is None

NEEDS = pytest.mark.skipif(WITHOUT_SMOLVLM, reason="transformers' SmolVLM needs num2words")
QUICK = ["qwen2_5_vl", "paligemma"]
OTHERS = ["qwen3_vl", "idefics3", pytest.param("smolvlm", marks=NEEDS)]
KINDS = [
    *QUICK,
    *(
        pytest.param(*getattr(k, "values", (k,)), marks=[*getattr(k, "marks", ()), pytest.mark.slow])
        for k in OTHERS
    ),
]
ASKED = "Does the clock read 3:47?"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(32, 32), (24, 40), (61, 35)])
def test_pixel_values_are_the_processors(
    vlm: Callable[[str], Path], kind: str, size: tuple[int, int]
) -> None:
    reader = Reader(str(vlm(kind)), "main")
    picture, other = random_picture(*size), random_picture(20, 28)
    text = reader._render(ASKED, 2, None)
    own = reader.processor(images=[[as_array(picture), as_array(other)]], text=[text], return_tensors="pt")
    pixels = reader.family(reader.image_processor, rounding=True)([picture[None], other[None]])
    assert pixels.shape == own["pixel_values"].shape
    assert (pixels - own["pixel_values"]).abs().max() < 1e-3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("answers", [("Y", "N"), ("Yes", "No")])
def test_the_gradient_is_that_of_finite_differences(
    vlm: Callable[[str], Path],
    images: torch.Tensor,
    generator: torch.Generator,
    check_gradient: Callable[..., None],
    kind: str,
    answers: tuple[str, str],
) -> None:
    reward = VisionLanguage(str(vlm(kind)), ASKED, *answers, dtype="float64")
    check_gradient(reward, images, generator)


@pytest.mark.parametrize("kind", KINDS)
def test_log_probability_is_the_models_own(
    vlm: Callable[[str], Path], images: torch.Tensor, kind: str
) -> None:
    """The model's own loss over the answer's tokens, from inputs that its processor alone has made."""
    folder = str(vlm(kind))
    reward = VisionLanguage(folder, ASKED, "Yes", kind="log_prob", dtype="float64", rounding=True)
    x = (images * 127.5 + 127.5).round() / 127.5 - 1
    reader = Reader(folder, "main")
    answer = " Yes" if kind in ("idefics3", "smolvlm") else "Yes"
    inputs = dict(reader.processor(
        images=[[as_array((x[0] + 1) / 2)]], text=[reader._render(ASKED, 1, None)], return_tensors="pt"
    ))  # fmt: skip
    inputs.pop("labels", None)
    ids = reader.tokenizer(answer, add_special_tokens=False, return_tensors="pt").input_ids
    values = {"token_type_ids": 1, "mm_token_type_ids": 0, "attention_mask": 1}
    for name in values.keys() & inputs.keys():
        inputs[name] = torch.cat([inputs[name], torch.full_like(ids, values[name])], dim=1)
    inputs["input_ids"] = torch.cat([inputs["input_ids"], ids], dim=1)
    inputs["pixel_values"] = inputs["pixel_values"].double()
    with torch.no_grad():
        logits = reward.model(**inputs).logits[0, -ids.shape[1] - 1 : -1].log_softmax(-1)
        expected = logits.gather(1, ids[0][:, None]).sum()
        assert reward(x)[0].item() == pytest.approx(expected.item(), abs=1e-4)
        assert reward(x[:1]).item() == pytest.approx(expected.item(), abs=1e-4)
    assert expected < 0


def test_log_odds_is_a_difference_of_log_probabilities(
    vlm: Callable[[str], Path], images: torch.Tensor
) -> None:
    folder = str(vlm("qwen2_5_vl"))
    with torch.no_grad():
        odds = VisionLanguage(folder, ASKED, "Yes", "No", dtype="float64")(images)
        yes, no = (
            VisionLanguage(folder, ASKED, a, kind="log_prob", dtype="float64")(images) for a in ("Yes", "No")
        )
    assert torch.allclose(odds, yes - no)
    assert (yes < 0).all() and (odds[0] - odds[1]).abs() > 1e-3


def test_questions_add_up_with_their_weights(
    vlm: Callable[[str], Path], images: torch.Tensor, tmp_path: Path
) -> None:
    folder = str(vlm("paligemma"))
    file = tmp_path / "questions.jsonl"
    lines = [
        {"text": "Is it red?", "weight": 2.0},
        {"text": "Is it round?", "answer": "no", "against": "yes"},
    ]
    file.write_text("\n".join(map(json.dumps, lines)))
    with torch.no_grad():
        both = VisionLanguage(folder, f"@{file}", dtype="float64")(images)
        red = VisionLanguage(folder, "Is it red?", dtype="float64")(images)
        round_ = VisionLanguage(folder, "Is it round?", "no", "yes", dtype="float64")(images)
    assert torch.allclose(both, 2 * red + round_)


@pytest.mark.parametrize("kind", KINDS)
def test_a_reference_is_seen_and_the_gradient_reaches_the_sample(
    vlm: Callable[[str], Path],
    images: torch.Tensor,
    generator: torch.Generator,
    check_gradient: Callable[..., None],
    kind: str,
) -> None:
    def ask(seed: int) -> VisionLanguage:
        reference = torch.rand(3, 20, 28, generator=torch.Generator().manual_seed(seed))
        question = Question("Is it the same character?", references=(reference,))
        return VisionLanguage(str(vlm(kind)), [question], dtype="float64")

    reward = ask(1)
    with torch.no_grad():
        assert not torch.allclose(reward(images), ask(2)(images), atol=1e-4)
    check_gradient(reward, images, generator)


def test_each_sample_is_asked_about_its_own_prompt(vlm: Callable[[str], Path], images: torch.Tensor) -> None:
    folder, asked = str(vlm("qwen2_5_vl")), "Does it show {prompt}?"
    reward = VisionLanguage(folder, asked, prompt=["a cat", "a red clock"], dtype="float64")
    assert reward.description.uses_prompt
    with torch.no_grad():
        scores = reward(images, {"prompt_index": torch.tensor([1, 0])})
        alone = [
            VisionLanguage(folder, f"Does it show {p}?", dtype="float64") for p in ("a red clock", "a cat")
        ]
        for k in (0, 1):
            assert scores[k].item() == pytest.approx(alone[k](images[k : k + 1]).item(), abs=1e-5)


def test_the_batch_limit_changes_nothing(vlm: Callable[[str], Path], images: torch.Tensor) -> None:
    folder = str(vlm("idefics3"))
    x = torch.cat([images, images.flip(-1), images[:1].flip(-2)])
    with torch.no_grad():
        together = VisionLanguage(folder, ASKED, dtype="float64", max_batch=8)(x)
        apart = VisionLanguage(folder, ASKED, dtype="float64", max_batch=2)(x)
    assert torch.allclose(together, apart, atol=1e-5)


def test_what_makes_no_sense_is_refused(vlm: Callable[[str], Path], tmp_path: Path, clip: Path) -> None:
    folder = str(vlm("paligemma"))
    with pytest.raises(UserError, match="kind must be one of"):
        VisionLanguage(folder, ASKED, kind="odds")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="always 0"):
        VisionLanguage(folder, ASKED, "Yes", "Yes")
    with pytest.raises(UserError, match="give prompt=TEXT"):
        VisionLanguage(folder, "Is it {prompt}?")
    with pytest.raises(UserError, match="is of type 'clip'"):
        VisionLanguage(str(clip), ASKED)
    (tmp_path / "q.jsonl").write_text('{"text": "Is it?", "anwser": "Yes"}')
    with pytest.raises(UserError, match="q.jsonl, line 1: unknown key 'anwser'; did you mean 'answer'"):
        VisionLanguage(folder, f"@{tmp_path / 'q.jsonl'}")
    with pytest.raises(UserError, match="cannot read the file"):
        VisionLanguage(folder, f"@{tmp_path / 'none.jsonl'}")


@pytest.mark.skipif(not WITHOUT_SMOLVLM, reason="num2words is installed")
def test_a_missing_package_is_named(vlm: Callable[[str], Path]) -> None:
    with pytest.raises(UserError, match="num2words"):
        VisionLanguage(str(vlm("smolvlm")), ASKED)
