"""Stage params: write the resolved parameters, defaults included.

Reads params.yaml. Writes one JSON file. All other stages depend on their sections of that file, so DVC reruns them
when a default in the code changes, but not when params.yaml spells out a default. Fails on an unknown key or an
invalid value.
"""

import argparse
import logging
from pathlib import Path

from formats.params_schema import load, resolve
from formats.verdict_params import NO_PROBES
from models.command_line import entry_point
from models.storage import write_json

log = logging.getLogger("tuneline.params")


@entry_point
def main() -> None:
    parser = argparse.ArgumentParser(description="Write the resolved parameters.")
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    arguments, params = parser.parse_args(), load()
    if params.probes is None and Path(params.evaluate.probes) != Path(NO_PROBES):
        log.info(
            "params: the demo's probes (evaluate.probes) are left out, because ingest.source is other data; set "
            "evaluate.probes to probes of your own, which `python -m pipelines.probes suggest` drafts"
        )
    write_json(arguments.out, resolve(params))


if __name__ == "__main__":
    main()
