"""Training and held-out prompts for the packaged modules: retrieval, prose, code and chats."""

from .corpora import Corpora, Document, find_texts, read_corpora, write_corpora
from .draft import Draft
from .recipe import KINDS, Recipe, Sample, samples, write_jsonl

__all__ = [
    "KINDS",
    "Corpora",
    "Document",
    "Draft",
    "Recipe",
    "Sample",
    "find_texts",
    "read_corpora",
    "samples",
    "write_corpora",
    "write_jsonl",
]
