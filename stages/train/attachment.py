"""Settings of an adapter, with the names of linear layers that the base has."""

from formats import training_params
from models.base_model import Base
from models.families import family_of


def resolve_attachment(adapter: training_params.Adapter, base: Base) -> dict:
    """Return the keyword arguments of :func:`models.adapters.attach_adapter`.

    Raises:
        UserError: the base has no linear layer of a name.
    """
    attachment = adapter.attachment()
    if "target_modules" in attachment:
        family = family_of(base)
        attachment["target_modules"] = family.linear_names(attachment["target_modules"], family.load_config(base))
    return attachment
