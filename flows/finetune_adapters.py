"""Flow finetune_adapters: the main job as a Prefect run.

``python -m flows.finetune_adapters`` runs it once, with a server of its own if none is configured.
"""

from prefect import flow

from pipelines import finetune


@flow(log_prints=True)
def finetune_adapters(targets: tuple[str, ...] = ()) -> None:
    """Reproduce what changed and log the short comparison."""
    print(finetune.finetune(targets))


if __name__ == "__main__":
    finetune_adapters()
