"""Files made to do harm, of every kind, in the place of every file that a command opens.

    uv run python -m tests.hostile                     all cases, a table, status 1 where one is not as it must be
    uv run python -m tests.hostile --command report    of one command; --file model.json, --kind pickle likewise

A lean subset runs with the tests (``test_corpus.py``).
"""
