"""The module with the WebGPU build of onnxruntime-web, on a GPU that Chromium computes on the processor."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from publishing.onnx.compact import compact
from publishing.static_server import serving
from tests.builders.node import WEB, install_packages
from tests.builders.onnx_models import export_rich
from tests.builders.space_browser import CHROMIUM, NEEDS_CHROMIUM

pytestmark = NEEDS_CHROMIUM

PAGE = """<!doctype html><title>melody-vae</title><link rel="icon" href="data:,"><script type="module">
import { load } from "./src/index.js"
window.run = async (build, device) => {
  const ort = await import(`./ort/ort.${build}.min.mjs`)
  const model = await load("./model/", { device, ort, threads: 1, cache: "" })
  await model.complete
  const [melody] = await model.sample({ seed: 3, bars: 3, candidates: 2 })
  const similar = await model.vary(melody, { similarity: 0.5, seed: 3 })
  const again = await model.decode(await model.encode(melody), { bars: 3 })
  return { device: model.device, tokens: [melody, again, ...similar].map(({ tokens }) => tokens) }
}
</script>"""


def halve(graphs: Path, folder: Path) -> Path:
    """Copy an exported model, with weights that bfloat16 holds exactly, as a release's, and so stored as such."""
    shutil.copytree(graphs, folder)
    config = json.loads((folder / "onnx_config.json").read_text(encoding="utf-8"))
    for file in folder.glob("*.onnx"):
        model = onnx.load(file)
        for tensor in model.graph.initializer:
            if tensor.data_type == onnx.TensorProto.FLOAT:
                words = numpy_helper.to_array(tensor).view(np.uint32) & 0xFFFF0000
                tensor.CopyFrom(numpy_helper.from_array(words.view(np.float32), tensor.name))
        compact(model)
        onnx.save(model, file)
        config["sha256"][file.name] = hashlib.sha256(file.read_bytes()).hexdigest()
    (folder / "onnx_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.fixture
def files(shared, tmp_path) -> dict[str, Path | str]:
    install_packages()
    folder = halve(shared("onnx-rich", export_rich) / "onnx", tmp_path / "halved")
    files: dict[str, Path | str] = {"index.html": PAGE}
    files |= {f"src/{file.name}": file for file in (WEB / "src").glob("*.js")}
    files |= {f"model/{file.name}": file for file in folder.iterdir() if file.is_file()}
    runtime = WEB / "node_modules/onnxruntime-web/dist"
    return files | {
        f"ort/{file.name}": file for pattern in ("*.min.mjs", "ort-wasm*") for file in runtime.glob(pattern)
    }


def test_the_webgpu_build_writes_the_same_tokens(browser, files):
    """Weights are bfloat16, which that build cannot cast; on a GPU it makes and runs one session at a time."""
    flags = ["--no-sandbox", "--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-features=Vulkan"]
    chromium = browser.browser_type.launch(executable_path=CHROMIUM, args=flags)
    with serving(files) as address:
        page = chromium.new_page()
        page.set_default_timeout(180_000)
        page.goto(address)
        page.wait_for_function("() => Boolean(window.run)")
        runs = {
            (build, device): page.evaluate("([build, device]) => run(build, device)", [build, device])
            for build, device in (("wasm", "wasm"), ("webgpu", "wasm"), ("webgpu", "webgpu"))
        }
    chromium.close()
    assert {device: found["device"] for (_, device), found in runs.items()} == {"wasm": "wasm", "webgpu": "webgpu"}
    expected = runs["wasm", "wasm"]["tokens"]
    assert len({tuple(tokens) for tokens in expected}) > 1
    assert all(found["tokens"] == expected for found in runs.values())
