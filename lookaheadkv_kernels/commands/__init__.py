"""Subcommands of ``lookaheadkv``, one a file: ``add_parser`` declares it, ``run`` does it.

What a subcommand needs beyond torch is imported when it runs.
"""
