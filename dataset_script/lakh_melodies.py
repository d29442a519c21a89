"""The melodies of the Lakh MIDI Dataset, or of other MIDI files, as a builder of `datasets`."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from dataset_script.build import Settings, build_dataset, program_fingerprint
from dataset_script.download import LAKH_FILES, fetch
from dataset_script.genres import metadata_from
from dataset_script.midi_sources import InputError, open_sources
from dataset_script.schema import FEATURES, SPLITS
from dataset_script.windows import windows

ARCHIVES = ("lmd_full", "lmd_matched")
ROWS_PER_BATCH = 200


def stamps(files: list[Path]) -> list[tuple[str, int, int]]:
    """Return path, size and time of change of each file.

    Raises:
        InputError: if there is no such file.
    """
    try:
        return [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    except OSError as error:
        raise InputError(f"{error.filename} cannot be read ({error.strerror}); check the path") from error


def digest(content: Any) -> str:
    """Return a short name for anything that JSON can hold."""
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=8).hexdigest()


PROGRAM = program_fingerprint()
"""Names this version of the program: what another one has left in the cache is made anew."""


@dataclass
class LakhMelodiesConfig(datasets.BuilderConfig):
    """What to make a data set of, and how.

    Attributes:
        archive: what is downloaded where there is no `data_dir`: `lmd_full` or `lmd_matched`.
        steps_per_beat: how finely a beat is divided; None: 4, or as finely as in a data set that is built already.
        num_proc: number of processes that read MIDI files; None: the `num_proc` of `download_and_prepare`.
        metadata: a CSV file with the genres.
        match_scores: `match_scores.json`, with `genres` another source of genres.
        genres: a list of Million Song Dataset tracks and their genres.
        bars: length of the windows that lines are cut into; None: whole lines.
        stride: bars from one window's beginning to the next one's; None: `bars`, so that they do not overlap.
    """

    archive: str = "lmd_full"
    steps_per_beat: int | None = None
    num_proc: int | None = None
    metadata: str | Path | None = None
    match_scores: str | Path | None = None
    genres: str | Path | None = None
    bars: int | None = None
    stride: int | None = None

    @property
    def built(self) -> Path | None:
        """The `data_dir`, if it is a data set that `dataset_script.build` has built."""
        return Path(self.data_dir) if self.data_dir and (Path(self.data_dir) / "build.json").is_file() else None

    def source_key(self) -> str:
        """Name what lines are made from and with: any change to the files, the options or the program changes it.

        Raises:
            InputError: if there are no such files, or options contradict them.
        """
        if not self.data_dir:
            if self.archive not in ARCHIVES:
                raise InputError(f"there is no archive {self.archive!r}; take {' or '.join(ARCHIVES)}")
            source: Any = [self.archive, LAKH_FILES[self.archive].md5]
        elif self.built:
            self.check_built(self.built)
            source = stamps([self.built / "build.json", *sorted(self.built.glob("data/*.parquet"))])
        elif Path(self.data_dir).is_file():
            source = stamps([Path(self.data_dir)])
        else:
            source = open_sources(str(self.data_dir)).fingerprint
        given = stamps([Path(path) for path in (self.metadata, self.match_scores, self.genres) if path])
        return digest([source, given, self.steps_per_beat, PROGRAM])

    def check_built(self, built: Path) -> None:
        """Refuse options that would have to change a data set that is built already."""
        steps_per_beat = json.loads((built / "build.json").read_text(encoding="utf-8"))["steps_per_beat"]
        if self.steps_per_beat not in (None, steps_per_beat) or self.metadata or self.match_scores or self.genres:
            raise InputError(
                f"{built} is built already, with {steps_per_beat} steps per beat and its own genres; leave "
                "steps_per_beat, metadata, match_scores and genres out, or give the MIDI files as data_dir"
            )

    def create_config_id(self, config_kwargs: dict, custom_features: datasets.Features | None = None) -> str:
        """Name the folder in the cache. `datasets` itself would look at the arguments alone, and not into files."""
        return f"{self.name}-{digest([self.source_key(), self.bars, self.stride, str(custom_features)])}"


class LakhMelodies(datasets.GeneratorBasedBuilder):
    """Melody lines, or windows of 16 bars, from the Lakh MIDI Dataset or any MIDI files.

    `data_dir` is a folder of MIDI files, an archive, or a data set built by `python -m dataset_script.build`. Without
    it the Lakh MIDI Dataset (1.8 GB) is downloaded; this is the only thing here that uses the network. Configurations
    are `lines` (the default) and `16bar`; their columns are the same and described in the data set's card.

    Example:
        ```python
        from dataset_script.lakh_melodies import LakhMelodies

        builder = LakhMelodies(config_name="16bar", data_dir="my_midi_folder")
        builder.download_and_prepare(num_proc=8)
        windows = builder.as_dataset(split="train")

        LakhMelodies().download_and_prepare("lakh", file_format="parquet")  # then: datasets.load_dataset("lakh")
        stream = LakhMelodies(data_dir="built").as_streaming_dataset(split="train")
        ```

    Raises:
        InputError: if the source cannot be read, holds no melody, or contradicts the options.
    """

    VERSION = datasets.Version("1.0.0")
    BUILDER_CONFIG_CLASS = LakhMelodiesConfig
    BUILDER_CONFIGS = [  # noqa: RUF012 (as `datasets` declares it)
        LakhMelodiesConfig(name="lines", version=VERSION, description="whole melody lines"),
        LakhMelodiesConfig(name="16bar", version=VERSION, description="windows of 16 bars, side by side", bars=16),
    ]
    DEFAULT_CONFIG_NAME = "lines"

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(
            description="Melody lines found in MIDI files.",
            features=FEATURES,
            homepage="https://colinraffel.com/projects/lmd/",
            license="CC BY 4.0",
        )

    def _split_generators(
        self, dl_manager: datasets.DownloadManager | datasets.StreamingDownloadManager
    ) -> list[datasets.SplitGenerator]:
        built = self.config.built or self._build(dl_manager)
        files = {name: [str(path) for path in sorted(built.glob(f"data/{name}-*.parquet"))] for name in SPLITS}
        # A split without rows is left out: `as_dataset` would fail on it.
        full = [name for name in SPLITS if next(self._generate_examples(files[name]), None)]
        if not full:
            raise InputError(f"no line in {built} is {self.config.bars} bars long; choose fewer bars")
        return [datasets.SplitGenerator(name=name, gen_kwargs={"files": files[name]}) for name in full]

    def _build(self, dl_manager: datasets.DownloadManager | datasets.StreamingDownloadManager) -> Path:
        """Build the data set in the cache, where all configurations find it, unless it is there; return its folder."""
        config = self.config
        built = Path(self.cache_dir).parents[1] / f"built-{config.source_key()}"
        if dl_manager.is_streaming:
            if not built.exists():
                raise InputError(
                    "only a data set that is built already can be streamed; run python -m dataset_script.build and "
                    "give its --output as data_dir, or call download_and_prepare first"
                )
            return built
        options = dl_manager.download_config
        if options.force_download:
            shutil.rmtree(built, ignore_errors=True)
        if not built.exists():
            source = config.data_dir or fetch(config.archive, Path(options.cache_dir))
            settings = Settings(
                steps_per_beat=config.steps_per_beat or Settings.steps_per_beat,
                num_proc=config.num_proc or options.num_proc or Settings.num_proc,
            )
            build_dataset(open_sources(str(source)), built, settings, metadata_from(config))
        return built

    def _generate_examples(self, files: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        bars = self.config.bars
        stride = bars if self.config.stride is None else self.config.stride
        for file in files:
            with pq.ParquetFile(file) as content:
                for batch in content.iter_batches(ROWS_PER_BATCH):
                    if bars is not None and stride is not None:
                        cut = [window for line in batch.to_pylist() for window in windows(line, bars, stride)]
                        # By way of Arrow, so that a stream, which does not encode rows, has float32 as well.
                        batch = pa.Table.from_pylist(cut, FEATURES.arrow_schema)
                    for row in batch.to_pylist():
                        yield row["melody_id"], row
