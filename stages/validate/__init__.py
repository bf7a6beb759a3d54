"""Stage validate: no bad sample goes on, and no sample is lost without a reason.

Reads ``data/raw`` in pieces, so that memory stays bounded. Every row is parsed, described by a row of
features, and judged by Great Expectations: by itself, then among all others. Then each goes where it
belongs: to ``data/checked`` with a receipt, or to ``data/quarantine`` with every check it failed. The
books say that rows in = train + eval + quarantined. Fails, before anything is let through, if a
blocking check was hit.
"""
