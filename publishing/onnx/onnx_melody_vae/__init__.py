"""Run an exported melody VAE without torch and transformers; lies beside the graphs that `export_onnx.py` writes.

```python
model = OnnxMelodyVAE("onnx")
ids = model.sample(4, seed=0, bars=8, conditions={"key": "D minor"})
lines = model.read_lines(ids)  # pitch, start and duration of the notes, in grid steps
mean, log_variance = model.encode(model.write_lines(lines))
```

The same latents give the same melodies as in torch, token by token; a seed gives others, as numpy draws other numbers.
"""

from .operations import OnnxMelodyVAE

__all__ = ["OnnxMelodyVAE"]
