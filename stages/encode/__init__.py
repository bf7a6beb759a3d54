"""Stage encode: encode checked samples as token ids.

Reads ``data/checked`` and ``data/general/checked``, whose receipts it verifies, and the base's tokenizer. Writes
``data/encoded``: token ids of prompt and answer for each split, one row for every answer that ``train.learn`` and the
data's loss flags select. An answer that several rows of the task repeat after the same messages is encoded once.
``train.replay`` sets the share of general conversations among the training conversations. Nothing is truncated or
dropped, because stage validate has checked the token budgets with the same tokenizer. Fails if a receipt does not
match, or if the data were checked with another tokenizer.

``python -m stages.encode --show FILE LINE`` prints the tokens of the rows that are encoded from one line, and which of
them are trained on.
"""
