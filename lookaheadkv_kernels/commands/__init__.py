"""Subcommands of ``lookaheadkv``, one per file: ``add_parser`` declares it, ``run`` does it.

What a subcommand needs beyond torch is imported when it runs.
"""
