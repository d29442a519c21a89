"""Export a trained melody VAE to ONNX: `python export_onnx.py --model DIR_OR_ID --output DIR`.

Writes encoder.onnx, bar_conditioner.onnx, decoder.onnx (a step, with a cache of keys and values), prior.onnx,
critic.onnx, onnx_config.json, onnx_tables.npz and `onnx_melody_vae`, which runs them with numpy and onnxruntime alone.
Needs `pip install -e ".[onnx]"`.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from command import run_command
from publishing.onnx.export import export_and_compare


def make_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(description="Export a trained melody VAE to ONNX, for use without torch.")
    parser.add_argument("--model", required=True, metavar="DIR_OR_ID", help="folder or Hub id of the model")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for the ONNX files")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    args = make_parser().parse_args(argv)
    return run_command(export_and_compare, args.model, Path(args.output))


if __name__ == "__main__":
    sys.exit(main())
