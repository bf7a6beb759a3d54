"""Stage params: write the resolved parameters, defaults included.

Reads params.yaml. Writes one JSON file. All other stages depend on their sections of that file, so DVC reruns them
when a default in the code changes, but not when params.yaml spells out a default. Fails on an unknown key, an invalid
value, or a path of data that does not exist.
"""

import argparse
import logging
from pathlib import Path

from formats.params_schema import Params, load, resolve
from formats.verdict_params import NO_PROBES
from models.command_line import entry_point
from models.errors import UserError
from models.storage import write_json

log = logging.getLogger("tuneline.params")


def check_paths(params: Params) -> None:
    """Check that the data exist that params.yaml names; DVC would name the path alone, and after other stages ran.

    Raises:
        UserError: a path does not exist, and DVC does not track it either.
    """
    paths = {"ingest.source": params.ingest.source, "ingest.general": params.ingest.general}
    if params.probes is not None:
        paths["evaluate.probes"] = params.probes
    for key, path in paths.items():
        if not Path(path).exists() and not Path(f"{path}.dvc").exists():
            raise UserError(f"params.yaml: {key}: {path} does not exist; check the path.")


@entry_point
def main() -> None:
    parser = argparse.ArgumentParser(description="Write the resolved parameters.")
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    arguments, params = parser.parse_args(), load()
    check_paths(params)
    if params.probes is None and Path(params.evaluate.probes) != Path(NO_PROBES):
        log.info(
            "params: the demo's probes (evaluate.probes) are left out, because ingest.source is other data; set "
            "evaluate.probes to probes of your own, which `python -m pipelines.probes suggest` drafts"
        )
    write_json(arguments.out, resolve(params))


if __name__ == "__main__":
    main()
