"""Stage encode: encode checked samples as token ids.

Reads ``data/checked`` and ``data/general/checked``, whose receipts it verifies, and the base's tokenizer. Writes
``data/encoded``: token ids of prompt and answer for each split; ``train.replay`` sets the share of general
conversations among the training rows. Nothing is truncated or dropped, because stage validate has checked the token
budgets with the same tokenizer. Fails if a receipt does not match, or if the data were checked with another tokenizer.

``python -m stages.encode --show FILE LINE`` prints the tokens of one row and which of them are trained on.
"""
