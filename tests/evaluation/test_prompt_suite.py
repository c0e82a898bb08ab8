"""Files of prompts, and the folders that their evaluators read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fmtt.errors import UserError
from fmtt.evaluation import prompt_suite

GENEVAL = [
    {
        "tag": "counting",
        "include": [{"class": "clock", "count": 3}],
        "prompt": "a photo of three clocks",
    },
    {
        "tag": "colors",
        "include": [{"class": "car", "count": 1, "color": "red"}],
        "prompt": "a photo of a réd car",
    },
]


def lines(path: Path, rows: list[dict]) -> Path:
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n", encoding="utf-8")
    return path


def test_geneval(tmp_path: Path) -> None:
    suite = prompt_suite.read(lines(tmp_path / "suite.jsonl", GENEVAL))
    assert suite.layout == "geneval" and [item.index for item in suite.items] == [0, 1]
    last = suite.items[1]
    assert last.prompt == "a photo of a réd car" and last.row == GENEVAL[1]
    folder = tmp_path / "images"
    paths = prompt_suite.images(suite, folder, last, 2)
    assert paths == [folder / "00001" / "samples" / name for name in ("0000.png", "0001.png")]
    prompt_suite.write_metadata(suite, folder, last)
    assert json.loads((folder / "00001" / "metadata.jsonl").read_text(encoding="utf-8")) == GENEVAL[1]


def test_unigenbench_as_json_lines_and_as_its_own_table(tmp_path: Path) -> None:
    rows = [{"index": 7, "prompt": "a cat"}, {"index": "12", "prompt": 'a "blue", small dog'}]
    table = tmp_path / "suite.csv"
    table.write_text(
        '\ufeffindex,prompt_en,sub_dims_en\n7,a cat,"{""Testpoints"": [""Style""]}"\n'
        '12,"a ""blue"", small dog","{}"\n',
        encoding="utf-8",
    )
    for path in (lines(tmp_path / "suite.jsonl", rows), table):
        suite = prompt_suite.read(path)
        assert suite.layout == "unigenbench"
        assert [(item.index, item.prompt) for item in suite.items] == [
            (7, "a cat"),
            (12, 'a "blue", small dog'),
        ]
        folder = tmp_path / "images"
        assert prompt_suite.images(suite, folder, suite.items[1], 2) == [
            folder / "12_0.png",
            folder / "12_1.png",
        ]
        prompt_suite.write_metadata(suite, folder, suite.items[0])
        assert not folder.exists()
    assert prompt_suite.read(lines(tmp_path / "again.jsonl", rows), "geneval").items[1].index == 1


def test_shares_are_disjoint_and_complete(tmp_path: Path) -> None:
    rows = [{"prompt": f"number {k}"} for k in range(7)]
    suite = prompt_suite.read(lines(tmp_path / "suite.jsonl", rows))
    shares = [prompt_suite.part(suite, k, 3).items for k in range(3)]
    assert sorted(item.index for share in shares for item in share) == list(range(7))
    assert shares[1][1] == suite.items[4]


@pytest.mark.parametrize(
    "text, layout, says",
    [
        ("", "auto", "holds no prompt"),
        ('{"prompt": "a"}\nnot json\n', "auto", "line 2 is not JSON"),
        ('["a"]\n', "auto", "line 1 is not a JSON object"),
        ('{"text": "a", "tag": 1}\n', "auto", "line 1 has no prompt; keys: text, tag"),
        ('{"prompt": "a"}\n', "unigenbench", "line 1 has no whole number as index"),
        ('{"prompt": "a", "index": 1}\n{"prompt": "b", "index": 1}\n', "auto", "index 1 twice"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, layout: str, says: str) -> None:
    path = tmp_path / "suite.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match=says):
        prompt_suite.read(path, layout)
    with pytest.raises(UserError, match="cannot read the prompts of"):
        prompt_suite.read(tmp_path / "absent.jsonl")
