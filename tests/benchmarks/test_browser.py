"""The measurement in Chromium, as far as it needs neither a browser nor npm."""

import json
from math import prod

from benchmarks import browser
from benchmarks.browser import HOSTED_MEGABYTES, write_checkpoint


def test_the_stand_in_for_magentas_weights_is_whole(tmp_path):
    files = write_checkpoint(tmp_path)
    (group,) = json.loads(files["weights_manifest.json"].read_text(encoding="utf-8"))
    shards, weights = group["paths"], group["weights"]
    size = sum(files[name].stat().st_size for name in shards)
    assert size == 2 * sum(prod(weight["shape"]) for weight in weights)
    assert round(size / 1e6, 1) == HOSTED_MEGABYTES
    assert set(files) == {*shards, "weights_manifest.json", "config.json"}


def test_the_other_figures_of_the_report_stay(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(browser, "measure", lambda _: {"starts": 2.83149})
    monkeypatch.setattr(browser, "summary", str)
    output = tmp_path / "benchmark.json"
    for content in ({"parts": {"one": 2.0}}, {"parts": {"one": 3.0}, "browser": {"starts": 5.0}}):
        output.write_text(json.dumps(content), encoding="utf-8")
        assert browser.main(["--output", str(output)]) == 0
        written = json.loads(output.read_text(encoding="utf-8"))
        assert written == {"parts": content["parts"], "browser": {"starts": 2.831}}
    for broken in ("{", "[]"):
        output.write_text(broken, encoding="utf-8")
        assert browser.main(["--output", str(output)]) == 2
        assert "benchmark.json: no report in JSON" in capsys.readouterr().err
        assert output.read_text(encoding="utf-8") == broken
