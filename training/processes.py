"""The processes of a run: what `accelerate launch` or torchrun has started, joined."""

import logging
import os
import sys

import torch
from accelerate import Accelerator

from command import UserError


def start_accelerator(mixed_precision: str | None, cpu_threads: int | None, **options) -> Accelerator:
    """Join the processes that `accelerate launch` or torchrun has started.

    Args:
        mixed_precision: As accelerate is configured, if None.
        cpu_threads: Of each process on a CPU; its share of the cores, if None.
        **options: Others of [`Accelerator`].

    Raises:
        UserError: If there are several that do not know of each other.
    """
    # Without `cpu`, `accelerate launch --multi_gpu` on a machine without GPUs starts independent single-process runs.
    accelerator = Accelerator(cpu=not torch.accelerator.is_available(), mixed_precision=mixed_precision, **options)
    # It tells of tied weights at every checkpoint, which is no news.
    logging.getLogger("accelerate.utils.other").setLevel(logging.ERROR)
    if (started := int(os.environ.get("WORLD_SIZE", "1"))) != accelerator.num_processes:
        raise UserError(
            f"{started} processes were started but each trains alone; on a CPU: "
            f"accelerate launch --config_file configs/cpu.yaml --num_processes {started} train.py ..."
        )
    if (
        accelerator.mixed_precision == "bf16"
        and accelerator.is_main_process
        and is_bfloat16_emulated(accelerator.device)
    ):
        print(
            "warning: this processor has no bfloat16 arithmetic and emulates it: --mixed_precision no is faster here",
            file=sys.stderr,
        )
    if accelerator.device.type == "cpu":  # accelerate launch leaves each process a single thread
        torch.set_num_threads(cpu_threads or max(1, (os.cpu_count() or 1) // accelerator.num_processes))
    return accelerator


def is_bfloat16_emulated(device: torch.device) -> bool:
    """Whether a device computes bfloat16 by other arithmetic, as x86 processors without AVX-512 do."""
    return device.type == "cpu" and torch.backends.cpu.get_cpu_capability() in ("AVX2", "NO AVX")
