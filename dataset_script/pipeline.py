"""Turn MIDI files into a data set of melodies with datatrove, on one machine or on a cluster.

For collections that outgrow what one machine does over a coffee. The rows are those of `dataset_script.build`; only
their order and the number of Parquet files differ. Tasks that are done are not done again: after an interruption, the
same command goes on.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import sys
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from glob import glob, has_magic
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datatrove.executor.base import PipelineExecutor
from datatrove.executor.local import LocalPipelineExecutor
from datatrove.executor.ray import RayPipelineExecutor
from datatrove.executor.slurm import SlurmPipelineExecutor
from datatrove.pipeline.base import PipelineStep

from command import run_command
from dataset_script import build, configs, parquet_files
from dataset_script.chunks import Limits, harvest, line_files, load_kernels, process_all, read_arrow, write_arrow
from dataset_script.genres import metadata_from
from dataset_script.kept_lines import choose_lines
from dataset_script.midi_sources import InputError, MidiSource, is_midi_name, open_sources

EXAMPLES = """\
examples:
  python -m dataset_script.pipeline --input "shards/*.tar.gz" --output melodies --tasks 64 --workers 16
  python -m dataset_script.pipeline --input midi_folder --output melodies --tasks 500 --executor slurm \\
      --slurm_partition cpu --slurm_time 04:00:00
"""

DECISION_SUFFIX = ".decided.arrow"


def share_of(given: str, rank: int, tasks: int) -> Iterator[MidiSource]:
    """Return the files that one of several tasks reads.

    Of several archives each task takes whole ones, of a folder, a glob or one archive every `tasks`-th file.

    Args:
        given: what `--input` names: as in `dataset_script.build`, or a glob that matches archives.
        rank: number of the task, from 0.
        tasks: number of tasks.

    Raises:
        InputError: as `open_sources`.
    """
    paths = sorted(glob(given, recursive=True)) if has_magic(given) else []  # noqa: PTH207 (may be absolute)
    archives = [path for path in paths if Path(path).is_file() and not is_midi_name(path)]
    if len(archives) > 1:
        return chain.from_iterable(open_sources(path) for path in archives[rank::tasks])
    return islice(iter(open_sources(archives[0] if archives else given)), rank, None, tasks)


class ExtractMelodies(PipelineStep):
    """Extract the melody lines of a task's share of the files, chunk by chunk, into the work folder.

    Args:
        given: the MIDI files, see `share_of`.
        work: folder for the Arrow files of all tasks.
        steps_per_beat: grid steps in a beat.
        limits: what one file may cost.
    """

    name = "Extract melodies"
    type = "Melodies"

    def __init__(self, given: str, work: str, steps_per_beat: int, limits: Limits):
        super().__init__()
        self.given, self.work, self.steps_per_beat, self.limits = given, work, steps_per_beat, limits

    def run(self, data: object = None, rank: int = 0, world_size: int = 1) -> None:
        """Do the share of task `rank` of `world_size`."""
        folder = Path(self.work) / f"{rank:06d}"
        folder.mkdir(parents=True, exist_ok=True)
        load_kernels(self.steps_per_beat)  # else a file's seconds go into that, and it is left out on a busy machine
        for files in process_all(share_of(self.given, rank, world_size), self.steps_per_beat, 1, self.limits, folder):
            self.stat_update("files", value=files)


class GroupFiles(PipelineStep):
    """Group the files by their near-duplicates and decide which lines stay; one task, which reads no notes.

    Args:
        work: the folder that `ExtractMelodies` wrote to. Beside each file of lines one with the decisions is written:
            the rows that stay and their groups, and how many go in the metadata.
        source_name: what errors call the input.
        output: folder of the data set, for its configuration `files`.
        excluded: md5 of the files that are left out.
        metadata: what is known of the songs, by md5.
    """

    name = "Group files"
    type = "Melodies"

    def __init__(
        self,
        work: str,
        output: str,
        source_name: str,
        excluded: Collection[str],
        metadata: Mapping[str, Mapping[str, str]],
    ):
        super().__init__()
        self.work, self.output, self.source_name = work, output, source_name
        self.excluded, self.metadata = excluded, dict(metadata)

    def run(self, data: object = None, rank: int = 0, world_size: int = 1) -> None:
        """Group all files; a second task has nothing to do."""
        if rank:
            return
        found = harvest(Path(self.work))
        build.check_melodic(found, self.source_name)
        work = Path(self.work)
        group, paths = parquet_files.assign_groups(found, work), line_files(work)
        chosen = choose_lines(paths, found.md5, self.excluded, work)
        about_files = configs.files_table(work, group, chosen.md5, self.excluded, self.metadata)
        configs.write_files(about_files, Path(self.output))
        at = 0
        for number, path in enumerate(paths):
            md5 = read_arrow(path, ["md5"])["md5"]
            rows = np.flatnonzero(chosen.is_kept[at : at + len(md5)])
            at += len(md5)
            groups = [group[one] for one in md5.take(pa.array(rows)).to_pylist()]
            decided = pa.table({"row": pa.array(rows, pa.int32()), "group": pa.array(groups, pa.string())})
            metadata = {"again": json.dumps(chosen.gone if number == 0 else {})}
            write_arrow(decided.replace_schema_metadata(metadata), path.with_suffix(DECISION_SUFFIX))


class WriteSplits(PipelineStep):
    """Write the lines that stay as Parquet files, at most one for each task and split.

    Args:
        work: the folder that the steps before wrote to.
        output: folder of the data set.
        metadata: what is known of the songs, by md5.
    """

    name = "Write splits"
    type = "Melodies"

    def __init__(self, work: str, output: str, metadata: Mapping[str, Mapping[str, str]]):
        super().__init__()
        self.work, self.output, self.metadata = work, output, dict(metadata)

    def run(self, data: object = None, rank: int = 0, world_size: int = 1) -> None:
        """Write the share of task `rank` of `world_size`."""
        kept, group = [], {}
        for path in line_files(Path(self.work))[rank::world_size]:
            decided = read_arrow(path.with_suffix(DECISION_SUFFIX))
            kept.append(read_arrow(path).take(decided["row"]))
            group |= zip(kept[-1]["md5"].to_pylist(), decided["group"].to_pylist(), strict=True)
        if not kept:
            return
        table = pa.concat_tables(kept).combine_chunks()
        names = np.array(table["melody_id"].to_pylist(), dtype=object)
        rows = np.argsort(names, kind="stable")
        folder = Path(self.output) / "data"
        folder.mkdir(parents=True, exist_ok=True)
        for split, chosen in parquet_files.rows_of_splits(table, rows, group).items():
            if len(chosen):
                path = folder / f"{split}-{rank:05d}-of-{world_size:05d}.parquet"
                unfinished = path.with_suffix(".unfinished")
                parquet_files.write_lines(table, chosen, group, self.metadata, unfinished)
                unfinished.replace(path)
                self.stat_update(split, value=len(chosen))


class WriteReport(PipelineStep):
    """Write `build.json` and the card; one task.

    Args:
        work: the folder that the steps before wrote to.
        output: folder of the data set.
        source_name: what the card calls the input.
        steps_per_beat: grid steps in a beat.
        tasks: number of tasks of the first step, for the report.
    """

    name = "Write report"
    type = "Melodies"

    def __init__(self, work: str, output: str, source_name: str, steps_per_beat: int, tasks: int):
        super().__init__()
        self.work, self.output, self.source_name = work, output, source_name
        self.steps_per_beat, self.tasks = steps_per_beat, tasks

    def run(self, data: object = None, rank: int = 0, world_size: int = 1) -> None:
        """Write both; a second task has nothing to do."""
        if rank:
            return
        again = Counter()
        for path in line_files(Path(self.work)):
            again.update(json.loads((read_arrow(path.with_suffix(DECISION_SUFFIX)).schema.metadata or {})[b"again"]))
        output = Path(self.output)
        configs.write_configs(output)
        report = build.describe(harvest(Path(self.work)), again, self.source_name, output, self.steps_per_beat)
        build.write_report(report | {"datatrove_tasks": self.tasks}, output)


def stages(
    options: argparse.Namespace, metadata: Mapping[str, Mapping[str, str]]
) -> list[tuple[str, PipelineStep, int]]:
    """Return name, step and number of tasks of each stage."""
    output = Path(options.output)
    work, source_name = str(output.parent / f".{output.name}.work"), Path(options.input).name
    limits = Limits(options.max_seconds_per_file, options.max_memory)
    extraction = ExtractMelodies(options.input, work, options.steps_per_beat, limits)
    report = WriteReport(work, str(output), source_name, options.steps_per_beat, options.tasks)
    return [
        ("extract", extraction, options.tasks),
        ("group", GroupFiles(work, str(output), source_name, build.read_excluded(options.exclude), metadata), 1),
        ("write", WriteSplits(work, str(output), metadata), options.tasks),
        ("report", report, 1),
    ]


def executors(options: argparse.Namespace, metadata: Mapping[str, Mapping[str, str]]) -> list[PipelineExecutor]:
    """Make an executor for each stage; Slurm's depend on the one before, the others are run in turn."""
    logs = Path(options.output).parent / f".{Path(options.output).name}.logs"
    made: list[Any] = []
    for name, step, tasks in stages(options, metadata):
        common: dict[str, Any] = {"pipeline": [step], "tasks": tasks, "logging_dir": str(logs / name)}
        workers = min(tasks, options.workers)
        if options.executor == "local":
            made.append(LocalPipelineExecutor(**common, workers=workers))
        elif options.executor == "ray":
            made.append(RayPipelineExecutor(**common, workers=workers))
        else:
            made.append(
                SlurmPipelineExecutor(
                    **common,
                    depends=made[-1] if made else None,
                    workers=workers,
                    partition=options.slurm_partition,
                    time=options.slurm_time,
                    job_name=f"melodies-{name}",
                    env_command=f"export PYTHONPATH={shlex.quote(str(Path(__file__).resolve().parents[1]))}",
                )
            )
    return made


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m dataset_script.pipeline",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--input", required=True, help="a folder, an archive, or a glob of MIDI files or of archives")
    parser.add_argument("--output", required=True, type=Path, help="the new folder for the data set")
    parser.add_argument("--tasks", type=int, default=16, help="into how many tasks the files are divided")
    parser.add_argument("--workers", type=int, default=4, help="how many tasks run at a time")
    parser.add_argument("--executor", choices=("local", "slurm", "ray"), default="local", help="what runs the tasks")
    parser.add_argument("--slurm_partition", help="partition of the cluster")
    parser.add_argument("--slurm_time", default="12:00:00", help="time limit of a task")
    build.add_build_options(parser)
    options = parser.parse_args(arguments)
    for name in ("tasks", "workers"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1, not {getattr(options, name)}")
    if options.executor == "slurm" and not options.slurm_partition:
        parser.error("--executor slurm needs --slurm_partition")
    return options


def run_stages(options: argparse.Namespace) -> None:
    """Run all stages, or submit them, and show the funnel.

    Raises:
        InputError: for bad input, for an output that cannot be written, and where tasks failed.
    """
    # What is there is of the same plan, or refused.
    output: Path = options.output
    begun = output.parent / f".{output.name}.plan.json"
    if (output / "build.json").exists() and not begun.exists():
        raise InputError(f"{output} is built already; give --output a new folder")
    next(share_of(options.input, 0, options.tasks), None)  # a wrong input is refused before any task starts
    metadata = metadata_from(options)
    plan = {
        "input": options.input,
        "tasks": options.tasks,
        "steps_per_beat": options.steps_per_beat,
        "program": build.program_fingerprint(),
    }
    if begun.exists() and json.loads(begun.read_text(encoding="utf-8")) != plan:
        raise InputError(
            f"{output} was begun with other options or another version of the program; give --output a new folder, "
            f"or remove .{output.name}.* and begin again"
        )
    if (output / "build.json").exists():  # Slurm has finished it since it was submitted
        return finish(output, begun)
    # Run the stages, each of which goes on where it was interrupted.
    with build.faults_of(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        partial = begun.with_suffix(".unfinished")
        partial.write_text(json.dumps(plan), encoding="utf-8")
        partial.replace(begun)
        made = executors(options, metadata)
        if options.executor == "slurm":
            made[-1].run()  # submits those that it depends on too
            print(f"submitted; {output} is finished when {output / 'build.json'} is there; then run this again")
            return None
        for executor in made:
            executor.run()
            if failed := executor.get_incomplete_ranks(skip_completed=True):  # Ray only warns of them
                raise InputError(
                    f"{len(failed)} of {executor.world_size} tasks failed, {executor.logging_dir.path}/logs says why; "
                    "the same command goes on with what is done"
                )
    return finish(output, begun)


def finish(output: Path, begun: Path) -> None:
    """Remove what a whole data set needs no more, its plan last, and show the funnel."""
    for suffix in ("work", "logs"):
        shutil.rmtree(output.parent / f".{output.name}.{suffix}", ignore_errors=True)
    begun.unlink()
    print(build.funnel(json.loads((output / "build.json").read_text(encoding="utf-8"))))


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code: 0, or 2 after one line about bad input."""
    options = parse_arguments(arguments)
    return run_command(run_stages, options, stopped="stopped; the same command goes on from here")


if __name__ == "__main__":
    # The module by its name: what stands in __main__ is pickled by value, and does not arrive whole on another machine.
    from dataset_script import pipeline

    sys.exit(pipeline.main())
