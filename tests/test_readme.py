"""README and the documents: every block runs, every number comes from results/, the tree is git's."""

import re
import shlex
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from dataset_script.tunes import embedded_scores
from documents import report

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
SMALL_RUN = (
    "--max_train_steps 3 --per_device_train_batch_size 8 --evaluation_steps 3 --vocab_size 300 --config_overrides "
    "hidden_size=16,intermediate_size=16,num_attention_heads=2,num_encoder_layers=1,num_hidden_layers=1,latent_size=32"
)


def blocks(language: str) -> list[str]:
    return [
        code for found, code in BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8")) if found == language
    ]


def run(command: list[str], cwd: Path) -> None:
    result = subprocess.run(command, cwd=cwd, capture_output=True, encoding="utf-8")
    assert result.returncode == 0, f"{shlex.join(command)}\n{result.stdout[-2000:]}\n{result.stderr[-4000:]}"


def test_documents_say_what_results_say():
    for name in report.DOCUMENTS:
        text = (ROOT / name).read_text(encoding="utf-8")
        assert text == report.render(text), f"{name} is out of date: run make report"


def test_the_tree_names_every_room():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, encoding="utf-8", check=True).stdout
    top_level = {path.split("/")[0] for path in listed.splitlines()}
    housekeeping = {".ci", ".gitignore", "README.md", "LICENSE", "CITATION.cff", "CHANGELOG.md"}
    assert top_level - housekeeping == set(report.TOP_LEVEL)


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", (ROOT / "README.md").read_text(encoding="utf-8")):
        assert (ROOT / target).exists(), target


def test_readme_has_the_blocks_that_are_run_here():
    assert len(blocks("python")) == 1
    assert len(blocks("bash")) == 5
    for command in ("demo", "test"):
        assert f"make {command}" in blocks("bash")[0]
        run(["make", "--dry-run", command], ROOT)


@pytest.mark.slow
def test_every_block_runs(tmp_path):
    """Data, model and output go to a temporary folder; training is made short. Nothing else is changed."""
    songs = dict(embedded_scores())
    with tarfile.open(tmp_path / "lmd_full.tar.gz", "w:gz") as archive:
        for name, content in songs.items():
            (tmp_path / f"{name}.mid").write_bytes(content)
            archive.add(tmp_path / f"{name}.mid", f"lmd_full/0/{name}.mid")
    for song, name in zip(songs, ("song.mid", "other.mid"), strict=False):
        (tmp_path / name).write_bytes(songs[song])
    for block in blocks("bash")[1:]:
        for line in block.strip().splitlines():
            if "dataset_script.download" in line:  # test_download.py fetches from a server of its own
                (tmp_path / "data").mkdir()
                (tmp_path / "lmd_full.tar.gz").rename(tmp_path / "data" / "lmd_full.tar.gz")
                continue
            words = [
                str(tmp_path / word) if re.match(r"(data|runs|outputs|results)/|\w+\.(mid|tar\.gz)$", word) else word
                for word in shlex.split(line)
            ]
            if words[0] == "accelerate":
                words += shlex.split(SMALL_RUN)
                words[0] = str(Path(sys.executable).with_name("accelerate"))
            else:
                assert words[0] == "python"
                words[0] = sys.executable
            run(words, ROOT)
    (code,) = blocks("python")
    assert '"release/melody-vae-16bar"' in code
    (tmp_path / "quickstart.py").write_text(code.replace("release/", f"{ROOT}/release/"), encoding="utf-8")
    run([sys.executable, "quickstart.py"], tmp_path)
    assert (tmp_path / "halfway.mid").read_bytes().startswith(b"MThd")
    assert (tmp_path / "outputs" / "interpolation" / "index.html").is_file()
