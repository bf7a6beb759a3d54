"""Stage validate: no bad sample goes on, and no sample is lost without a reason.

Reads ``data/raw``. Every row is parsed, described by a row of features, and judged by Great
Expectations. What passes goes to ``data/checked`` with a receipt, what fails to
``data/quarantine`` with every check it failed; the books say that rows in = train + eval +
quarantined. Fails, before anything is let through, if too many rows are bad or too few are left.
"""
