"""Blend the tunes of two MIDI files: `python blend.py MODEL one.mid other.mid --output DIR`."""

import argparse
from pathlib import Path

import torch
from transformers import AutoModel, AutoProcessor

parser = argparse.ArgumentParser(description="Blend the tunes of two MIDI files.")
parser.add_argument("model", help="id on the Hub, or a folder")
parser.add_argument("midi", nargs=2, help="two MIDI files")
parser.add_argument("--output", type=Path, required=True, help="folder for the melodies")
parser.add_argument("--steps", type=int, default=5, help="melodies to write, both ends included")
args = parser.parse_args()

model = AutoModel.from_pretrained(args.model, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(args.model, trust_remote_code=True)
with torch.no_grad():
    latent = model.encode(**processor(midi=args.midi, return_tensors="pt")).latent_mean
    path = model.interpolate(latent[0], latent[1], steps=args.steps, bars=4)
args.output.mkdir(parents=True, exist_ok=True)
for number, content in enumerate(processor.to_midi_bytes(path), start=1):
    (args.output / f"{number}.mid").write_bytes(content)
print(f"{len(path)} melodies in {args.output}")
