"""The parts of ``benchmarks/gpu.py``: each module has ``run(record)``, which makes its checks one after the other."""
