"""The datatrove pipeline: the same rows as the command on one machine, whatever runs its tasks."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from dataset_script import build, pipeline
from dataset_script.chunks import Limits
from tests.builders.midi_files import all_lines, corpus, write_archive, write_folder

pytestmark = pytest.mark.usefixtures("without_histograms")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("source") / "midi", corpus())


@pytest.fixture(scope="module")
def expected(source, tmp_path_factory):
    output = tmp_path_factory.mktemp("expected") / "out"
    assert build.main(["--input", str(source), "--output", str(output)]) == 0
    return output


def by_id(folder):
    return sorted(all_lines(folder), key=lambda row: row["melody_id"])


def run(source, output, *options):
    """Run the command in a process of its own: datatrove starts others and reconfigures the log."""
    command = [sys.executable, "-m", "dataset_script.pipeline", "--input", str(source), "--output", str(output)]
    return subprocess.run([*command, *options], capture_output=True, encoding="utf-8")


def assert_same(output, expected):
    assert by_id(output) == by_id(expected)
    reports = [json.loads((folder / "build.json").read_text(encoding="utf-8")) for folder in (output, expected)]
    for name in ("files", "tracks", "lines", "quantisation", "statistics", "unreadable_files"):
        assert reports[0][name] == reports[1][name], name


@pytest.mark.parametrize("workers", [pytest.param("1", marks=pytest.mark.slow), "3"])
def test_local_tasks_give_the_rows_of_the_command(source, expected, tmp_path, workers):
    finished = run(source, tmp_path / "out", "--tasks", "5", "--workers", workers)
    assert finished.returncode == 0, finished.stderr
    assert_same(tmp_path / "out", expected)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    loaded = {path.name.split("-")[0] for path in (tmp_path / "out" / "data").iterdir()}
    assert loaded == {"train", "validation", "test"}


def test_several_archives_are_divided_among_the_tasks(expected, tmp_path):
    files = corpus()
    for number in range(3):
        write_archive(tmp_path / f"{number}.tar.gz", dict(list(files.items())[number::3]))
    ranks = [[name for name, _ in pipeline.share_of(str(tmp_path / "*.tar.gz"), rank, 2)] for rank in range(2)]
    assert len(ranks[0]) > len(ranks[1]) > 0
    assert sorted(name for rank in ranks for name in rank) == sorted(
        f"lmd_full/{name}" for name in files if name != "readme.txt"
    )


@pytest.mark.slow
def test_an_interrupted_run_does_only_what_is_missing(source, expected, tmp_path):
    options = ("--tasks", "5", "--workers", "2")
    assert run(source, tmp_path / "other", *options).returncode == 0  # removes its work; this one is kept:
    parsed = pipeline.parse_arguments(["--input", str(source), "--output", str(tmp_path / "out"), *options])
    (_, extraction, tasks), *_ = pipeline.stages(parsed, {})
    for rank in range(3):
        extraction.run(rank=rank, world_size=tasks)
    work = tmp_path / ".out.work"
    done = {path: path.stat().st_mtime_ns for path in work.rglob("*.arrow")}
    assert len(done) >= 3
    (tmp_path / ".out.logs" / "extract" / "completions").mkdir(parents=True)
    for rank in range(3):
        (tmp_path / ".out.logs" / "extract" / "completions" / f"{rank:05d}").touch()
    for rank in range(3, tasks):
        extraction.run(rank=rank, world_size=tasks)
    assert {path: path.stat().st_mtime_ns for path in done} == done
    finished = run(source, tmp_path / "out", *options)
    assert finished.returncode == 0, finished.stderr
    assert_same(tmp_path / "out", expected)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on a file's size")
@pytest.mark.parametrize(
    "step", [pipeline.ExtractMelodies, pipeline.GroupFiles, pipeline.WriteSplits, pipeline.WriteReport]
)
def test_a_disk_that_fills_in_a_step_is_one_line_and_keeps_what_is_done(
    source, expected, tmp_path, monkeypatch, capsys, step
):
    """A limit on files is reached by what the step writes."""
    import resource

    options = ["--input", str(source), "--output", str(tmp_path / "out"), "--tasks", "2", "--workers", "1"]
    before, work = resource.getrlimit(resource.RLIMIT_FSIZE), step.run

    def without_room(*arguments, **named):
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
        try:
            work(*arguments, **named)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    with monkeypatch.context() as patch:
        patch.setattr(step, "run", without_room)
        assert pipeline.main(options) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"error: {tmp_path / 'out'} cannot be written (")
    assert error.endswith("the same command goes on with what is done")
    done = len(list(tmp_path.rglob("*.files.arrow")))
    assert done == (0 if step is pipeline.ExtractMelodies else 2)
    with monkeypatch.context() as patch:
        if done:
            patch.setattr("dataset_script.pipeline.process_all", None)
        assert pipeline.main(options) == 0
    assert_same(tmp_path / "out", expected)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_tasks_that_fail_without_an_error_are_named(source, tmp_path, monkeypatch, capsys):
    """Ray's executor only warns."""
    monkeypatch.setattr("datatrove.executor.local.LocalPipelineExecutor.run", lambda self: None)
    assert pipeline.main(["--input", str(source), "--output", str(tmp_path / "out"), "--tasks", "3"]) == 2
    assert "3 of 3 tasks failed" in capsys.readouterr().err


def test_kernels_are_compiled_before_a_file_has_its_seconds(source, tmp_path, monkeypatch):
    calls = []
    for name, given_back in (("load_kernels", None), ("process_all", [])):
        monkeypatch.setattr(
            f"dataset_script.pipeline.{name}", lambda *_, name=name, back=given_back: calls.append(name) or back
        )
    pipeline.ExtractMelodies(str(source), str(tmp_path), 4, Limits()).run()
    assert calls == ["load_kernels", "process_all"]


@pytest.mark.slow
def test_ray_gives_the_same_rows(source, expected, tmp_path):
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    finished = run(source, tmp_path / "out", "--tasks", "3", "--workers", "2", "--executor", "ray")
    assert finished.returncode == 0, finished.stderr
    assert_same(tmp_path / "out", expected)


FAKE_SBATCH = """#!{python}
import os, re, subprocess, sys
script = open(sys.argv[-1]).read()
tasks = re.search(r"--array=(\\d+)-(\\d+)", script)
for task in range(int(tasks[1]), int(tasks[2]) + 1):
    environment = dict(os.environ, SLURM_ARRAY_TASK_ID=str(task), SLURM_PROCID="0", SLURM_NODEID="0")
    environment |= dict(SLURM_JOB_ID="1", SLURM_NTASKS="1", SLURM_NODELIST="localhost", SLURM_LOCALID="0")
    subprocess.run(["bash", sys.argv[-1]], env=environment, check=True, stdout=sys.stderr)
print("Submitted batch job 1")
"""


@pytest.mark.slow
def test_slurm_gives_the_same_rows(source, expected, tmp_path, monkeypatch):
    """Slurm itself is no package of a registry: `sbatch` here runs the script that it is given, and `srun` its part."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, text in {
        "sbatch": FAKE_SBATCH.format(python=sys.executable),
        "srun": '#!/bin/bash\nshift 3  # -l -n 1\nexec "$@"\n',
        "scontrol": "#!/bin/bash\necho localhost\n",
    }.items():
        (commands / name).write_text(text, encoding="utf-8")
        (commands / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{commands}:{Path(sys.executable).parent}:{os.environ['PATH']}")
    options = ("--tasks", "3", "--executor", "slurm", "--slurm_partition", "cpu")
    finished = run(source, tmp_path / "out", *options)
    assert finished.returncode == 0, finished.stderr
    assert_same(tmp_path / "out", expected)
    assert list(tmp_path.glob(".out.*"))
    again = run(source, tmp_path / "out", *options)
    assert again.returncode == 0, again.stderr
    assert not list(tmp_path.glob(".out.*"))
    assert_same(tmp_path / "out", expected)


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        (["--input", "nowhere"], "does not exist"),
        (["--input", ".", "--tasks", "0"], "--tasks must be at least 1"),
        (["--input", ".", "--executor", "slurm"], "needs --slurm_partition"),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, options, remedy):
    try:
        code = pipeline.main([*options, "--output", str(tmp_path / "out")])
    except SystemExit as stopped:
        code = stopped.code
    assert code == 2
    assert remedy in capsys.readouterr().err


def test_other_options_do_not_go_on_from_an_old_run(source, tmp_path, capsys):
    (tmp_path / ".out.plan.json").write_text('{"tasks": 3}', encoding="utf-8")
    assert pipeline.main(["--input", str(source), "--output", str(tmp_path / "out")]) == 2
    assert "begun with other options" in capsys.readouterr().err
