"""What one step does: files in, files out, one module for each stage of dvc.yaml."""

import os

# Tuneline is quiet. The libraries that a stage imports read these once.
for _name, _value in {
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "1",
    "ITERATIVE_DO_NOT_TRACK": "1",
    "GX_ANALYTICS_ENABLED": "false",
}.items():
    os.environ.setdefault(_name, _value)
