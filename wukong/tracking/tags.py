"""Names of the tags by which Wukong's runs and models are found in MLflow."""

RUN_TAG = "wukong.run"
ROLE_TAG = "wukong.role"  # of the model that a run of an evaluation logged alone is about
EXPERIMENT_TAG = "wukong.experiment"
PARENT_TAG = "mlflow.parentRunId"
EVALUATION_TAG = "wukong.evaluation.uri"  # of a version of a registered model: its evaluation's manifest
HISTORY_TAG = "wukong.history."  # of a registered model, with an alias behind it: each move of the alias
STAGE_TAG = "wukong.stage"
DIGEST_TAG = "wukong.digest"  # of a stage's manifest, or of a model that MLflow knows by its metrics
MANIFEST_TAG = "wukong.manifest"
COST_TAG = "wukong.cost"  # what a run, or a stage, has held, in a sentence
MODEL_TAG = "wukong.model"  # of the pipeline's run: models:/NAME/VERSION
REVISION_TAG = "mlflow.source.git.commit"
SOURCE_TAG = "wukong.source."  # of the pipeline's run, with a name behind it: the revision it was submitted from
IMAGES_TAG = "wukong.images"  # that pods ran, each with its digest: of a stage's run the stage's, else the components'
