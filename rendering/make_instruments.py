"""Cut the instruments of the Space and of `generate.py` out of a sound font.

`python -m rendering.make_instruments --font FluidR3Mono_GM.sf3` writes `space/static/instruments/`: for each program of
`space/static/instruments.json` a FLAC file of its samples, one after the other, and `samples.json`, which says where
each lies, for which pitches it is, where it loops, and how it fades. Debian's package fluidr3mono-gm-soundfont has the
font; its licence, MIT, lies beside the files.
"""

import argparse
import io
import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from command import run_command

ROOT = Path(__file__).parents[1]
STATIC = ROOT / "space/static"
SAMPLE_RATE = 22050
TARGETS = (40, 50, 60, 69, 78, 88)  # MIDI pitches near which a sample is kept
MAX_SECONDS = 2.6  # of a sample that does not loop
AFTER_LOOP = 96  # samples that are kept, for those who interpolate at its end
VELOCITY = 100
# Generators of the SoundFont 2.04 specification, section 8.1.
KEY_RANGE, VELOCITY_RANGE, INSTRUMENT, SAMPLE, LOOP, ROOT_KEY = 43, 44, 41, 53, 54, 58
COARSE, FINE, ATTACK, DECAY, SUSTAIN, RELEASE = 51, 52, 34, 36, 37, 38
RECORDS = {
    "phdr": "<20sHHHIII",
    "pbag": "<HH",
    "pgen": "<HH",
    "inst": "<20sH",
    "ibag": "<HH",
    "igen": "<HH",
    "shdr": "<20sIIIIIBbHH",
}


def chunks(data: bytes) -> Iterator[tuple[str, bytes]]:
    """List the chunks of a RIFF file, those within lists too."""
    at = 0
    while at + 8 <= len(data):
        name, size = data[at : at + 4].decode("latin-1"), struct.unpack("<I", data[at + 4 : at + 8])[0]
        body = data[at + 8 : at + 8 + size]
        if name in ("RIFF", "LIST"):
            yield from chunks(body[4:])
        else:
            yield name, body
        at += 8 + size
        at += size % 2 and data[at : at + 1] == b"\0"  # the writer of this font does not pad all odd chunks


class SoundFont:
    """A sound font with compressed samples (sf3)."""

    def __init__(self, path: Path):
        found = dict(chunks(path.read_bytes()))
        self.samples = found["smpl"]
        self.records = {name: list(struct.iter_unpack(form, found[name])) for name, form in RECORDS.items()}

    def zones(self, head: str, bag: str, gen: str, index: int, first_bag: int) -> list[dict[int, int]]:
        """Read the zones of a preset or an instrument as generators; a global zone's hold for those after it."""
        records = self.records
        begin, end = records[head][index][first_bag], records[head][index + 1][first_bag]
        shared: dict[int, int] = {}
        zones = []
        for place in range(begin, end):
            low, high = records[bag][place][0], records[bag][place + 1][0]
            own = dict(records[gen][low:high])
            if place == begin and not {INSTRUMENT, SAMPLE} & own.keys():
                shared = own
            else:
                zones.append(shared | own)
        return zones

    def layers(self, program: int) -> list[dict[int, int]]:
        """List the sample zones of a program of the first bank."""
        preset = next(i for i, each in enumerate(self.records["phdr"]) if each[1] == program and each[2] == 0)
        zones = []
        for outer in self.zones("phdr", "pbag", "pgen", preset, 3):
            if INSTRUMENT in outer:
                zones += self.zones("inst", "ibag", "igen", outer[INSTRUMENT], 1)
        return [zone for zone in zones if SAMPLE in zone and includes(zone, VELOCITY_RANGE, VELOCITY)]

    def sample(self, number: int) -> tuple[np.ndarray, tuple[Any, ...]]:
        """Decode a sample, mono; and its record."""
        record = self.records["shdr"][number]
        audio, _ = soundfile.read(io.BytesIO(self.samples[record[1] : record[2]]), dtype="float64")
        return (audio if audio.ndim == 1 else audio.mean(1)), record


def includes(zone: dict[int, int], generator: int, value: int) -> bool:
    """Say whether a zone's range has a value."""
    low, high = divmod(zone[generator], 256)[::-1] if generator in zone else (0, 127)
    return low <= value <= high


def signed(value: int) -> int:
    """Read a generator's amount as a signed number."""
    return value - 65536 if value >= 32768 else value


def seconds(zone: dict[int, int], generator: int) -> float:
    """Read a time of an envelope, which is in timecents."""
    return 2 ** (signed(zone.get(generator, 65536 - 12000)) / 1200)


def resample(audio: np.ndarray, rate: int) -> np.ndarray:
    """Bring a sound to `SAMPLE_RATE`, by its spectrum."""
    count = round(len(audio) * SAMPLE_RATE / rate)
    spectrum = np.fft.rfft(audio)[: count // 2 + 1]
    return np.fft.irfft(np.pad(spectrum, (0, count // 2 + 1 - len(spectrum))), count) * count / len(audio)


def cut_sample(font: SoundFont, zone: dict[int, int]) -> tuple[np.ndarray, dict[str, Any]]:
    """Cut a zone's sample as short as it may be, and say how it is played."""
    audio, record = font.sample(zone[SAMPLE])
    rate, loop = record[5], (record[3], record[4])
    is_looped = zone.get(LOOP, 0) in (1, 3) and loop[1] - loop[0] > 32 and loop[1] <= len(audio)
    end = min(len(audio), loop[1] + AFTER_LOOP if is_looped else round(MAX_SECONDS * rate))
    audio = resample(audio[:end], rate)
    if not is_looped:
        fade = min(len(audio), SAMPLE_RATE // 5)
        audio[-fade:] *= np.linspace(1, 0, fade)
    root = signed(zone[ROOT_KEY]) if signed(zone.get(ROOT_KEY, 65535)) >= 0 else record[6]
    cents = 100 * signed(zone.get(COARSE, 0)) + signed(zone.get(FINE, 0)) + record[7]
    played: dict[str, Any] = {"root": round(root - cents / 100, 4), "seconds": round(len(audio) / SAMPLE_RATE, 6)}
    if is_looped:
        played["loop"] = [round(edge / rate, 7) for edge in loop]
    played |= {"attack": round(min(seconds(zone, ATTACK), 0.15), 4), "decay": round(min(seconds(zone, DECAY), 20), 3)}
    played |= {"sustain": round(10 ** (-min(zone.get(SUSTAIN, 0), 1000) / 200), 4)}
    return audio, played | {"release": round(min(max(seconds(zone, RELEASE), 0.08), 0.6), 3)}


def write_instrument(font: SoundFont, program: int, folder: Path) -> list[dict[str, Any]]:
    """Write a program's samples; returns what `samples.json` says of them."""
    zones, kept = font.layers(program), []
    for target in TARGETS:
        zone = next((zone for zone in zones if includes(zone, KEY_RANGE, target)), None)
        if zone is not None and all(zone is not other for other in kept):
            kept.append(zone)
    parts, said, now = [], [], 0
    for zone in kept:
        audio, played = cut_sample(font, zone)
        loudness = np.sqrt(np.mean(audio[: SAMPLE_RATE // 2] ** 2))
        parts.append(0.9 * audio / np.abs(audio).max())
        # Instruments are to be equally loud, whatever their peaks.
        level = 0.12 * np.abs(audio).max() / (0.9 * max(loudness, 1e-9))
        said.append({"at": round(now / SAMPLE_RATE, 6), "level": round(min(level, 1.0), 4), **played})
        parts.append(np.zeros(SAMPLE_RATE // 20))  # so that no sample is heard in another's last moment
        now += len(audio) + SAMPLE_RATE // 20
    sound = np.rint(np.concatenate(parts) * 32767).astype(np.int16)
    soundfile.write(folder / f"{program}.flac", sound, SAMPLE_RATE, subtype="PCM_16", format="FLAC")
    return sorted(said, key=lambda sample: sample["root"])


def make(args: argparse.Namespace) -> None:
    """Write all instruments."""
    folder = STATIC / "instruments"
    folder.mkdir(exist_ok=True)
    font = SoundFont(args.font)
    programs = [each["program"] for each in json.loads((STATIC / "instruments.json").read_text(encoding="utf-8"))]
    said = {str(program): write_instrument(font, program, folder) for program in programs}
    text = ",\n".join(f'"{program}": {json.dumps(samples)}' for program, samples in said.items())
    (folder / "samples.json").write_text(f"{{\n{text}\n}}\n", encoding="utf-8")
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{len(said)} instruments, {sum(map(len, said.values()))} samples, {size / 1e6:.2f} MB in {folder}")


def main() -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--font", type=Path, required=True, metavar="FILE", help="a sound font of the kind sf3")
    return run_command(make, parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
