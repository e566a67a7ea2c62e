"""What is written for people and programs alike."""

from __future__ import annotations

import json

import pytest

from metarl.files.writing import readable_json


def test_lists_of_numbers_stand_on_one_line_and_json_reads_the_same() -> None:
    document = {
        "numbers": [1, -2.5, 1e-300, None, True],
        "nested": [[1.0, 2.0], [3.0]],
        "words": ["[\n 1,\n 2\n]", 'a "quoted" [ 1,  2 ]'],
        "empty": [[], {}, [{}]],
        "[\n  1\n]": {"deep": [{"a": [0.1, 0.2]}]},
    }
    text = readable_json(document)
    assert json.loads(text) == document
    assert list(json.loads(text)) == list(document)
    assert '"numbers": [1, -2.5, 1e-300, null, true]' in text
    assert "  [1.0, 2.0],\n  [3.0]\n" in text
    with pytest.raises(ValueError, match="JSON"):
        readable_json([float("nan")])
