"""RULER (Hsieh et al., 2024): thirteen tasks made to a token length, without a network."""

from .metrics import string_match_all, string_match_part
from .tasks import SYNTHETIC_TASKS, TASK_NAMES, RulerTask
from .texts import Essay, WordLists, builtin_essay, builtin_words, essay_file, wonderwords

__all__ = [
    "SYNTHETIC_TASKS",
    "TASK_NAMES",
    "Essay",
    "RulerTask",
    "WordLists",
    "builtin_essay",
    "builtin_words",
    "essay_file",
    "string_match_all",
    "string_match_part",
    "wonderwords",
]
