"""What is gathered for the static Space's repository: it holds all that its page asks for."""

import json
import re
import shutil
from pathlib import Path

import pytest
from huggingface_hub import RepoCard

import publish
from command import UserError
from publishing import static_space
from publishing.static_space import PAGE, RUNTIME, RUNTIME_FILES, WEB, page_files, runtime_files

WRITTEN_WHEN_STAGED = {"files.json", "opening.json"}
REFERENCES = {  # of a file's kind: how it names others
    ".html": r'(?:src|href)="([\w./-]+)"',
    ".css": r'url\("([\w./-]+)"\)',
    ".js": r'(?:from|import|import\(|read\(|readJson\(|new URL\(|register\(|fetch\()\s*"([\w./-]+)"',
}


@pytest.fixture
def web(tmp_path) -> Path:
    """Lay out `web/` with onnxruntime-web as npm installs it, its files empty."""
    folder = tmp_path / "node_modules" / RUNTIME
    (folder / "dist").mkdir(parents=True)
    shutil.copy(WEB / "package-lock.json", tmp_path)
    lock = json.loads((WEB / "package-lock.json").read_text(encoding="utf-8"))
    version = lock["packages"][f"node_modules/{RUNTIME}"]["version"]
    (folder / "package.json").write_text(json.dumps({"version": version}), encoding="utf-8")
    for name in RUNTIME_FILES:
        (folder / "dist" / name).touch()
    return tmp_path


def test_every_file_that_the_page_names_goes_up():
    """References of modules are relative to them, those of `fetch` to the page, which lies at the top."""
    files = page_files()
    there = {*files, *WRITTEN_WHEN_STAGED, *(f"ort/{name}" for name in RUNTIME_FILES)}
    found = set()
    for path, file in files.items():
        if pattern := REFERENCES.get(file.suffix):
            for name in re.findall(pattern, file.read_text(encoding="utf-8")):
                is_relative = name.startswith(".") and name != "."
                target = (Path("/") / (Path(path).parent if is_relative else "") / name).resolve()
                found.add((path, str(target)[1:]))
    assert {
        ("page.js", "src/client.js"),
        ("src/client.js", "ort/ort.wasm.min.mjs"),
        ("page.css", "space/fonts/manrope-400.woff2"),
    } <= found
    assert {("element.js", "space/roll.js"), ("src/client.js", "src/worker.js"), ("page.js", "sw.js")} <= found
    packages = {("src/sessions.js", each) for each in ("onnxruntime-web", "onnxruntime-node")}
    types = {"melody-vae.js"}  # which comments name
    assert {name for _, name in found - packages} - types <= there


def test_the_runtime_is_the_version_that_the_lock_file_names(web):
    assert set(runtime_files(web)) == {f"ort/{name}" for name in RUNTIME_FILES}
    package = web / "node_modules" / RUNTIME / "package.json"
    for content, message in (
        ('{"version": "1.0.0"}', "version 1.0.0, and .* is tested; run npm ci"),
        ("{}", "package.json: broken .*; run npm ci"),
        (None, "onnxruntime-web is not installed; run npm ci"),
    ):
        package.unlink()
        if content is not None:
            package.write_text(content, encoding="utf-8")
        with pytest.raises(UserError, match=message):
            runtime_files(web)
        package.touch()


def test_a_runtime_that_lacks_a_file_is_refused(web):
    (web / "node_modules" / RUNTIME / "dist" / RUNTIME_FILES[-1]).unlink()
    with pytest.raises(UserError, match=r"threaded\.wasm: no such file; run npm ci"):
        runtime_files(web)


@pytest.mark.parametrize("is_installed", [False, True])
def test_what_cannot_be_published_is_one_line_and_exit_code_2(web, is_installed, tmp_path, monkeypatch, capsys):
    given = runtime_files(web)
    monkeypatch.setattr(
        static_space, "runtime_files", lambda: given if is_installed else runtime_files(tmp_path / "no")
    )
    (tmp_path / "no").mkdir()
    shutil.copy(WEB / "package-lock.json", tmp_path / "no")
    command = ["space", "--static", "--repo_id", "tester/page", "--model_id", "tester/model", "--dry_run"]
    model = tmp_path / "model"
    assert publish.main([*command, "--model", str(model), "--staging", str(tmp_path / "staging")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert ("no such folder; name with --model" if is_installed else "run npm ci") in error


def test_the_card_is_a_static_spaces():
    head = RepoCard.load(PAGE / "README.md").data.to_dict()
    assert (head["sdk"], head["app_file"]) == ("static", "index.html")
    assert len(head["short_description"]) <= 60, "the Hub takes no more"
    assert set(head["custom_headers"]) == {
        f"cross-origin-{name}" for name in ("embedder-policy", "opener-policy", "resource-policy")
    }
