"""Stage train: fit one adapter.

Reads ``data/checked`` and ``data/encoded``, the receipts of which it verifies before any model loads, and the base
model. Tells how much memory it will take, and refuses what does not fit. Writes the adapter folder with its
manifest, and DVCLive's log. Killed, it goes on from its last checkpoint when it runs again on the same inputs.
Fails if the data are not those that were checked, the tokens are another tokenizer's, the loss
diverges, or the adapter as written does not answer as the one in memory.
"""
