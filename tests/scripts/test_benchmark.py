import json
from pathlib import Path

import pytest
from PIL import Image

from scripts import benchmark


@pytest.mark.parametrize("model", ["tiny", "sd2-random-reduced"])
def test_every_way_is_measured_and_the_results_are_told_drawn_and_kept(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--size", "64", "--steps", "8", "--requests", "1", "3", "--rounds", "1"]
    assert benchmark.main(["--model", model, *small, "--out", str(tmp_path)]) == 0
    kept = json.loads((tmp_path / "benchmark.json").read_text())
    assert [(one["load"], one["requests"], sorted(one["seconds"])) for one in kept["results"]] == [
        ("equal", 1, ["engine", "loop", "whole batch"]),
        ("equal", 3, ["engine", "loop", "whole batch"]),
        ("mixed", 3, ["engine", "loop"]),
    ]
    assert all(seconds > 0 for one in kept["results"] for rounds in one["seconds"].values() for seconds in rounds)
    assert [len(one["seconds"]["engine"]) for one in kept["results"]] == [3, 1, 1]
    assert kept["results"][1]["most_shared"] >= 2
    assert set(kept["versions"]) == {"python", "torch", "diffusers"}
    assert Image.open(tmp_path / "benchmark.png").size == (1080, 480)
    assert "| equal | 3 |" in capsys.readouterr().out
