"""The run's report as a KFP component."""

from kfp import dsl

from components.container_image import DATA_IMAGE


@dsl.component(base_image=DATA_IMAGE, install_kfp_package=False)
def report(
    experiment: str,
    run: str,
    evaluate_manifest: dsl.Input[dsl.Artifact],
    registration: dsl.Input[dsl.Metrics],
    page: dsl.Output[dsl.HTML],
) -> None:
    """Make one page of the whole run: funnel, results beside chance, examples, times, lineage.

    Args:
        experiment: URI of the experiment.
        run: name of the pipeline run.
        evaluate_manifest: manifest of the evaluate stage; the others are found through it.
        registration: what the register stage decided.
        page: the report, one self-contained HTML file.
    """
    from components.stage import write_report

    write_report(experiment, run, evaluate_manifest.path, dict(registration.metadata), page.path)
