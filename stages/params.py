"""Stage params: write the resolved parameters, defaults included.

Reads params.yaml. Writes one JSON file. All other stages depend on their sections of that file, so DVC reruns them
when a default in the code changes, but not when params.yaml spells out a default. Fails on an unknown key or an
invalid value.
"""

import argparse
from pathlib import Path

from formats.params_schema import load, resolve
from models.command_line import entry_point
from models.storage import write_json


@entry_point
def main() -> None:
    parser = argparse.ArgumentParser(description="Write the resolved parameters.")
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    write_json(parser.parse_args().out, resolve(load()))


if __name__ == "__main__":
    main()
