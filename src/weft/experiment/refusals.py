"""What is refused when a run is built, because it makes no sense together."""

from __future__ import annotations

from weft.core.errors import SettingError
from weft.core.method import Method
from weft.data.federated import FederatedData
from weft.experiment.settings import RunSettings


def refuse(method: Method, data: FederatedData, settings: RunSettings) -> None:
    """Raise `SettingError` for a combination that makes no sense."""
    missing = method.needs - {"pooled data"}
    if missing:
        raise SettingError(f"{method.name} needs {', '.join(sorted(missing))}, which a run does not provide yet")
    if "pooled data" in method.needs and settings.cohort != 1:
        raise SettingError(
            f"cohort = {settings.cohort:g} has no meaning for {method.name}, which pools all data: use 1"
        )
    able = data.clients() - len(data.unseen)
    if settings.cohort > able:
        raise SettingError(
            f"cohort = {settings.cohort:g} is more than the {able} clients that train: use at most {able}"
        )
