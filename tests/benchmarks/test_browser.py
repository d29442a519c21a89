"""The measurement in Chromium, as far as it needs neither a browser nor npm."""

import json
from math import prod

from benchmarks.browser import HOSTED_MEGABYTES, write_checkpoint


def test_the_stand_in_for_magentas_weights_is_whole(tmp_path):
    files = write_checkpoint(tmp_path)
    (group,) = json.loads(files["weights_manifest.json"].read_text(encoding="utf-8"))
    shards, weights = group["paths"], group["weights"]
    size = sum(files[name].stat().st_size for name in shards)
    assert size == 2 * sum(prod(weight["shape"]) for weight in weights)
    assert round(size / 1e6, 1) == HOSTED_MEGABYTES
    assert set(files) == {*shards, "weights_manifest.json", "config.json"}
