"""The storage behind the Hub: Xet's, as much of it as `hf_xet` asks for when it uploads.

Files come as chunks in xorbs, and as shards that say which chunks make which file; formats from
https://huggingface.co/docs/xet/xorb and https://huggingface.co/docs/xet/shard. Chunks are taken as they are, so
whoever uploads sets HF_XET_XORB_COMPRESSION_POLICY=none.
"""

import hashlib
import struct
from collections.abc import Iterator

BLOCK = 48  # bytes of a shard's header and of every entry in it
BOOKEND = b"\xff" * 32  # in place of a hash, after a section's last entry
HAS_VERIFICATION, HAS_SHA256 = 1 << 31, 1 << 30  # flags of a file


def hash_name(raw: bytes) -> str:
    """Write a hash as Xet does: four little-endian numbers of 64 bits, each in hexadecimal."""
    return "".join(f"{number:016x}" for number in struct.unpack("<4Q", raw))


def chunks_of(xorb: bytes) -> Iterator[bytes]:
    """Take a xorb apart; before each chunk stand version, stored length, compression and length."""
    at = 0
    while at < len(xorb):
        version, compression = xorb[at], xorb[at + 4]
        stored, length = (int.from_bytes(xorb[at + start : at + start + 3], "little") for start in (1, 5))
        if (version, compression, stored) != (0, 0, length):
            raise ValueError(f"chunk of version {version}, compression {compression}: not to be read here")
        yield xorb[at + 8 : at + 8 + stored]
        at += 8 + stored


class Storage:
    """Chunks by xorb; what a shard names is put together from them."""

    def __init__(self):
        self.xorbs: dict[str, list[bytes]] = {}

    def add_xorb(self, name: str, content: bytes) -> bool:
        """Keep a xorb; returns whether it is new."""
        is_new = name not in self.xorbs
        self.xorbs[name] = list(chunks_of(content))
        return is_new

    def files_of(self, shard: bytes) -> Iterator[tuple[str, bytes]]:
        """Put together every file of a shard.

        Yields:
            SHA-256 and content of each.

        Raises:
            ValueError: If what the shard says of a file is not what its chunks are.
        """
        at = BLOCK
        while True:
            name, flags, terms = struct.unpack_from("<32sII", shard, at)
            if name == BOOKEND:
                return
            content = b""
            for term in range(terms):
                xorb, _, size, first, last = struct.unpack_from("<32sIIII", shard, at + BLOCK * (1 + term))
                part = b"".join(self.xorbs[hash_name(xorb)][first:last])
                if len(part) != size:
                    raise ValueError(f"a term of {len(part)} bytes that says {size}")
                content += part
            at += BLOCK * (1 + terms + (terms if flags & HAS_VERIFICATION else 0))
            assert flags & HAS_SHA256
            sha256 = hash_name(shard[at : at + 32])
            if sha256 != hashlib.sha256(content).hexdigest():
                raise ValueError(f"a file that is not {sha256}")
            yield sha256, content
            at += BLOCK
