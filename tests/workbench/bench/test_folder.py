"""A write-up folder: text, machine-readable results, figures and where they come from."""

import json
from pathlib import Path

import matplotlib as mpl

from ksteer_vllm.bench.folder import WriteUp

mpl.use("Agg")


def test_writes_a_text_its_results_and_its_figures(tmp_path: Path) -> None:
    import matplotlib.pyplot as plt
    import pandas as pd

    writeup = WriteUp(tmp_path / "out", "Strengths")
    writeup.heading("Table")
    writeup.table(
        pd.DataFrame({"variant": ["CAA", "ACE"], "success": [0.12345, float("nan")], "replies": [3, 4]}),
        caption="Success",
    )
    figure, axes = plt.subplots()
    axes.plot([1, 2], [3, 4])
    path = writeup.figure("curve", figure, "Success by strength")
    writeup.results["success"] = {"CAA": 0.12345}
    writeup.write(model="m", digests={"caa": "abc"})

    text = (tmp_path / "out" / "results.md").read_text()
    assert text.startswith("# Strengths\n\n## Table\n\nSuccess\n\n| variant")
    assert "0.123 " in text
    assert "–" in text
    assert "![Success by strength](curve.png)" in text
    assert path.read_bytes().startswith(b"\x89PNG")
    assert not plt.get_fignums()
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["success"] == {"CAA": 0.12345}
    assert results["provenance"]["model"] == "m"
    assert results["provenance"]["versions"]["torch"]
    assert '- digests: {"caa": "abc"}' in text
