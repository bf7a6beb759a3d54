"""Stage validate, the data gate: checks every row, quarantines bad rows, splits good rows, and writes the receipt.

Data flow, in chunks of rows, so that memory stays bounded::

    data/raw ─▶ bytes ─▶ messages ─▶ features ─▶ findings ─▶ decision ─▶ files
                           │                        ▲           │          ├─ data/checked     splits, receipt
                           ▼                        │           │          ├─ data/quarantine  rows and their faults
                       keys, 4-grams ─▶ duplicates ─┘           │          └─ reports          metrics, Data Docs
                           └──────────────▶ split ◀─────────────┘

Rows in = train + eval + test + quarantined. The data are blocked, and ``data/checked`` and the receipt are not written,
if a check of severity ``block`` fails.

====================  ============================================================================================
module                input → output
====================  ============================================================================================
``__main__``          raw files, params.yaml → ``data/checked``, ``data/quarantine``, reports, verdict
``checks``            params.yaml → the checks with their limits and severities
``rows``              raw files → row table; row table and decision → files of the splits and quarantine
``row_table``         chunk of rows → row table: features, findings, keys, 4-grams, samples
``row_parsing``       bytes of a row → messages, or the reason why it has none
``row_features``      messages → features
``characters``        text → counts by kind of character, prefilter flags, invalid characters
``artifacts_in_text`` prompt and answer → unfilled placeholder, HTML
``assistant_names``   prompt and answer → name of another assistant
``chat_markup``       prompt and answer → role mark or template token; truncated end
``escapes``           messages → literal escape sequence
``mojibake``          text → piece decoded in the wrong encoding
``privacy``           text → personal data, secrets; masked text
``layouts``           row in an unsupported layout → its description and the jq command that converts it
``expectations``      table of features, checks → findings, by Great Expectations
``minhash``           4-grams → MinHash bands
``dedup``             messages → keys; keys and bands → copies, near-duplicates, conflicting answers
``split``             keys, near-duplicates → training, evaluation or test for every row, without leakage
``row_decisions``     row table, checks → decision: quarantine or a split for every row
``length_drift``      tokens per row, record of accepted data → drift of lengths
``dataset_checks``    row table, decision → outcome: row counts, findings, reasons to block the data
``notices``           row table → sentences about layouts, unread keys and the tokenizer
``check_report``      findings → summary for reports; table on the terminal
``data_docs``         outcome → HTML page
``worker_pool``       function, chunks → results in order, by several processes
====================  ============================================================================================

Refusals and boilerplate are found by :mod:`measures.boilerplate`, which the comparison of models uses as well.
"""
