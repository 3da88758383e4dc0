"""LongBench (Bai et al., 2024): its sixteen English tasks, from the published JSONL files."""

from .tasks import TASK_NAMES, LongBenchTask

__all__ = ["TASK_NAMES", "LongBenchTask"]
