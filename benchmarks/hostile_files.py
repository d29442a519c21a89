"""Files by which strangers, or accidents, may try a reader of MIDI files."""

import random

KINDS = ("tracks", "notes", "chords", "overlaps", "lyrics", "tempos", "meters", "programs", "names", "bars")
LARGEST = 32_000


def mutate(content: bytes, generator: random.Random) -> bytes:
    """Alter a file: bytes, bits, pieces left out, doubled, exchanged, or cut off."""
    data = bytearray(content)
    for _ in range(generator.choice([1, 1, 2, 5, 20])):
        at, length = generator.randrange(len(data)), generator.choice([1, 2, 4, 16, 64])
        match generator.randrange(6):
            case 0:
                data[at] = generator.randrange(256)
            case 1:
                data[at] ^= 1 << generator.randrange(8)
            case 2:
                del data[at : at + length]
            case 3:
                data[at:at] = data[at : at + length]
            case 4:
                data[at:at] = generator.randbytes(length)
            case 5:
                data[at : at + 4] = generator.choice([b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"MTrk"])
        if not data:
            return b""
    return bytes(data[: generator.randrange(len(data))] if generator.random() < 0.1 else data)


def chunk(events: bytes) -> bytes:
    """Write a track."""
    return b"MTrk" + (len(events) + 4).to_bytes(4, "big") + events + b"\0\xff\x2f\0"


def on(status: int, size: int, ticks: int = 0) -> bytes:
    """Write as many events so many ticks apart, of all pitches in turn."""
    return b"".join(bytes([ticks, status, number % 128, 64]) for number in range(size))


def hostile_file(kind: str, size: int) -> bytes:
    """Write a file of about `size` of what its kind has too many of."""
    note = b"\0\x90\x3c\x40\x60\x80\x3c\0"
    tracks = {
        "tracks": lambda: [chunk(note)] * size,
        "notes": lambda: [chunk(note * size)],
        "chords": lambda: [chunk(on(0x90, size) + b"\x83\x60\x80\x00\0" + on(0x80, size))],
        "overlaps": lambda: [chunk(on(0x90, size, 7) + on(0x80, size, 7))],
        "lyrics": lambda: [chunk((b"\0\xff\x05\x02la" + note) * size)],
        "tempos": lambda: [chunk(b"\x10\xff\x51\x03\x07\xa1\x20" * size + note * 64)],
        "meters": lambda: [chunk(b"\x10\xff\x58\x04\x07\x03\x18\x08" * size + note * 64)],
        "programs": lambda: [chunk(b"".join(bytes([0, 0xC0, number % 128]) + note for number in range(size)))],
        "names": lambda: [chunk(b"\0\xff\x03\x04name" * size + note * 64)],
        "bars": lambda: [chunk((b"\x00\x90\x3c\x40\x83\x60\x80\x3c\0" + b"\xff\xff\x7f\xb0\x07\x40") * (size // 64))],
    }[kind]()
    return b"MThd\0\0\0\6" + bytes([0, 1]) + min(len(tracks), 65535).to_bytes(2, "big") + b"\1\xe0" + b"".join(tracks)
