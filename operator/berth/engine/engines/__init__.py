"""Engines behind the Triton model: TensorRT-LLM's LLM API, and a simulated one that stands for a GPU on a laptop."""
