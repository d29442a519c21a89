"""The parts of training: schedules, curriculum and genre balance, objective, averaged weights, warnings, loaders."""

import math
from pathlib import Path

import datasets
import pytest
import torch
from accelerate.state import AcceleratorState
from torch import nn
from transformers import get_scheduler

from command import UserError
from dataset_script import build
from modeling.line_writing_melody_vae import line_to_words
from tests.builders.midi_files import midi_bytes, tune
from tests.builders.training import make_batches
from training.averaging import AveragedWeights
from training.batches import EndlessBatches, WindowBatches, genre_weights
from training.data import check_grid, evaluation_windows, load_lines, load_split, words_of
from training.loaders import StreamLoader
from training.objective import smoothing_nats
from training.optimizers import NEWTON_SCHULZ, NEWTON_SCHULZ_STEPS, build_optimizer, orthogonalised
from training.options import OWN_FILES, SCHEDULES, parse_args
from training.processes import start_accelerator
from training.schedules import curriculum_pacing, kl_weight_at, learning_rate_schedule
from training.validation import is_best, is_time_to_stop, warnings_of


def rates(name: str, steps: int, warmup: int, min_ratio: float = 0.0) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    schedule = learning_rate_schedule(name, optimizer, warmup, steps, min_ratio)
    found = []
    for _ in range(steps + 1):
        found.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return found


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_are_transformers_own_above_a_floor(name):
    plain, raised = rates(name, 31, 7), rates(name, 31, 7, 0.25)
    if name != "constant":  # which knows no warm-up
        assert raised[:8] == pytest.approx([0.5 * step / 7 for step in range(8)])
    assert raised[8:] == pytest.approx([0.25 * 0.5 + 0.75 * rate for rate in plain[8:]])
    assert min(raised[8:]) >= 0.125 * (1 - 1e-9)
    if name == "cosine":
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
        theirs = get_scheduler("cosine_with_min_lr", optimizer, 7, 31, {"min_lr_rate": 0.25})
        for rate in raised:
            assert theirs.get_last_lr()[0] == pytest.approx(rate)
            optimizer.step()
            theirs.step()


def test_kl_weight_rises_to_its_full():
    weights = [kl_weight_at(step, 0.5, 5) for step in range(8)]
    assert weights == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.5, 0.5, 0.5])
    assert kl_weight_at(0, 0.5, 0) == 0.5


def test_pacing_grows_exponentially_from_its_start_to_all():
    share = curriculum_pacing(0.2, 11, rounds_per_step=3)(torch.arange(50))
    assert share[0] == pytest.approx(0.2)
    assert torch.all(share[33:] == 1)
    ratios = share[1:33] / share[:32]
    torch.testing.assert_close(ratios, ratios[:1].expand(32))  # an exponential


@pytest.fixture
def lines(dataset):
    """Lines of the data set, with a complexity and a genre each: 3 of jazz, the others of rock or unknown."""
    whole = load_lines(str(dataset), "train", "lead")
    rows = []
    for number, row in enumerate(whole):
        found = words_of(row)
        genre = "jazz" if number < 3 else ("rock" if number % 2 else None)
        tokens = [len(word) for word in found["words"]]
        rows.append(
            {"bars": row["bars"], "steps_per_beat": 4, "complexity": (number * 7 % 26) / 26, "genre": genre}
            | found
            | {"num_tokens": tokens}
        )
    return datasets.Dataset.from_list(rows)


def test_tunes_are_the_leads_that_lie_on_the_grid(tmp_path):
    for number in range(23):
        late = 15 * (number % 2)  # ticks: every other file lies half-way between two steps of 30
        notes = [(start + late, length, pitch) for start, length, pitch in tune(8, seed=number)]
        (tmp_path / f"{number}.mid").write_bytes(midi_bytes([{"notes": notes, "name": "melody", "program": 73}]))
    built = tmp_path / "built"
    assert build.main(["--input", str(tmp_path), "--output", str(built)]) == 0
    every = load_lines(str(built), "train", "all")
    tunes = load_lines(str(built), "train", "lead")
    assert 0 < len(tunes) < len(every)
    assert tunes["melody_id"][:] == [line["melody_id"] for line in every if line["is_lead"] and line["grid_fit"] > 0.6]
    stream = load_split(str(built), "train", "lead", streaming=True)
    assert [line["melody_id"] for line in stream] == tunes["melody_id"][:]
    plain = datasets.load_dataset("parquet", data_files=str(built / "data" / "train*"), split="train")
    plain.to_parquet(tmp_path / "plain" / "train.parquet")
    assert len(load_lines(str(tmp_path / "plain"), "train", "lead")) == sum(every["is_lead"][:])


def draw(lines, epochs: int, **options) -> list[list[int]]:
    """Lines of each batch's windows."""
    batches = WindowBatches(lines, 16, 10**6, 6, 5, 1, seed=0, **options)
    endless = iter(EndlessBatches(batches, 0, 0))
    return [[line for line, *_ in next(endless)] for _ in range(epochs * batches.num_rounds)]


def test_a_curriculum_begins_with_the_simplest(lines):
    complexity = lines["complexity"][:]
    batches = draw(lines, 8, pacing=curriculum_pacing(0.2, 20, 1))
    ranks = sorted(complexity)
    # Rounds are shuffled within a pool, and an epoch here is one pool: of the first epoch all windows are simple ones.
    rounds = len(batches) // 8
    share = curriculum_pacing(0.2, 20, 1)(torch.tensor([rounds]))
    most = max(complexity[line] for batch in batches[:rounds] for line in batch)
    assert most <= ranks[math.ceil(float(share) * len(ranks))] + 0.1
    assert most < max(complexity)
    late = {line for batch in batches[-rounds:] for line in batch}
    assert max(complexity[line] for line in late) == max(complexity)
    means = [sum(complexity[line] for batch in batches[at : at + rounds] for line in batch) for at in (0, rounds * 7)]
    assert means[0] < means[1]


def test_without_a_curriculum_an_epoch_is_a_permutation(lines):
    finished = draw(lines, 1, pacing=curriculum_pacing(0.2, 0, 1))
    plain = draw(lines, 1)
    windows = len(WindowBatches(lines, 16, 10**6, 6, 5, 1, seed=0).line) // 5 * 5
    assert len(plain) * 5 == len(finished) * 5 == windows
    for batches in (plain, finished):
        counts = torch.bincount(torch.tensor(batches).flatten(), minlength=len(lines))
        limits = (torch.tensor(lines["bars"][:]) / 16).ceil()
        assert torch.all(counts <= limits)


def test_short_windows_have_any_number_of_bars(lines):
    bars = lines["bars"][:]
    lengths = {}
    for share in (0.0, 0.5):
        batches = WindowBatches(lines, 16, 10**6, 6, 5, 1, seed=0, short_windows=share)
        endless = iter(EndlessBatches(batches, 0, 0))
        keys = [key for _ in range(300) for key in next(endless)]
        assert all(0 <= first < last <= bars[line] for line, first, last, _ in keys)
        lengths[share] = [last - first for line, first, last, _ in keys if bars[line] >= 16]
    assert set(lengths[0.0]) == {16}
    assert set(lengths[0.5]) == set(range(1, 17))
    assert sum(length < 16 for length in lengths[0.5]) / len(lengths[0.5]) == pytest.approx(15 / 32, abs=0.06)


def test_genre_temperature_balances_genres(lines):
    line = torch.arange(len(lines))
    genres = lines["genre"][:]
    share = {}
    for temperature in (1.0, 2.0, 1e6):
        weight = genre_weights(genres, line, temperature)
        assert weight.mean() == pytest.approx(1)
        is_jazz = torch.tensor([genre == "jazz" for genre in genres])
        share[temperature] = float(weight[is_jazz].sum() / weight.sum())
    counts = [genres.count(genre) for genre in ("jazz", "rock", None)]
    assert share[1.0] == pytest.approx(counts[0] / sum(counts))
    assert share[2.0] == pytest.approx(counts[0] ** 0.5 / sum(count**0.5 for count in counts))
    assert share[1e6] == pytest.approx(1 / 3, abs=1e-4)
    drawn = [genres[line] for batch in draw(lines, 200, genre_temperature=1e6) for line in batch]
    windows = WindowBatches(lines, 16, 10**6, 6, 5, 1, seed=0).num_windows
    assert drawn.count("jazz") / len(drawn) == pytest.approx(1 / 3, abs=5 / windows**0.5 / 10)


def test_processes_share_the_batches_of_every_round(dataset):
    """Uneven data never hang: every process gets a batch in every round, of windows of like length."""
    world = 3
    batches = make_batches(dataset, num_batches_multiple=world, batch_size=2)
    every = list(batches)
    assert len(every) == batches.num_rounds * world
    for rank in range(world):
        endless = iter(EndlessBatches(make_batches(dataset, num_batches_multiple=world, batch_size=2), rank, 0))
        assert [next(endless) for _ in range(batches.num_rounds)] == every[rank::world]
    later = make_batches(dataset, num_batches_multiple=world, batch_size=2)
    later.epoch = 2
    skipped = iter(EndlessBatches(make_batches(dataset, num_batches_multiple=world, batch_size=2), 1,
                                  2 * batches.num_rounds + 3))  # fmt: skip
    assert next(skipped) == list(later)[3 * world + 1]


def test_label_smoothing_is_torchs_own():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 11, 53, generator=generator)
    labels = torch.randint(53, (3, 11), generator=generator)
    labels[1, 7:] = -100
    for smoothing in (0.0, 0.1, 0.7):
        both = [
            nn.functional.cross_entropy(
                logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="none", label_smoothing=amount
            )
            for amount in (0.0, smoothing)
        ]
        plain, smooth = (each.view(3, 10).sum(1) for each in both)
        torch.testing.assert_close(plain + smoothing * smoothing_nats(logits, labels), smooth)


def test_averaged_weights():
    """Three steps in exact numbers, with decays of 2/11, 3/12 and 4/13; at step 82, (1 + t) / (10 + t) is past 0.9."""
    model = nn.Linear(1, 1)
    model.bias.requires_grad_(False)
    nn.init.zeros_(model.weight)
    average = AveragedWeights(model, 0.9)
    for step, weight, mean in ((1, 11, 9), (2, 13, 12), (3, 25, 21), (82, 31, 22)):
        nn.init.constant_(model.weight, weight)
        average.update(step)
        with average.applied():
            assert model.weight.item() == pytest.approx(mean, rel=1e-6)
        assert model.weight.item() == weight
    other = AveragedWeights(model, 0.9)
    other.load_state_dict(average.state_dict())
    assert torch.equal(other.mean[0], average.mean[0])
    with pytest.raises(ValueError, match="a mean of 1 tensors for 0"):
        AveragedWeights(model, 0.0).load_state_dict(average.state_dict())


def evaluations(*bits: float, active: int = 30, reconstruction: float | None = None, melodies: int = 99) -> list[dict]:
    return [
        {
            "step": 100 * number,
            "bits_per_note": value,
            "active_units": active,
            "validation_melodies": melodies,
            "reconstruction_nats": value if reconstruction is None else reconstruction,
        }
        for number, value in enumerate(bits, start=1)
    ]


@pytest.mark.parametrize("shape", [(3, 8, 24), (2, 24, 8), (1, 16, 16)])
def test_orthogonalising_keeps_singular_vectors_and_evens_singular_values(shape):
    torch.manual_seed(0)
    matrices = torch.randn(shape, dtype=torch.float64)
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    found = left.mT @ orthogonalised(matrices) @ right.mT  # diagonal: the new singular values
    values = torch.diagonal(found, dim1=-2, dim2=-1)
    assert (found - torch.diag_embed(values)).abs().max() < 1e-9
    assert 0.6 < values.min() <= values.max() < 1.3


@pytest.mark.parametrize("decades", [1, 5, 20])  # over which singular values spread; the least ones are zero, rounded
def test_orthogonalising_in_single_precision_is_the_iteration_step_by_step(decades):
    torch.manual_seed(0)
    matrices = torch.randn(2, 40, 96) @ (
        torch.randn(96, 24) @ torch.logspace(0, -decades, 24).diag() @ torch.randn(24, 96)
    )
    a, b, c = NEWTON_SCHULZ
    rows = matrices.double() / torch.linalg.matrix_norm(matrices.double(), keepdim=True)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = rows @ rows.mT
        rows = a * rows + (b * gram + c * gram @ gram) @ rows
    found = orthogonalised(matrices)
    assert found.dtype == torch.float32
    assert ((found - rows).norm() / rows.norm()).item() < 2e-3


def muon_and_adamw(steps: int, **kept):
    """Train a small net by Muon; returns it and its optimizer. `kept`: states to begin with."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(5, 8), nn.Linear(8, 12), nn.LayerNorm(12), nn.Linear(12, 5, bias=False))
    optimizer = build_optimizer(net, "muon", 0.01, 0.1)
    if kept:
        net.load_state_dict(kept["net"])
        optimizer.load_state_dict(kept["optimizer"])
    tokens = torch.arange(5)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(tokens), tokens).backward()
        optimizer.step()
    return net, optimizer


def test_muon_takes_linear_layers_and_adamw_the_rest():
    before = muon_and_adamw(0)[0].state_dict()
    net, optimizer = muon_and_adamw(1)
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    of_muon = {names[id(p)] for group in optimizer.param_groups if "momentum" in group for p in group["params"]}
    assert of_muon == {"1.weight", "3.weight"}
    after = net.state_dict()
    step = (after["1.weight"] - (1 - 0.01 * 0.1) * before["1.weight"]) / (0.01 * 0.2 * 12**0.5)
    values = torch.linalg.svdvals(step)[:5]  # five tokens: a gradient of rank five
    assert 0.6 < values.min() <= values.max() < 1.3  # whatever the gradient's were
    for name in ("1.bias", "2.weight"):
        step = (after[name] - before[name]).abs()
        torch.testing.assert_close(step, torch.full_like(step, 0.01))  # AdamW's first


def test_muon_goes_on_from_its_state():
    half, optimizer = muon_and_adamw(3)
    resumed, _ = muon_and_adamw(3, net=half.state_dict(), optimizer=optimizer.state_dict())
    whole, _ = muon_and_adamw(6)
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name


def test_early_stopping_waits_for_its_patience():
    history = evaluations(5, 4, 4.1, 4.05, 4.2)
    assert [is_time_to_stop(history[:count], 2) for count in range(1, 6)] == [False, False, False, True, True]
    assert not is_time_to_stop(history, 0)
    assert [is_best(history[:count]) for count in range(1, 6)] == [True, True, False, False, False]


def test_overfitting_is_told_once_and_with_a_remedy():
    history = evaluations(5, 4, 4.1, 4.2, 4.3)
    told = [warnings_of(history[:count], 0, 0.05, 0) for count in range(1, 6)]
    assert [len(each) for each in told] == [0, 0, 0, 1, 0]
    assert "best at step 200" in told[3][0]
    assert "--lora_rank" in told[3][0]
    assert not any(warnings_of(evaluations(5, 4, 4.02, 4.03)[:count], 0, 0.05, 0) for count in range(1, 5))
    # The latent carries more, and reconstruction is no worse: that is no overfitting.
    assert not warnings_of(evaluations(5, 4, 4.3, 4.4, reconstruction=3.0), 0, 0.05, 0)


def test_collapse_is_told_after_the_warm_up():
    history = evaluations(5, 4, 3, active=2)
    told = [warnings_of(history[:count], 64, 0.05, 200) for count in range(1, 4)]
    assert [len(each) for each in told] == [0, 1, 0]
    assert "2 of 64" in told[1][0]
    assert "kl_weight" in told[1][0]
    assert not warnings_of(evaluations(5, active=4), 64, 0.05, 0)
    assert not warnings_of(evaluations(5, active=0, melodies=1), 64, 0.05, 0)  # which of them vary, one cannot tell
    assert not warnings_of(evaluations(5, active=0), 0, 0.05, 0)  # a model without a latent


def test_long_notes_are_cut_in_beats(dataset):
    row = {**load_lines(str(dataset), "train", "lead")[0], "duration": [1, 4, 5, 8] + [2] * 1000}
    row["duration"] = row["duration"][: len(row["pitch"])]
    cut = {**row, "duration": [min(steps, 4) for steps in row["duration"]]}
    assert words_of(row, 1)["words"] == line_to_words(cut) != words_of(row)["words"]


def test_another_grid_is_refused():
    class Processor:
        steps_per_beat = 4

    check_grid("data", datasets.Dataset.from_dict({"steps_per_beat": [4, 4]}), Processor())
    with pytest.raises(UserError, match=r"data: 12 steps per beat.*--steps_per_beat 4"):
        check_grid("data", datasets.Dataset.from_dict({"steps_per_beat": [4, 12]}), Processor())


def test_evaluation_reads_a_stream_no_further_than_needed():
    lines = ({"words": [str(number)] * 5} for number in range(10**9))
    texts = evaluation_windows(lines, 2, 7, None)
    assert sorted(texts) == sorted(["0 0", "0 0", "0", "1 1", "1 1", "1", "2 2"])


class Texts:
    """A collator that leaves texts as they are."""

    def __call__(self, texts: list[str]) -> list[str]:
        return texts


class Tokenizer:
    """One token for each character."""

    def __call__(self, words: list[str], **_) -> dict:
        return {"input_ids": [list(word) for word in words]}


@pytest.fixture(scope="module")
def shards(dataset, tmp_path_factory) -> Path:
    """The data set in three uneven files, which no two or four readers can share evenly."""
    folder = tmp_path_factory.mktemp("shards")
    whole = datasets.Dataset.from_parquet(
        str(dataset / "train-00000-of-00001.parquet"), cache_dir=str(folder / "cache")
    )
    for number, (begin, end) in enumerate(((0, 3), (3, 17), (17, len(whole)))):
        whole.select(range(begin, end)).to_parquet(folder / f"train-{number:05d}-of-00003.parquet")
    return folder


def stream_loader(shards: Path, rank: int = 0, processes: int = 1, workers: int = 1) -> StreamLoader:
    return StreamLoader(
        load_split(str(shards), "train", "lead", streaming=True),
        Texts(),
        rank,
        processes,
        workers,
        tokens_per_window=1.0,
        tokenizer=Tokenizer(),
        is_wanted=lambda line: True,
        buffer_lines=5,
        bars=16,
        max_tokens=10**6,
        max_duration=None,
        transpose=0,
        batch_size=2,
        seed=0,
    )


def take(loader: StreamLoader, count: int) -> list:
    return [batch for batch, _ in zip(loader, range(count), strict=False)]


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_stream_goes_on_where_it_stood(shards, workers):
    whole = take(stream_loader(shards, workers=workers), 60)
    assert len({tuple(batch) for batch in whole}) > 30
    for stop in (7, 24):
        loader = stream_loader(shards, workers=workers)
        batches = iter(loader)
        for _ in range(stop):
            next(batches)
        resumed = stream_loader(shards, workers=workers)
        resumed.position = loader.position
        assert take(resumed, 60 - stop) == whole[stop:]
    wrong = stream_loader(shards, workers=3)
    wrong.position = loader.position
    with pytest.raises(UserError, match=f"--dataloader_num_workers {workers}"):
        next(iter(wrong))


def test_streams_of_processes_are_apart_and_never_end(shards):
    """Uneven shards never hang: every process gets as many batches as it asks for, in an epoch of lines of its own."""
    read = []
    for rank in range(2):
        loader, first_epoch = stream_loader(shards, rank, 2), set()
        for number, batch in enumerate(loader):
            if loader.position["readers"][0]["epoch"] == 0:
                first_epoch |= {text for text in batch if text.count(" ") == 15}
            if number == 50:
                break
        assert loader.position["readers"][0]["epoch"] > 1
        read.append(first_epoch)
    assert all(read)
    assert not read[0] & read[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--lora_rank", "8"], "--lora_rank 8: adapters need a trained model"),
        (["--lora_rank", "8", "--init_from", "x", "--train_only", "norm"], "leave out --lora_rank"),
        (["--ema_decay", "1"], "--ema_decay less than 1"),
        (["--label_smoothing", "1.5"], "--label_smoothing 1.5: must be from 0 to 1"),
        (["--max_train_steps", "0"], "--max_train_steps 0: must be more than 0"),
        (["--streaming", "--curriculum", "complexity"], "leave out --curriculum"),
        (["--model_type", "rnn", "--init_from", "x"], "goes on from the melody VAE only"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(UserError) as error:
        parse_args(["--dataset", "nowhere", "--output_dir", "out", *options])
    assert message in str(error.value)


def test_own_files_have_defaults_of_their_own(tmp_path):
    (tmp_path / "a.mid").write_bytes(b"")
    argv = ["--dataset", str(tmp_path), "--output_dir", "out"]
    assert parse_args(argv).max_train_steps == 25_000
    args = parse_args([*argv, "--init_from", "model", "--learning_rate", "5"])
    assert args.learning_rate == 5
    assert {name: getattr(args, name) for name in OWN_FILES} == {**OWN_FILES, "learning_rate": 5}


@pytest.mark.parametrize(
    ("precision", "capability", "is_warned"), [("bf16", "AVX2", True), ("bf16", "AVX512", False), ("no", "AVX2", False)]
)
def test_emulated_bfloat16_is_warned_of(precision, capability, is_warned, monkeypatch, capsys):
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: capability)
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    AcceleratorState._reset_state(reset_partial_state=True)
    start_accelerator(precision, cpu_threads=1)
    AcceleratorState._reset_state(reset_partial_state=True)
    assert ("--mixed_precision no is faster" in capsys.readouterr().err) == is_warned
