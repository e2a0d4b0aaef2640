"""All runs of a comparison have the weights that the first of them had, whatever becomes of their model on the hub."""

from pipeline.comparison.plan import Plan, make_plan
from pipeline.hub_revision import at_its_commit


def at_one_commit(plan: Plan) -> Plan:
    """The plan with the model of every run at the commit that its hub id is at now; a directory stays as it is.

    Raises:
        OSError: as `at_its_commit`.
    """
    model = plan.cells[0].settings.model  # which all runs share
    pinned = at_its_commit(model)
    if pinned == model:
        return plan
    # In quotation marks, for some commits look like numbers.
    overrides = (*plan.comparison.overrides, f'model.revision="{pinned.revision}"')
    return make_plan(plan.comparison.model_copy(update={"overrides": overrides}), plan.folder)
