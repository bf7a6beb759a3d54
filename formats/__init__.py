"""Files that several stages read or write: params.yaml, raw data files, the receipt."""
