"""Stage drift: compare new rows with the champion's training data.

Reads the champion's training rows, files of new rows that passed the same data checks, and the row counts of both
checks. Compares features that are meaningful for Chinese, each by a Kolmogorov-Smirnov test and by the distance of the
distributions, with Evidently, and the share of rows that failed a row check. Writes Evidently's report and a JSON file
with the verdict: ``drift``, ``steady``, or ``unknown`` if there are too few rows. Fails if a file cannot be read.
"""
