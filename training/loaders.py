"""Batches without end for one process, from any position on: from data on disk, or from a stream."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from itertools import islice
from typing import Any

import datasets
import torch
from datasets.distributed import split_dataset_by_node
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from command import UserError
from training.batches import EndlessBatches, WindowBatches
from training.data import MelodyWindows, count_words, words_of

PREFETCHED = 32  # batches that each reader of a stream holds ready, to bridge the filling of its buffer

Batch = dict[str, torch.Tensor]
Collate = Callable[[list[str]], Batch]


class WindowLoader:
    """Batches of windows that lie on disk; the position is the number of batches given.

    Args:
        windows: Of the data.
        batches: Of all processes.
        collate: Makes a batch of texts.
        rank: Of this process.
        workers: Processes that prepare batches ahead; 0 prepares each when it is asked for.
    """

    def __init__(self, windows: Dataset, batches: WindowBatches, collate: Collate, rank: int, workers: int):
        self.windows = windows
        self.batches = batches
        self.collate = collate
        self.rank = rank
        self.workers = workers
        self.position = 0
        self.tokens_per_window = batches.tokens_per_window
        self.description = f"{batches.num_windows} windows of up to {batches.bars} bars"

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches without end, from the position on."""
        loader = DataLoader(
            self.windows,
            batch_sampler=EndlessBatches(self.batches, self.rank, self.position),
            collate_fn=self.collate,
            num_workers=self.workers,
            pin_memory=torch.cuda.is_available(),  # from there batches are copied while the GPU works
            generator=torch.Generator(),  # else the loader draws from the global random state
        )
        for batch in loader:
            self.position += 1
            yield batch


class StreamLoader:
    """Batches of windows of lines that are read as they are needed; the position says where each reader stands.

    Args:
        stream: Lines, as `datasets` streams them.
        collate: Makes a batch of texts.
        rank: Of this process.
        num_processes: Of all.
        workers: Readers of this process; at least one.
        tokens_per_window: Mean length of a window in tokens, as far as is known.
        options: Of [`LineReader`], the same for all.
    """

    def __init__(
        self,
        stream: datasets.IterableDataset,
        collate: Collate,
        rank: int,
        num_processes: int,
        workers: int,
        tokens_per_window: float,
        **options: Any,
    ):
        self.tokens_per_window = tokens_per_window
        self.description = f"a stream of windows of up to {options['bars']} bars"
        self.workers = max(workers, 1)
        self.readers = [
            LineReader(
                split_dataset_by_node(stream, rank * self.workers + worker, num_processes * self.workers),
                collate,
                seed_of_reader=rank * self.workers + worker,
                **options,
            )
            for worker in range(self.workers)
        ]
        self.position: dict = {"batches": 0, "readers": [None] * self.workers}

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches without end, from the position on; readers take turns."""
        begun = self.position["batches"]
        if len(self.position["readers"]) != self.workers:
            raise UserError(
                f"the checkpoint is of {len(self.position['readers'])} readers of the stream: "
                f"add --dataloader_num_workers {len(self.position['readers'])}"
            )
        loader = DataLoader(
            ReaderTurns(self.readers, self.position["readers"], begun % self.workers),
            batch_size=None,
            num_workers=self.workers,
            prefetch_factor=PREFETCHED,
            generator=torch.Generator(),
        )
        for given, (batch, reader, position) in enumerate(loader, start=begun + 1):
            self.position["batches"] = given
            self.position["readers"][reader] = position
            yield batch


class ReaderTurns(IterableDataset):
    """Gives each worker of a loader the reader whose turn it is when the loader asks that worker first.

    A loader asks its workers in turn, beginning with the first; after a resume the first batch may be another reader's.
    """

    def __init__(self, readers: list["LineReader"], positions: list, first: int):
        self.readers = readers
        self.positions = positions
        self.first = first

    def __iter__(self) -> Iterator[tuple[Batch, int, dict]]:
        """Yield batches, the number of their reader, and where it stands after them."""
        worker = get_worker_info()
        assert worker is not None
        torch.set_num_threads(1)
        reader = (self.first + worker.id) % len(self.readers)
        for batch, position in self.readers[reader].batches(self.positions[reader]):
            yield batch, reader, position


class LineReader:
    """Fills a buffer with lines, gives all its windows in shuffled batches of like length, and fills it again.

    A buffer is treated as a small data set of its own: [`WindowBatches`] draws its windows. Memory holds one buffer.

    Args:
        stream: This reader's lines. After the last it begins anew, with the files in another order.
        collate: Makes a batch of texts.
        tokenizer: Counts tokens.
        is_wanted: Whether a line is trained on.
        buffer_lines: Lines in a buffer, those that are left out counted.
        bars: Length of a window.
        max_tokens: Length of a window in tokens.
        max_duration: Beats, as in [`words_of`].
        transpose: Up to so many semitones up or down.
        batch_size: Windows per batch.
        seed: Of everything drawn.
        seed_of_reader: Makes it differ between readers.
    """

    def __init__(
        self,
        stream: datasets.IterableDataset,
        collate: Collate,
        *,
        tokenizer,
        is_wanted: Callable[[dict], bool],
        buffer_lines: int,
        bars: int,
        max_tokens: int,
        max_duration: int | None,
        transpose: int,
        batch_size: int,
        seed: int,
        seed_of_reader: int,
        short_windows: float = 0.0,
    ):
        self.stream = stream
        self.collate = collate
        self.tokenizer = tokenizer
        self.is_wanted = is_wanted
        self.buffer_lines = buffer_lines
        self.max_duration = max_duration
        self.window_options = {
            "bars": bars,
            "max_tokens": max_tokens,
            "transpose": transpose,
            "batch_size": batch_size,
            "num_batches_multiple": 1,
            "short_windows": short_windows,
            "seed": seed + 7919 * seed_of_reader,
        }

    def batches(self, position: dict | None) -> Iterator[tuple[Batch, dict]]:
        """Yield batches without end, each with the position after it.

        Args:
            position: To go on from; None for the beginning.
        """
        position = position or {"epoch": 0, "stream": None, "buffer": 0, "batches": 0}
        for buffer, epoch, state, lines in self.buffers(position["buffer"], position["epoch"], position["stream"]):
            windows, order = MelodyWindows(lines), WindowBatches(lines, **self.window_options)
            order.epoch = buffer
            skipped = position["batches"] if buffer == position["buffer"] else 0
            for number, keys in enumerate(islice(order, skipped, None), start=skipped + 1):
                after = {"epoch": epoch, "stream": state, "buffer": buffer, "batches": number}
                yield self.collate(windows.__getitems__(keys)), after

    def buffers(
        self, buffer: int, epoch: int, state: dict | None
    ) -> Iterator[tuple[int, int, dict | None, datasets.Dataset]]:
        """Yield buffers of lines, each with its number, its epoch and the stream's state before it.

        Args:
            buffer: Number of the first one.
            epoch: In which it lies.
            state: Of the stream before it; None where the epoch begins with it.

        Raises:
            UserError: If there is no line for this reader.
        """
        found = 0
        while True:
            self.stream.set_epoch(epoch)
            if state is not None:
                self.stream.load_state_dict(state)
            for columns in self.stream.iter(self.buffer_lines):  # unlike iter(stream) it leaves sharing out to us
                rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
                if lines := self.prepare([row for row in rows if self.is_wanted(row)]):
                    found += 1
                    yield buffer, epoch, state, lines
                buffer, state = buffer + 1, deepcopy(self.stream.state_dict())
            if not found:
                raise UserError("too few melodies for so many readers of the stream; leave out --streaming")
            epoch, state = epoch + 1, None

    def prepare(self, rows: list[dict]) -> datasets.Dataset | None:
        """Make a small data set of lines: words, and the tokens of each bar; None of no lines."""
        if not rows:
            return None
        lines = [
            {"bars": row["bars"], "steps_per_beat": row["steps_per_beat"], **words_of(row, self.max_duration)}
            for row in rows
        ]
        counts = count_words([line["words"] for line in lines], self.tokenizer)
        return datasets.Dataset.from_list(
            [line | {"num_tokens": count} for line, count in zip(lines, counts, strict=True)]
        )
