"""Commands are verbs: nothing outside the tests imports one."""

import ast
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
VERBS = {"train", "train_prior", "generate", "evaluate_model", "publish", "export_onnx"}


def imported(file: Path) -> set[str]:
    """Return the first names of all modules that a file imports from outside its own folder, wherever it does."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names.add(node.module.split(".")[0])
    return names


def test_nothing_imports_a_verb(tmp_path):
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, encoding="utf-8", check=True)
    files = [ROOT / name for name in listed.stdout.split() if not name.startswith("tests/")]
    assert {f"{verb}.py" for verb in VERBS} <= {file.name for file in files if file.parent == ROOT}
    assert {str(file.relative_to(ROOT)): used for file in files if (used := imported(file) & VERBS)} == {}
    (tmp_path / "upwards.py").write_text("def late():\n    from generate import main\n", encoding="utf-8")
    assert imported(tmp_path / "upwards.py") == {"generate"}
