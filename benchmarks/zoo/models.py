"""Every model of the zoo: importing this registers them."""

from importlib import import_module

for _name in (
    "text", "decoders", "seq2seq", "vision", "multimodal", "audio", "series", "plain", "variants",
):  # fmt: skip
    import_module(f"benchmarks.zoo.{_name}")
