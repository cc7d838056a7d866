from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu_features.py"


@pytest.mark.slow
def test_the_benchmark_runs_where_there_is_no_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--backbone", "tiny", "--photos", "6", "--batch", "1", "3", "--size", "64x96"]
    command = [sys.executable, str(SCRIPT), *arguments, "--out", str(tmp_path)]
    ran = subprocess.run([*command, "--json"], check=True, capture_output=True, text=True)
    result = json.loads(ran.stdout)
    assert json.loads((tmp_path / "gpu_features.json").read_text()) == result
    report = result["figures"]
    assert report["size"] == "64x96" and report["photos"] == 6
    assert len(report["routes"]) == 4
    assert report["weights"] == "random, tiny backbone"
    assert report["cosine_fused_to_hugging_face"] > 0.999
    for figures in report["routes"].values():
        assert figures["share_of_matrix_rate"] > 0
        assert figures["photos_per_s"] > 0
    monkeypatch.syspath_prepend(SCRIPT.parent)
    import a10g

    assert len(a10g.result(report).tables[1].rows) == 4, "it reads what was measured here"
    table = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "Hugging Face" in table and "share of matrix rate" in table
