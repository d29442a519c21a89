"""train.py with FSDP2 on a CPU: torch can shard there, and accelerate does not let it.

accelerate 1.15 takes FSDP up where the processes have GPUs; on a CPU, `ACCELERATE_USE_FSDP` is passed over without a
word and the model is copied to every process (`AcceleratorState.__init__`). Here processes that are joined by gloo are
called what accelerate asks for; all that follows is its own code and torch's, on tensors in main memory.
"""

import sys

import accelerate.state
from accelerate.utils import DistributedType

import train


class ShardingState(accelerate.state.PartialState):
    """What processes know of each other; identical but for their kind."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_GPU


accelerate.state.PartialState = ShardingState

if __name__ == "__main__":
    sys.exit(train.main())
