"""What a prompt costs: FLOPs, bytes and time to the first token, predicted and never measured.

``hardware`` has the constants of chips, ``models`` finds a model's sizes, ``workload`` counts what
our kernels do, ``paper`` what the paper counts, ``ttft`` turns either into times, ``table`` and
``plot`` show them.
"""

from .hardware import HARDWARE, Hardware, find_hardware
from .models import find_draft, find_model
from .ttft import OURS, PAPER, Accounting, Prediction, predict
from .workload import Phase, Setting

__all__ = [
    "HARDWARE",
    "OURS",
    "PAPER",
    "Accounting",
    "Hardware",
    "Phase",
    "Prediction",
    "Setting",
    "find_draft",
    "find_hardware",
    "find_model",
    "predict",
]
