"""What is measured: a model, its inputs and the step that the passes repeat."""

from gpuprof.workload.options import Options
from gpuprof.workload.presets import load_preset, preset_names
from gpuprof.workload.reference import build
from gpuprof.workload.workload import Workload, from_module

__all__ = ["Options", "Workload", "build", "from_module", "load_preset", "preset_names"]
