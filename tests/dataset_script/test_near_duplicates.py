"""Near-duplicates: the kernels against plain Python, what a hash may not depend on, groups, and the leak detector."""

import json
from itertools import combinations, pairwise

import numpy as np
import pytest
from symusic import Note, Score, Tempo, TimeSignature, Track

from benchmarks import near_duplicates as benchmark
from benchmarks.planted_changes import CHANGES
from dataset_script import grouping
from dataset_script.extraction import Batch, extract_lines
from dataset_script.grouping import (
    MAX_NEIGHBOURS,
    MIN_SCORE,
    MIN_WEIGHT,
    WEIGHT_ONE,
    components,
    find_pairs,
    groups,
    verbatim_pairs,
    verified_pairs,
)
from dataset_script.midi_notes import read_notes
from dataset_script.near_duplicates import (
    MAX_HASHES,
    MIN_DISTINCT,
    MIN_LINE_HASHES,
    NOTES,
    line_runs,
    near_duplicate_lines,
    outlines,
    side_by_side,
    signatures,
    stretches,
    verbatim_runs,
)

MASK = 2**64 - 1
TPQ = 120


# --- plain Python ---


def mix(value):
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)


def hash_of(codes):
    value = 0
    for code in codes:
        value = (value * 0x9E3779B97F4A7C15 + mix(code + 1)) & MASK
    return mix(value)


def runs_of(codes, length):
    runs = [codes[at : at + length] for at in range(len(codes) - length + 1)]
    return {hash_of(run) for run in runs if len(set(run)) >= MIN_DISTINCT}


def plain_signature(lines):
    found = set()
    for line in lines:
        found |= runs_of([high - low + 127 for (low, _), (high, _) in pairwise(line)], NOTES - 1)
    return set(sorted(found)[:MAX_HASHES])


def plain_line_runs(line):
    codes = []
    for (_, first), (low, second), (high, third) in zip(line, line[1:], line[2:], strict=False):
        gap, before = third - second, second - first
        codes.append(3 * (high - low + 127) + (1 if 3 * gap > 4 * before else 2 if 4 * gap < 3 * before else 0))
    return runs_of(codes, NOTES - 2)


def plain_pairs(material):
    files = [set(item.tolist()) for item in material]
    weight = {}
    for value in set().union(*files):
        weight[value] = int((WEIGHT_ONE**2 // sum(value in file for file in files)) ** 0.5)
    total = [sum(weight[value] for value in file) for file in files]
    found = []
    for one, other in combinations(range(len(files)), 2):
        both = sum(weight[value] for value in files[one] & files[other])
        if both >= MIN_WEIGHT and both**3 >= MIN_SCORE * total[one] * total[other]:
            found.append((one, other))
    return found


# --- material ---


def random_line(random, notes=101):
    """Return (pitch, start) of a line with repetitions, so that hashes occur more than once."""
    motif = random.integers(55, 80, 17)
    pitch = np.where(random.random(notes) < 0.5, np.resize(motif, notes), random.integers(55, 80, notes))
    return list(zip(pitch.tolist(), np.cumsum(random.integers(1, 5, notes)).tolist(), strict=True))


def flat(files):
    """Turn a list of files, each a list of lines, into the arrays that the kernels take."""
    lines = [line for file in files for line in file]
    notes = np.array([note for line in lines for note in line]).reshape(-1, 2)
    offsets = np.append(0, np.cumsum([len(line) for line in lines], dtype=np.int64))
    owner = np.repeat(np.arange(len(files)), [len(file) for file in files])
    return notes[:, 0].astype(np.uint8), notes[:, 1].astype(np.int32), offsets, owner


def pitches_of(files):
    """The same, without onsets."""
    pitch, _, offsets, owner = flat(files)
    return pitch, offsets, owner


def material_of(files):
    hashes, file = signatures(*pitches_of(files))
    return [hashes[file == index] for index in range(len(files))]


def stretches_of(files):
    hashes, file = stretches(*pitches_of(files))
    return [hashes[file == index] for index in range(len(files))]


def nothing(files):
    """No hashes for each file."""
    return [np.empty(0, dtype=np.uint64)] * len(files)


def sets(material):
    return [set(item.tolist()) for item in material]


def spread(numbers):
    """Return different hashes for different numbers, with all bits in use."""
    return numbers.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)


def tune_file(seed, tracks=3, bars=24):
    """Return a score of melodies that no other seed gives: eighths and quarters, phrases that come again."""
    random = np.random.default_rng(seed)
    score = Score(TPQ)
    score.time_signatures.append(TimeSignature(0, 4, 4))
    score.tempos.append(Tempo(0, 120))
    for number in range(tracks):
        track = Track(f"track {number}", int(random.integers(128)), False)
        phrases = [random.integers(55, 80, 32) for _ in range(3)]
        pitches = np.concatenate([phrases[index] for index in random.integers(0, 3, bars // 4)])
        for index, pitch in enumerate(pitches):
            track.notes.append(Note(index * TPQ // 2, TPQ // 2, int(pitch), 90))
        score.tracks.append(track)
    return score


# --- hashes ---


def test_signatures_equal_plain_python():
    random = np.random.default_rng(0)
    files = [[random_line(random, notes) for notes in sizes] for sizes in ((101, 13, 7), (1500,), (8, 2, 1), (53, 53))]
    found = material_of(files)
    assert sets(found) == [plain_signature(file) for file in files]
    assert [len(item) for item in found] == [len(set(item.tolist())) for item in found]
    assert len(found[1]) == MAX_HASHES
    assert 0 < len(found[0]) < MAX_HASHES


def test_line_runs_equal_plain_python():
    random = np.random.default_rng(1)
    lines = [random_line(random, notes) for notes in (101, 7, 8, 2, 1, 53)]
    hashes, bounds = line_runs(*flat([lines])[:3])
    for line, begin, end in zip(lines, bounds[:-1], bounds[1:], strict=True):
        assert sorted(hashes[begin:end].tolist()) == sorted(plain_line_runs(line))


def test_no_file_and_no_line_have_no_hashes():
    assert [len(item) for item in signatures(*pitches_of([]))] == [0, 0]
    assert [item.tolist() for item in line_runs(*flat([])[:3])] == [[], [0]]
    assert [len(item) for item in stretches(*pitches_of([]))] == [0, 0]
    assert groups([], [], []).tolist() == []


def test_signatures_do_not_depend_on_key_tempo_and_order():
    random = np.random.default_rng(2)
    lines = [random_line(random) for _ in range(3)]
    changed = [[(pitch - 5, start + 16) for pitch, start in line] for line in reversed(lines)]
    assert len(set(map(frozenset, sets(material_of([lines, changed]))))) == 1


@pytest.mark.parametrize("length_ticks", [30, 60, 17], ids=["legato", "overlapping", "staccato"])
def test_notes_half_as_long_are_read_on_the_coarser_grid(length_ticks):
    random = np.random.default_rng(3)
    pitches = random.integers(55, 80, 240).tolist()
    found = []
    for step_ticks, length in ((30, length_ticks), (15, length_ticks / 2)):
        score = Score(TPQ * 2)
        track = Track("", 73, False)
        track.notes.extend(
            [Note(2 * step_ticks * step, round(2 * length), pitch, 90) for step, pitch in enumerate(pitches)]
        )
        score.tracks.append(track)
        lines = extract_lines([read_notes(score.dumps_midi(), 4)], 4)
        found.append(([set(lines.signatures[0].tolist()), set(lines.stretches[0].tolist())], lines.pitch.tolist()))
    (whole, _), (halved, of_copy) = found
    assert len(of_copy) == 121  # every other note is lost
    runs = runs_of([high - low + 127 for low, high in pairwise(of_copy)], NOTES - 1)
    assert len(runs & whole[0]) == len(runs) > 80
    assert len(halved[1] & whole[1]) > 10


def test_trivial_runs_and_runs_across_lines_are_left_out():
    scale, trill = [(60 + step, step) for step in range(40)], [(60 + step % 2, step) for step in range(40)]
    random = np.random.default_rng(4)
    line = random_line(random, 2 * NOTES - 2)
    assert [len(item) for item in material_of([[scale, trill], [line[: NOTES - 1], line[NOTES - 1 :]]])] == [0, 0]


# --- groups ---


def test_pairs_equal_plain_python():
    random = np.random.default_rng(5)
    material = [spread(np.unique(random.integers(0, 90, size))) for size in (31, 47, 5, 61, 0, 29, 37, 71, 43)]
    expected = plain_pairs(material)
    assert 3 < len(expected) < 30
    assert sorted(map(tuple, find_pairs(material).tolist())) == expected


def test_copies_are_grouped_and_strangers_are_not():
    random = np.random.default_rng(6)
    tunes = [[random_line(random) for _ in range(3)] for _ in range(31)]
    copy = [[(pitch + 3, start) for pitch, start in line[:70]] for line in tunes[7][:2]]
    files = [*tunes, copy]
    assert groups(material_of(files), stretches_of(files), nothing(files)).tolist() == [*range(31), 7]


def test_no_common_stretch_no_link():
    random = np.random.default_rng(13)
    line = random_line(random, 240)
    pieces = [line[at : at + 11] for at in range(0, 220, 11)]  # runs of 8 notes in common, and no 16 in one piece
    patchwork = [
        (pitch, 4 * number) for number, (pitch, _) in enumerate(note for piece in pieces[::-1] for note in piece)
    ]
    files = [[line], [patchwork]]
    assert find_pairs(material_of(files)).tolist() == [[0, 1]]
    assert verified_pairs(material_of(files), stretches_of(files)).tolist() == []
    files = [[line], [line[:100]]]
    assert verified_pairs(material_of(files), stretches_of(files)).tolist() == [[0, 1]]


@pytest.mark.parametrize("place", [0, 3, 17, 40])
def test_any_32_notes_in_common_are_a_common_stretch(place):
    random = np.random.default_rng(14)
    one, other = random_line(random, 90), random_line(random, 90)
    shared = [(pitch + 5, start) for pitch, start in one[place : place + 32]]
    first, second = stretches_of([[one], [other[:31] + shared + other[31:]]])
    assert np.isin(first, second).any()


@pytest.mark.parametrize("notes", [0, 1, 7, 15, 16, 32, 60])
def test_stretches_of_a_line_do_not_depend_on_lines_before_it(notes):
    random = np.random.default_rng(15)
    line, before = random_line(random, notes), random_line(random, 90)
    alone, after = stretches_of([[line]])[0], stretches_of([[before], [line]])[1]
    assert alone.tolist() == after.tolist()
    assert len(alone) == 0 if notes < 16 else len(alone) > 0


@pytest.mark.parametrize(("notes", "is_lead", "is_linked"), [(32, True, True), (31, True, False), (32, False, False)])
def test_leads_that_share_32_notes_are_linked(notes, is_lead, is_linked):
    random = np.random.default_rng(16)
    one, other = random_line(random, 150), random_line(random, 150)
    shared = [(pitch - 2, start) for pitch, start in one[50 : 50 + notes]]
    pitch, _, offsets, owner = flat([[one], [other[:70] + shared + other[70:]]])
    hashes, file = verbatim_runs(pitch, offsets, owner, np.array([True, is_lead]))
    assert verbatim_pairs([hashes[file == 0], hashes[file == 1]]).tolist() == [[0, 1]] * is_linked


def test_readings_of_a_file_come_together():
    random = np.random.default_rng(17)
    one, other = (
        [[random_line(random, 20) for _ in range(lines)] for lines in sizes] for sizes in ((2, 0, 1), (1, 2, 0))
    )
    both = [first + second for first, second in zip(one, other, strict=True)]
    found = side_by_side([pitches_of(one), pitches_of(other)])
    assert [values.tolist() for values in found] == [values.tolist() for values in pitches_of(both)]


def test_top_and_bottom_line_do_not_depend_on_tracks():
    random = np.random.default_rng(15)
    right = [(480 * beat, 480, int(pitch)) for beat, pitch in enumerate(random.integers(64, 88, 64))]
    left = [(480 * beat, 480, int(pitch)) for beat, pitch in enumerate(random.integers(36, 60, 64))]
    found = []
    for tracks in ([right, left], [sorted(right + left)]):
        score = Score(480)
        for notes in tracks:
            track = Track(program=0)
            track.notes.extend([Note(start, length, pitch, 90) for start, length, pitch in notes])
            score.tracks.append(track)
        batch = Batch([read_notes(score.dumps_midi(), 4)])
        found.append([values.tolist() for values in outlines(batch.packed, batch.file_notes, batch.stretches)])
    assert found[0] == found[1]
    assert found[0][0] == [pitch for *_, pitch in right] + [pitch for *_, pitch in left]


def test_groups_do_not_depend_on_the_order_of_files():
    random = np.random.default_rng(7)
    tunes = [[random_line(random) for _ in range(2)] for _ in range(11)]
    files = [*tunes, *([line[:60] for line in tune] for tune in tunes[:5])]
    material, stretch = material_of(files), stretches_of(files)
    group = groups(material, stretch, nothing(files))
    assert len(set(group)) == 11
    order = random.permutation(len(material))
    shuffled = groups([material[index] for index in order], [stretch[index] for index in order], nothing(files))
    together = {(one, other) for one, other in combinations(range(16), 2) if group[one] == group[other]}
    place = np.argsort(order)
    assert together == {
        (one, other) for one, other in combinations(range(16), 2) if shuffled[place[one]] == shuffled[place[other]]
    }


def test_what_many_files_share_links_none_of_them():
    random = np.random.default_rng(8)
    cliche = random_line(random, 60)
    files = [[random_line(random, 150), cliche] for _ in range(3 * MAX_NEIGHBOURS)]
    assert find_pairs(material_of(files)).tolist() == []
    few = material_of([[line[:60], cliche] for line, _ in files[:2]])
    assert find_pairs(few).tolist() == [[0, 1]]  # where nobody else has it, it is evidence


def test_more_copies_than_are_compared_with_each_other_are_one_group():
    file = [random_line(np.random.default_rng(9))]
    [whole], [stretch] = material_of([file]), stretches_of([file])
    found = groups(*([item] * (3 * MAX_NEIGHBOURS) for item in (whole, stretch, stretch[:0])))
    assert found.tolist() == [0] * (3 * MAX_NEIGHBOURS)


@pytest.mark.parametrize("part", [3, 64, 1 << 21])
def test_groups_do_not_depend_on_what_is_on_disk_and_sorted_at_a_time(tmp_path, monkeypatch, part):
    random = np.random.default_rng(18)
    tunes = [spread(random.integers(0, 1 << 30, 60)) for _ in range(61)]

    def files(of_tune, others):
        """Return hashes of 97 files that share some with those of the same tune, and few with others."""
        chosen = (random.choice(tunes[file % 61], of_tune, replace=False) for file in range(97))
        return [np.unique(np.append(some, spread(random.integers(0, 9000, others)))) for some in chosen]

    material, stretch, verbatim = files(25, 31), files(7, 3), files(0, 11)
    expected, pairs = groups(material, stretch, verbatim), verified_pairs(material, stretch)
    assert 5 < len(pairs) < len(find_pairs(material))
    assert len(verbatim_pairs(verbatim)) > 5
    assert 1 < len(set(expected.tolist())) < 97
    monkeypatch.setattr(grouping, "LARGE_BYTES", 0)
    monkeypatch.setattr(grouping, "PART_HASHES", part)
    assert groups(material, stretch, verbatim, tmp_path).tolist() == expected.tolist()
    assert sorted(verified_pairs(material, stretch, tmp_path).tolist()) == sorted(pairs.tolist())
    assert not any(tmp_path.iterdir())


def test_two_hashes_are_no_evidence():
    two, three = spread(np.arange(2)), spread(np.arange(3))
    assert groups([two, two], [two, two], nothing([1, 2])).tolist() == [0, 1]
    assert groups([three, three], [two, two], nothing([1, 2])).tolist() == [0, 0]
    assert groups([three, three], [two, three[2:]], nothing([1, 2])).tolist() == [0, 1]


def test_components_are_named_by_their_smallest_member():
    assert components(7, np.array([(6, 5), (5, 3), (1, 2)])).tolist() == [0, 1, 1, 3, 4, 3, 3]


# --- planted copies, through MIDI files and extraction ---


@pytest.fixture(scope="module")
def tunes():
    corpus = benchmark.Corpus()
    contents = {f"{seed:032x}": tune_file(seed).dumps_midi() for seed in range(13)}
    corpus.add(list(contents), list(contents.values()))
    assert len(corpus.md5) == 13
    return contents, corpus


def test_tunes_of_their_own_are_not_grouped(tunes):
    _, corpus = tunes
    assert groups(*corpus.hashes, corpus.verbatim).tolist() == list(range(13))


@pytest.mark.parametrize("kind", CHANGES)
def test_planted_copies_are_grouped(tunes, kind):
    contents, corpus = tunes
    planted, changed = benchmark.Corpus(), 0
    for number, (md5, content) in enumerate(contents.items()):
        score = Score.from_midi(content)
        CHANGES[kind](score, np.random.default_rng([0, number]))
        copy = score.dumps_midi()
        changed += copy != content
        planted.add([md5], [copy])
    assert changed > 6  # a shuffle may leave the tracks as they are
    found = groups(*benchmark.joined(corpus.hashes, planted.hashes), corpus.verbatim + planted.verbatim)
    assert found.tolist() == [*range(13), *range(13)]


# --- what leaks ---


def test_near_duplicate_lines_on_a_case_made_by_hand():
    random = np.random.default_rng(10)
    line, other, stranger = (random_line(random, 60) for _ in range(3))
    plain = [(60 + step % 3, step) for step in range(60)]
    slower_and_higher = [(pitch + 7, 3 * start) for pitch, start in line]
    quarter = [*line[:20], *((pitch, start + 500) for pitch, start in random_line(random, 60))]
    references = line_runs(*flat([[other, line, plain]])[:3])
    queries = line_runs(*flat([[slower_and_higher, line[:25], stranger, plain, quarter, other[:9], []]])[:3])
    match, is_plain = near_duplicate_lines(queries, references)
    assert match.tolist() == [1, 1, -1, -1, -1, -1, -1]
    assert is_plain.tolist() == [False, False, False, True, False, True, True]


def test_a_short_reference_inside_a_line_is_its_near_duplicate():
    line = random_line(np.random.default_rng(11), 200)
    match, _ = near_duplicate_lines(line_runs(*flat([[line]])[:3]), line_runs(*flat([[line[50:80]]])[:3]))
    assert match.tolist() == [0]


def test_near_duplicate_lines_equal_plain_python():
    random = np.random.default_rng(12)
    pool = [random_line(random, 40) for _ in range(5)]
    lines = [[*pool[one][:cut], *((pitch, start + 200) for pitch, start in pool[other])]
             for one, other, cut in random.integers([0, 0, 0], [5, 5, 40], (23, 3))]  # fmt: skip
    queries, references = lines[:12], lines[12:]
    match, _ = near_duplicate_lines(line_runs(*flat([queries])[:3]), line_runs(*flat([references])[:3]))
    sizes = [plain_line_runs(line) for line in references]
    for line, found in zip(queries, match, strict=True):
        runs = plain_line_runs(line)
        near = {
            index
            for index, other in enumerate(sizes)
            if min(len(runs), len(other)) >= MIN_LINE_HASHES and 2 * len(runs & other) >= min(len(runs), len(other))
        }
        assert found in near if near else found == -1


def test_without_references_nothing_leaks():
    lines = line_runs(*flat([[random_line(np.random.default_rng(13))]])[:3])
    assert near_duplicate_lines(lines, line_runs(*flat([])[:3]))[0].tolist() == [-1]


# --- the benchmark ---


def test_benchmark_from_end_to_end(tmp_path, tunes, capsys):
    contents, _ = tunes
    folder = tmp_path / "midi"
    folder.mkdir()
    for md5, content in contents.items():
        (folder / f"{md5}.mid").write_bytes(content)
    (folder / "broken.mid").write_bytes(b"MThd")
    output = tmp_path / "new" / "report.json"
    assert benchmark.main(["--input", str(folder), "--output", str(output), "--planted", "5", "--datasketch"]) == 0
    report = json.loads(output.read_text(encoding="utf-8"))
    assert report["files_with_melody"] == 13
    assert set(report["ours"]["recall"]) == set(CHANGES)
    assert report["ours"]["lowest_recall"] == 1
    assert report["ours"]["share_of_pairs_grouped"] == 0
    assert report["ours"]["mirror_images"]["links"] == 0
    assert set(report["datasketch"]["thresholds"]) == {str(threshold) for threshold in benchmark.THRESHOLDS}
    assert "largest group: 1 files" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--input", "missing.mid"], "does not exist"), (["--input", ".", "--dataset", "."], "no training split")],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert benchmark.main([*arguments, "--output", "report.json"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error
