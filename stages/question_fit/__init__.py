"""Stage question_fit: rank training answers by how little their question helps the base to predict them.

Reads the checked training rows, whose receipt it verifies, the raw rows and the base model. Writes
``reports/question_fit.json`` with the scores of the answers that fit worst, a page that shows them, and
``data/question_fit.jsonl`` with their raw rows, which ``pipelines.review`` shows as warned ones. Quarantines nothing.
"""
