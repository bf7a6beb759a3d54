"""Download a data set from a hub: ``python -m pipelines.download hf:OWNER/NAME[@REVISION] --out FOLDER``.

``modelscope:OWNER/NAME[@REVISION]`` names a data set of ModelScope. The folder can then be ``ingest.source`` of
params.yaml. A command and not a stage, because DVC cannot watch a data set on a hub.
"""

import argparse
import sys
from pathlib import Path

from models.command_line import entry_point
from pipelines.processes import run_module
from pipelines.stage_paths import path_options
from texts import translate


@entry_point
def main() -> None:
    parser = argparse.ArgumentParser(description="Download the data files of a data set from a hub.")
    parser.add_argument("dataset", help="hf:OWNER/NAME or modelscope:OWNER/NAME, optionally with @REVISION")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder for the data files")
    arguments = parser.parse_args()
    code = run_module("stages.hub_download", arguments.dataset, *path_options({"out": arguments.out}))
    if code == 0:
        print(translate("Set ingest.source in params.yaml to {folder}.", folder=arguments.out))
    sys.exit(code)


if __name__ == "__main__":
    main()
