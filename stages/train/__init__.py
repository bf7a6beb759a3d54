"""Stage train: fit one adapter.

Reads ``data/checked`` and ``data/encoded``, whose receipts are verified before any model loads, and the base model.
Writes the adapter folder with its manifest, and DVCLive's log. Logs the estimated memory. A killed training run resumes
from its latest checkpoint when the stage runs again on the same inputs.

With ``start_from`` the training starts from the weights of the champion, of one of its versions, or of another adapter
folder. These folders are no dependencies: a new champion does not make a trained adapter outdated.

Fails if the data are not those that were checked, if the token ids belong to another tokenizer, if the training does
not fit into memory, if it diverges, or if the reloaded adapter's logits differ from those in memory.
"""
