"""What a run has cost, for people: a sentence, a row for each stage, and how it was found out."""

from collections.abc import Sequence
from typing import Any

from wukong.runs import run_costs
from wukong.runs.run_costs import Held, StageCost
from wukong.runtime.amounts import size
from wukong.runtime.language import _
from wukong.stages.prices import Prices, in_currency

_NOT_KNOWN = _("not known")
_HOW = {
    "pods": _(
        "Held is what the pods of a stage's Ray cluster and of its submitter request, from the time when they were "
        "scheduled until the stage's job ended. Used is the processor time of the Ray containers' control groups."
    ),
    "ray": _(
        "Held is what Ray was given, for as long as the stage's job ran; runs at the same time hold it together. Used "
        "is the processor time of the job's processes on the driver's machine."
    ),
}


def shown(costs: Sequence[StageCost], prices: Prices) -> dict[str, Any]:
    """Return what a page shows; empty if the run has no jobs.

    Args:
        costs: of the run's stages.
        prices: without any, there is no money.
    """
    if not costs:
        return {}
    sources = dict.fromkeys(each.source for each in costs if each.source is not None)
    explained = [_HOW[source] for source in sources]
    explained.append(_("Components' own pods and processes are not in it."))
    explained.append(_("Written are the files that the manifests of the stage's job name."))
    return {"said": said(costs, prices), "rows": [_row(each, prices) for each in costs], "how": explained}


def said(costs: Sequence[StageCost], prices: Prices) -> list[str]:
    """Return the sentences that say what a run, or a stage as a run of MLflow, has cost."""
    if all(each.held is None for each in costs):
        return [_("What this run held is not known.")]
    together, sentences = run_costs.total(costs), []
    held = together.held or Held()
    idle = _idle(held)
    hours = {"core_hours": _at_least(_number(held.core_hours), held), "gpu_hours": _number(held.gpu_hours)}
    if idle:
        text = _("This run held {core_hours} core-hours and {gpu_hours} GPU-hours, {idle} idle.")
    else:
        text = _("This run held {core_hours} core-hours and {gpu_hours} GPU-hours.")
    sentences.append(text.format(**hours, idle=idle))
    if held.core_hours and not idle:
        sentences.append(_("How much of it was idle is not known."))
    if missing := ", ".join(each.stage for each in costs if each.held is None):
        sentences.append(_("Of {missing} it is not known.").format(missing=missing))
    if prices:
        money = _at_least(in_currency(prices.held(held.core_hours, held.gib_hours, held.gpu_hours)), held)
        if together.written is None:
            sentences.append(_("The run costs {money}; what it stores is not known.").format(money=money))
        else:
            month = in_currency(prices.stored(together.written))
            sentences.append(
                _("The run costs {money}, what it stores {month} a month.").format(money=money, month=month)
            )
    return sentences


def _row(cost: StageCost, prices: Prices) -> dict[str, str]:
    name = _("{stage} (reused)").format(stage=cost.stage) if cost.reused else cost.stage
    written = _NOT_KNOWN if cost.written is None else size(cost.written)
    row = dict.fromkeys(("core_hours", "gib_hours", "gpu_hours", "idle", "money"), _NOT_KNOWN)
    if (held := cost.held) is not None:
        hours = {
            name: _at_least(_number(getattr(held, name)), held) for name in ("core_hours", "gib_hours", "gpu_hours")
        }
        money = _at_least(in_currency(prices.held(held.core_hours, held.gib_hours, held.gpu_hours)), held)
        row |= {**hours, "idle": _idle(held) or ("-" if not held.core_hours else _NOT_KNOWN), "money": money}
    return {"stage": name, **row, "written": written} | ({} if prices else {"money": ""})


def _at_least(text: str, held: Held) -> str:
    return text if held.ended else _("at least {text}").format(text=text)


def _idle(held: Held) -> str:
    """The share of the cores that was idle; with the core-hours that it is a share of, where not all were measured."""
    if held.idle is None:
        return ""
    share = f"{100 * held.idle:.0f} %"
    # Sums of the same numbers in another order differ in their last digits.
    return (
        share
        if held.measured > 0.999 * held.core_hours
        else _("{share} of {measured} core-hours").format(share=share, measured=_number(held.measured))
    )


def _number(value: float) -> str:
    return f"{value:,.1f}" if value >= 1 else f"{value:.2g}"
