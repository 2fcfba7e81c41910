"""A page for the UI: how many pairs each step kept, and the dataset card."""

from kfp import dsl

from components.container_image import DATA_IMAGE


@dsl.component(base_image=DATA_IMAGE, install_kfp_package=False)
def data_card(
    crawl_manifest: dsl.Input[dsl.Artifact],
    filter_manifest: dsl.Input[dsl.Artifact],
    validate_manifest: dsl.Input[dsl.Artifact],
    page: dsl.Output[dsl.Markdown],
    metrics: dsl.Output[dsl.Metrics],
    card: dsl.Output[dsl.HTML],
) -> None:
    """Show the funnel from query to training pair, where the data lies, and the dataset card.

    Args:
        crawl_manifest: manifest of the crawl stage.
        filter_manifest: manifest of the filter stage.
        validate_manifest: manifest of the validate stage.
        page: the funnel.
        metrics: its numbers.
        card: the dataset card, one self-contained HTML file.
    """
    from pathlib import Path

    from components.pages import warned
    from components.stage import load_artifact
    from wukong.report.card import page_for_frame
    from wukong.report.pages import funnel, numbers

    with warned(page.path):
        manifests = [load_artifact(entry.path) for entry in (crawl_manifest, filter_manifest, validate_manifest)]
        Path(page.path).write_text(funnel(manifests), encoding="utf-8")
        for name, value in numbers(manifests).items():
            metrics.log_metric(name, value)
        Path(card.path).write_text(page_for_frame(manifests[-1].uri), encoding="utf-8")
